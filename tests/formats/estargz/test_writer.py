"""Layers with everything in them: what goes into an eStargz layer and in which order, and that it comes out again."""

from __future__ import annotations

import gzip
import io
import posixpath
import tarfile
from typing import TYPE_CHECKING

import pytest
import zstandard
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from harness.errors import DiskFull, FormatError, UnsafePath
from harness.formats.estargz.toc import decode_toc, encode_toc
from harness.formats.estargz.writer import EstargzOptions
from harness.formats.gzip.inflate import inflate
from harness.formats.gzip.layer_stream import room_for, spool
from harness.formats.table import Kind
from tests.formats.estargz.blobs import files, golden_tar, metadata, read, toc_document, toc_entries, write
from tests.formats.estargz.test_golden import tar_contents

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


def make_tar(*members: tuple[str, Mapping[str, object]], format: int = tarfile.PAX_FORMAT) -> bytes:  # noqa: A002
    """A tar of (name, fields); ``data`` is a regular file's content, every other field one of TarInfo."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format, encoding="utf-8", errors="surrogateescape") as archive:
        for name, fields in members:
            info = tarfile.TarInfo(name)
            data = fields.get("data")
            for key, value in fields.items():
                if key != "data":
                    setattr(info, key, value)
            if isinstance(data, bytes):
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
            else:
                archive.addfile(info)
    return out.getvalue()


def names(blob: bytes) -> list[str]:
    return [entry.name for entry in toc_entries(blob) if entry.type != "chunk"]


LINK = {"type": tarfile.LNKTYPE}
DIR = {"type": tarfile.DIRTYPE}


def test_prioritized_files_come_first_with_parents_and_link_targets() -> None:
    """In the order given; parents need no entry of their own; what is lacking is reported; the rest keeps its order."""
    tar = make_tar(
        ("a/", dict(DIR)), ("a/b/", dict(DIR)), ("z", {"data": b"z"}), ("a/b/f", {"data": b"f"}),
        ("l", {**LINK, "linkname": "a/b/f"}), ("no/parent", {"data": b"p"}), ("y", {"data": b"y"}),
    )  # fmt: skip
    blob, written = write(tar, EstargzOptions(prioritized=("no/parent", "l", "/nothing", "./z", "l")))
    assert names(blob) == ["no/parent", "a/", "a/b/", "a/b/f", "l", "z", ".prefetch.landmark", "y"]
    assert written.missing == ("/nothing",)


def test_entries_with_the_formats_own_names_are_left_out_at_the_root_only() -> None:
    """A layer converted twice, or with a file that happens to be called like the TOC, gets the real ones."""
    tar = make_tar(
        ("stargz.index.json", {"data": b"{}"}), ("./.prefetch.landmark", {"data": b"?"}),
        (".no.prefetch.landmark", {"data": b"?"}), ("d/stargz.index.json", {"data": b"kept"}),
    )  # fmt: skip
    blob, _ = write(tar)
    assert names(blob) == [".no.prefetch.landmark", "d/stargz.index.json"]
    assert files(*read(blob)) == {b"d/stargz.index.json": b"kept"}


def test_of_equal_names_the_last_entry_stays_at_its_own_place() -> None:
    """Names are compared cleaned."""
    blob, _ = write(make_tar(("x", {"data": b"1"}), ("y", {"data": b"2"}), ("./x", {"data": b"3"})))
    assert names(blob) == [".no.prefetch.landmark", "y", "./x"]
    assert files(*read(blob)) == {b"y": b"2", b"x": b"3"}


def test_a_link_to_a_replaced_file_keeps_the_content_it_was_made_with() -> None:
    """Unpacking in tar order leaves links b and c at the first a; the eStargz layer says the same."""
    tar = make_tar(
        ("a", {"data": b"first", "mode": 0o640}), ("b", {**LINK, "linkname": "a"}), ("c", {**LINK, "linkname": "a"}),
        ("a", {"data": b"second"}), ("d", {**LINK, "linkname": "a"}),
    )  # fmt: skip
    blob, _ = write(tar)
    toc, source = read(blob)
    facts = metadata(toc.table)
    assert files(toc, source) == {b"b": b"first", b"a": b"second"}
    assert facts[b"b"][:2] == ("REG", 0o640)
    assert (facts[b"c"][6], facts[b"d"][6]) == (b"b", b"a")
    with tarfile.open(fileobj=io.BytesIO(gzip.decompress(blob))) as archive:
        assert archive.extractfile("c").read() == b"first"  # type: ignore[union-attr]


def test_a_link_before_its_target_gets_the_target_moved_before_it() -> None:
    """Hard links may stand in any order; links in a circle are refused."""
    tar = make_tar(
        ("l1", {**LINK, "linkname": "l2"}), ("l2", {**LINK, "linkname": "t"}), ("x", {"data": b"x"}),
        ("t", {"data": b"t"}),
    )  # fmt: skip
    blob, _ = write(tar)
    assert names(blob)[1:] == ["t", "l2", "l1", "x"]
    with pytest.raises(FormatError, match="circle"):
        write(make_tar(("c1", {**LINK, "linkname": "c2"}), ("c2", {**LINK, "linkname": "c1"})))


def test_every_kind_of_entry_survives() -> None:
    """Whiteouts, opaque markers, devices, fifos, xattrs, long and odd names, large ids, empty files, any time."""
    tar = make_tar(
        ("d/", {**DIR, "mode": 0o1777}), ("d/.wh.gone", {"data": b""}), ("d/.wh..wh..opq", {"data": b""}),
        ("c", {"type": tarfile.CHRTYPE, "devmajor": 5, "devminor": 300}),
        ("b", {"type": tarfile.BLKTYPE, "devmajor": 259}), ("p", {"type": tarfile.FIFOTYPE}),
        ("n" * 250 + "/" + "m" * 50, {"data": b"long"}),
        ("sym", {"type": tarfile.SYMTYPE, "linkname": "../" + "t" * 200}),
        ("<&>\u2028\u00e9\U0001f680\x7f\b\"\\", {"data": b"odd"}),
        ("empty", {"data": b"", "uid": 1 << 31, "uname": "u"}),
        ("x", {"data": b"x", "pax_headers": {"SCHILY.xattr.user.empty": "", "SCHILY.xattr.user.b": "\x01=\udcff\n"}}),
        ("old", {"data": b"o", "mtime": -86_401}), ("far", {"data": b"f", "mtime": 300_000_000_000}),
        ("exact", {"data": b"e" * 2048}), ("setuid", {"data": b"s", "mode": 0o6755, "uname": "u", "gname": "g"}),
    )  # fmt: skip
    blob, _ = write(tar, EstargzOptions(chunk_size=1024))
    toc, source = read(blob)
    facts, contents = tar_contents(tar)
    # PAX says that an empty record takes the value away, and Go reads it so; tarfile keeps it.
    assert metadata(toc.table)[b"x"][8] in (
        {b"user.empty": b"", b"user.b": b"\x01=\xff\n"},
        {b"user.b": b"\x01=\xff\n"},
    )
    facts[b"x"] = metadata(toc.table)[b"x"]
    assert metadata(toc.table) == facts
    assert files(toc, source) == contents
    assert encode_toc(decode_toc(toc_document(blob))) == toc_document(blob)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, ""),
        (1, "1970-01-01T00:00:01Z"),
        (-1, "1969-12-31T23:59:59Z"),
        (-62_167_219_200, "0000-01-01T00:00:00Z"),
        (-62_167_219_201, "-0001-12-31T23:59:59Z"),
        (253_402_300_800, "10000-01-01T00:00:00Z"),
        ((1 << 63) - 1, "292277026596-12-04T15:30:07Z"),
        (-(1 << 63), "-292277022657-01-27T08:29:52Z"),
    ],
)
def test_times_of_any_year_are_written_and_read_back(seconds: int, text: str) -> None:
    """Four digits at least, a sign before them, as Go formats them (it overflows at the last)."""
    tar = make_tar(("f", {"data": b"", "mtime": seconds}))
    blob, _ = write(tar)
    assert toc_entries(blob)[1].modtime == text
    assert int(read(blob)[0].table.mtimes_s[0]) == seconds


def sparse_tar(*, pax: bool) -> bytes:
    """A file of 10 000 bytes with stored fragments at 1000 and 9000, in the old GNU form or PAX 1.0."""
    fragments, size = [(1000, 700), (9000, 1000)], 10_000
    stored = b"A" * 700 + b"B" * 1000
    if pax:
        text = "2\n" + "".join(f"{offset}\n{length}\n" for offset, length in fragments)
        payload = text.encode().ljust(512, b"\0") + stored
        info = tarfile.TarInfo("GNUSparseFile.0/s")
        info.size = len(payload)
        info.pax_headers = {
            "GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "s", "GNU.sparse.realsize": str(size),
            "SCHILY.xattr.user.k": "v",
        }  # fmt: skip
        head = info.tobuf(tarfile.PAX_FORMAT)
    else:
        payload = stored
        info = tarfile.TarInfo("s")
        info.type, info.size = b"S", len(payload)
        block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
        for i, (offset, length) in enumerate(fragments):
            block[386 + 24 * i : 410 + 24 * i] = b"%011o\0%011o\0" % (offset, length)
        block[483:495] = b"%011o\0" % size
        block[148:156] = b" " * 8
        block[148:156] = b"%06o\0 " % sum(block)
        head = bytes(block)
    return head + payload.ljust(-(-len(payload) // 512) * 512, b"\0") + make_tar(("after", {"data": b"after"}))


@pytest.mark.parametrize("pax", [False, True])
def test_sparse_files_are_written_in_full(pax: bool) -> None:
    """eStargz has no sparse files: the holes become zeros, in the TOC's chunks and in the tar."""
    blob, _ = write(sparse_tar(pax=pax), EstargzOptions(chunk_size=4096))
    whole = bytes(1000) + b"A" * 700 + bytes(7300) + b"B" * 1000
    toc, source = read(blob)
    assert files(toc, source) == {b"s": whole, b"after": b"after"}
    assert toc.table.xattrs == ({0: {b"user.k": b"v"}} if pax else {})
    assert tar_contents(gzip.decompress(blob))[1][b"s"] == whole


