"""Micro-benchmarks of the formats: what a change does to parsing, indexing, extraction and verification.

``nox -s microbench`` measures; an ordinary test run goes through each once. They carry no limits.
"""

from __future__ import annotations

import gzip
import io
import random
import tarfile
from functools import cache
from typing import TYPE_CHECKING

import pytest

from harness.formats.estargz.footer import Footer, FooterKind
from harness.formats.estargz.reader import EstargzToc, open_estargz
from harness.formats.estargz.toc import TocEntry, encode_toc
from harness.formats.gzip.spans import Spans, ZtocByteSource
from harness.formats.soci.ztoc import Ztoc
from harness.formats.soci.ztoc import parse as parse_ztoc
from harness.formats.soci.ztoc_build import LayerIndexer
from harness.formats.tar.scanner import TarScanner
from tests.formats.estargz.blobs import Blob, write

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

TOC_ENTRIES = 43_000
"""Files of an image with a scientific Python in it."""
TAR_FILES = 2_000


@cache
def toc_document() -> bytes:
    """A TOC of TOC_ENTRIES entries, one in twelve a directory."""
    digest = "sha256:" + "0123456789abcdef" * 4
    entries = []
    for i in range(TOC_ENTRIES):
        name = f"usr/lib/python3/dist-packages/package{i % 300}/module{i}/file_{i}.py"
        time = f"2024-03-{i % 28 + 1:02d}T12:{i % 60:02d}:40Z"
        if i % 12 == 0:
            entries.append(TocEntry(name + ".d/", "dir", modtime=time, mode=0o755))
        else:
            entries.append(
                TocEntry(
                    name, "reg", size=i % 90_000 + 1, modtime=time, mode=0o644, offset=1000 + i * 9000, digest=digest,
                    chunk_digest=digest,
                )
            )  # fmt: skip
    return encode_toc(entries)


@cache
def layer_tar() -> bytes:
    """A tar of TAR_FILES files of 0 to 16 KB of text-like bytes, and one of 12 MB."""
    source = random.Random(5)
    words = [bytes(source.choices(b"abcdefghijklmnop", k=source.randint(2, 9))) for _ in range(3000)]
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for i in range(TAR_FILES + 1):
            words_in_file = source.randint(0, 2500) if i else 2_000_000
            data = b" ".join(source.choices(words, k=words_in_file))
            info = tarfile.TarInfo(f"usr/lib/python3/package{i % 50}/module_{i}.py")
            info.size, info.mtime = len(data), 1_700_000_000 + i
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


@cache
def layer_gzip() -> bytes:
    return gzip.compress(layer_tar(), 6, mtime=0)


def index(data: bytes) -> bytes:
    out = io.BytesIO()
    with LayerIndexer("gzip") as indexer:
        indexer.read([data])
        indexer.write(out, "microbench")
    return out.getvalue()


@cache
def ztoc() -> Ztoc:
    return parse_ztoc(index(layer_gzip()))


def test_toc_parse(benchmark: BenchmarkFixture) -> None:
    """A TOC document of 43 000 entries to table and chunk map."""
    footer = Footer(FooterKind.ESTARGZ, 1 << 40, 1 << 41, 51)
    document = toc_document()
    benchmark.extra_info["entries"] = TOC_ENTRIES
    toc = benchmark(EstargzToc.from_document, document, footer)
    assert len(toc.table) == TOC_ENTRIES


def test_ztoc_parse(benchmark: BenchmarkFixture) -> None:
    """A zTOC of 2 000 entries to its table."""
    data = index(layer_gzip())
    benchmark.extra_info["entries"] = TAR_FILES + 1
    table = benchmark(lambda: parse_ztoc(data).to_table())
    assert len(table) == TAR_FILES + 1


def test_ztoc_build(benchmark: BenchmarkFixture) -> None:
    """From a gzip layer to its zTOC, spans of 4 MiB."""
    benchmark.extra_info["tar_bytes"] = len(layer_tar())
    assert benchmark(index, layer_gzip())


def test_span_extraction(benchmark: BenchmarkFixture) -> None:
    """One span verified and inflated from its checkpoint."""
    spans = Spans(ztoc())
    span = len(spans) // 2
    offset, size = spans.span_compressed_extent(span)
    compressed = layer_gzip()[offset : offset + size]

    def extract() -> bytes:
        spans.verify(span, compressed)
        return spans.inflate_span(span, compressed)

    start, end = spans.span_bounds(span)
    benchmark.extra_info["bytes"] = end - start
    assert benchmark(extract) == layer_tar()[start:end]


def test_small_file_through_spans(benchmark: BenchmarkFixture) -> None:
    """A whole 8 KB read at a place not read before: fetch, verify and inflate its span."""

    def read() -> bytes:
        return ZtocByteSource(ztoc(), Blob(layer_gzip())).extract(9_000_000, 8192)

    assert benchmark(read) == layer_tar()[9_000_000 : 9_000_000 + 8192]


@pytest.mark.parametrize("size", [4096, 4 << 20])
def test_chunk_verification(benchmark: BenchmarkFixture, size: int) -> None:
    """One eStargz chunk inflated and verified."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        info = tarfile.TarInfo("f")
        info.size = size
        archive.addfile(info, io.BytesIO(layer_tar()[512 : 512 + size]))
    blob, _ = write(out.getvalue())
    toc, _ = open_estargz(Blob(blob), len(blob), None)
    offset, stored = toc.chunks.chunk_compressed_extent(0)
    compressed = blob[offset : offset + stored]

    def serve() -> bytes:
        data = toc.chunks.inflate_chunk(0, compressed)
        toc.chunks.verify_chunk(0, data)
        return data

    assert len(benchmark(serve)) == size


def test_tar_parse(benchmark: BenchmarkFixture) -> None:
    """The headers of 2 000 entries, payloads stepped over; divide by ``entries`` for the time of one."""
    tar = layer_tar()
    benchmark.extra_info["entries"] = TAR_FILES + 1
    assert len(benchmark(lambda: TarScanner().feed(tar))) == TAR_FILES + 1


def test_estargz_write(benchmark: BenchmarkFixture) -> None:
    """A tar to its eStargz blob with two compressing threads."""
    benchmark.extra_info["tar_bytes"] = len(layer_tar())
    blob, _ = benchmark(write, layer_tar())
    assert blob
