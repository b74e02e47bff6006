"""This module reads an eStargz layer: from the blob's tail to a table of entries, a chunk map, and verified bytes.

Trust runs from the image manifest (annotation ``containerd.io/snapshot/stargz/toc.digest``) over the TOC to each
chunk's digest; a chunk that does not match is never handed out. The steps stand apart, so that a daemon can do the
fetching itself::

    footer = parse_footer(last_51_bytes, blob_size)                      # harness.formats.estargz.footer
    toc = EstargzToc.from_member(blob[footer.toc_offset:footer.toc_end], footer, toc_digest)
    toc.table, toc.chunks, toc.prefetch_bytes

``open_estargz`` does all of it over a RangeSource and gives an ``EstargzByteSource``.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import zstandard

from harness.errors import FormatError
from harness.formats.estargz.footer import LONGEST_FOOTER_BYTES, Footer, FooterKind, parse_footer
from harness.formats.estargz.table import build_layer
from harness.formats.estargz.toc import MAX_TOC_BYTES, check_toc_digest, decode_toc, inflate_toc

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.formats.estargz.chunks import ChunkMap
    from harness.formats.table import LayerTable, RangeSource

TAIL_BYTES = 64 << 10
"""The first read at the end of a blob takes so much: the footer, and with it the whole TOC of a layer of a few hundred
files.
"""


@dataclass(frozen=True, slots=True)
class EstargzToc:
    """Holds a parsed TOC. ``file_digests[i]`` is the digest of table entry i's whole payload ("" where there is none).

    ``prefetch_bytes`` is how much of the blob's beginning holds the prioritised files (0: none were).
    """

    table: LayerTable
    chunks: ChunkMap
    file_digests: Sequence[str]
    prefetch_bytes: int
    footer: Footer

    @classmethod
    def from_member(cls, member: bytes, footer: Footer, expected_digest: str | None) -> EstargzToc:
        """Parses the TOC's stored bytes, blob[toc_offset:toc_end]; ``expected_digest`` None skips that check.

        Raises FormatError, UnsafePath or DigestMismatch.
        """
        if footer.kind is FooterKind.EXTERNAL_TOC:
            raise FormatError(
                "eStargz footer",
                "the TOC is kept in a second image (external TOC), which is not supported as a lazy layer; "
                "convert the image again without that option",
            )
        if footer.kind is FooterKind.ZSTD_CHUNKED:
            document = _inflate_zstd_toc(member, expected_digest)
        else:
            document = inflate_toc(member, expected_digest)
        return cls.from_document(document, footer)

    @classmethod
    def from_document(cls, document: bytes, footer: Footer) -> EstargzToc:
        """Builds it from the TOC JSON itself (already verified); ``footer`` says where the payload ends."""
        layer = build_layer(decode_toc(document), footer.toc_offset, zstd=footer.kind is FooterKind.ZSTD_CHUNKED)
        return cls(layer.table, layer.chunks, layer.file_digests, layer.prefetch_bytes, footer)


def _inflate_zstd_toc(member: bytes, expected_digest: str | None) -> bytes:
    try:
        document: bytes = zstandard.ZstdDecompressor().stream_reader(member).read(MAX_TOC_BYTES + 1)
    except zstandard.ZstdError as error:
        raise FormatError("zstd:chunked TOC", f"does not inflate: {error}") from error
    if expected_digest is not None:
        check_toc_digest(document, expected_digest)
    return document


def read_toc_member(source: RangeSource, blob_size: int, tail_bytes: int = TAIL_BYTES) -> tuple[Footer, bytes]:
    """Reads the footer and the TOC's stored bytes, in one read of ``source`` for a small TOC and two for a large one.

    ``tail_bytes`` is the size of the first read, at least ``LONGEST_FOOTER_BYTES``.
    """
    if blob_size < LONGEST_FOOTER_BYTES:
        raise FormatError("eStargz footer", f"a blob of {blob_size} bytes is too short to hold one")
    tail_start = max(0, blob_size - tail_bytes)
    tail = source.read_range(tail_start, blob_size - tail_start)
    footer = parse_footer(tail, blob_size)
    if footer.kind is FooterKind.EXTERNAL_TOC:
        return footer, b""
    if footer.toc_end - footer.toc_offset > MAX_TOC_BYTES:
        raise FormatError("eStargz TOC", f"{footer.toc_end - footer.toc_offset} stored bytes, more than accepted")
    if footer.toc_offset >= tail_start:
        return footer, tail[footer.toc_offset - tail_start : footer.toc_end - tail_start]
    head = source.read_range(footer.toc_offset, min(tail_start, footer.toc_end) - footer.toc_offset)
    return footer, head + tail[: max(0, footer.toc_end - tail_start)]


def open_estargz(source: RangeSource, blob_size: int, toc_digest: str | None) -> tuple[EstargzToc, EstargzByteSource]:
    """Opens the layer: its TOC and a verified byte source over the same blob.

    ``toc_digest`` is the manifest's annotation; None trusts the TOC as it stands (only for a blob whose own digest was
    verified). Raises FormatError, UnsafePath or DigestMismatch.
    """
    footer, member = read_toc_member(source, blob_size)
    toc = EstargzToc.from_member(member, footer, toc_digest)
    return toc, EstargzByteSource(source, toc.chunks)


class EstargzByteSource:
    """Gives verified random access to the layer's flat address space (``harness.formats.table.ByteSource``).

    Keeps the few members read last inflated, because a file is read in pieces smaller than a chunk and neighbours may
    share a member. Two threads must not use it at once; they may share the ChunkMap under it.
    """

    def __init__(self, source: RangeSource, chunks: ChunkMap, *, cached_members: int = 2) -> None:
        self._source = source
        self._chunks = chunks
        self._cached_members = cached_members
        self._cache: OrderedDict[int, dict[int, bytes]] = OrderedDict()

    @property
    def size(self) -> int:
        """Counts the bytes in the address space."""
        return self._chunks.address_space_bytes

    def read(self, offset: int, size: int) -> bytes:
        """Returns bytes at ``offset``; zeros in the gaps between payloads; raises DigestMismatch or FormatError."""
        if offset < 0 or size < 0:
            raise ValueError("offset and size must not be negative")
        end = min(offset + size, self.size)
        if end <= offset:
            return b""
        pieces: list[bytes | memoryview] = []
        at = offset
        for chunk in self._chunks.chunks_in(offset, end - offset):
            start = self._chunks.starts[chunk]
            if start > at:
                pieces.append(bytes(start - at))
                at = start
            data = self._chunk(chunk)
            piece = memoryview(data)[at - start : end - start]
            pieces.append(piece)
            at += len(piece)
        if at < end:
            pieces.append(bytes(end - at))
        return b"".join(pieces)

    def _chunk(self, chunk: int) -> bytes:
        member = self._chunks.member_starts[chunk]
        cached = self._cache.get(member)
        if cached is None:
            compressed = self._source.read_range(*self._chunks.chunk_compressed_extent(chunk))
            cached = dict(self._chunks.inflate_member(chunk, compressed))
            for number, data in cached.items():
                self._chunks.verify_chunk(number, data)
            self._cache[member] = cached
            if len(self._cache) > self._cached_members:
                self._cache.popitem(last=False)
        else:
            self._cache.move_to_end(member)
        return cached[chunk]
