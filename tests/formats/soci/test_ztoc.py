"""zTOCs: byte identity with the reference tool, the reader, and hostile input."""

from __future__ import annotations

import hashlib
import io
import mmap
import random
import struct
import tarfile
import threading
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.errors import ContentError, FormatError, UnsafePath
from harness.formats.gzip import checkpoints as gzip_index
from harness.formats.gzip.checkpoints import Checkpoint, build_checkpoints, index_gzip
from harness.formats.soci import ztoc, ztoc_table
from harness.formats.soci.flatbuffer import Writer
from harness.formats.soci.ztoc_build import LayerIndexer
from harness.formats.soci.ztoc_spool import CheckpointStore
from harness.formats.soci.ztoc_write import rfc3339, serialise
from harness.formats.table import Kind
from harness.formats.tar.names import clean_name
from harness.formats.tar.scanner import TarEntry, TarScanner
from tests.formats.soci.ztocs import VECTORS, build, golden_ztoc, gzipped, layer, parsed, pieces, small_tar

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


def vector_id(vector: dict[str, Any]) -> str:
    return str(vector["Ztoc"])


@pytest.mark.parametrize("vector", VECTORS, ids=vector_id)
def test_same_bytes_as_the_reference(vector: dict[str, Any]) -> None:
    """For every golden layer, span size and tool name the whole zTOC is the reference tool's."""
    compression = "gzip" if vector["Algorithm"] == "gzip" else "none"
    made = build(layer(vector["Layer"]), vector["SpanSize"], compression, vector["Tool"])
    assert "sha256:" + hashlib.sha256(made).hexdigest() == vector["Digest"]


@pytest.mark.parametrize("name", ["pax.zlib6.tar.gz", "pax.manymembers.tar.gz", "pax.named.tar.gz", "pax.flush.tar.gz"])
def test_pieces_do_not_matter(name: str) -> None:
    """A layer that arrives in odd pieces gives the same zTOC (shared bytes of spans may lie between two pieces)."""
    data = layer(name)
    assert build(data, 20_000, piece=977) == build(data, 20_000)


@pytest.mark.parametrize("name", ["pax.zlib6.tar.gz.span65536.ztoc", "pax.manymembers.tar.gz.span65536.ztoc"])
def test_reader_sees_what_the_tar_holds(name: str) -> None:
    """The columns of a zTOC made by the reference tool are the tar's entries."""
    table = ztoc.parse(golden_ztoc(name)).to_table()
    scanner = TarScanner()
    entries = scanner.feed(layer("pax.tar"))
    assert len(table) == len(entries)
    assert table.address_space_bytes == scanner.position
    for index, entry in enumerate(entries):
        compare(table, index, entry)


def compare(table: Any, index: int, entry: TarEntry) -> None:
    """One row of a table against a tar entry."""
    assert table.names[index] == clean_name(entry.name)
    assert table.kinds[index] == entry.kind
    assert table.modes[index] == entry.mode & 0o7777
    assert (table.uids[index], table.gids[index]) == (entry.uid & 0xFFFFFFFF, entry.gid & 0xFFFFFFFF)
    assert (table.mtimes_s[index], table.mtimes_ns[index]) == (entry.mtime_s, entry.mtime_ns)
    if entry.kind == Kind.REG:
        assert table.sizes[index] == entry.size
        assert table.offsets[index] == (entry.payload_offset if entry.size else -1)
    assert table.xattrs.get(index, {}) == entry.xattrs
    if entry.kind == Kind.SYMLINK:
        assert table.links[index] == entry.linkname
    if entry.kind == Kind.HARDLINK:
        assert table.links[index] == clean_name(entry.linkname)
    if entry.kind in (Kind.CHAR, Kind.BLOCK):
        assert table.rdevs[index] == (entry.devmajor, entry.devminor)


