"""Every parser against hostile bytes: a ContentError or a sound result, never a crash, a hang or a gigabyte."""

from __future__ import annotations

import gzip
import io
from contextlib import closing, suppress
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import zstandard

from harness.errors import ColdbenchError, ContentError
from harness.formats.erofs.build import build_layer
from harness.formats.erofs.head import decode_head, encode_index
from harness.formats.erofs.index import index_parts
from harness.formats.erofs.merge import merge_layers
from harness.formats.erofs.pack import decode_table, pack_descriptor, table_bytes
from harness.formats.erofs.pack_build import build_pack
from harness.formats.erofs.reader import ErofsImage, over_bytes
from harness.formats.erofs.recording import Recording
from harness.formats.erofs.writer import write_metadata
from harness.formats.estargz.footer import Footer, FooterKind, encode_footer, is_estargz, parse_footer
from harness.formats.estargz.reader import EstargzToc, open_estargz
from harness.formats.estargz.toc import inflate_toc
from harness.formats.estargz.writer import EstargzOptions
from harness.formats.gzip.inflate import inflate
from harness.formats.gzip.spans import ZtocByteSource
from harness.formats.soci import index as soci_index
from harness.formats.soci.ztoc import parse as parse_ztoc
from harness.formats.soci.ztoc_build import LayerIndexer
from harness.formats.table import Kind
from harness.formats.tar.scanner import TarScanner, TarStream
from harness.oci.descriptor import OCI_CONFIG, OCI_MANIFEST, Descriptor, Platform, digest_bytes, go_json
from harness.oci.image import build_image, parse_json, platform_candidates
from harness.oci.location import copy_image, open_destination, open_source
from tests.formats.erofs.layers import image_of
from tests.formats.erofs.layers import table_of as erofs_table
from tests.formats.erofs.test_reader import SAMPLE as EROFS_SAMPLE
from tests.formats.estargz.blobs import GOLDEN, Blob, toc_document, write
from tests.formats.estargz.test_writer import sparse_tar
from tests.fuzz.mutations import damaged
from tests.oci.samples import make_tar, sample_layout

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from hypothesis.strategies import SearchStrategy

    from harness.formats.table import LayerTable

    Fuzz = Callable[[SearchStrategy[bytes], Callable[[bytes], None]], None]

SMALL_GZIP = (GOLDEN / "ctr-remote" / "layer.tar.gz").read_bytes()
SMALL_TAR = gzip.decompress(SMALL_GZIP)
SMALL_ESTARGZ = (GOLDEN / "ctr-remote" / "layer.esgz").read_bytes()
MERGED_ESTARGZ = write(SMALL_TAR, EstargzOptions(min_chunk_size=4000))[0]
TARS = [SMALL_TAR, sparse_tar(pax=True), sparse_tar(pax=False)]
TOC_WORDS = [
    b"-1", b"1e99", b"9223372036854775807", b"18446744073709551616", b'"reg"', b'"chunk"', b'"hardlink"', b"null",
    b'"../x"', b'"chunkOffset"', b'"chunkSize"', b'"innerOffset"', b'"offset"', b'"size"', b"[[[[",
    b"\\ud800", b"\\u0000",
]  # fmt: skip
TAR_WORDS = [
    b"77777777777\0", b"\x80\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff", b"../", b"ustar\0", b"ustar  \0", b"S", b"x",
    b"L", b"30 path=../../../../../etc\n", b"GNU.sparse.major=1",
]  # fmt: skip


