"""Helpers of the zTOC and SOCI tests: golden files, layers made on the spot, zTOCs of them."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.formats.soci import ztoc
from harness.formats.soci.ztoc_build import LayerIndexer

if TYPE_CHECKING:
    from collections.abc import Iterable

GOLDEN = Path(__file__).parents[1] / "golden"
VECTORS: list[dict[str, Any]] = json.loads((GOLDEN / "made" / "vectors.json").read_text())["ztoc"]


def layer(name: str) -> bytes:
    """A golden layer."""
    return (GOLDEN / "layers" / name).read_bytes()


def golden_ztoc(name: str) -> bytes:
    """A zTOC made by the reference tool."""
    return (GOLDEN / "made" / name).read_bytes()


def pieces(data: bytes, size: int) -> Iterable[bytes]:
    return (data[start : start + size] for start in range(0, len(data), size))


def build(
    data: bytes, span_size: int = 65536, compression: str = "gzip", tool: str = "test", piece: int = 1 << 18
) -> bytes:
    """The zTOC of a layer's stored bytes."""
    out = io.BytesIO()
    with LayerIndexer(compression, span_size) as indexer:
        indexer.read(pieces(data, piece))
        indexer.write(out, tool)
    return out.getvalue()


def parsed(data: bytes, span_size: int = 65536, compression: str = "gzip") -> ztoc.Ztoc:
    return ztoc.parse(build(data, span_size, compression))


def small_tar(files: dict[str, bytes], **fields: Any) -> bytes:
    """A tar of regular files."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            for key, value in fields.items():
                setattr(info, key, value)
            tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


def gzipped(data: bytes, level: int = 6) -> bytes:
    return gzip.compress(data, level, mtime=0)


class Memory:
    """A RangeSource over bytes that counts what it gave."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.given = 0

    def read_range(self, offset: int, size: int) -> bytes:
        assert offset >= 0
        assert offset + size <= len(self.data)
        self.given += size
        return self.data[offset : offset + size]
