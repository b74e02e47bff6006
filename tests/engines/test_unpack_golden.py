"""The golden layers of the format tests, unpacked and compared with GNU tar's reading of them."""

from __future__ import annotations

import os
import stat
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest

from harness.engines.embedded.unpack import LayerUnpacker
from harness.formats.gzip.inflate import inflate
from tests.engines.test_unpack import snapshot

pytestmark = pytest.mark.root

LAYERS = Path(__file__).parents[1] / "formats/golden/layers"
NAMES = sorted(path.name for path in LAYERS.iterdir())


def ours(path: Path, root: Path, decoder: str) -> None:
    """Unpack with the embedded engine's unpacker."""
    data = path.read_bytes()
    chunks = (data[at : at + 5000] for at in range(0, len(data), 5000))
    old = os.umask(0)
    root.mkdir()
    unpacker = LayerUnpacker(str(root))
    try:
        for piece in inflate(chunks, path.name, decoder):
            unpacker.feed(piece)
        unpacker.finish()
    finally:
        unpacker.close()
        os.umask(old)


def theirs(path: Path, root: Path) -> None:
    """GNU tar, then OverlayFS's form of the markers, made by hand."""
    root.mkdir()
    command = ["tar", "-x", "-p", "--xattrs", "--xattrs-include=*", "--numeric-owner", "-f", str(path)]
    subprocess.run(command, cwd=root, check=True)
    times = {base: os.stat(base).st_mtime_ns for base, _, _ in os.walk(root)}
    for base, _directories, files in os.walk(root):
        for name in files:
            if name == ".wh..wh..opq":
                os.unlink(f"{base}/{name}")
                os.setxattr(base, "trusted.overlay.opaque", b"y")
            elif name.startswith(".wh."):
                os.unlink(f"{base}/{name}")
                os.mknod(f"{base}/{name[4:]}", 0o020000, 0)
    for base, time_ns in times.items():
        os.utime(base, ns=(time_ns, time_ns))


@pytest.mark.parametrize("decoder", ["isal", "zlib"])
@pytest.mark.parametrize("name", NAMES)
def test_golden_layer(tmp_path: Path, name: str, decoder: str) -> None:
    """Every entry type, attribute and dialect, from every compressor, is what GNU tar makes of it."""
    with tarfile.open(LAYERS / name) as archive:
        tarred = {os.path.normpath(member.name) for member in archive}
    ours(LAYERS / name, tmp_path / "ours", decoder)
    theirs(LAYERS / name, tmp_path / "theirs")
    assert comparable(snapshot(tmp_path / "ours"), tarred) == comparable(snapshot(tmp_path / "theirs"), tarred)


def comparable(entries: dict[str, tuple[Any, ...]], tarred: set[str]) -> dict[str, tuple[Any, ...]]:
    """What the two must agree on: of directories without an entry and of whiteouts, times and modes mean nothing."""
    kept = {}
    for path, (mode, uid, gid, time_ns, *rest) in entries.items():
        told = path in tarred
        kept[path] = (mode if told else stat.S_IFMT(mode), uid, gid, time_ns if told else None, *rest)
    return kept
