"""The comparison that the equality tests rest on sees every kind of difference."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from harness.lazyfs.compare import differences

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

TIME = 1_600_000_000_123_456_789


def make(root: Path) -> Path:
    (root / "dir").mkdir(parents=True)
    (root / "file").write_bytes(b"bytes")
    (root / "other").write_bytes(b"bytes")
    os.link(root / "file", root / "dir" / "link")
    os.link(root / "other", root / "dir" / "more")
    (root / "symlink").symlink_to("file")
    os.mkfifo(root / "fifo")
    return settle(root)


def settle(root: Path) -> Path:
    """The same times everywhere."""
    for path in [*root.rglob("*"), root]:
        os.utime(path, ns=(TIME, TIME), follow_symlinks=False)
    return root


def relink(root: Path) -> None:
    (root / "dir" / "link").unlink()
    (root / "dir" / "more").unlink()
    os.link(root / "other", root / "dir" / "link")
    os.link(root / "file", root / "dir" / "more")


def retarget(root: Path) -> None:
    (root / "symlink").unlink()
    (root / "symlink").symlink_to("fifo")


@pytest.mark.files
def test_equal_trees_have_no_differences(tmp_path: Path) -> None:
    """Made the same way twice, nothing is said."""
    assert list(differences(str(make(tmp_path / "a")), str(make(tmp_path / "b")), directory_nlinks=True)) == []


@pytest.mark.files
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda root: (root / "new").touch(), "/new: only on the right"),
        (lambda root: (root / "fifo").unlink(), "/fifo: only on the left"),
        (lambda root: (root / "file").chmod(0o600), "/file: mode is"),
        (lambda root: (root / "dir").chmod(0o1755), "/dir: mode is"),
        (lambda root: (root / "file").write_bytes(b"bytez"), "/file: content is"),
        (lambda root: (root / "file").write_bytes(b"longer"), "/file: size is"),
        (lambda root: os.link(root / "file", root / "dir" / "third"), "/file: nlink is"),
        (relink, "/file: linked is"),
        (retarget, "/symlink: target is"),
    ],
)
def test_a_change_is_seen(change: Callable[[Path], object], said: str, tmp_path: Path) -> None:
    """Names, modes, bytes, sizes, link counts, which names share an inode, targets."""
    left, right = make(tmp_path / "a"), make(tmp_path / "b")
    change(right)
    settle(right)
    assert any(line.startswith(said) for line in differences(str(left), str(right)))


@pytest.mark.files
def test_times_are_compared_to_the_nanosecond(tmp_path: Path) -> None:
    """One nanosecond is a difference, on symlinks and directories too."""
    left, right = make(tmp_path / "a"), make(tmp_path / "b")
    for name in ("dir", "file", "symlink"):
        os.utime(right / name, ns=(TIME, TIME + 1), follow_symlinks=False)
    said = [line.partition(" ")[0] for line in differences(str(left), str(right)) if "mtime" in line]
    assert said == ["/dir:", "/dir/link:", "/file:", "/symlink:"]


@pytest.mark.root
def test_owners_and_xattrs_are_compared(tmp_path: Path) -> None:
    """Owner, user and trusted attributes."""
    if os.geteuid() != 0:
        pytest.skip("other owners and trusted attributes need root")
    left, right = make(tmp_path / "a"), make(tmp_path / "b")
    os.chown(right / "dir", 1, 2)
    os.setxattr(right / "file", "trusted.overlay.opaque", b"y")
    said = {line.partition(" is")[0] for line in differences(str(left), str(right))}
    assert said == {"/dir: owner", "/file: xattrs", "/dir/link: xattrs"}
