"""This module makes the report files out of a session's directory."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from harness.errors import NothingToCompare
from harness.report import figures, page, tables
from harness.report.axes import sections
from harness.report.comparison import Group, compare
from harness.report.document import make_document
from harness.report.figures.canvas import standalone
from harness.session import store

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from matplotlib.figure import Figure

    from harness.model.session import SessionHeader


@dataclass(frozen=True, slots=True)
class Published:
    """Holds the session's directory, the files written, the Markdown text, and the comparison itself."""

    session: Path
    html_path: Path
    markdown_path: Path
    markdown: str
    groups: tuple[Group, ...]

    @property
    def counted(self) -> bool:
        """Says whether any trial is valid, and so anything can be compared."""
        return any(line.ready is not None for group in self.groups for line in group.lines)

    def as_json(self) -> str:
        """Returns the comparison as a JSON document (``docs/schema/comparison.schema.json``)."""
        document = make_document(str(self.session), str(self.html_path), self.groups)
        return document.model_dump_json(indent=2)


def publish(session: Path, out: Path | None = None) -> Published:
    """Reads a session, writes ``report.html`` and ``report.md`` (atomically); raises NothingToCompare without
    trials.
    """
    header, observations = store.load(session)
    if not observations:
        raise NothingToCompare(f"{session} holds no trial yet; run: coldbench run --resume --out {session}")
    context = context_of(header)
    folder = out or session
    folder.mkdir(parents=True, exist_ok=True)
    groups = compare(observations, store.load_faults(session))
    markdown = tables.markdown(observations, groups, context)
    html_path, markdown_path = folder / "report.html", folder / "report.md"
    for path, text in ((html_path, page.html(observations, groups, context)), (markdown_path, markdown)):
        temporary = path.with_name(path.name + ".part")
        temporary.write_text(text)
        os.replace(temporary, path)
    return Published(session, html_path, markdown_path, markdown, tuple(groups))


_FIGURES: dict[str, Callable[[Group], Figure | None]] = {
    "timelines": figures.timelines,
    "timelines-lazy": partial(figures.timelines, lazy_only=True),
    "ready": figures.ready_times,
    "trials": figures.all_trials,
    "cpu": figures.cpu_by_phase,
    "bytes": figures.received_bytes,
    "credits": figures.credit_balance,
    "runtime": figures.runtime_ratios,
    "runtime-heat": figures.runtime_heat,
    "break-even": figures.break_even_curves,
}


def write_figures(groups: Sequence[Group], folder: Path) -> list[Path]:
    """Writes each figure of each group as an SVG file, ``SCENARIO-SHAPE-FIGURE.svg``, and those of axes; returns the
    paths.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for group in groups:
        prefix = re.sub(r"[^a-z0-9.]+", "-", f"{group.key.scenario}-{group.key.shape}".lower()).strip("-")
        for name, draw in _FIGURES.items():
            figure = draw(group)
            if figure is not None:
                path = folder / f"{prefix}-{name}.svg"
                path.write_text(standalone(figure, f"{name}: {group.key.title}"))
                written.append(path)
    for section in sections(groups):
        for drawn in section.figures:
            figure = drawn.draw()
            if figure is not None:
                path = folder / f"{section.scenario}-{drawn.name}.svg"
                path.write_text(standalone(figure, f"{drawn.title}: {section.scenario}"))
                written.append(path)
    return written


def context_of(header: SessionHeader) -> page.Context:
    """Gathers the facts a report states about where it was measured, and the command that repeats it."""
    files = " ".join(dict.fromkeys(header.scenario_files.get(name, name) for name in header.scenarios))
    facts = {name.replace("_", " "): _plain(value) for name, value in header.host.items()}
    facts["versions"] = ", ".join(f"{name} {version}" for name, version in header.versions.items())
    return page.Context(
        session=header.session,
        created=header.created_at,
        command=f"{header.command or f'coldbench run {files}'} --seed {header.seed}",
        facts=facts,
    )


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        said = {k: _plain(v) for k, v in value.items()}
        # Some tools name themselves in their version.
        return ", ".join(text if text.startswith(f"{k} ") else f"{k} {text}" for k, text in said.items())
    if isinstance(value, list | tuple):
        return ", ".join(_plain(v) for v in value)
    return f"{value:.3g}" if isinstance(value, float) else str(value)
