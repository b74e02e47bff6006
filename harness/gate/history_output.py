"""This module shows trends as a table, as JSON and as a figure."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from harness.gate.history import Trend, unit_of
from harness.gate.wording import change, table, value

if TYPE_CHECKING:
    from collections.abc import Sequence


def markdown(trends: Sequence[Trend]) -> str:
    """Writes one row per line: sessions, first and last value, change points with their commit or date."""
    rows = []
    for trend in trends:
        changes = [
            f"{_when(trend, c.index)}: {change(c.after / c.before)} ({value(trend.metric, c.before)} to "
            f"{value(trend.metric, c.after)}, p {c.p_value:.2g})"
            for c in trend.changes
            if c.before > 0
        ]
        first, last = trend.points[0].value, trend.points[-1].value
        rows.append(
            [trend.case, trend.metric, trend.host, str(len(trend.points)), value(trend.metric, first),
             value(trend.metric, last), "; ".join(changes) or "none"]
        )  # fmt: skip
    header = ("case", "metric", "host", "sessions", "first", "last", "change points")
    note = "A line with fewer than four sessions cannot show a change point."
    return "\n".join([*table(header, rows), "", note]) + "\n"


def _when(trend: Trend, index: int) -> str:
    point = trend.points[index]
    return point.commit[:10] or f"{point.at:%Y-%m-%d %H:%M}"


#: Version of the JSON form; a change of meaning raises it.
DOCUMENT_VERSION = 1


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", from_attributes=True, use_attribute_docstrings=True)


class PointPart(_Part):
    """Holds one session's value."""

    at: str
    """Says when the session began, ISO 8601."""
    commit: str
    """Names the commit; it is empty where the session's environment named none."""
    session: str
    value: float
    """This is the median of the valid trials, in the line's unit."""
    trials: int


class ChangePart(_Part):
    """Says that from point ``index`` on values are others than before."""

    index: int
    before: float
    after: float
    p_value: float


class TrendPart(_Part):
    """Holds one case and metric on hosts of one class."""

    case: str
    metric: str
    unit: str
    """Names the unit; it is empty for a count or a ratio."""
    host: str
    points: tuple[PointPart, ...]
    changes: tuple[ChangePart, ...]


class HistoryPart(_Part):
    """Holds what ``coldbench history --json`` prints."""

    schema_version: int = DOCUMENT_VERSION
    trends: tuple[TrendPart, ...]


def document(trends: Sequence[Trend]) -> str:
    """Writes the trends as JSON."""
    parts = tuple(
        TrendPart(
            case=trend.case,
            metric=trend.metric,
            unit=unit_of(trend.metric),
            host=trend.host,
            points=tuple(
                PointPart(at=p.at.isoformat(), commit=p.commit, session=p.session, value=p.value, trials=p.trials)
                for p in trend.points
            ),
            changes=tuple(ChangePart.model_validate(c) for c in trend.changes),
        )
        for trend in trends
    )
    return HistoryPart(trends=parts).model_dump_json(indent=2)


def figure(trends: Sequence[Trend]) -> str:
    """Draws one panel per line as an SVG: values by date, change points as vertical lines with the change."""
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(9.0, 1.9 * len(trends)), layout="constrained")
    panels = drawing.subplots(len(trends), 1, squeeze=False)[:, 0]
    for axis, trend in zip(panels, trends, strict=True):
        at = [point.at for point in trend.points]
        axis.plot(at, [point.value for point in trend.points], "o-", color="#0b5394", markersize=3, linewidth=1)
        for c in trend.changes:
            axis.axvline(at[c.index], color="#9a3412", linewidth=1)
            label = f"{_when(trend, c.index)} {change(c.after / c.before)}" if c.before > 0 else ""
            axis.annotate(label, (at[c.index], 1), xycoords=("data", "axes fraction"), fontsize=7, va="top",
                          xytext=(3, -2), textcoords="offset points", color="#9a3412")  # fmt: skip
        axis.set_title(f"{trend.case}   {trend.metric}\n{trend.host}", fontsize=7, loc="left")
        axis.set_ylim(bottom=0)
        axis.set_ylabel(unit_of(trend.metric) or "count", fontsize=7)
        axis.tick_params(labelsize=6)
        axis.spines[["top", "right"]].set_visible(False)
    out = io.StringIO()
    drawing.savefig(out, format="svg")
    return out.getvalue()
