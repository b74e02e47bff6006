"""What the eStargz tests share: the golden vectors, blobs in memory, and short ways to write and read one."""

from __future__ import annotations

import hashlib
import io
import json
import zlib
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import FormatError
from harness.formats.estargz.reader import EstargzByteSource, EstargzToc, open_estargz, read_toc_member
from harness.formats.estargz.toc import TocEntry, decode_toc, inflate_toc
from harness.formats.estargz.writer import EstargzBlob, EstargzOptions, write_estargz
from harness.formats.gzip.layer_stream import spool
from harness.formats.table import Kind

if TYPE_CHECKING:
    from harness.formats.table import LayerTable

GOLDEN = Path(__file__).parents[1] / "golden"
VECTORS: list[dict[str, Any]] = json.loads((GOLDEN / "made" / "vectors.json").read_text())["estargz"]
ESTARGZ_VECTORS = [vector for vector in VECTORS if vector["Kind"] == "estargz"]
POOL = ThreadPoolExecutor(2)


def vector_id(vector: dict[str, Any]) -> str:
    return str(vector["Blob"])


class Blob:
    """A RangeSource over bytes that counts what is read."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.reads: list[tuple[int, int]] = []

    def read_range(self, offset: int, size: int) -> bytes:
        self.reads.append((offset, size))
        piece = self.data[offset : offset + size]
        if len(piece) != size:
            raise FormatError("blob", f"range {offset}+{size} is outside")
        return piece


@cache
def golden_tar(name: str) -> bytes:
    """A golden tar (``pax.tar``, ``gnu.tar``), kept compressed in the repository."""
    return zlib.decompress((GOLDEN / "layers" / f"{name.removesuffix('.tar')}.zlib6.tar.gz").read_bytes(), 31)


@cache
def golden_blob(name: str) -> bytes:
    return (GOLDEN / "made" / name).read_bytes()


def write(tar: bytes, options: EstargzOptions | None = None) -> tuple[bytes, EstargzBlob]:
    """The eStargz form of an uncompressed tar."""
    out = io.BytesIO()
    with spool([tar], "test") as spooled:
        written = write_estargz(spooled.descriptor, spooled.entries, out, options or EstargzOptions(), pool=POOL)
    return out.getvalue(), written


def read(blob: bytes, toc_digest: str | None = None) -> tuple[EstargzToc, EstargzByteSource]:
    return open_estargz(Blob(blob), len(blob), toc_digest)


def toc_document(blob: bytes) -> bytes:
    return inflate_toc(read_toc_member(Blob(blob), len(blob))[1])


def toc_entries(blob: bytes, *, places: bool = True) -> list[TocEntry]:
    """The TOC's entries, without the offsets that depend on the compressor unless ``places``."""
    entries = decode_toc(toc_document(blob))
    if not places:
        for entry in entries:
            entry.offset = entry.inner_offset = 0
    return entries


def files(toc: EstargzToc, source: EstargzByteSource) -> dict[bytes, bytes]:
    """Every regular file's bytes by name, the last entry of a name winning, each checked against its digest."""
    table = toc.table
    found: dict[bytes, bytes] = {}
    for i, name in enumerate(table.names):
        if table.kinds[i] == Kind.REG:
            size = int(table.sizes[i])
            data = source.read(int(table.offsets[i]), size) if size else b""
            assert toc.file_digests[i] == "sha256:" + hashlib.sha256(data).hexdigest()
            found[name] = data
    return found


def metadata(table: LayerTable) -> dict[bytes, tuple[object, ...]]:
    """Everything a table says of each entry but where its bytes are, by name, the last entry winning."""
    return {
        name: (
            Kind(int(table.kinds[i])).name, int(table.modes[i]), int(table.uids[i]), int(table.gids[i]),
            int(table.sizes[i]), int(table.mtimes_s[i]), table.links.get(i), table.rdevs.get(i),
            table.xattrs.get(i, {}),
        )
        for i, name in enumerate(table.names)
    }  # fmt: skip