short = st.binary(max_size=20)
entries_strategy: st.SearchStrategy[dict[str, Any]] = st.builds(
    dict,
    name=st.lists(st.from_regex(rb"[^/\0.]{1,12}", fullmatch=True), min_size=1, max_size=3).map(b"/".join),
    linkname=st.from_regex(rb"[^/\0.]{0,12}", fullmatch=True),
    uname=short, gname=short,
    flag=st.sampled_from(b"0123456"),
    mode=st.integers(0, 0o177777), uid=st.integers(0, 2**32 - 1), gid=st.integers(0, 2**32 - 1),
    size=st.integers(0, 1000), payload_offset=st.integers(0, 1000),
    mtime_s=st.integers(-62135596800, 253402300799), mtime_ns=st.sampled_from([0, 1, 120_000_000, 999_999_999]),
    devmajor=st.integers(0, 2**31), devminor=st.integers(0, 2**31),
    pax=st.dictionaries(st.sampled_from([b"SCHILY.xattr.user.a", b"comment", b"SCHILY.xattr.b"]), short, max_size=3),
)  # fmt: skip


@settings(max_examples=80, deadline=None)
@given(st.lists(entries_strategy, max_size=8))
def test_written_tables_read_back(rows: list[dict[str, Any]]) -> None:
    """Serialised entries come back with the same metadata, whatever their values and alignment."""
    entries = []
    for row in rows:
        entry = TarEntry()
        for key, value in row.items():
            setattr(entry, key, value)
        entry.header_offset, entry.sparse, entry.stored_bytes = 0, None, row["size"]
        entries.append(entry)
    table = ztoc.parse(frame(entries)).to_table()
    for index, entry in enumerate(entries):
        compare(table, index, entry)


def frame(
    entries: Sequence[TarEntry] = (), checkpoints: int = 1, digests: int = 1, archive: int = 4096, size: int = 10_000
) -> bytes:
    """A zTOC with made-up spans."""
    store = CheckpointStore(4096)
    for index in range(checkpoints):
        store.add(Checkpoint(10 + index, index * 100, 0), bytes(32768))
    return b"".join(
        serialise(
            entries, store, [bytes(32)] * digests, algorithm=1, tool="t", compressed_bytes=size, archive_bytes=archive
        )
    )


@given(st.integers(-62167219200, 253402300799), st.integers(0, 999_999_999))
def test_times(seconds: int, nanoseconds: int) -> None:
    """Times of the years 0 to 9999 survive the text form."""
    assert ztoc_table.parse_time(rfc3339(seconds, nanoseconds)) == (seconds, nanoseconds)


def test_time_forms() -> None:
    """Zones are understood, nonsense is refused, a time beyond the text form cannot be written."""
    assert ztoc_table.parse_time(b"1970-01-01T01:00:00+01:00") == (0, 0)
    assert ztoc_table.parse_time(b"0001-01-01T00:00:00Z") == (-62135596800, 0)
    assert ztoc_table.parse_time(b"") == (0, 0)
    for wrong in (b"1970", b"1970-13-01T00:00:00Z", b"1970-01-01T00:00:00", b"x" * 30):
        with pytest.raises(FormatError, match="RFC 3339"):
            ztoc_table.parse_time(wrong)
    with pytest.raises(FormatError, match="9999"):
        rfc3339(253402300800, 0)


def test_old_form_without_the_first_checkpoint() -> None:
    """Where checkpoint 0 is left out it stands behind a plain gzip header, with an empty window."""
    data = golden_ztoc("pax.zlib6.tar.gz.span65536.ztoc")
    new = ztoc.parse(data)
    start = new.first_window - 17 - 12
    size = 12 + len(new.ins) * ztoc.RECORD_BYTES
    assert struct.unpack_from("<I", data, start - 4) == (size,)
    cut = ztoc.RECORD_BYTES
    old = bytearray(data)
    old[start - 4 : start + 12 + cut] = bytes(cut) + struct.pack("<I", size - cut) + data[start : start + 12]
    # The reference to the vector has to move with it.
    for at in range(start):
        if at + struct.unpack_from("<I", data, at)[0] == start - 4:
            candidate = bytearray(old)
            candidate[at : at + 4] = struct.pack("<I", start - 4 + cut - at)
            try:
                read = ztoc.parse(bytes(candidate))
            except FormatError:
                continue
            assert np.array_equal(read.ins, new.ins)
            assert np.array_equal(read.outs, new.outs)
            assert bytes(read.window(0)) == bytes(32768)
            assert bytes(read.window(3)) == bytes(new.window(3))
            return
    pytest.fail("no reference to the checkpoints found")


