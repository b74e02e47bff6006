"""What touching a FUSE tree again costs: our session and a pyfuse3 tree with the same files, side by side."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from harness.lazyfs.mounting.mounts import unmount
from tests.lazyfs.support import File, convert, need_root, serve, tar_of, write_image
from tests.microbench.pyfuse3_tree import DIRECTORIES, FILES, tree_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_benchmark.fixture import BenchmarkFixture

pytestmark = pytest.mark.root


@contextmanager
def ours(place: Path) -> Iterator[Path]:
    files = [File(f"d{number}") for number in range(DIRECTORIES)]
    files += [File(path, data) for path, data in tree_of()]
    source = convert(write_image(place / "plain", [tar_of(*files)]), place / "soci", "soci")
    with serve(source, "soci", place / "s") as served:
        yield Path(served.mountpoint) / "0"


@contextmanager
def theirs(place: Path) -> Iterator[Path]:
    mountpoint = place / "mount"
    mountpoint.mkdir()
    command = [sys.executable, "-m", "tests.microbench.pyfuse3_tree", str(mountpoint)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2])
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        yield mountpoint
    finally:
        unmount(str(mountpoint))
        process.wait(20)
        assert process.stdout is not None
        process.stdout.close()


def stat_walk(root: Path) -> int:
    return sum(os.lstat(os.path.join(at, name)).st_size for at, _, names in os.walk(root) for name in names)


def read_all(root: Path) -> int:
    total = 0
    for path, _ in tree_of():
        handle = os.open(f"{root}/{path}", os.O_RDONLY)  # open() would ask each file whether it is a terminal
        total += len(os.read(handle, 1 << 20))
        os.close(handle)
    return total


@pytest.mark.parametrize("way", [ours, theirs], ids=["ours", "pyfuse3"])
@pytest.mark.parametrize("touch", [stat_walk, read_all], ids=["stat walk", "read all"])
def test_second_touch(way: Any, touch: Any, tmp_path: Path, benchmark: BenchmarkFixture) -> None:
    """2 000 files of 1 KB: every pass after the first; same files, same bytes."""
    need_root()
    with way(tmp_path) as root:
        expected = sum(len(data) for _, data in tree_of())
        assert touch(root) == expected
        assert benchmark(touch, root) == expected
    assert DIRECTORIES * FILES == 2000
