"""The notebooks' cells run on a session as it is stored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.report.observations import write_session

if TYPE_CHECKING:
    from collections.abc import Iterator

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"


def cells(path: Path) -> Iterator[str]:
    for cell in json.loads(path.read_text())["cells"]:
        if cell["cell_type"] == "code":
            yield "".join(cell["source"])


@pytest.mark.files
@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda p: p.name)
def test_cells_run(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every code cell runs, in order, on the newest session of the results directory, and says a ratio."""
    write_session(tmp_path / "one")
    monkeypatch.setenv("COLDBENCH_RESULTS", str(tmp_path))
    names: dict[str, Any] = {}
    for source in cells(path):
        exec(compile(source, path.name, "exec"), names)
    assert len(names["trials"]) == 28
    assert "erofs:tuned against overlay2:sequential" in capsys.readouterr().out