@pytest.mark.files
def test_a_map_is_as_good_as_bytes(tmp_path: Path) -> None:
    """A zTOC may stay on disk."""
    path = tmp_path / "ztoc"
    path.write_bytes(golden_ztoc("gnu.tar.span262144.ztoc"))
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        table = ztoc.parse(memoryview(mapped)).to_table()
        assert list(table.names) == list(ztoc.parse(path.read_bytes()).to_table().names)
        assert all(type(name) is bytes for name in table.names)


def test_many_windows_leave_memory() -> None:
    """Beyond 32 MiB windows wait in a file; what is written is the same."""
    store = CheckpointStore(1)
    for index in range(2100):
        store.add(Checkpoint(index, index, 0), bytes([index % 256]) * 32768)
    assert store._file._rolled  # type: ignore[attr-defined]
    assert sum(map(len, store.pieces())) == store.size
    store.close()


def test_many_entries_leave_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Entries and the finished file table may wait in files; the zTOC is the same."""
    tar, stored = layer("pax.tar"), layer("pax.zlib6.tar.gz")
    expected = build(stored)
    monkeypatch.setattr("harness.formats.soci.ztoc_spool.ENTRIES", 7)
    monkeypatch.setattr("harness.formats.soci.ztoc_spool.MEMORY_BYTES", 100)
    monkeypatch.setattr("harness.formats.soci.ztoc_write._PIECES", 16)
    assert build(stored) == expected
    assert build(tar, compression="none") == build(tar, compression="none", piece=600)


def test_finer_checkpoints_go_to_their_own_sink() -> None:
    """A caller may ask for any span size and keep the windows as it likes."""
    kept: dict[Checkpoint, int] = {}
    tar = layer("pax.tar")
    found = build_checkpoints(
        pieces(layer("pax.zlib6.tar.gz"), 5000), 30_000, lambda at, window: kept.setdefault(at, len(window))
    )
    assert list(kept) == found
    assert len(found) > 8
    assert found[-1].out_offset < len(tar)


# Hostile input


def outcome(data: bytes) -> str:
    """Parse as far as possible; only errors of the content kind may come out."""
    try:
        parsed_ztoc = ztoc.parse(data)
        for span in range(parsed_ztoc.spans):
            assert len(parsed_ztoc.window(span)) <= 32768
        parsed_ztoc.to_table()
    except ContentError:
        return "refused"
    return "read"


def test_cut_ztocs() -> None:
    """A zTOC cut anywhere is refused or, where nothing that is needed is gone, read."""
    data = golden_ztoc("gnu.tar.span262144.ztoc")
    results = [outcome(data[:size]) for size in range(len(data))]
    assert results.count("read") <= 64
    windows = golden_ztoc("pax.zlib6.tar.gz.span65536.ztoc")
    assert {outcome(windows[:size]) for size in range(0, len(windows) - 64, 997)} == {"refused"}


def test_changed_bytes_never_crash() -> None:
    """Any byte may change (the digest in the index would tell): the reader refuses or reads, and never breaks."""
    source = random.Random(11)
    data = build(gzipped(layer("gnu.tar")), 262144, "gzip")
    numbers = ztoc.parse(data)
    windows = range(numbers.first_window, numbers.first_window + numbers.spans * ztoc.RECORD_BYTES)
    places = [at for at in range(len(data)) if at not in windows]
    for _ in range(3000):
        bad = bytearray(data)
        for _ in range(source.choice([1, 1, 1, 4, 30])):
            bad[source.choice(places)] = source.choice([0, 1, 0x7F, 0x80, 0xFF, source.randrange(256)])
        outcome(bytes(bad))


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300))
def test_garbage_is_refused(data: bytes) -> None:
    """Random bytes are no zTOC."""
    assert outcome(data) == "refused"


@pytest.mark.parametrize(
    "arguments",
    [
        {"digests": 2},
        {"digests": 0},
        {"checkpoints": 3, "digests": 2},
        {"checkpoints": 0, "digests": 0},
        {"checkpoints": 3, "digests": 3, "size": 11},
        {"archive": 1 << 40},
    ],
    ids=["digest too many", "no digest", "digest missing", "nothing", "past the end", "huge span"],
)
def test_counts_that_lie(arguments: dict[str, Any]) -> None:
    """Spans, digests and sizes have to agree."""
    with pytest.raises(FormatError):
        ztoc.parse(frame(**arguments))


def test_files_outside_the_archive() -> None:
    """A file cannot claim bytes past the archive's end."""
    entry = TarScanner().feed(small_tar({"a": b"x" * 100}))[0]
    entry.size = 1 << 40
    with pytest.raises(FormatError, match="outside the archive"):
        ztoc.parse(frame([entry])).to_table()


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("../../etc/passwd", "leave the layer's root"),
        ("./..", "leave the layer's root"),
    ],
)
def test_names_that_leave_the_root(name: str, reason: str) -> None:
    """Path traversal is refused when the table is made."""
    entry = TarScanner().feed(small_tar({name: b""}))[0]
    with pytest.raises(UnsafePath, match=reason):
        ztoc.parse(frame([entry])).to_table()