class InMemory:
    """A layer's address space (``pack_build.LayerBytes``)."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def read(self, offset: int, size: int) -> bytes:
        return self._data[offset : offset + size]


def sound(table: LayerTable) -> None:
    """What presentations rely on: clean names, payloads inside the address space."""
    for name in table.names:
        parts = name.split(b"/")
        assert name == b"" or not {b"", b".", b".."} & set(parts)
        assert b"\0" not in name
    sized = (table.kinds == Kind.REG) & (table.sizes > 0)
    assert np.all(table.sizes >= 0)
    assert np.all(table.offsets[sized] >= 0)
    assert np.all(table.offsets[sized] + table.sizes[sized] <= table.address_space_bytes)


def test_footer(fuzz: Fuzz) -> None:
    """Any tail gives a footer inside the blob or a FormatError."""

    def check(data: bytes) -> None:
        with suppress(ContentError):
            is_estargz(data)
            footer = parse_footer(data, len(data))
            assert footer.kind is FooterKind.EXTERNAL_TOC or 0 <= footer.toc_offset < footer.toc_end <= len(data)

    fuzz(
        damaged([encode_footer(5), bytes(100) + encode_footer(99), SMALL_ESTARGZ[-100:]], [b"STARGZ", b"GnUlInUx"]),
        check,
    )


def test_toc(fuzz: Fuzz) -> None:
    """Any JSON gives a sound table whose every chunk lies in the blob, or a FormatError."""
    footer = Footer(FooterKind.ESTARGZ, 100_000, 200_000, 51)

    def check(data: bytes) -> None:
        with suppress(ContentError):
            toc = EstargzToc.from_document(data, footer)
            sound(toc.table)
            chunks = toc.chunks
            for chunk in range(len(chunks)):
                offset, size = chunks.chunk_compressed_extent(chunk)
                assert 0 <= offset < offset + size <= footer.toc_offset
                assert chunks.chunk_of(chunks.starts[chunk]) == chunk
                assert chunk in chunks.member_chunks(chunk)

    fuzz(damaged([toc_document(SMALL_ESTARGZ), toc_document(MERGED_ESTARGZ)], TOC_WORDS), check)


def test_toc_member(fuzz: Fuzz) -> None:
    """Any bytes in the TOC's place inflate to a document or are refused."""

    def check(data: bytes) -> None:
        with suppress(ContentError):
            inflate_toc(data)

    footer = parse_footer(SMALL_ESTARGZ[-51:], len(SMALL_ESTARGZ))
    fuzz(damaged([SMALL_ESTARGZ[footer.toc_offset : footer.toc_end]]), check)


def test_estargz_blob(fuzz: Fuzz) -> None:
    """A damaged blob gives the sound one's bytes or an error when its TOC's digest is promised; else only no crash."""
    sound_bytes = {}
    for blob in (SMALL_ESTARGZ, MERGED_ESTARGZ):
        _, source = open_estargz(Blob(blob), len(blob), None)
        sound_bytes[digest_bytes(toc_document(blob))] = source.read(0, source.size)

    def check(data: bytes) -> None:
        for promised, expected in sound_bytes.items():
            with suppress(ContentError):
                _, source = open_estargz(Blob(data), len(data), promised)
                assert source.read(0, source.size) == expected
        with suppress(ContentError):
            toc, source = open_estargz(Blob(data), len(data), None)
            sound(toc.table)
            source.read(0, min(source.size, 1 << 26))

    fuzz(damaged([SMALL_ESTARGZ, MERGED_ESTARGZ]), check)


def test_tar(fuzz: Fuzz) -> None:
    """Pushed in one piece, in small pieces, or pulled: the same entries, or the same refusal."""

    def pushed(data: bytes, step: int) -> list[str] | None:
        scanner, found = TarScanner(), []
        try:
            for start in range(0, len(data), step):
                found += scanner.feed(data[start : start + step])
            scanner.close()
        except ContentError:
            return None
        return [repr(entry) for entry in found]

    def check(data: bytes) -> None:
        whole = pushed(data, max(1, len(data)))
        assert whole == pushed(data, 777)
        with suppress(ContentError):
            for entry in TarStream(io.BytesIO(data)):
                assert entry.size >= 0
                assert entry.payload_offset >= entry.header_offset

    fuzz(damaged(TARS, TAR_WORDS), check)


def test_layer_streams(fuzz: Fuzz) -> None:
    """Damaged gzip and zstd layers inflate piece by piece or are refused."""
    stored = [SMALL_GZIP, gzip.compress(b"a" * 5000) + bytes(10) + gzip.compress(b"b"), zstandard.compress(SMALL_TAR)]

    def check(data: bytes) -> None:
        total = 0
        with suppress(ContentError):
            for piece in inflate([data[:100], data[100:]], "layer"):
                total += len(piece)
                if total > 1 << 26:
                    break

    fuzz(damaged(stored), check)


