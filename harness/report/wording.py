"""This module writes numbers in reports: units, significant figures, and never a ratio without its interval."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from harness.stats.breakeven import BreakEven
    from harness.stats.paired import PairedRatio

#: An en dash stands where there is no number.
NO_NUMBER = "\u2013"


#: Stands where there is a number that nobody here can know, such as a foreign daemon's counters.
NOT_KNOWN = "not known"


def count(value: float | None, *, measured: bool = True) -> str:
    """Writes a whole number; ``NOT_KNOWN`` where something was measured, but not this."""
    if value is None:
        return NOT_KNOWN if measured else NO_NUMBER
    return f"{value:.0f}"


def seconds(value: float | None) -> str:
    """Writes ``3.42 s``, ``85.1 s``, ``4 min 05 s``; ``NO_NUMBER`` where there is none."""
    if value is None or math.isnan(value):
        return NO_NUMBER
    if math.isinf(value):
        return "never"
    if value >= 180:
        return f"{int(value // 60)} min {int(value % 60):02d} s"
    return f"{value:.3f} s" if value < 1 else f"{value:.2f} s" if value < 10 else f"{value:.1f} s"


def size(value: float | None) -> str:
    """Writes bytes in decimal units, as links and registries are rated."""
    if value is None:
        return NO_NUMBER
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(value) >= factor:
            return f"{value / factor:.3g} {unit}" if value < 100 * factor else f"{value / factor:.0f} {unit}"
    return f"{value:.0f} B"


def ratio(result: PairedRatio | None) -> str:
    """Writes ``0.14x [0.12, 0.17]``; says so where too few blocks give no interval."""
    if result is None:
        return NO_NUMBER
    if result.low is None or result.high is None:
        return f"{figures(result.ratio, 2)}x (n={result.blocks}: no interval)"
    digits = 3 if result.ratio < 10 else 2
    return f"{figures(result.ratio, digits)}x [{figures(result.low, digits)}, {figures(result.high, digits)}]"


_MARKUP = re.compile(r"[\\`*<>#|~&]|(?<!\w)_|_(?!\w)|(?<=\])\(|(?<=https):|(?<=http):|(?<=www)\.", re.IGNORECASE)


def markdown(text: str) -> str:
    """Writes text from outside as plain text in GitHub Markdown: one line, no row, heading, tag, link, picture or
    mention.

    A mention needs its ``@`` beside the name, which no backslash prevents: a character of no width stands between.
    """
    line = " ".join(text.split())
    return _MARKUP.sub(lambda found: "\\" + found[0], line).replace("@", "@\u200b")


def figures(value: float, digits: int, sign: str = "") -> str:
    """Writes so many significant figures, and all of the digits before the point: 133, not 1.3e+02.

    ``sign`` is ``+`` where a positive number shows its sign.
    """
    whole = abs(value) >= 10**digits - 0.5
    return f"{value:{sign}.0f}" if whole else f"{value:{sign}.{digits}g}"


def times_sooner(result: PairedRatio | None) -> str:
    """Writes the ratio the other way round, for the sentence at the top: ``7.1 times sooner [5.9, 8.3]``."""
    if result is None or result.low is None or result.high is None:
        return ""
    if result.ratio <= 1:
        return f"{1 / result.ratio:.3g} times sooner [{1 / result.high:.3g}, {1 / result.low:.3g}]"
    return f"{result.ratio:.3g} times later [{result.low:.3g}, {result.high:.3g}]"


def meeting(point: BreakEven | None, result: PairedRatio | None) -> str:
    """Writes a break-even with its range, as far as the ratio's interval supports one.

    An overhead that the interval does not show has no break-even: only the earliest time that it cannot exclude.
    """
    if point is None or result is None or result.low is None:
        return NO_NUMBER
    if point.saving_s <= 0:
        return "nothing was saved"
    if math.isinf(point.low):
        return "never" if math.isinf(point.high) else f"not before {seconds(point.high)}"
    return f"{seconds(point.seconds)} [{seconds(point.high)}, {seconds(point.low)}]"
