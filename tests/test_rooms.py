"""The direction of imports: each room uses only those above it, lazy imports and those for annotations included."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import harness

PACKAGE = Path(harness.__file__).parent
ROOMS = (
    "errors",
    "stats",
    "model",
    "kernel",
    "oci",
    "machine",
    "formats",
    "lazyfs",
    "scenarios",
    "drafting",
    "images",
    "engines",
    "probes",
    "session",
    "report",
    "gate",
    "pytest_plugin",
    "cli",
    "__main__",
)
"""From the ground up. A room is a directory of the package, or a module beside the directories."""
NOT_BUILT: set[str] = set()
"""Rooms that have their place in the order before they exist."""


def room_of(path: Path, package: Path) -> str:
    """The room a file of the package belongs to."""
    return path.relative_to(package).parts[0].removesuffix(".py")


def imported_rooms(source: str, module: str) -> dict[str, int]:
    """Rooms that a module's source imports, anywhere in it, and the line of the first such import."""
    found: dict[str, int] = {}
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Import | ast.ImportFrom):
            continue
        names = [alias.name for alias in node.names]
        if isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = module.split(".")[: -node.level]
                base = ".".join([*above, base]) if base else ".".join(above)
            names = [f"{base}.{name}" for name in names]
        for name in names:
            parts = name.split(".")
            if parts[0] == "harness" and len(parts) > 1 and not parts[1].startswith("__version"):
                found.setdefault(parts[1], node.lineno)
    return found


def upward_imports(package: Path) -> list[str]:
    """Every import of a room from one below it, as ``file:line: room uses room``."""
    wrong = []
    for path in sorted(package.rglob("*.py")):
        room = room_of(path, package)
        if room == "__init__":
            continue
        inside = path.relative_to(package).with_suffix("")
        for other, line in imported_rooms(path.read_text(), ".".join(["harness", *inside.parts])).items():
            if other not in ROOMS or ROOMS.index(other) > ROOMS.index(room):
                wrong.append(f"{path.relative_to(package)}:{line}: {room} uses {other}")
    return wrong


def test_every_room_has_its_place() -> None:
    """A new directory or module of the package is put into the order before anything imports it."""
    there = {room_of(path, PACKAGE) for path in PACKAGE.rglob("*.py")} - {"__init__"}
    assert there - set(ROOMS) == set(), "rooms without a place in the order"
    assert set(ROOMS) - there <= NOT_BUILT, "rooms of the order that are not there"


def test_imports_run_one_way() -> None:
    """No module imports from a room below its own: not at the top, not inside a function, not for annotations only."""
    assert upward_imports(PACKAGE) == []


@pytest.mark.parametrize(
    "source",
    [
        "from harness.cli.main import app",
        "from harness import session",
        "import harness.report.page",
        "def f():\n    from harness.engines import protocol",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from harness.images.catalog import locate",
        "from ..cli import bars",
    ],
)
def test_an_upward_import_is_found(source: str, tmp_path: Path) -> None:
    """Each way to write an import is seen; without this the direction would hold by blindness."""
    (tmp_path / "oci").mkdir()
    (tmp_path / "oci" / "location.py").write_text(source)
    assert len(upward_imports(tmp_path)) == 1


def test_the_pure_rooms_use_only_each_other() -> None:
    """`stats` and `model` import nothing of ours but errors, so that notebooks and other systems can use them."""
    for room in ("stats", "model"):
        for path in (PACKAGE / room).rglob("*.py"):
            used = set(imported_rooms(path.read_text(), f"harness.{room}.{path.stem}"))
            assert used <= {room, "errors"}, path