def test_ztoc(fuzz: Fuzz) -> None:
    """A damaged zTOC is refused, or its table is sound and its spans read or are refused."""
    out = io.BytesIO()
    with LayerIndexer("gzip", 16384) as indexer:
        indexer.read([SMALL_GZIP])
        indexer.write(out, "fuzz")

    def check(data: bytes) -> None:
        with suppress(ContentError):
            ztoc = parse_ztoc(data)
            sound(ztoc.to_table())
        with suppress(ContentError):
            source = ZtocByteSource(parse_ztoc(data), Blob(SMALL_GZIP))
            for span in range(min(8, len(source.spans))):
                source.span(span)

    fuzz(damaged([out.getvalue()]), check)


def test_soci_index(fuzz: Fuzz) -> None:
    """Damaged index manifests and prefetch artefacts are refused or parsed."""
    prefetch = soci_index.prefetch_bytes([(0, 3), (7, 9)])
    manifest = soci_index.SociIndex(soci_index.V2, ()).to_bytes()

    def check(data: bytes) -> None:
        with suppress(ContentError):
            soci_index.parse_index(data)
        with suppress(ContentError):
            for first, last in soci_index.parse_prefetch(data, 10):
                assert 0 <= first <= last < 10

    fuzz(damaged([prefetch, manifest], [b"-1", b"null", b"[[[", b"1e9", b"99999999999999999999"]), check)


def test_erofs(fuzz: Fuzz) -> None:
    """A damaged image is refused somewhere or read to its end; its walk ends."""
    tiny = image_of(erofs_table())

    def check(data: bytes) -> None:
        with suppress(ContentError):
            image = ErofsImage(over_bytes(data))
            for _, inode in image.walk():
                image.xattrs(inode)
                if inode.kind == Kind.REG:
                    image.read_file(inode, 0, 4096)
                elif inode.kind == Kind.SYMLINK:
                    image.readlink(inode)

    fuzz(damaged([EROFS_SAMPLE, tiny]), check)


def test_erofs_head(fuzz: Fuzz) -> None:
    """A damaged head of an EROFS index is refused, or describes spans inside the layers."""
    layer = Descriptor.of(SMALL_GZIP, "application/vnd.oci.image.layer.v1.tar+gzip")
    built = build_layer([SMALL_GZIP], digest=layer.digest, span_bytes=8192, where="layer")
    metadata = write_metadata(merge_layers([built.table], [built.fragments]), [built.spans.size])
    head, windows = encode_index(
        metadata.data, metadata.layer_starts, metadata.image_bytes, [built.spans], [(0, 512, 1024)]
    )
    part = Descriptor.of(windows, "application/vnd.coldbench.erofs.windows.v1")

    def check(data: bytes) -> None:
        with suppress(ContentError):
            (indexed,) = decode_head(data, [layer], part).layers
            for span in range(len(indexed)):
                offset, size = indexed.span_compressed_extent(span)
                assert 0 <= offset <= offset + size <= layer.size
                at, packed = indexed.window_extent(span)
                assert 0 <= at <= at + packed <= part.size

    fuzz(damaged([head], [b'"spans"', b"-1", b"1e9", b"null", b"[[["]), check)


