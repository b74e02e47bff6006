"""``coldbench mount``: an image to look at, gone at Ctrl-C."""

from __future__ import annotations

import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from harness.lazyfs.mounting.mounts import mount_device
from tests.lazyfs.support import MODES, File, convert, need_root, tar_of, text, write_image

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.root


def command(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "harness", "mount", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.mark.parametrize("mode", MODES)
def test_mounts_until_interrupted(mode: str, tmp_path: Path) -> None:
    """Both layers are seen as one tree; Ctrl-C unmounts, says what was fetched, and ends in 0."""
    need_root()
    lower, upper = tar_of(File("a", text(5000)), File("gone", b"x")), tar_of(File(".wh.gone", b""), File("b", b"2"))
    convert(write_image(tmp_path / "image", [lower, upper]), tmp_path / "lazy", mode)
    target = tmp_path / "mnt"
    process = command(f"oci:{tmp_path}/lazy:image", str(target), "--mode", mode)
    assert process.stdout is not None
    assert "is mounted on" in process.stdout.readline()
    assert (target / "a").read_bytes() == text(5000)
    assert (target / "b").read_bytes() == b"2"
    assert not (target / "gone").exists()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (0, "")
    assert "requests" in out
    assert mount_device(str(target)) is None


def test_image_without_an_index_is_a_clear_error(tmp_path: Path) -> None:
    """The message says which command makes the index."""
    need_root()
    write_image(tmp_path / "image", [tar_of(File("a", b"1"))])
    process = command(f"oci:{tmp_path}/image:image", str(tmp_path / "mnt"), "--mode", "erofs")
    _, err = process.communicate(timeout=30)
    assert process.returncode == 5
    assert "coldbench index erofs" in err
