"""This module makes the tables of docs/failure.md from stored sessions: ``python -m harness.report.failure_page
SESSION…``.

Sessions of one scenario are taken together, since a case may have been run by itself. What stands above the marker is
written by hand, everything below it is measured.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import NothingToCompare
from harness.report import faults, wording
from harness.report.cells import Table, cells
from harness.report.comparison import compare
from harness.report.sessions import load
from harness.report.tables import markdown_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.model.session import SessionHeader
    from harness.report.comparison import Group
    from harness.report.sessions import Sessions

MARKER = "<!-- measured: python -m harness.report.failure_page -->\n"


def measured(sessions: Sessions) -> str:
    """Writes what the fault trials of some sessions say, as Markdown. Raises NothingToCompare where they hold none."""
    groups = [g for g in compare(sessions.observations, sessions.fault_observations) if g.faults]
    if not groups:
        raise NothingToCompare("no session holds a fault trial; run: coldbench run failure")
    out: list[str] = []
    for group in groups:
        out += _group(group, sessions)
    return "\n".join(out) + "\n"


def _group(group: Group, sessions: Sessions) -> list[str]:
    mine = [o for o in sessions.fault_observations if o.case.scenario == group.key.scenario]
    valid = sum(o.valid for o in mine)
    days = sorted({header.created_at[:10] for header in sessions.headers})
    hosts = "; ".join(sorted({_host(header) for header in sessions.headers}))
    said = f"`coldbench run {group.key.scenario}`, {' to '.join(dict.fromkeys((days[0], days[-1])))}; {hosts}."
    out = [
        f"## {group.key.title}", "",
        f"{said} {len(mine)} fault trials, {valid} of them count.", "",
        *markdown_table(_starts(group)), "",
        "### What fails", "",
        *markdown_table(faults.matrix(group.faults)), "",
        "### What else was seen", "",
        *markdown_table(faults.rest(group.faults)), "",
    ]  # fmt: skip
    left_out = faults.excluded(group.faults)
    if left_out:
        out += ["What is in no number:", "", *(f"- {wording.markdown(reason)}" for reason in left_out), ""]
    return out


def _host(header: SessionHeader) -> str:
    release = str(header.host.get("kernel", ""))
    return f"{header.host.get('cores', '?')} cores, kernel {'.'.join(release.split('.')[:2]) or '?'}"


def _starts(group: Group) -> Table:
    rows = []
    for line in group.lines:
        struck = next((one for one in group.faults if one.label == line.label), None)
        needs = struck.independent if struck else {}
        ready = wording.seconds(line.ready.median if line.ready else None)
        rows.append(cells(line.label, ready, *(faults.independent(needs.get(side)) for side in faults.SIDES)))
    return Table(("mode", "ready", "registry may go, after ready", "daemon may die, after ready"), tuple(rows))


def rewritten(text: str, made: str) -> str:
    """Returns a document with everything below its marker made anew."""
    return text[: text.index(MARKER) + len(MARKER)] + "\n" + made


def main(arguments: Sequence[str]) -> None:
    """Rewrites docs/failure.md from the sessions named."""
    document = Path("docs/failure.md")
    made = measured(load(list(arguments)))
    document.write_text(rewritten(document.read_text("utf-8"), made), "utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
