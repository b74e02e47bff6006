"""This module reads and writes the table of contents (TOC) of an eStargz layer: its entries as the JSON states them.

The layout is that of stargz-snapshotter's ``estargz.JTOC`` and ``estargz.TOCEntry`` (docs/estargz.md, "TOC, TOCEntries
and Footer"). Reading is typed while it is parsed, so that hostile JSON cannot build anything but entries; limits are
the constants below. Writing gives the bytes Go's ``json.MarshalIndent(toc, "", "\\t")`` gives.
"""

from __future__ import annotations

import hashlib
import json
import re
from base64 import b64encode
from typing import TYPE_CHECKING, cast

import msgspec
from isal import isal_zlib

from harness.errors import DigestMismatch, FormatError

if TYPE_CHECKING:
    from collections.abc import Iterable

TOC_NAME = "stargz.index.json"
PREFETCH_LANDMARK = ".prefetch.landmark"
NO_PREFETCH_LANDMARK = ".no.prefetch.landmark"
LANDMARK_CONTENT = b"\x0f"
HIDDEN_NAMES = frozenset({TOC_NAME, PREFETCH_LANDMARK, NO_PREFETCH_LANDMARK})
"""These root entries belong to the format itself, and are never shown to a container."""

TOC_DIGEST_ANNOTATION = "containerd.io/snapshot/stargz/toc.digest"
UNCOMPRESSED_SIZE_ANNOTATION = "io.containers.estargz.uncompressed-size"
ZSTD_TOC_DIGEST_ANNOTATION = "io.github.containers.zstd-chunked.manifest-checksum"

MAX_TOC_BYTES = 256 << 20
"""The JSON has at most so many bytes. An entry takes about 400 bytes, so this is some 600 000 files in one layer."""
MAX_ENTRIES = 1 << 20

INFLATE_ERROR = cast("type[Exception]", isal_zlib.error)  # declared as an instance by its stubs
_TAR_BLOCK = 512


class TocEntry(msgspec.Struct, gc=False, rename="camel"):
    """Holds one tar entry, or one further chunk (``type`` is ``chunk``) of the regular file before it.

    Field order is the reference's key order. Sizes and offsets are in bytes; ``offset`` is where in the blob the gzip
    member with this payload begins, ``inner_offset`` where in that member's decompressed bytes the payload begins. Zero
    and empty fields are those the JSON leaves out.
    """

    name: str
    type: str
    size: int = 0
    modtime: str = ""
    link_name: str = ""
    mode: int = 0
    uid: int = 0
    gid: int = 0
    user_name: str = ""
    group_name: str = ""
    offset: int = 0
    inner_offset: int = 0
    dev_major: int = 0
    dev_minor: int = 0
    xattrs: dict[str, bytes | None] | None = None
    digest: str = ""
    chunk_offset: int = 0
    chunk_size: int = 0
    chunk_digest: str = ""


class _Toc(msgspec.Struct):
    version: int
    entries: list[TocEntry] | None = None


_DECODER = msgspec.json.Decoder(_Toc)


def decode_toc(document: bytes) -> list[TocEntry]:
    """Reads the entries of a TOC JSON document; FormatError for anything that is not one or breaks a limit."""
    if len(document) > MAX_TOC_BYTES:
        raise FormatError("eStargz TOC", f"{len(document)} bytes long, more than the {MAX_TOC_BYTES} accepted")
    # Entries are bounded before any is built; each of them must have both keys.
    if len(document) > MAX_ENTRIES * len('{"name":"","type":""}') and document.count(b'"type"') > MAX_ENTRIES:
        raise FormatError("eStargz TOC", f"more than {MAX_ENTRIES} entries")
    try:
        toc = _DECODER.decode(document)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, OverflowError, ValueError) as error:
        raise FormatError("eStargz TOC", f"not a table of contents: {error}") from error
    if toc.version != 1:
        raise FormatError("eStargz TOC", f"version {toc.version}; only version 1 is known")
    return toc.entries or []


