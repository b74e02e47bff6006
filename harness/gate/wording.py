"""This module writes comparisons and gates: values with units, ratios with intervals, and what is proven marked."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.model.metrics import METRICS, family
from harness.report import wording

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.gate.comparing import Compared
    from harness.gate.lines import Line


def value(metric: str, number: float) -> str:
    """Writes a metric's value with its unit."""
    unit = METRICS[family(metric)].unit
    if unit == "bytes":
        return wording.size(number)
    if unit == "s":
        return wording.seconds(number) if number >= 0.1 else f"{1e3 * number:.3g} ms"
    return f"{number:.0f}" if number == int(number) else f"{number:.1f}"


def percent(share: float) -> str:
    """Writes a share as a percentage with two figures at most."""
    return f"{wording.figures(100 * share, 2)} %"


def change(ratio: float) -> str:
    """Writes a ratio as a change: ``+12 %``, ``-3.1 %``."""
    return f"{wording.figures(100 * (ratio - 1), 2, '+')} %"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Writes a GitHub table; it escapes what would end a cell."""
    lines = ["| " + " | ".join(header) + " |", "|" + "|".join(" --- " for _ in header) + "|"]
    return lines + [
        "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row) + " |" for row in rows
    ]


def said(line: Line) -> str:
    """Writes the verdict, in bold only where the difference survives the correction."""
    if line.verdict is None:
        return "for information"
    if line.verdict in {"regression", "improvement"}:
        return f"**{line.verdict}**"
    return line.verdict


def time_rows(lines: Sequence[Line]) -> list[list[str]]:
    """Writes one row per line: case, metric, both medians, ratio with interval, smallest detectable change, verdict."""
    return [
        [
            line.case,
            line.metric,
            value(line.metric, line.baseline),
            value(line.metric, line.candidate),
            f"**{wording.ratio(line.ratio)}**" if line.proven else wording.ratio(line.ratio),
            wording.NO_NUMBER if line.ratio.detectable is None else change(line.ratio.detectable),
            said(line),
        ]
        for line in lines
    ]


TIME_HEADER = ("case", "metric", "baseline", "candidate", "ratio [95 %]", "detectable", "verdict")


APART = (
    "The two sides did not run in the same blocks: what changed on the host in between is in every ratio, and no "
    "interval covers it."
)
LEGEND = (
    "Bold: survives Holm's correction over all ratios that decide together. Detectable: the smallest change that this "
    "spread and number of blocks finds with 80 % power."
)


def host_lines(lines: Sequence[Line]) -> list[str]:
    """Says what several hosts showed, one sentence per line that has them."""
    out = []
    for line in lines:
        if line.hosts is None:
            continue
        each = "; ".join(f"{host} {wording.ratio(ratio)}" for host, ratio in line.per_host)
        agree = ""
        if line.hosts.heterogeneity_p is not None:
            agree = f"; hosts {'differ' if line.hosts.heterogeneity_p < 0.05 else 'agree'} (I squared "
            agree += f"{percent(line.hosts.inconsistency)}, p {line.hosts.heterogeneity_p:.2g})"
        out.append(f"{line.case} {line.metric}: {each}. Model: {line.hosts.model}{agree}.")
    return out


def markdown(compared: Compared) -> str:
    """Writes a comparison as Markdown, environment first."""
    out = [f"# {compared.candidate} against {compared.baseline}", "", f"Host: {compared.host}.", ""]
    out += [*(f"- {host}" for host in compared.hosts), ""] if compared.hosts else []
    if compared.anyway:
        out += ["**Compared anyway, although these are not comparable:**", ""]
        out += [f"- **{difference}**" for difference in compared.differences if difference.decisive]
        out.append("")
    listed = [difference for difference in compared.differences if not difference.decisive]
    if listed:
        out += ["What differs (baseline against candidate):", "", *(f"- {difference}" for difference in listed), ""]
    if not compared.side_by_side:
        out += [APART, ""]
    out += [*table(TIME_HEADER, time_rows(compared.lines)), "", LEGEND, ""]
    out += [f"- {text}" for text in host_lines(compared.lines)]
    out += [f"- {text}; not compared" for text in compared.alone]
    out += [f"- left out: {text}" for text in compared.excluded]
    return "\n".join(out).rstrip() + "\n"
