"""eStargz bytes that lie: each ends in a FormatError or DigestMismatch that says what and where, and nothing else."""

from __future__ import annotations

import json
import struct
import tarfile
import zlib
from typing import Any

import pytest

from harness.errors import ContentError, DigestMismatch, FormatError, UnsafePath
from harness.formats.estargz import chunks as estargz_chunks
from harness.formats.estargz import toc as estargz_toc
from harness.formats.estargz.footer import FooterKind, encode_footer, is_estargz, parse_footer
from harness.formats.estargz.reader import open_estargz
from harness.formats.estargz.table import build_layer
from harness.formats.estargz.toc import decode_toc, encode_toc, inflate_toc
from tests.formats.estargz.blobs import Blob, golden_blob, golden_tar, read, toc_document, write

DIGEST = "sha256:" + "0" * 64


def parse(*entries: dict[str, Any], payload_end: int = 10_000) -> estargz_chunks.ChunkMap:
    document = json.dumps({"version": 1, "entries": entries}).encode()
    return build_layer(decode_toc(document), payload_end).chunks


def reg(name: str = "f", size: int = 10, **fields: Any) -> dict[str, Any]:
    return {"name": name, "type": "reg", "size": size, "offset": 100, "chunkDigest": DIGEST, **fields}


def chunk(**fields: Any) -> dict[str, Any]:
    return {"name": "f", "type": "chunk", "offset": 200, "chunkDigest": DIGEST, **fields}


def gzip_member(tar: bytes) -> bytes:
    return zlib.compress(tar, 9, 31)


def toc_member(document: bytes, size: int | None = None) -> bytes:
    info = tarfile.TarInfo("stargz.index.json")
    info.size = len(document) if size is None else size
    return gzip_member(info.tobuf(tarfile.USTAR_FORMAT) + document)


def test_footers_of_both_forms_are_read_and_ours_is_the_current_one() -> None:
    """51 bytes with subfield header; 47 bytes without, as stargz wrote it; the offset is what was put in."""
    footer = encode_footer(0x1234)
    assert len(footer) == 51
    assert zlib.decompress(footer, 31) == b""
    parsed = parse_footer(footer, 100_000)
    assert (parsed.kind, parsed.toc_offset, parsed.toc_end) == (FooterKind.ESTARGZ, 0x1234, 100_000 - 51)
    legacy = footer[:10] + struct.pack("<H", 22) + footer[16:]
    parsed = parse_footer(b"?" * 4 + legacy, 100_000)
    assert (parsed.kind, parsed.toc_offset, parsed.toc_end) == (FooterKind.LEGACY_STARGZ, 0x1234, 100_000 - 47)
    assert is_estargz(footer)
    assert is_estargz(legacy)


def test_an_external_toc_is_recognised_and_refused_with_advice() -> None:
    """Its footer has no offset; the message says that this form is not supported."""
    extra = b"SG" + struct.pack("<H", 17) + b"STARGZEXTERNALTOC"
    footer = b"\x1f\x8b\x08\x04" + bytes(5) + b"\xff" + struct.pack("<H", 21) + extra + b"\1\0\0\xff\xff" + bytes(8)
    assert len(footer) == 46
    blob = bytes(1000) + footer
    assert parse_footer(blob[-51:], len(blob)).kind is FooterKind.EXTERNAL_TOC
    with pytest.raises(FormatError, match="external TOC"):
        open_estargz(Blob(blob), len(blob), None)
    assert not is_estargz(blob)