def test_a_tar_without_its_last_padding_is_taken_as_go_takes_it() -> None:
    """The payload is complete, the zeros after it are not there."""
    tar = make_tar(("f", {"data": b"abc"}))
    blob, _ = write(tar[: 512 + 3])
    assert files(*read(blob)) == {b"f": b"abc"}
    with pytest.raises(FormatError):
        write(tar[: 512 + 2])


def test_global_headers_are_dropped_and_unknown_types_refused() -> None:
    """A global PAX header changes nothing for Go's reader; a type that no layer holds is an error."""
    tar = make_tar(("f", {"data": b"abc"}))
    header = tarfile.TarInfo.create_pax_global_header({"comment": "made by git"})
    assert write(header + tar)[0] == write(tar)[0]
    with pytest.raises(FormatError, match="unsupported type"):
        write(make_tar(("v", {"type": b"V"})))
    with pytest.raises(UnsafePath):
        write(make_tar(("../x", {"data": b""})))


def test_names_that_are_not_utf8_are_counted_and_written_as_the_reference_writes_them() -> None:
    """JSON cannot hold them; the tar inside still does."""
    blob, written = write(make_tar(("caf\udce9", {"data": b"1"})))
    assert written.unencodable_names == 1
    assert b'"name": "caf\\ufffd"' in toc_document(blob)
    with tarfile.open(fileobj=io.BytesIO(gzip.decompress(blob)), errors="surrogateescape") as archive:
        assert "caf\udce9" in archive.getnames()


