"""This module reads the last bytes of a lazily pullable layer: where its table of contents (TOC) stands, and what the
blob is.

An eStargz blob ends in an empty gzip member whose extra field holds the TOC's offset (stargz-snapshotter,
docs/estargz.md, "Footer"). Three more footers are recognised: the older stargz form, the one that says the TOC is kept
in a second image, and the skippable frame of zstd:chunked. It takes bytes only, and does no I/O.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import Enum

from harness.errors import FormatError

FOOTER_BYTES = 51
LEGACY_FOOTER_BYTES = 47
EXTERNAL_TOC_FOOTER_BYTES = 46
ZSTD_FOOTER_BYTES = 40
LONGEST_FOOTER_BYTES = FOOTER_BYTES
"""A reader that fetches this many bytes from the end of a blob can tell every form apart."""

_GZIP_HEADER = b"\x1f\x8b\x08\x04\x00\x00\x00\x00\x00\xff"
_GZIP_HEADER_ANY_OS = _GZIP_HEADER[:4]
_EMPTY_FINAL_BLOCK_AND_TRAILER = b"\x01\x00\x00\xff\xff" + bytes(8)
_MAGIC = b"STARGZ"
_EXTERNAL_MAGIC = b"STARGZEXTERNALTOC"
_ZSTD_MAGIC = b"GnUlInUx"
_ZSTD_TOC_TYPE = 1
_OFFSET_FIELD_BYTES = 22


class FooterKind(Enum):
    """Lists the forms a footer takes."""

    ESTARGZ = "estargz"
    LEGACY_STARGZ = "stargz"
    EXTERNAL_TOC = "estargz with external TOC"
    ZSTD_CHUNKED = "zstd:chunked"


@dataclass(frozen=True, slots=True)
class Footer:
    """Says where the TOC stands in the blob: bytes [``toc_offset``, ``toc_end``); both 0 for an external TOC."""

    kind: FooterKind
    toc_offset: int
    toc_end: int
    size: int


def encode_footer(toc_offset: int) -> bytes:
    """Writes the 51-byte footer of a blob whose TOC member begins at ``toc_offset``."""
    field = b"%016x" % toc_offset + _MAGIC
    extra = b"SG" + struct.pack("<H", len(field)) + field
    return _GZIP_HEADER + struct.pack("<H", len(extra)) + extra + _EMPTY_FINAL_BLOCK_AND_TRAILER


def parse_footer(tail: bytes, blob_size: int) -> Footer:
    """Reads the footer at the end of ``tail``, the last bytes of a blob of ``blob_size`` bytes.

    ``tail`` needs LONGEST_FOOTER_BYTES bytes (fewer only if the blob is shorter). Raises FormatError when no known
    footer is there or its offset lies outside the blob.
    """
    footer = _match(tail, blob_size)
    if footer is None:
        raise FormatError("eStargz footer", "the blob does not end in one, so it is not an eStargz layer")
    if footer.kind is not FooterKind.EXTERNAL_TOC and not 0 <= footer.toc_offset < footer.toc_end <= blob_size:
        raise FormatError(
            "eStargz footer",
            f"its TOC stands at bytes {footer.toc_offset} to {footer.toc_end}, outside a blob of {blob_size} bytes",
        )
    return footer


def is_estargz(tail: bytes) -> bool:
    """Says whether ``tail`` ends in a footer of the current or the older form, whatever its offset says."""
    footer = _match(tail, len(tail))
    return footer is not None and footer.kind in (FooterKind.ESTARGZ, FooterKind.LEGACY_STARGZ)


def _match(tail: bytes, blob_size: int) -> Footer | None:
    offset = _gzip_footer_offset(tail[-FOOTER_BYTES:], FOOTER_BYTES, b"SG" + struct.pack("<H", _OFFSET_FIELD_BYTES))
    if offset is not None:
        return Footer(FooterKind.ESTARGZ, offset, blob_size - FOOTER_BYTES, FOOTER_BYTES)
    offset = _gzip_footer_offset(tail[-LEGACY_FOOTER_BYTES:], LEGACY_FOOTER_BYTES, b"")
    if offset is not None:
        return Footer(FooterKind.LEGACY_STARGZ, offset, blob_size - LEGACY_FOOTER_BYTES, LEGACY_FOOTER_BYTES)
    external = tail[-EXTERNAL_TOC_FOOTER_BYTES:]
    if external.startswith(_GZIP_HEADER_ANY_OS) and external[16:].startswith(_EXTERNAL_MAGIC):
        return Footer(FooterKind.EXTERNAL_TOC, 0, 0, EXTERNAL_TOC_FOOTER_BYTES)
    zstd = tail[-ZSTD_FOOTER_BYTES:]
    if len(zstd) == ZSTD_FOOTER_BYTES and zstd.endswith(_ZSTD_MAGIC):
        toc_offset, compressed, _, toc_type = struct.unpack("<4Q", zstd[:32])
        if toc_type == _ZSTD_TOC_TYPE:
            return Footer(FooterKind.ZSTD_CHUNKED, toc_offset, toc_offset + compressed, ZSTD_FOOTER_BYTES)
    return None


def _gzip_footer_offset(footer: bytes, size: int, subfield_header: bytes) -> int | None:
    """Returns the TOC offset of an empty gzip member whose extra field is ``subfield_header`` and 22 bytes, else
    None.
    """
    if len(footer) != size or not footer.startswith(_GZIP_HEADER_ANY_OS):
        return None
    start = 12 + len(subfield_header)
    (extra_bytes,) = struct.unpack("<H", footer[10:12])
    field = footer[start : start + _OFFSET_FIELD_BYTES]
    if (
        extra_bytes != len(subfield_header) + _OFFSET_FIELD_BYTES
        or footer[12:start] != subfield_header
        or field[16:] != _MAGIC
        or not footer.endswith(_EMPTY_FINAL_BLOCK_AND_TRAILER)
    ):
        return None
    digits = field[:16]
    # int() alone would also take signs, underscores and spaces.
    if digits.strip(b"0123456789abcdefABCDEF"):
        raise FormatError("eStargz footer", f"the TOC offset {digits!r} is not a hexadecimal number")
    return int(digits, 16)
