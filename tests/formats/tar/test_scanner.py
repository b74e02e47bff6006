"""Tar headers: the dialects, the sparse maps, and what hostile bytes may do."""

from __future__ import annotations

import io
import os
import random
import subprocess
import tarfile
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.errors import FormatError, UnsafePath
from harness.formats.table import Kind
from harness.formats.tar.fields import number, pax_records, pax_time
from harness.formats.tar.names import clean_name, clean_target
from harness.formats.tar.scanner import MAX_SPECIAL_BYTES, TarEntry, TarScanner, TarStream
from tests.formats.soci.ztocs import layer, pieces, small_tar

if TYPE_CHECKING:
    from pathlib import Path


def scan(data: bytes, piece: int = 1 << 20) -> list[TarEntry]:
    scanner = TarScanner()
    entries = [entry for part in pieces(data, piece) for entry in scanner.feed(part)]
    scanner.close()
    return entries


def fields(entry: TarEntry) -> tuple[object, ...]:
    return tuple(getattr(entry, name) for name in TarEntry.__slots__)


def sum_header(block: bytes) -> bytes:
    """The header with its checksum put right."""
    blank = block[:148] + b" " * 8 + block[156:]
    return block[:148] + b"%06o\0 " % sum(blank) + block[156:]


@pytest.mark.parametrize("name", ["pax.tar", "gnu.tar"])
def test_entries_are_those_of_another_reader(name: str) -> None:
    """Every field of every entry agrees with Python's tarfile, payload offsets included."""
    data = layer(name)
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        members = tar.getmembers()
    entries = scan(data)
    assert len(entries) == len(members)
    for entry, member in zip(entries, members, strict=True):
        assert entry.name.rstrip(b"/") == member.name.encode()
        assert (entry.payload_offset, entry.size) == (member.offset_data, member.size)
        assert (entry.uid, entry.gid, entry.mode) == (member.uid, member.gid, member.mode)
        assert (entry.uname, entry.gname) == (member.uname.encode(), member.gname.encode())
        assert entry.linkname == member.linkname.encode()
        assert entry.mtime_s + entry.mtime_ns / 1e9 == pytest.approx(float(member.mtime))
        assert entry.flag == member.type[0]


@pytest.mark.parametrize("piece", [1, 37, 511, 512, 513, 5000])
def test_pieces_do_not_matter(piece: int) -> None:
    """However the stream is cut, the entries are the same and the archive ends after its second zero block."""
    data = layer("pax.tar")[:120000] + bytes(1024)
    whole = layer("pax.tar")
    reference = [fields(entry) for entry in scan(whole)]
    if piece == 1:
        scanner = TarScanner()
        found = [fields(entry) for part in pieces(data, 1) for entry in scanner.feed(part)]
        assert found == reference[: len(found)]
        assert len(found) > 10
        return
    assert [fields(entry) for entry in scan(whole, piece)] == reference


def test_archive_end_is_the_second_zero_block() -> None:
    """Padding after the end marker is not part of the archive."""
    data = small_tar({"a": b"x"})
    scanner = TarScanner()
    scanner.feed(data)
    assert scanner.ended
    assert scanner.position == 512 + 512 + 1024
    assert scanner.feed(b"anything") == []


