"""This module gives sessions as data: ``harness.load`` reads one or many, and gives tidy frames, comparisons and
exports.

::

    import harness

    sessions = harness.load("results/*")
    sessions.trials.groupby("mode").ready_s.median()
    sessions.ratio("erofs:tuned", "overlay2:tuned")
"""

from __future__ import annotations

import html
from dataclasses import dataclass
from functools import cached_property
from glob import glob
from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import NothingToCompare, UsageError
from harness.report import frames
from harness.report.comparison import Group, compare
from harness.report.dictionary import FRAMES
from harness.session import store

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd

    from harness.model.faults import FaultObservation
    from harness.model.observation import Observation
    from harness.model.session import Preparation, SessionHeader
    from harness.stats.paired import PairedRatio


def host_of(header: SessionHeader) -> str:
    """Describes a session's host in one line: CPU model, cores and kernel, as far as the session says."""
    said = [str(header.host[key]) for key in ("cpu_model", "cores", "kernel") if header.host.get(key)]
    return ", ".join(said)


@dataclass(frozen=True)
class Sessions:
    """Holds one or more stored sessions. Frames are made when they are first asked for, and kept.

    ``preparations`` holds, in the order of ``headers``, what each session made out of band and what that cost.
    """

    paths: tuple[Path, ...]
    headers: tuple[SessionHeader, ...]
    observations: tuple[Observation, ...]
    preparations: tuple[tuple[Preparation, ...], ...] = ()
    fault_observations: tuple[FaultObservation, ...] = ()
    """These are the trials in which something failed on purpose: none of them is among ``observations``."""

    def frame(self, name: str) -> pd.DataFrame:
        """Returns the frame called ``name`` (a key of the data dictionary). Raises UsageError for another name."""
        if name not in FRAMES:
            raise UsageError(f"expected a frame ({', '.join(FRAMES)}), got {name!r}")
        hosts = {h.session: host_of(h) for h in self.headers}
        if name == "faults":
            return frames.fault_frame(self.fault_observations, hosts)
        return frames.frame(name, self.observations, hosts)

    @cached_property
    def trials(self) -> pd.DataFrame:
        """Holds one row per trial."""
        return self.frame("trials")

    @cached_property
    def spans(self) -> pd.DataFrame:
        """Holds one row per span of a timeline."""
        return self.frame("spans")

    @cached_property
    def phases(self) -> pd.DataFrame:
        """Holds one row per phase of a trial: CPU and throttling."""
        return self.frame("phases")

    @cached_property
    def fuse(self) -> pd.DataFrame:
        """Holds one row per FUSE opcode of a trial."""
        return self.frame("fuse")

    @cached_property
    def workloads(self) -> pd.DataFrame:
        """Holds one row per run-time workload and temperature of a valid trial."""
        return self.frame("workloads")

    @cached_property
    def credits(self) -> pd.DataFrame:
        """Holds one row per look at the CPU credits of a trial."""
        return self.frame("credits")

    @cached_property
    def faults(self) -> pd.DataFrame:
        """Holds one row per fault trial and sample of files that it read."""
        return self.frame("faults")

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """Compares each group of cases, as the report states it; of one session only.

        Raises UsageError for several sessions: their blocks are not pairs.
        """
        if len(self.headers) != 1:
            raise UsageError(f"a comparison is paired inside one session, and {len(self.headers)} are loaded: load one")
        return tuple(compare(self.observations, self.fault_observations))

    def ratio(self, candidate: str, baseline: str) -> PairedRatio:
        """Returns time to ready of ``candidate`` over ``baseline`` (labels as in tables), paired, with its interval.

        Raises UsageError where the session holds several groups, and NothingToCompare where no block has both.
        """
        if len(self.groups) != 1:
            titles = "; ".join(group.key.title for group in self.groups)
            raise UsageError(f"the session holds several comparisons ({titles}): use groups")
        group = self.groups[0]
        lines = {line.label: line for line in group.lines}
        for label in (candidate, baseline):
            if label not in lines:
                raise UsageError(f"the session has no case {label!r}, only {', '.join(lines)}")
        ratio = group.ratio(candidate, baseline)
        if ratio is None:
            raise NothingToCompare(f"no block holds a valid trial of both {candidate} and {baseline}")
        return ratio

    def _repr_html_(self) -> str:
        """Shows in a notebook each session in a line, then the medians of its cases."""
        rows = "".join(
            f"<tr><td>{html.escape(h.session)}</td><td>{html.escape(h.created_at)}</td>"
            f"<td>{html.escape(', '.join(h.scenarios))}</td><td>{html.escape(host_of(h))}</td></tr>"
            for h in self.headers
        )
        head = "<tr><th>session</th><th>created</th><th>scenarios</th><th>host</th></tr>"
        t = self.trials
        by = ["scenario", "shape", "distance", "mode", "preset", "engine"]
        table = t.groupby(by).agg(trials=("trial", "size"), valid=("valid", "sum"), ready_s=("ready_s", "median"))
        return f"<table>{head}{rows}</table>{table.reset_index().to_html(index=False)}"


def load(where: str | Path | Sequence[str | Path]) -> Sessions:
    """Reads one session's directory, several, or all that a pattern names (``results/*``).

    A pattern takes directories that hold a ``session.json`` and passes over others.

    Raises:
        UsageError: there is no such session, or a stored one cannot be read.
    """
    paths = _paths(where)
    headers, observations, preparations = [], [], []
    struck: list[FaultObservation] = []
    for path in paths:
        header, seen = store.load(path)
        headers.append(header)
        observations += seen
        preparations.append(tuple(store.load_preparations(path)))
        struck += store.load_faults(path)
    return Sessions(tuple(paths), tuple(headers), tuple(observations), tuple(preparations), tuple(struck))


def _paths(where: str | Path | Sequence[str | Path]) -> list[Path]:
    if not isinstance(where, str | Path):
        return [path for one in where for path in _paths(one)]
    if (Path(where) / "session.json").exists():
        return [Path(where)]
    found = sorted(Path(name) for name in glob(str(where)) if (Path(name) / "session.json").exists())
    if not found:
        raise UsageError(f"{where}: no session there (a directory with session.json, as coldbench run leaves it)")
    return found
