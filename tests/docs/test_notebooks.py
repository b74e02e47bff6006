"""The notebooks run on a session as it is stored, are kept without output, and say so when there is no session."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import harness
from tests.report.observations import write_session

if TYPE_CHECKING:
    from collections.abc import Iterator

REFERENCE = Path(__file__).parents[2] / "results" / "reference"
NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))


def code(path: Path) -> Iterator[str]:
    for cell in json.loads(path.read_text("utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            yield "".join(cell["source"])


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.name)
def test_no_output_is_kept(path: Path) -> None:
    """What a notebook prints belongs to whoever runs it: neither output nor execution counts are committed."""
    for cell in json.loads(path.read_text("utf-8"))["cells"]:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None


@pytest.mark.files
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.name)
def test_cells_run(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every code cell runs, in order, on the newest session of the results directory."""
    write_session(tmp_path / "one")
    monkeypatch.setenv("COLDBENCH_RESULTS", str(tmp_path))
    names: dict[str, Any] = {}
    for source in code(path):
        exec(compile(source, path.name, "exec"), names)
    assert len(names["session"].trials) == 28


@pytest.mark.files
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.name)
def test_cells_run_on_the_reference(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clone that has measured nothing has a session to open: the reference; a mode never ready breaks nothing."""
    monkeypatch.setenv("COLDBENCH_RESULTS", str(REFERENCE))
    names: dict[str, Any] = {}
    for source in code(path):
        exec(compile(source, path.name, "exec"), names)
    assert names["session"].headers[0].session in {header.session for header in harness.load(f"{REFERENCE}/*").headers}


@pytest.mark.files
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.name)
def test_without_a_session_the_reader_is_told(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message says where was looked and what to do."""
    monkeypatch.setenv("COLDBENCH_RESULTS", str(tmp_path))
    whole = compile("\n".join(code(path)), path.name, "exec")
    with pytest.raises(AssertionError, match="coldbench bench"):
        exec(whole, {})


@pytest.mark.files
def test_the_analysis_says_the_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It prints the report's own sentences and ratios with their intervals."""
    write_session(tmp_path / "one")
    monkeypatch.setenv("COLDBENCH_RESULTS", str(tmp_path))
    names: dict[str, Any] = {}
    for source in code(next(p for p in NOTEBOOKS if p.name == "analysis.ipynb")):
        exec(compile(source, "analysis", "exec"), names)
    said = capsys.readouterr().out
    assert "Use erofs:tuned" in said
    assert "erofs:tuned against overlay2:sequential: 0.0" in said
