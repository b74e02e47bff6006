"""This module says how figures are drawn: sizes, colours that follow the page's light or dark scheme, and SVG text for
the page.

Text stays text in the SVG, so it can be read aloud and searched. Each colour of the palette becomes a CSS variable
with the light scheme's value as its fallback, so a figure in a file of its own looks right too.
"""

from __future__ import annotations

import html
import io
import re
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.text import Text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

INK, SOFT, LINE, PAPER = "#1b1f24", "#59636e", "#d5dae0", "#ffffff"
#: The light scheme's colours and what the dark scheme shows instead. Hues: Okabe & Ito, safe for the colour-blind.
PALETTE = {
    INK: "#e6e9ed", SOFT: "#a3adb8", LINE: "#39424d", PAPER: "#14181d",
    "#0072b2": "#5cb3e6", "#56b4e9": "#8fd0f5", "#d55e00": "#f0883e", "#e69f00": "#ffc24d", "#009e73": "#3fc79e",
    "#cc79a7": "#e3a3c6", "#f0e442": "#f0e442", "#882255": "#d46a9f", "#44aa66": "#63cf87", "#bbccee": "#4c5d85",
    "#2496ed": "#6bb8f7", "#444444": "#c3cad2", "#005082": "#7fa8d9", "#983e00": "#d98a5a", "#00694a": "#6fae97",
    "#666666": "#a0a8b0", "#999999": "#8b949e", "#2f6f4f": "#7fd6ad", "#7a4b9d": "#c39be0", "#8c5a2b": "#d9a066",
}  # fmt: skip
WIDE_INCHES, NARROW_INCHES = 8.2, 3.7
#: matplotlib's own keys; their type is a union of all that there are.
_STYLE: Any = {
    "svg.hashsalt": "coldbench",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": SOFT,
    "xtick.color": SOFT,
    "xtick.labelcolor": INK,
    "ytick.color": SOFT,
    "ytick.labelcolor": INK,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "legend.frameon": False,
}
_HEX = re.compile(r"#[0-9a-f]{6}(?=[;\"])", re.IGNORECASE)


def canvas(height_inches: float, *, narrow: bool = False) -> Figure:
    """Makes an empty figure of the report's width, or of a phone's, in the report's style."""
    with mpl.rc_context(_STYLE):
        return Figure(figsize=(NARROW_INCHES if narrow else WIDE_INCHES, height_inches), layout="constrained")


def axes_of(
    figure: Figure, rows: int = 1, columns: int = 1, *, share_x: bool = False, share_y: bool = True
) -> list[Axes]:
    """Returns the axes of a grid in reading order, in the report's style."""
    with mpl.rc_context(_STYLE):
        grid = figure.subplots(rows, columns, squeeze=False, sharey=share_y, sharex=share_x)
    return list(grid.flat)


def svg(figure: Figure, alternative: str) -> str:
    """Returns the figure as an ``<svg>`` element with a text alternative; the same figure gives the same text."""
    for word in figure.findobj(Text):
        # What was written outside the style has matplotlib's black, which a dark page would swallow.
        if isinstance(word, Text) and word.get_color() == "black":
            word.set_color(INK)
    buffer = io.StringIO()
    with mpl.rc_context(_STYLE):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = _HEX.sub(_variable, text)
    name = html.escape(alternative, quote=True)
    return text.replace("<svg ", f'<svg role="img" aria-label="{name}" ', 1)


def standalone(figure: Figure, alternative: str) -> str:
    """Returns the figure as a file of its own: an SVG that follows the reader's light or dark scheme by itself."""
    style = (
        f"<style>svg {{ {scheme(dark=False)} }} @media (prefers-color-scheme: dark) {{ svg {{ {scheme(dark=True)} }} }}"
    )
    text = svg(figure, alternative)
    end = text.index(">") + 1
    return f"{text[:end]}\n{style}</style>{text[end:]}"


def _variable(found: re.Match[str]) -> str:
    colour = found[0].lower()
    return f"var(--c{colour[1:]},{colour})" if colour in PALETTE else found[0]


def scheme(*, dark: bool) -> str:
    """Writes the palette as CSS declarations, for ``:root``."""
    return " ".join(f"--c{light[1:]}: {night if dark else light};" for light, night in PALETTE.items())


def legend_below(figure: Figure, entries: Sequence[tuple[str, str]], columns: int) -> None:
    """Draws a legend of coloured fields under the figure."""
    handles: list[Artist] = [Patch(color=colour, label=name) for name, colour in entries]
    with mpl.rc_context(_STYLE):
        figure.legend(handles=handles, loc="outside lower center", ncols=columns, fontsize=8)


def seconds(value: float) -> str:
    """Writes a time in a figure: ``0.42 s``, ``12.3 s``."""
    return f"{value:.2f} s" if value < 10 else f"{value:.1f} s"