def inflate_toc(member: bytes, expected_digest: str | None = None) -> bytes:
    """Inflates the TOC JSON out of its gzip member (a one-entry tar), checked against the manifest's annotation if
    given.

    Raises FormatError for bytes that are no such member or inflate past MAX_TOC_BYTES, DigestMismatch for another TOC.
    """
    inflater = isal_zlib.decompressobj(31)
    try:
        tar = inflater.decompress(member, MAX_TOC_BYTES + 4 * _TAR_BLOCK)
    except (INFLATE_ERROR, ValueError) as error:
        raise FormatError("eStargz TOC", f"its gzip member does not inflate: {error}") from error
    header = tar[:_TAR_BLOCK]
    if len(header) < _TAR_BLOCK or header[:100].rstrip(b"\0") != TOC_NAME.encode():
        raise FormatError("eStargz TOC", f"its gzip member does not begin with the tar entry {TOC_NAME!r}")
    size_field = header[124:136].strip(b" \0")
    if not size_field or size_field.strip(b"01234567"):
        raise FormatError("eStargz TOC", f"the size {size_field!r} in its tar header is not an octal number")
    size = int(size_field, 8)
    if size > MAX_TOC_BYTES:
        raise FormatError("eStargz TOC", f"{size} bytes long, more than the {MAX_TOC_BYTES} accepted")
    document = tar[_TAR_BLOCK : _TAR_BLOCK + size]
    if len(document) != size:
        raise FormatError("eStargz TOC", f"{len(document)} bytes of {size} stand in its gzip member")
    if expected_digest is not None:
        check_toc_digest(document, expected_digest)
    return document


def check_toc_digest(document: bytes, expected_digest: str) -> None:
    """Raises DigestMismatch unless the TOC JSON has the digest its layer's descriptor promises."""
    actual = "sha256:" + hashlib.sha256(document).hexdigest()
    if actual != expected_digest:
        raise DigestMismatch("eStargz TOC", expected_digest, actual)


_ESCAPES = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}
_ESCAPED_BY_GO = re.compile("[<>&\u2028\u2029\udc80-\udcff]")
_OPTIONAL_KEYS = tuple(
    (field, encoded)
    for field, encoded in zip(TocEntry.__struct_fields__, TocEntry.__struct_encode_fields__, strict=True)
    if field not in ("name", "type")
)


def encode_toc(entries: Iterable[TocEntry]) -> bytes:
    """Writes the TOC JSON document, byte for byte as the reference writer formats these entries.

    Bytes of a name that are not UTF-8 (surrogate escapes here) become U+FFFD, as there: the format has no way to
    hold them.
    """
    document = bytearray(b'{\n\t"version": 1,\n\t"entries": [')
    separator = "\n"
    for entry in entries:
        lines = [f'\t\t\t"name": {_quote(entry.name)}', f'\t\t\t"type": "{entry.type}"']
        for field, key in _OPTIONAL_KEYS:
            value = getattr(entry, field)
            if value:
                lines.append(f'\t\t\t"{key}": {_value(value)}')
        document += (separator + "\t\t{\n" + ",\n".join(lines) + "\n\t\t}").encode()
        separator = ",\n"
    document += b"]\n}" if separator == "\n" else b"\n\t]\n}"
    return bytes(document)


def _value(value: int | str | dict[str, bytes | None]) -> str:
    if isinstance(value, int):
        return str(value)
    if isinstance(value, str):
        return _quote(value)
    lines = (f"\t\t\t\t{_quote(key)}: {_base64(value[key])}" for key in sorted(value))
    return "{\n" + ",\n".join(lines) + "\n\t\t\t}"


def _base64(value: bytes | None) -> str:
    return "null" if value is None else f'"{b64encode(value).decode()}"'


def _quote(text: str) -> str:
    quoted = json.dumps(text, ensure_ascii=False)
    if _ESCAPED_BY_GO.search(quoted):
        quoted = _ESCAPED_BY_GO.sub(lambda match: _ESCAPES.get(match[0], "\\ufffd"), quoted)
    return quoted