@pytest.mark.parametrize(
    "footer",
    [
        b"",
        bytes(51),
        encode_footer(5)[:-1] + b"\1",
        encode_footer(5)[:40],
        encode_footer(5).replace(b"STARGZ", b"STARGX"),
        encode_footer(5).replace(b"%016x" % 5, b"+00000000000_0_5"),
        encode_footer(1 << 63),
        encode_footer(1000),
        encode_footer(949),
        struct.pack("<4Q", 990, 1 << 60, 5, 1) + b"GnUlInUx",
    ],
)
def test_lying_footers_are_refused(footer: bytes) -> None:
    """Not a footer, cut, an offset that is no number or lies outside the blob."""
    blob = bytes(1000 - len(footer)) + footer
    with pytest.raises(FormatError, match="footer"):
        open_estargz(Blob(blob), len(blob), None)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([reg(offset=10_000)], "outside"),
        ([reg(offset=-1)], "outside"),
        ([reg(size=-1)], "size"),
        ([reg(size=1 << 50)], "size"),
        ([reg(size=1 << 63)], "64 bits"),
        ([reg(chunkSize=4)], "add up"),
        ([reg(chunkSize=11)], "add up"),
        ([reg(chunkSize=-4), chunk(chunkOffset=-4)], "add up"),
        ([reg(chunkSize=4), chunk(chunkOffset=5)], "add up"),
        ([reg(chunkSize=6), chunk(chunkOffset=4)], "add up"),
        ([reg(chunkSize=4), chunk(chunkOffset=4, chunkSize=4)], "add up"),
        ([reg(chunkSize=4), chunk(chunkOffset=4, chunkSize=7)], "add up"),
        ([reg(), chunk(chunkOffset=10)], "add up"),
        ([reg(), chunk(chunkOffset=0)], "add up"),
        ([reg(chunkOffset=2)], "add up"),
        ([reg(size=0, offset=0), chunk(chunkOffset=0)], "add up"),
        ([chunk()], "before any regular file"),
        ([reg(innerOffset=-1)], "member"),
        ([reg(innerOffset=1 << 40)], "member"),
        ([reg(size=65 << 20)], "chunk of"),
        ([reg(), reg("g", innerOffset=9)], "overlaps"),
        ([reg(), reg("g")], "overlaps"),
        ([{"name": "x", "type": "socket"}], "unknown type"),
        ([{"name": "x", "type": "dir", "uid": -1}], "owner"),
        ([{"name": "x", "type": "dir", "gid": 1 << 32}], "owner"),
        ([{"name": "x", "type": "char", "devMajor": -1}], "device"),
        ([{"name": "x", "type": "dir", "modtime": "yesterday"}], "RFC 3339"),
        ([{"name": "x", "type": "dir", "modtime": "2020-02-30T00:00:00Z"}], "day"),
        ([{"name": "x", "type": "dir", "modtime": "2020-02-03T24:00:00Z"}], "time of day"),
        ([{"name": "./", "type": "fifo"}], "root"),
        ([{"name": "a\0b", "type": "dir"}], "NUL"),
        ([{"name": "a", "type": "symlink", "linkName": "b\0c"}], "NUL"),
    ],
)
def test_entries_that_do_not_hold_together_are_refused(entries: list[dict[str, Any]], message: str) -> None:
    """Offsets outside the blob, chunks that overlap, are negative or do not add up, values out of range."""
    with pytest.raises(FormatError, match=message):
        parse(*entries)


@pytest.mark.parametrize("name", ["../x", "a/../../x", "..", "/../x", "./../x", "a/./../../b"])
def test_names_that_leave_the_root_are_refused(name: str) -> None:
    """For entries and for hard-link targets alike."""
    with pytest.raises(UnsafePath):
        parse({"name": name, "type": "dir"})
    with pytest.raises(UnsafePath):
        parse({"name": "ok", "type": "hardlink", "linkName": name})


def test_absolute_names_are_read_from_the_root() -> None:
    """As in containerd; the root itself may be called ``/``."""
    entries = [{"name": "/", "type": "dir"}, {"name": "/x", "type": "hardlink", "linkName": "/y"}]
    table = build_layer(decode_toc(json.dumps({"version": 1, "entries": entries}).encode()), 0).table
    assert (list(table.names), table.links[1]) == ([b"", b"x"], b"y")


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b'{"version":2,"entries":[]}',
        b'{"version":"1"}',
        b'{"version":1,"entries":{}}',
        b'{"version":1,"entries":[1]}',
        b'{"version":1,"entries":[{}]}',
        b'{"version":1,"entries":[{"name":"a","type":"dir","size":"1"}]}',
        b'{"version":1,"entries":[{"name":"a","type":"dir","size":1.5}]}',
        b'{"version":1,"entries":[{"name":"a","type":"dir","mode":null}]}',
        b'{"version":1,"entries":[{"name":"\xff","type":"dir"}]}',
        b'{"version":1,"entries":[{"name":"a","type":"dir","xattrs":{"user.a":"?"}}]}',
        b'{"version":1,"junk":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"version":1} trailing',
    ],
)
def test_documents_that_are_no_toc_are_refused(document: bytes) -> None:
    """Other JSON, other types, broken UTF-8, deep nesting."""
    with pytest.raises(FormatError):
        decode_toc(document)


def test_a_lone_surrogate_in_a_name_is_refused() -> None:
    """JSON can spell half of a surrogate pair; no file name is that."""
    with pytest.raises(FormatError):
        build_layer(decode_toc(b'{"version":1,"entries":[{"name":"\\ud800","type":"dir"}]}'), 0)