def test_start_pack(fuzz: Fuzz) -> None:
    """A damaged table is refused, or its ranges are the layers', and its frames unpack to what it says or fail."""
    layer = Descriptor.of(SMALL_GZIP, "application/vnd.oci.image.layer.v1.tar+gzip")
    built = build_layer([SMALL_GZIP], digest=layer.digest, span_bytes=8192, where="layer")
    metadata = write_metadata(merge_layers([built.table], [built.fragments]), [built.spans.size])
    head, windows = encode_index(metadata.data, metadata.layer_starts, metadata.image_bytes, [built.spans])
    part = Descriptor.of(windows, "application/vnd.coldbench.erofs.windows.v1") if windows else None
    index = decode_head(head, [layer], part)
    recording = Recording(((layer.digest, 0, built.spans.size),))
    made = build_pack(index, digest_bytes(head), [InMemory(SMALL_TAR)], recording)
    assert made is not None
    table, blob = made

    def check(data: bytes) -> None:
        named = replace(pack_descriptor(data, data), size=len(blob))
        with suppress(ContentError):
            pack = decode_table(data[: table_bytes(named)], named, digest_bytes(head), index)
            ranges = pack.ranges()
            assert all(index.layers[0].start <= begin < end <= index.image_bytes for begin, end in ranges)
            assert all(end <= begin for (_, end), (begin, _) in pairwise(ranges))
            for number, frame in enumerate(pack.frames):
                packed = blob[frame.offset : frame.offset + frame.packed_bytes]
                assert len(frame.decode(packed, number)) == frame.raw_bytes
        with suppress(ContentError):
            assert all(begin < end for _, begin, end in Recording.decode(data).ranges)

    fuzz(damaged([table, recording.encode()], [b"\xff\xff\xff\xff", bytes(4), b"-1", b"1e9", b"null", b"[[["]), check)


def test_image_documents(fuzz: Fuzz) -> None:
    """Damaged manifests, configurations and indexes are refused, or give an image whose parts agree."""
    layer = Descriptor.of(SMALL_GZIP, "application/vnd.oci.image.layer.v1.tar+gzip")
    config = go_json(
        {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": [digest_bytes(SMALL_TAR)]}}
    )
    manifest = go_json(
        {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": Descriptor.of(config, OCI_CONFIG).to_json(),
            "layers": [layer.to_json()],
            "annotations": {"a": "b"},
        }
    )
    index = go_json({"manifests": [Descriptor.of(manifest, OCI_MANIFEST, platform=Platform()).to_json()]})
    head = Descriptor.of(b"", OCI_MANIFEST)

    def check(data: bytes) -> None:
        for parts in ((data, config), (manifest, data)):
            with suppress(ColdbenchError):
                image = build_image(head, *parts, "image")
                assert len(image.layers) == len(image.diff_ids)
                assert image.compressed_bytes >= 0
                assert str(image.platform)
                assert all(isinstance(value, str) for value in image.annotations.values())
        with suppress(ColdbenchError):
            platform_candidates(parse_json(data, "index"), Platform(), "index")
        with suppress(ColdbenchError):
            index_parts(data, layer.digest)

    words = [b"null", b"[[[[", b"{}", b"[]", b'""', b"-1", b"1e999", b'"linux"', b"\\ud800", b"true"]
    fuzz(damaged([config, manifest, index], words), check)


def test_archives(fuzz: Fuzz, tmp_path: Path) -> None:
    """Damaged archives of both kinds are refused, or every blob read from them is that of its digest."""
    sample_layout(tmp_path / "layout")
    with closing(open_destination(f"oci-archive:{tmp_path}/oci.tar:one")) as target:
        copy_image(open_source(f"oci:{tmp_path}/layout"), target)
    layer, config = SMALL_TAR, b'{"architecture":"amd64","os":"linux","rootfs":{"diff_ids":["%s"]}}'
    documents = {
        "layer.tar": layer,
        "config.json": config % digest_bytes(layer).encode(),
        "manifest.json": b'[{"Config":"config.json","RepoTags":["a:b"],"Layers":["layer.tar"]}]',
    }
    whole = make_tar(documents)
    path = tmp_path / "fuzzed.tar"

    def check(data: bytes) -> None:
        path.write_bytes(data)
        for transport in ("oci-archive", "docker-archive"):
            with suppress(ColdbenchError), open_source(f"{transport}:{path}") as source:
                image = source.resolve()
                for part in image.layers:
                    assert digest_bytes(source.open_blob(part).read()) == part.digest

    fuzz(damaged([(tmp_path / "oci.tar").read_bytes(), whole], [*TAR_WORDS, b"null", b"[[[", b'"Layers"']), check)
