"""The reference's own eStargz blobs: read completely, and written again with the same TOC."""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
from typing import Any

import pytest

from harness.errors import DigestMismatch
from harness.formats.estargz.footer import FooterKind
from harness.formats.estargz.toc import decode_toc, encode_toc
from harness.formats.estargz.writer import EstargzOptions
from harness.formats.table import Kind
from harness.formats.tar.names import clean_name
from tests.formats.estargz.blobs import (
    ESTARGZ_VECTORS,
    GOLDEN,
    VECTORS,
    files,
    golden_blob,
    golden_tar,
    metadata,
    read,
    toc_document,
    toc_entries,
    vector_id,
    write,
)

_KINDS = {
    tarfile.REGTYPE: Kind.REG, tarfile.DIRTYPE: Kind.DIR, tarfile.LNKTYPE: Kind.HARDLINK,
    tarfile.SYMTYPE: Kind.SYMLINK, tarfile.CHRTYPE: Kind.CHAR, tarfile.BLKTYPE: Kind.BLOCK,
    tarfile.FIFOTYPE: Kind.FIFO,
}  # fmt: skip


def tar_contents(data: bytes) -> tuple[dict[bytes, tuple[object, ...]], dict[bytes, bytes]]:
    """Metadata (as ``metadata`` gives it) and file bytes of a tar, as Python's tarfile reads them."""
    facts: dict[bytes, tuple[object, ...]] = {}
    contents: dict[bytes, bytes] = {}
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        for member in archive:
            name = clean_name(member.name.encode())
            kind = _KINDS[member.type]
            link = clean_name(member.linkname.encode()) if kind == Kind.HARDLINK else member.linkname.encode()
            xattrs = {
                key.removeprefix("SCHILY.xattr.").encode(): value.encode("utf-8", "surrogateescape")
                for key, value in member.pax_headers.items()
                if key.startswith("SCHILY.xattr.")
            }
            stream = archive.extractfile(member) if kind == Kind.REG else None
            facts[name] = (
                kind.name, member.mode & 0o7777, member.uid, member.gid, member.size if kind == Kind.REG else 0,
                round(member.mtime), link if kind in (Kind.HARDLINK, Kind.SYMLINK) else None,
                (member.devmajor, member.devminor) if kind in (Kind.CHAR, Kind.BLOCK) else None, xattrs,
            )  # fmt: skip
            if stream is not None:
                contents[name] = stream.read()
    return facts, contents


@pytest.mark.parametrize("vector", VECTORS, ids=vector_id)
def test_a_reference_blob_gives_every_file_and_all_metadata_of_its_tar(vector: dict[str, Any]) -> None:
    """Table and byte source of each golden blob (zstd:chunked too) equal what tarfile reads from the tar."""
    toc, source = read(golden_blob(vector["Blob"]), vector["TOCDigest"])
    facts, contents = tar_contents(golden_tar(vector["Tar"]))
    assert metadata(toc.table) == facts
    assert files(toc, source) == contents


@pytest.mark.parametrize("vector", ESTARGZ_VECTORS, ids=vector_id)
def test_our_writer_makes_the_reference_toc(vector: dict[str, Any]) -> None:
    """Same entries in the same order with the same fields, compressor-dependent offsets aside; same tar size."""
    options = EstargzOptions(
        vector["ChunkSize"] or 4 << 20, vector["MinChunkSize"], tuple(vector.get("Prioritized", ()))
    )
    blob, written = write(golden_tar(vector["Tar"]), options)
    assert toc_entries(blob, places=False) == toc_entries(golden_blob(vector["Blob"]), places=False)
    assert written.uncompressed_size == vector["UncompressedSize"]
    assert written.missing == ()
    assert len(blob) <= len(golden_blob(vector["Blob"])) * 1.02