def test_small_files_share_a_member_up_to_the_minimum() -> None:
    """innerOffset is the payload's place in the member's decompressed bytes; the landmark begins its own."""
    tar = make_tar(*((f"f{i}", {"data": bytes([65 + i]) * 900}) for i in range(10)))
    blob, _ = write(tar, EstargzOptions(min_chunk_size=4000, prioritized=("f9",)))
    entries = [entry for entry in toc_entries(blob) if entry.type == "reg"]
    members = {entry.offset for entry in entries}
    assert len(members) == 5
    assert entries[1].name == ".prefetch.landmark"
    assert entries[1].inner_offset == 0
    toc, source = read(blob)
    assert len(files(toc, source)) == 10
    shared = toc.chunks.member_chunks(2)
    assert len(shared) > 1
    assert len(blob) < len(write(tar)[0])


def test_the_bytes_depend_on_input_and_options_alone() -> None:
    """Twice the same, although batches are compressed by several threads."""
    tar = make_tar(*((f"f{i}", {"data": bytes(range(256)) * (i * 37 % 200)}) for i in range(400)))
    first = write(tar)
    assert first == write(tar)
    assert first[0] != write(tar, EstargzOptions(chunk_size=1000))[0]


@pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])
def test_layers_of_every_compression_give_the_same_tar(compression: str) -> None:
    """Many members or frames, padding after them; what is cut or damaged is an error."""
    tar = golden_tar("pax.tar")
    pieces = [tar[i : i + 100_000] for i in range(0, len(tar), 100_000)]
    if compression == "gzip":
        stored = b"".join(gzip.compress(piece, 1) for piece in pieces) + bytes(100)
    elif compression == "zstd":
        stored = b"".join(zstandard.compress(piece) for piece in pieces)
    else:
        stored = tar
    small = [stored[i : i + 7001] for i in range(0, len(stored), 7001)]
    assert b"".join(inflate(small, "x")) == tar
    if compression == "gzip":
        with pytest.raises(FormatError, match="ends early"):
            list(inflate([stored[:5000]], "x"))
        with pytest.raises(FormatError, match="damaged"):
            list(inflate([b"\x1f\x8b" + bytes(20)], "x"))


