"""The choice of files for run-time workloads, and the in-machine process that touches them, run on a real directory."""

from __future__ import annotations

import os
from itertools import combinations
from typing import TYPE_CHECKING

import pytest

from harness.probes import workload_process
from harness.probes.selection import BUILTIN, ImageFile, select

if TYPE_CHECKING:
    from pathlib import Path


def image() -> list[ImageFile]:
    """A synthetic image: 200 directories of 20 small files, 40 large files, some programs."""
    files = []
    for d in range(200):
        files.append(ImageFile(f"/usr/lib/d{d}", "dir"))
        files += [ImageFile(f"/usr/lib/d{d}/f{i}", "file", 1000 + i) for i in range(20)]
    files += [ImageFile(f"/opt/big{i}", "file", 4 << 20) for i in range(40)]
    files += [ImageFile(f"/usr/bin/{name}", "file", 40_000, True) for name in ("true", "ls", "cat", "python3")]
    return files


def test_first_touches_are_disjoint_between_workloads() -> None:
    """No file is given to two workloads, so that a cold pass is cold whatever ran before it."""
    chosen = select(image())
    lists = {name: set(paths) for name, paths in chosen.paths.items() if name != "exec-many"}
    for name, quarters in chosen.quarters.items():
        lists |= {f"{name}{i}": set(q) for i, q in enumerate(quarters)}
    for a, b in combinations(lists, 2):
        assert not lists[a] & lists[b], (a, b)


def test_every_builtin_workload_gets_something_and_the_same_every_time() -> None:
    """A usual image has files for every workload; the same seed chooses the same ones, another seed others."""
    chosen = select(image(), seed=1)
    assert set(chosen.paths) | set(chosen.quarters) == set(BUILTIN)
    assert all(chosen.paths.values())
    assert all(all(q) for q in chosen.quarters.values())
    assert select(list(reversed(image())), seed=1) == chosen
    assert select(image(), seed=2) != chosen


def test_skipped_directories_are_left_alone() -> None:
    """What the scenario's own workload touches is not chosen for a cold pass."""
    chosen = select(image(), skip=["/usr/lib/d1"])
    assert not any(p.startswith("/usr/lib/d1/") for paths in chosen.paths.values() for p in paths)
    assert any(p.startswith("/usr/lib/d10/") for paths in chosen.paths.values() for p in paths)


def test_only_harmless_programs_are_executed() -> None:
    """exec-many runs coreutils with --version, never an arbitrary program of the image."""
    assert sorted(select(image()).paths["exec-many"]) == ["/usr/bin/cat", "/usr/bin/ls", "/usr/bin/true"]


@pytest.mark.parametrize(
    ("workload", "operations", "size"),
    [
        ("stat-walk", 2, 0),
        ("read-small", 2, 5000),
        ("read-small-parallel", 2, 5000),
        ("read-random", 512, None),
        ("mmap-read", 3, 3 * 4096),
        ("write-small", 4, 4 * 4096),
        ("copy-up-large", 2, 5000 + 0),
    ],
)
def test_operations_are_counted(tmp_path: Path, workload: str, operations: int, size: int | None) -> None:
    """Each workload does what its name says and counts it."""
    (tmp_path / "a").write_bytes(b"x" * 4097)
    (tmp_path / "b").write_bytes(b"y" * 903)
    answer = workload_process.serve_one(
        {"workload": workload, "paths": [str(tmp_path / "a"), str(tmp_path / "b")], "seed": 3}
    )
    assert "error" not in answer
    assert answer["operations"] == operations
    if size is not None:
        assert answer["bytes"] == size
    if workload == "write-small":
        assert (tmp_path / "a").stat().st_size == 4097 + 4096
        workload_process.put_back()


def test_what_was_appended_is_taken_back(tmp_path: Path) -> None:
    """Programs that run in later passes find the files as the image has them, times included."""
    file = tmp_path / "module.py"
    file.write_bytes(b"pass\n")
    os.utime(file, ns=(10**9, 2 * 10**9))
    workload_process.serve_one({"workload": "write-small", "paths": [str(file)]})
    assert sorted(os.listdir(tmp_path)) == ["module.py", "module.py.coldbench"]
    workload_process.put_back()
    assert file.read_bytes() == b"pass\n"
    assert file.stat().st_mtime_ns == 2 * 10**9
    assert os.listdir(tmp_path) == ["module.py"]


def test_directory_listing_and_programs(tmp_path: Path) -> None:
    """readdir-walk counts entries; exec-many and command run programs and tell a failing one."""
    (tmp_path / "x").touch()
    assert workload_process.serve_one({"workload": "readdir-walk", "paths": [str(tmp_path)]})["operations"] == 1
    assert workload_process.serve_one({"workload": "exec-many", "paths": ["/bin/true"]})["operations"] == 1
    good = workload_process.serve_one({"workload": "command", "argv": ["true"], "paths": []})
    assert good["operations"] == 1
    bad = workload_process.serve_one({"workload": "command", "argv": ["false"], "paths": []})
    assert "ended with 1" in bad["error"]
    missing = workload_process.serve_one({"workload": "command", "argv": ["no-such-program"], "paths": []})
    assert "no-such-program" in missing["error"]


def test_a_failing_workload_is_an_answer_not_the_end() -> None:
    """A path that is not there gives an error field."""
    assert "No such file" in workload_process.serve_one({"workload": "stat-walk", "paths": ["/no/such"]})["error"]