@pytest.mark.parametrize("piece", [100, 1 << 20])
def test_stream_gives_payloads(piece: int) -> None:
    """The pull reader hands out payloads and skips what was not read."""

    class Short(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            return super().read(min(size or 0, piece))

    content = {f"f{index}": os.urandom(index * 311) for index in range(12)}
    stream = TarStream(Short(small_tar(content)))
    seen = {}
    for index, entry in enumerate(stream):
        if index % 2:
            parts = []
            while part := stream.read(200):
                parts.append(part)
            seen[entry.name.decode()] = b"".join(parts)
    assert seen == {name: data for index, (name, data) in enumerate(content.items()) if index % 2}


def test_stream_reports_a_cut_payload() -> None:
    """A payload that ends early is a FormatError, not short data."""
    stream = TarStream(io.BytesIO(small_tar({"a": b"x" * 5000})[:2000]))
    assert stream.next() is not None
    assert len(stream.read(2000)) == 2000 - 512
    with pytest.raises(FormatError, match="ends inside a payload"):
        stream.read(1000)


# Dialects


def test_global_header_is_an_entry_of_its_own() -> None:
    """As in Go, a global PAX header is reported and changes nothing after it."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT, pax_headers={"uname": "nobody"}) as tar:
        tar.addfile(tarfile.TarInfo("a"))
    first, second = scan(out.getvalue())
    assert chr(first.flag) == "g"
    assert first.pax == {b"uname": b"nobody"}
    assert (second.name, second.uname) == (b"a", b"")
    with pytest.raises(FormatError, match="unsupported type"):
        _ = first.kind


def test_base256_numbers() -> None:
    """GNU's binary numbers: large, negative, and one that does not fit."""
    assert number(b"\x80" + (1 << 40).to_bytes(11, "big"), 0) == 1 << 40
    assert number(b"\xff" * 12, 0) == -1
    with pytest.raises(FormatError, match="64 bits"):
        number(b"\x80\x01" + bytes(10), 0)
    assert number(b" 644 \0  ", 0) == 0o644
    assert number(bytes(8), 0) == 0
    for wrong in (b"9\0", b"-1\0", b"0o7", b"1_0", b"+7"):
        with pytest.raises(FormatError, match="octal"):
            number(wrong, 0)


def test_old_directories_and_prefix() -> None:
    """A v7 entry ending in a slash is a directory; a ustar prefix comes before the name."""
    info = tarfile.TarInfo("d" * 90 + "/" + "e" * 90)
    block = info.tobuf(tarfile.USTAR_FORMAT)
    (entry,) = scan(block + bytes(1024))
    assert entry.name == b"d" * 90 + b"/" + b"e" * 90
    old = sum_header(b"old/".ljust(100, b"\0") + block[100:156] + bytes(356))
    (entry,) = scan(old + bytes(1024))
    assert (entry.name, entry.kind) == (b"old/", Kind.DIR)


@pytest.mark.files
@pytest.mark.parametrize(
    "options",
    [["--format=gnu"], *(["--format=pax", f"--sparse-version={version}"] for version in ("0.0", "0.1", "1.0"))],
    ids=["gnu", "0.0", "0.1", "1.0"],
)
@pytest.mark.parametrize("holes", [3, 60])
def test_sparse_maps(tmp_path: Path, options: list[str], holes: int) -> None:
    """GNU tar's four ways to store a sparse file lead to the same bytes, however many holes there are."""
    path = tmp_path / "sparse"
    with open(path, "wb") as file:
        for index in range(holes):
            file.seek((2 * index + 1) * 65536)
            file.write(b"%05d" % index * 100)
        file.truncate((2 * holes + 5) * 65536)
    command = ["tar", "-c", "--sparse", *options, "-C", str(tmp_path), "sparse"]
    data = subprocess.run(command, check=True, capture_output=True).stdout
    (entry,) = scan(data, 700)
    assert entry.name == b"sparse"
    assert entry.size == path.stat().st_size
    assert entry.sparse is not None
    rebuilt, at = bytearray(entry.size), entry.payload_offset
    for start, length in entry.sparse:
        rebuilt[start : start + length] = data[at : at + length]
        at += length
    assert bytes(rebuilt) == path.read_bytes()
    assert data[entry.end_offset : entry.end_offset + 1024] == bytes(1024)


def test_pax_time() -> None:
    """Fractions go down to nanoseconds, also before the epoch."""
    assert pax_time(b"1.5", 0) == (1, 500_000_000)
    assert pax_time(b"-1.25", 0) == (-2, 750_000_000)
    assert pax_time(b"7.1234567899", 0) == (7, 123_456_789)
    for wrong in (b"", b"a", b"1.x", b"1e9"):
        with pytest.raises(FormatError):
            pax_time(wrong, 0)


# Hostile input


@pytest.mark.parametrize(
    "record",
    [
        b"5 a=\n9",
        b"0 a=b\n",
        b"99 a=b\n",
        b"6 ab=\n\n",
        b"x",
        b"6 =bc\n",
        b"-6 a=b\n",
        b"6  a=b\n",
        b"8 a\0=bc\n",
        b"7 a=bc",
    ],
)
def test_malformed_pax_records(record: bytes) -> None:
    """Lengths that lie, missing separators and NULs in keys are refused."""
    with pytest.raises(FormatError, match="PAX record"):
        pax_records(record, 0)


def test_extended_headers_are_limited() -> None:
    """An extended header cannot make the parser buffer more than its limit."""
    info = tarfile.TarInfo("x")
    info.type = tarfile.XHDTYPE
    info.size = MAX_SPECIAL_BYTES + 1
    with pytest.raises(FormatError, match="extended header"):
        TarScanner().feed(info.tobuf())


def test_single_byte_changes_of_a_header_are_noticed() -> None:
    """A changed byte in a header breaks its checksum, or was a blank in a number."""
    good = small_tar({"name": b""})
    reference = [fields(entry) for entry in scan(good)]
    for position in range(512):
        for mask in (0x01, 0x20, 0x80):
            bad = bytearray(good)
            bad[position] ^= mask
            try:
                assert [fields(entry) for entry in scan(bytes(bad))] == reference
            except FormatError:
                continue


def test_cut_archives() -> None:
    """An archive cut anywhere is refused, except where Go's reader also sees a clean end (between entries)."""
    data = layer("gnu.tar")
    entries = scan(data)
    ends = {0} | {entry.end_offset for entry in entries}
    for size in [*range(0, 3000, 100), *range(0, 100_000, 512), 735_000]:
        try:
            scan(data[:size])
        except FormatError:
            continue
        within_padding = any(entry.payload_offset + entry.stored_bytes <= size <= entry.end_offset for entry in entries)
        assert size in ends or within_padding


def test_changed_bytes_never_crash() -> None:
    """Random damage gives entries or a FormatError, nothing else."""
    random_source = random.Random(7)
    data = bytearray(layer("pax.tar"))
    interesting = [entry.header_offset for entry in scan(bytes(data))]
    for _ in range(400):
        bad = bytearray(data[:90_000])
        start = random_source.choice([offset for offset in interesting if offset < 80_000])
        for _ in range(3):
            bad[start + random_source.randrange(1024)] = random_source.randrange(256)
        bad[start : start + 512] = sum_header(bytes(bad[start : start + 512]))
        try:
            scan(bytes(bad))
        except FormatError:
            continue


def test_sparse_maps_that_lie() -> None:
    """Fragments that overlap, leave the file or name more than is stored are refused."""
    for text in (b"0,10,5,10", b"0,100000", b"5,-1", b"1,2,3", b"0,9"):
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
            info = tarfile.TarInfo("s")
            info.size = 8
            info.pax_headers = {"GNU.sparse.map": text.decode(), "GNU.sparse.size": "500"}
            tar.addfile(info, io.BytesIO(bytes(8)))
        with pytest.raises(FormatError):
            scan(out.getvalue())


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        (b"a/b", b"a/b"), (b"./a//b/", b"a/b"), (b"./", b""), (b"", b""), (b"a/./b", b"a/b"),
        (b"..a/b..", b"..a/b.."), (b".wh.x", b".wh.x"),
        (b"/etc/x", b"etc/x"), (b"//a/", b"a"), (b"/", b""), (b"a/../b", b"b"), (b"a/..", b""), (b"/a/b/../../c", b"c"),
    ],
)  # fmt: skip
def test_clean_names(raw: bytes, clean: bytes) -> None:
    """Names lose what does not change where they lead, as Go's path.Clean has it; ``/`` is the layer's root."""
    assert clean_name(raw) == clean