def test_a_toc_with_null_entries_is_an_empty_layer() -> None:
    """Go writes null for an empty list; unknown keys are passed over."""
    layer = build_layer(decode_toc(b'{"version":1,"entries":null,"more":[{}]}'), 0)
    assert (len(layer.table), len(layer.chunks), layer.table.address_space_bytes) == (0, 0, 0)


def test_an_empty_toc_is_written_as_go_writes_it() -> None:
    """An empty list stays on its line."""
    assert encode_toc([]) == b'{\n\t"version": 1,\n\t"entries": []\n}'


def test_too_many_entries_are_refused_before_any_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    """The count is taken from the text."""
    monkeypatch.setattr(estargz_toc, "MAX_ENTRIES", 3)
    entry = b'{"name":"a","type":"dir"}'
    assert len(decode_toc(b'{"version":1,"entries":[' + b",".join([entry] * 3) + b"]}")) == 3
    with pytest.raises(FormatError, match="more than 3 entries"):
        decode_toc(b'{"version":1,"entries":[' + b",".join([entry] * 4) + b"]}")


def test_a_toc_bomb_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A TOC member that inflates past the limit stops there, whether its header says so or not."""
    monkeypatch.setattr(estargz_toc, "MAX_TOC_BYTES", 100_000)
    with pytest.raises(FormatError, match="more than the 100000"):
        inflate_toc(toc_member(bytes(200_000)))
    with pytest.raises(FormatError, match="more than the 100000"):
        inflate_toc(toc_member(bytes(50_000_000), size=100_001))


@pytest.mark.parametrize(
    "member",
    [
        b"",
        b"no gzip at all, but long enough to be one",
        gzip_member(b"short"),
        gzip_member(bytes(2048)),
        toc_member(b"{}", size=5000),
        toc_member(b'{"version":1}')[:-12],
    ],
)
def test_a_toc_member_that_is_none_is_refused(member: bytes) -> None:
    """Not gzip, another tar entry, a size that is not there."""
    with pytest.raises(FormatError):
        inflate_toc(member)


def test_a_chunk_that_inflates_to_another_length_is_refused() -> None:
    """Too short is an error; what rides behind the payload (a bomb, for all we know) is never inflated."""
    chunks = parse(reg(size=10))
    with pytest.raises(FormatError, match="inflates to 4 bytes"):
        chunks.inflate_chunk(0, gzip_member(b"abcd"))
    assert chunks.inflate_chunk(0, gzip_member(b"0123456789" + bytes(100_000_000))) == b"0123456789"
    with pytest.raises(FormatError, match="does not inflate"):
        chunks.inflate_chunk(0, b"\0" * 40)


def test_a_chunk_without_digest_is_not_served() -> None:
    """What cannot be verified is an error when it is read, as in layers of the older stargz form."""
    chunks = parse(reg(chunkDigest=""))
    with pytest.raises(FormatError, match="no digest"):
        chunks.verify_chunk(0, b"0123456789")
    whole = parse(reg(chunkDigest="", digest=DIGEST))
    with pytest.raises(DigestMismatch):
        whole.verify_chunk(0, b"0123456789")


def test_a_flipped_byte_anywhere_is_harmless_or_detected() -> None:
    """Whatever single byte of a blob changes, reading gives the same bytes or an error."""
    blob, written = write(golden_tar("gnu.tar"))
    toc, source = read(blob, written.toc_digest)
    truth = source.read(0, source.size)
    table = toc.table
    toc_start = toc.footer.toc_offset
    places = [*range(0, toc_start, 4999), *range(toc_start, len(blob), 37), *range(len(blob) - 51, len(blob))]
    detected = 0
    for place in places:
        flipped = bytearray(blob)
        flipped[place] ^= 0x10
        try:
            other, other_source = read(bytes(flipped), written.toc_digest)
            assert other.table.names == table.names
            assert other_source.read(0, other_source.size) == truth
        except ContentError:
            detected += 1
    assert detected > len(places) * 0.9


def test_truncation_is_detected() -> None:
    """A blob cut anywhere has no footer at its end."""
    blob = golden_blob("gnu.estargz.chunk0.min0.prio0")
    for size in (0, 1, 50, 51, 1000, len(blob) - 52, len(blob) - 1):
        with pytest.raises(FormatError):
            read(blob[:size])


def test_opening_reads_the_tail_once_and_the_toc_only_when_it_is_larger() -> None:
    """One request for a small TOC; nothing of the payload."""
    data, _ = write(golden_tar("gnu.tar"))
    blob = Blob(data)
    open_estargz(blob, len(data), None)
    assert blob.reads == [(len(data) - 65536, 65536)]
    assert toc_document(data).startswith(b'{\n\t"version": 1')