def test_odd_names_are_cleaned() -> None:
    """A name that begins with ``.//`` is relative, however the columns are cleaned."""
    entries = [TarScanner().feed(small_tar({name: b""}))[0] for name in (".//a", "./b//c", "./", "d")]
    assert list(ztoc.parse(frame(entries)).to_table().names) == [b"a", b"b/c", b"", b"d"]


def test_shared_strings_are_no_bomb(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many entries that share one long name are refused before the names are copied out."""
    monkeypatch.setattr(ztoc_table, "MAX_TEXT_BYTES", 1 << 20)
    writer = Writer()
    name, kind = writer.string(b"n" * 60_000), writer.string(b"reg")
    one = writer.table([(0, "o", name), (1, "o", kind)])
    metadata = writer.offsets([one] * 1000)
    columns = writer.table([(0, "o", metadata)])
    checkpoints = writer.string(struct.pack("<iqqqB", 1, 4096, 10, 0, 0) + bytes(32768))
    digests = writer.offsets([writer.string(b"sha256:" + b"0" * 64)])
    info = writer.table([(2, "o", digests), (3, "o", checkpoints)])
    version = writer.string(b"0.9")
    fields = [(0, "o", version), (2, "q", 100), (3, "q", 4096), (4, "o", columns), (5, "o", info)]
    writer.finish(writer.table(fields))
    read = ztoc.parse(b"".join(reversed(writer.pieces)))
    assert len(read) == 1000
    with pytest.raises(FormatError, match="bytes of text"):
        read.to_table()


def test_shared_digests_are_no_bomb() -> None:
    """Digest strings are no longer than digests, however many references share one."""
    writer = Writer()
    long = writer.string(b"sha256:" + b"0" * 100_000)
    digests = writer.offsets([long] * 1000)
    checkpoints = writer.string(struct.pack("<iqqqB", 1, 4096, 10, 0, 0) + bytes(32768))
    toc = writer.table([(0, "o", writer.offsets([]))])
    info = writer.table([(2, "o", digests), (3, "o", checkpoints)])
    version = writer.string(b"0.9")
    writer.finish(writer.table([(0, "o", version), (2, "q", 100), (4, "o", toc), (5, "o", info)]))
    with pytest.raises(FormatError, match="100007 bytes"):
        ztoc.parse(b"".join(reversed(writer.pieces)))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda data: data[:-9], "ends early"),
        (lambda data: data[: len(data) // 2], "ends early"),
        (lambda data: data + b"garbage", "stands behind"),
        (lambda data: data[:-8] + bytes(8), "incorrect data check"),
        (lambda data: b"", "no data"),
        (lambda data: b"plain text", "incorrect header check"),
        (lambda data: data[:2000] + bytes(64) + data[2064:], "gzip stream"),
    ],
    ids=["cut trailer", "cut", "garbage", "wrong checksum", "empty", "not gzip", "damaged"],
)
def test_damaged_gzip(change: Any, reason: str) -> None:
    """Damaged layers are FormatErrors, and no thread is left behind."""
    before = threading.active_count()
    with pytest.raises(FormatError, match=reason):
        build(change(layer("pax.zlib6.tar.gz")))
    assert threading.active_count() == before


def test_damaged_tar_inside_good_gzip() -> None:
    """An error of the tar reader ends the inflating thread too."""
    before = threading.active_count()
    data = bytearray(layer("gnu.tar"))
    data[72192] ^= 0xFF
    with pytest.raises(FormatError, match="checksum"):
        build(gzipped(bytes(data) * 12))
    assert threading.active_count() == before


def test_a_bomb_costs_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Inflation is handed on in fixed pieces, and stops at the limit."""
    monkeypatch.setattr("harness.formats.gzip.checkpoints.MAX_INFLATED_BYTES", 1 << 22)
    sizes: list[int] = []
    with pytest.raises(FormatError, match="inflates to over"):
        index_gzip([gzipped(bytes(1 << 24))], 4096, lambda at, window: None, lambda view: sizes.append(len(view)))
    assert max(sizes, default=0) <= 1 << 20


@pytest.mark.parametrize("data", [gzipped(b"")[:10] + b"\0\0\0\xff\xff" * 100_000, gzipped(b"") * 5_000])
def test_empty_blocks_are_no_bomb(data: bytes) -> None:
    """Every boundary before the first byte is a checkpoint of 32 KiB, for 5 bytes: their number has a limit."""
    kept: list[Checkpoint] = []
    with pytest.raises(FormatError, match="too many"):
        build_checkpoints(pieces(data, 1 << 18), 1 << 22, lambda checkpoint, _: kept.append(checkpoint))
    assert len(kept) <= gzip_index.MAX_EMPTY_BLOCKS


@pytest.mark.parametrize("kind", [tarfile.CONTTYPE, tarfile.XGLTYPE])
def test_layers_without_a_place_in_a_ztoc(kind: bytes) -> None:
    """Types that the format lacks are named as the obstacle, and cannot be written."""
    info = tarfile.TarInfo("odd")
    info.type = kind
    with LayerIndexer("none") as indexer:
        indexer.read([info.tobuf(tarfile.GNU_FORMAT) + bytes(1024)])
        assert "odd" in indexer.obstacle
        with pytest.raises(FormatError, match="no place in a zTOC"):
            indexer.write(io.BytesIO(), "t")


def test_types_that_no_mode_can_show_are_refused() -> None:
    """Such a layer cannot be unpacked either: it is an error, not a layer without an index."""
    info = tarfile.TarInfo("odd")
    info.type = b"Z"
    with LayerIndexer("none") as indexer, pytest.raises(FormatError, match="unsupported type"):
        indexer.read([info.tobuf(tarfile.GNU_FORMAT) + bytes(1024)])


def test_zeros_behind_a_layer_are_padding() -> None:
    """They belong to the last span, and the layer reads as without them."""
    data = layer("pax.zlib6.tar.gz")
    padded, plain = parsed(data + bytes(512)), parsed(data)
    assert padded.archive_bytes == plain.archive_bytes
    assert padded.compressed_bytes == plain.compressed_bytes + 512


def test_sparse_files_are_refused() -> None:
    """A sparse file has no single extent: the layer is no candidate, and a zTOC that hides one is refused."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo("holes")
        info.size = 8
        info.pax_headers = {"GNU.sparse.map": "100,8", "GNU.sparse.size": "500"}
        tar.addfile(info, io.BytesIO(bytes(8)))
    with LayerIndexer("none") as indexer:
        indexer.read([out.getvalue()])
        assert indexer.obstacle == "'holes' is a sparse file"
    with pytest.raises(FormatError, match="sparse"):
        parsed(gzipped(out.getvalue())).to_table()


def test_empty_blocks_and_members_at_the_start() -> None:
    """A stream that begins with empty blocks has a checkpoint at each, as the reference tool takes them."""
    compressor = zlib.compressobj(6, zlib.DEFLATED, 31)
    data = compressor.flush(zlib.Z_SYNC_FLUSH) + compressor.flush(zlib.Z_FULL_FLUSH)
    data += compressor.compress(small_tar({"a": b"x" * 5000})) + compressor.flush()
    read = parsed(data)
    assert read.outs.tolist()[:2] == [0, 0]
    assert read.ins[0] == 10
