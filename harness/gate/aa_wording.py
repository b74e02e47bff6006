"""This module writes what an A/A run says as Markdown, and what a gate has to say where none is kept."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

from harness.gate import aa_store
from harness.gate.environment import host_class
from harness.gate.outputs import rate
from harness.gate.wording import change, percent, table, value
from harness.model.metrics import METRICS, family

if TYPE_CHECKING:
    from harness.gate.aa import AaRecord
    from harness.gate.aa_running import AaResult
    from harness.gate.sides import Side
    from harness.model.session import SessionHeader
    from harness.oci.cache import Cache


def markdown(result: AaResult) -> str:
    """Writes error rates, noise per metric, the margin to use and steady counters."""
    record = result.record
    decide = set(record.metrics)
    out = [f"# A/A of {record.scenario}: same against same", "", f"Host: {record.host}. {record.blocks} blocks.", ""]
    if record.injected:
        out = [f"# {record.scenario}, one side slowed by {percent(record.injected)}", "", f"Host: {record.host}.", ""]
        if record.caught is not None:
            out += [f"Caught in {rate(record.caught)} of gates of {record.gate_blocks} blocks.", ""]
    else:
        wrong = rate(record.wrong)
        out += [
            f"- Wrong verdicts of a gate of {record.gate_blocks} blocks: {wrong}, the goal is {percent(record.alpha)}.",
            f"- Regressions that a second session confirms, wrongly: {rate(record.wrong_confirmed)}.",
        ]
        if record.caught is not None:
            out.append(f"- A start slower by {percent(record.caught_change)} is caught in {rate(record.caught)}.")
        smallest = change(1 + record.margin_to_use)
        now = percent(record.margin)
        out.append(f"- Smallest change of what decides that is found 95 times of 100: {smallest} (margin now {now}).")
        out += ["- Rates are shares of draws from these blocks, with 95 % intervals of the number of draws.", ""]
    rows = [
        [line.case, line.metric, value(line.metric, line.median),
         f"{line.ratio:.3f} [{line.low:.3f}, {line.high:.3f}]", percent(line.spread_log), change(line.detectable),
         "decides" if family(line.metric) in decide or line.metric in decide else ""]
        for line in record.noise
    ]  # fmt: skip
    out += table(("case", "metric", "median", "ratio [95 %]", "spread of a block", "detectable", ""), rows)
    if result.excluded:
        out += ["", f"{result.excluded} trials are in no number (failed or invalid)."]
    if record.scatter:
        steady = [name for name in record.steady if METRICS[family(name)].kind == "counter"]
        moving = sorted((apart, name) for name, apart in record.scatter.items() if apart > 0)
        out += ["", f"Steady counters: {', '.join(steady) or 'none'}."]
        if moving:
            out.append(
                "Others, with their largest difference: " + ", ".join(f"{n} {percent(a)}" for a, n in moving) + "."
            )
    return "\n".join(out) + "\n"


def notes(cache: Cache, header: SessionHeader, scenario: str, stored: Side | None, known: AaRecord | None) -> list[str]:
    """Says what is not known of a gate here, and how old a stored baseline is.

    ``header`` is the gate's session, ``stored`` the baseline's where it is not side by side, ``known`` the newest A/A
    run.
    """
    said = []
    if known is None:
        said.append(
            "No A/A run of this scenario is kept for hosts like this one, so its false-alarm rate and power "
            f"are not known here: coldbench aa {scenario}"
        )
    if stored is not None:
        then, now = (datetime.fromisoformat(h.created_at) for h in (stored.header, header))
        age_h = (now - then).total_seconds() / 3600
        old = f"{age_h / 24:.0f} days" if age_h > 48 else f"{age_h:.0f} hours"
        said.append(f"The baseline is {old} old: what changed on the host since is in every ratio of times.")
        kept = aa_store.records(cache, host_class(header.host), scenario)
        apart = aa_store.between_days(kept)
        said.append(
            "How far stored baselines scatter here is not known: fewer than two A/A runs are kept."
            if apart is None
            else f"Medians of equal sessions kept here differed by up to {percent(apart - 1)}."
        )
    return said