@pytest.mark.parametrize("raw", [b"..", b"../x", b"a/../../b", b"/../etc", b"a\0b", b"./a\0"])
def test_unsafe_names(raw: bytes) -> None:
    """Names that go up beyond the root or hold a NUL are refused."""
    with pytest.raises(UnsafePath):
        clean_name(raw)


@pytest.mark.parametrize("raw", [b"a/b", b"/a/b", b"//a/./b/", b"./a/b"])
def test_link_targets_are_below_the_root(raw: bytes) -> None:
    """A hard link's target may begin with a slash: it means the layer's root."""
    assert clean_target(raw) == b"a/b"
    with pytest.raises(UnsafePath):
        clean_target(b"/../" + raw)


names = st.text(st.characters(codec="utf-8", exclude_characters="\0/"), min_size=1, max_size=120)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.lists(names, min_size=1, max_size=4).map("/".join).filter(lambda name: name not in {".", ".."}),
            st.binary(max_size=700),
            st.integers(0, 0o7777),
            st.integers(0, 2**40),
            st.integers(-(10**9), 4 * 10**9).map(lambda quarters: quarters / 4),
        ),
        max_size=6,
    ),
    st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]),
    st.integers(1, 2000),
)
def test_written_tars_read_back(files: list[tuple[str, bytes, int, int, float]], dialect: int, piece: int) -> None:
    """What tarfile writes, in any dialect and cut anywhere, is read with the same names, bytes and metadata."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=dialect, encoding="utf-8") as tar:
        for name, content, mode, uid, mtime in files:
            info = tarfile.TarInfo(name)
            info.size, info.mode, info.uid = len(content), mode, uid
            info.mtime = mtime if dialect == tarfile.PAX_FORMAT else abs(int(mtime))
            tar.addfile(info, io.BytesIO(content))
    data = out.getvalue()
    for entry, (name, content, mode, uid, mtime) in zip(scan(data, piece), files, strict=True):
        expected = mtime if dialect == tarfile.PAX_FORMAT else abs(int(mtime))
        assert entry.name == name.encode()
        assert data[entry.payload_offset : entry.payload_offset + entry.size] == content
        assert (entry.mode, entry.uid) == (mode, uid)
        assert entry.mtime_s + entry.mtime_ns / 1e9 == pytest.approx(expected, abs=1e-5)