def test_no_room_to_unpack_is_said_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """ENOSPC becomes DiskFull with the directory's name."""

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("harness.formats.gzip.layer_stream._write", full)
    with pytest.raises(DiskFull, match=str(tmp_path)):
        spool([golden_tar("pax.tar")], "layer 0", directory=tmp_path)
    monkeypatch.undo()
    with pytest.raises(DiskFull, match="layer 0"), room_for("layer 0"), open("/dev/full", "wb", buffering=0) as out:
        out.write(b"x")


COMPONENT = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=30).filter(
    lambda text: text not in (".", "..") and not text.startswith(".wh.")
)
PATH = st.lists(COMPONENT, min_size=1, max_size=4).map("/".join)
_FIELDS: dict[str, st.SearchStrategy[object]] = {
    "mode": st.integers(0, 0o7777),
    "uid": st.integers(0, (1 << 32) - 2),
    "gid": st.integers(0, 1 << 20),
    "uname": st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=8),
    "mtime": st.integers(-(1 << 40), 1 << 40),
}
_OPTIONAL_FIELDS: dict[str, st.SearchStrategy[object]] = {
    "data": st.binary(max_size=3000),
    "pax_headers": st.just({"SCHILY.xattr.user.a": "\udcfe="}),
}
MEMBER = st.fixed_dictionaries(_FIELDS, optional=_OPTIONAL_FIELDS)
KIND = st.sampled_from([tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    members=st.lists(st.tuples(PATH, KIND, MEMBER), max_size=12),
    chunk_size=st.sampled_from([1, 100, 512, 4 << 20]),
    minimum=st.sampled_from([0, 1000, 1 << 20]),
    pick=st.lists(st.integers(0, 11), max_size=3),
)
def test_writing_and_reading_is_the_identity(
    members: list[tuple[str, bytes, dict[str, object]]], chunk_size: int, minimum: int, pick: list[int]
) -> None:
    """For any tar: the table and bytes read from our blob are what tarfile reads from the tar.

    Entries below what is no directory, and directories that replace something else, are written as what they mean
    (tests/faults): there are none here.
    """
    directories = {posixpath.normpath(name) for name, kind, _ in members if kind == tarfile.DIRTYPE}
    others = {posixpath.normpath(name) for name, kind, _ in members if kind != tarfile.DIRTYPE}
    parents = {name.rsplit("/", depth)[0] for name in directories | others for depth in range(1, name.count("/") + 1)}
    assume(not others & (directories | parents))
    built = []
    for name, kind, drawn in members:
        fields = dict(drawn)
        if kind == tarfile.REGTYPE:
            fields.setdefault("data", b"")
        else:
            fields.pop("data", None)
            fields["type"] = kind
        if kind == tarfile.SYMTYPE:
            fields["linkname"] = name
        if kind == tarfile.CHRTYPE:
            fields["devmajor"] = 5  # 0/0 is OverlayFS's whiteout
        built.append((name, fields))
    tar = make_tar(*built)
    prioritized = tuple(members[i][0] for i in pick if i < len(members))
    blob, written = write(tar, EstargzOptions(chunk_size, minimum, prioritized))
    toc, source = read(blob, written.toc_digest)
    facts, contents = tar_contents(tar)
    hidden = (b"stargz.index.json", b".prefetch.landmark", b".no.prefetch.landmark")
    assert metadata(toc.table) == {name: fact for name, fact in facts.items() if name not in hidden}
    live = {name: data for name, data in contents.items() if facts[name][0] == "REG"}
    assert files(toc, source) == live
    assert toc.table.address_space_bytes % 512 == 0
    assert all(kind != Kind.REG or size == 0 or at >= 0 for kind, size, at in
               zip(toc.table.kinds, toc.table.sizes, toc.table.offsets, strict=True))  # fmt: skip
