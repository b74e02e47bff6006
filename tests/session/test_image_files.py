"""The list of an image's visible files: merged as OverlayFS shows them, kept by digest."""

from __future__ import annotations

import io
import tarfile
from typing import TYPE_CHECKING

import pytest

from harness.oci.location import open_source
from harness.session.image_files import list_files
from tests.session.support import write_layout

if TYPE_CHECKING:
    from pathlib import Path


def layer(*entries: tuple[str, bytes | None, int]) -> bytes:
    """A tar; None is a directory."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content, mode in entries:
            info = tarfile.TarInfo(name)
            info.mode = mode
            if content is None:
                info.type = tarfile.DIRTYPE
                tar.addfile(info)
            else:
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


@pytest.mark.files
def test_upper_layers_hide_and_replace(tmp_path: Path) -> None:
    """Whiteouts hide, later layers replace, executables are marked, and the second call reads the kept list."""
    lower = layer(("usr", None, 0o755), ("usr/a", b"x" * 10, 0o644), ("usr/b", b"y", 0o755), ("gone", b"z", 0o644))
    upper = layer(("usr", None, 0o755), ("usr/a", b"longer than before", 0o644), (".wh.gone", b"", 0o644))
    with open_source(f"oci:{write_layout(tmp_path / 'layout', [lower, upper])}") as source:
        image = source.resolve()
        read: list[int] = []
        files = list_files(source, image, tmp_path / "cache", read.append)
        assert [(f.path, f.kind, f.size, f.layer, f.executable) for f in files] == [
            ("/usr", "dir", 0, -1, False),
            ("/usr/a", "file", 18, 1, False),
            ("/usr/b", "file", 1, 0, True),
        ]
        assert sum(read) == image.compressed_bytes
        read.clear()
        assert list_files(source, image, tmp_path / "cache", read.append) == files
        assert not read