@pytest.mark.parametrize("vector", ESTARGZ_VECTORS, ids=vector_id)
def test_the_toc_document_is_formatted_byte_for_byte_as_the_reference_does(vector: dict[str, Any]) -> None:
    """Decoding and encoding a reference TOC gives its bytes: key order, tabs, escapes, empty values left out."""
    document = toc_document(golden_blob(vector["Blob"]))
    assert encode_toc(decode_toc(document)) == document


@pytest.mark.parametrize("vector", ESTARGZ_VECTORS, ids=vector_id)
def test_what_we_write_says_truthfully_what_it_is(vector: dict[str, Any]) -> None:
    """Blob digest, diff ID, TOC digest and size are those of the bytes written, which are one valid tar.gz."""
    blob, written = write(golden_tar(vector["Tar"]), EstargzOptions(vector["ChunkSize"] or 4 << 20))
    unpacked = gzip.decompress(blob)
    assert written.digest == "sha256:" + hashlib.sha256(blob).hexdigest()
    assert written.diff_id == "sha256:" + hashlib.sha256(unpacked).hexdigest()
    assert written.toc_digest == "sha256:" + hashlib.sha256(toc_document(blob)).hexdigest()
    assert (written.size, written.uncompressed_size) == (len(blob), len(unpacked))
    facts, contents = tar_contents(unpacked)
    landmark, toc = contents.pop(b".no.prefetch.landmark"), contents.pop(b"stargz.index.json")
    assert (landmark, toc) == (b"\x0f", toc_document(blob))
    original_facts, original_contents = tar_contents(golden_tar(vector["Tar"]))
    assert contents == original_contents
    assert {name: fact for name, fact in facts.items() if name in original_facts} == original_facts


def test_a_foreign_layer_made_by_ctr_remote_reads_and_our_toc_equals_its() -> None:
    """A layer with ``./`` names converted by stargz-snapshotter 0.12's ctr-remote (chunk size 8192)."""
    blob = (GOLDEN / "ctr-remote" / "layer.esgz").read_bytes()
    tar = gzip.decompress((GOLDEN / "ctr-remote" / "layer.tar.gz").read_bytes())
    toc, source = read(blob, "sha256:ae7e3d8027cd19838b0cae6d74260be1b3dfbf6ce66467109c68d62227f799f8")
    facts, contents = tar_contents(tar)
    assert metadata(toc.table) == facts
    assert files(toc, source) == contents
    ours, written = write(tar, EstargzOptions(8192))
    assert toc_entries(ours, places=False) == toc_entries(blob, places=False)
    assert written.uncompressed_size == 49664


def test_the_prefetch_range_ends_at_the_landmark() -> None:
    """With prioritised files the range covers exactly the members before the landmark; without any it is empty."""
    name = "pax.estargz.chunk65536.min0.prio3"
    toc, _ = read(golden_blob(name))
    landmark = next(entry for entry in toc_entries(golden_blob(name)) if entry.name == ".prefetch.landmark")
    assert toc.prefetch_bytes == landmark.offset
    program = toc.table.names.index(b"usr/bin/prog")
    chunk = toc.chunks.chunk_of(int(toc.table.offsets[program]))
    assert toc.chunks.member_ends[chunk] <= toc.prefetch_bytes
    assert read(golden_blob("pax.estargz.chunk65536.min0.prio0"))[0].prefetch_bytes == 0


def test_another_toc_than_the_manifest_promises_is_refused() -> None:
    """Verification starts at the manifest's annotation."""
    with pytest.raises(DigestMismatch):
        read(golden_blob(ESTARGZ_VECTORS[0]["Blob"]), ESTARGZ_VECTORS[1]["TOCDigest"])


def test_zstd_chunked_is_told_apart_by_its_footer() -> None:
    """The zstd:chunked vector is read through its own footer form."""
    name = next(vector["Blob"] for vector in VECTORS if vector["Kind"] == "zstdchunked")
    assert read(golden_blob(name))[0].footer.kind is FooterKind.ZSTD_CHUNKED
