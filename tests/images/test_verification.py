"""``coldbench verify``: whole images hold, and each kind of lie about one is found and named."""

from __future__ import annotations

import io
import json
import tarfile
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from harness.cli.main import app, load_commands
from harness.errors import ContentError
from harness.formats.erofs.image import Options as ErofsOptions
from harness.formats.erofs.image import index_image as index_erofs
from harness.formats.erofs.index import WINDOWS_TYPE
from harness.formats.estargz.image import convert_image
from harness.formats.estargz.toc import TOC_DIGEST_ANNOTATION, TocEntry, decode_toc, encode_toc
from harness.formats.estargz.writer import EstargzOptions
from harness.formats.soci.image import Options, index_image
from harness.formats.soci.index import PREFETCH_TYPE, V1, V2, parse_index, prefetch_bytes
from harness.images.verification import verify_image
from harness.oci.descriptor import (
    OCI_CONFIG,
    OCI_EMPTY,
    OCI_LAYER,
    OCI_LAYER_GZIP,
    OCI_MANIFEST,
    REF_NAME,
    Descriptor,
    digest_bytes,
    go_json,
)  # fmt: skip
from harness.oci.layout import LayoutStore
from harness.oci.location import open_source
from tests.formats.estargz.blobs import GOLDEN, golden_tar, toc_document, write
from tests.support.images import Layer, put_image

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.files


def write_image(
    directory: Path, layers: list[tuple[bytes, str, str, dict[str, str]]], *, config_type: str = OCI_CONFIG
) -> str:
    """An OCI layout with an image of (blob, media type, diff ID, annotations) layers; returns its name."""
    store = LayoutStore(directory, "x", create=True)
    config, notes = {"Cmd": ["/bin/<a>"]}, {"kept": "yes"}
    put_image(store, "", [Layer(*it) for it in layers], config=config, config_type=config_type, annotations=notes)
    return f"oci:{directory}:x"


def golden_layers() -> list[tuple[bytes, str, str, dict[str, str]]]:
    return [
        (
            (GOLDEN / "layers" / f"{name}.zlib6.tar.gz").read_bytes(),
            OCI_LAYER_GZIP,
            digest_bytes(golden_tar(f"{name}.tar")),
            {},
        )
        for name in ("pax", "gnu")
    ]


def problems(name: str) -> list[str]:
    with open_source(name) as source:
        return verify_image(source, source.resolve()).problems


def converted(tmp_path: Path) -> Path:
    """The golden layers as an eStargz image with small chunks."""
    with open_source(write_image(tmp_path / "source", golden_layers())) as source:
        target = LayoutStore(tmp_path / "esgz", "x", create=True)
        convert_image(source, source.resolve(), target, EstargzOptions(chunk_size=65536), scratch=tmp_path)
    return tmp_path / "esgz"


def test_a_sound_image_holds_in_every_form(tmp_path: Path) -> None:
    """Plain, eStargz, and with a SOCI index of either version; every check is listed."""
    plain = write_image(tmp_path / "source", golden_layers())
    assert problems(plain) == []
    assert problems(f"oci:{converted(tmp_path)}") == []
    for version in (V1, V2):
        with open_source(plain) as source:
            target = LayoutStore(tmp_path / version[-7:], "x", create=True)
            options = Options(version=version, span_size=65536, min_layer_bytes=0)
            index_image(source, target, options)
        with open_source(f"oci:{tmp_path / version[-7:]}:x") as source:
            result = verify_image(source, source.resolve())
        assert result.problems == []
        assert sum("SOCI" in check.what for check in result.checks) == 3  # each layer, and both together


def test_a_layer_that_changed_on_disk_fails_its_digest(tmp_path: Path) -> None:
    """The layer's digest check names it; nothing else of that layer is claimed to hold."""
    name = write_image(tmp_path / "x", golden_layers())
    layer = digest_bytes(golden_layers()[1][0])
    path = tmp_path / "x" / "blobs" / "sha256" / layer.partition(":")[2]
    data = bytearray(path.read_bytes())
    data[200_000] ^= 1
    path.write_bytes(data)
    (problem,) = problems(name)
    assert problem.startswith(f"layer 1 {layer}: digest:")


def test_a_wrong_diff_id_and_a_missing_layer_are_named(tmp_path: Path) -> None:
    """The config promises another tar; a layer's blob is cut."""
    blob, media_type, _, notes = golden_layers()[0]
    name = write_image(tmp_path / "x", [(blob, media_type, "sha256:" + "1" * 64, notes)])
    (problem,) = problems(name)
    assert "diff ID" in problem
    path = tmp_path / "x" / "blobs" / "sha256" / digest_bytes(blob).partition(":")[2]
    path.write_bytes(blob[:1000])
    assert any("digest" in problem for problem in problems(name))


def rewritten(edit: Callable[[list[TocEntry]], Any], *, promise: bool = True) -> tuple[bytes, str, str, dict[str, str]]:
    """An eStargz layer whose TOC was edited, with every digest above it made to fit (unless not ``promise``)."""
    import gzip

    from harness.formats.estargz.footer import encode_footer, parse_footer

    blob, written = write(golden_tar("gnu.tar"), EstargzOptions(chunk_size=65536))
    entries = decode_toc(toc_document(blob))
    edit(entries)
    document = encode_toc(entries)
    offset = parse_footer(blob[-51:], len(blob)).toc_offset
    info = tarfile.TarInfo("stargz.index.json")
    info.size = len(document)
    tail = info.tobuf(tarfile.USTAR_FORMAT) + document + bytes(-len(document) % 512 + 1024)
    changed = blob[:offset] + gzip.compress(tail, mtime=0) + encode_footer(offset)
    toc_digest = digest_bytes(document) if promise else written.toc_digest
    return changed, OCI_LAYER_GZIP, digest_bytes(gzip.decompress(changed)), {TOC_DIGEST_ANNOTATION: toc_digest}


def entry(entries: list[TocEntry], name: str) -> TocEntry:
    return next(e for e in entries if e.name == name)


EDITS: list[tuple[str, Callable[[list[TocEntry]], Any]]] = [
    ("mode is", lambda es: setattr(entry(es, "usr/bin/prog"), "mode", 0o777)),
    ("uid is", lambda es: setattr(entry(es, "data/s1"), "uid", 7)),
    ("gid is", lambda es: setattr(entry(es, "data/s1"), "gid", 7)),
    ("link target", lambda es: setattr(entry(es, "usr/bin/link"), "link_name", "elsewhere")),
    ("device", lambda es: setattr(entry(es, "dev/null"), "dev_minor", 9)),
    ("type is", lambda es: setattr(entry(es, "dev/pipe"), "type", "dir")),
    ("extended attributes", lambda es: setattr(entry(es, "data/s1"), "xattrs", {"user.a": b"b"})),
    ("modification time", lambda es: setattr(entry(es, "data/s1"), "modtime", "2001-01-01T00:00:00Z")),
    ("size is", lambda es: setattr(entry(es, "data/s513"), "size", 512)),
    ("in the tar and not in the lazy form", lambda es: es.remove(entry(es, "data/s1"))),
    ("in the lazy form and not in the tar", lambda es: es.append(TocEntry("ghost", "dir"))),
    ("lazy form promises", lambda es: setattr(entry(es, "data/s513"), "digest", "sha256:" + "0" * 64)),
    ("digest is", lambda es: setattr(entry(es, "data/s513"), "chunk_digest", "sha256:" + "0" * 64)),
    ("inflate", lambda es: setattr(entry(es, "data/s513"), "offset", entry(es, "data/s513").offset + 5)),
]


@pytest.mark.parametrize(("message", "edit"), EDITS, ids=[message for message, _ in EDITS])
def test_a_toc_that_says_something_else_than_the_tar_is_found(
    tmp_path: Path, message: str, edit: Callable[[list[TocEntry]], Any]
) -> None:
    """All digests fit; only the comparison with a full unpack can tell."""
    found = problems(write_image(tmp_path / "x", [rewritten(edit)]))
    assert found
    assert message in found[0]
    assert "eStargz" in found[0]


def test_another_toc_than_promised_or_another_size_is_found(tmp_path: Path) -> None:
    """The annotation names another TOC digest; the uncompressed-size annotation is wrong."""
    (problem,) = problems(write_image(tmp_path / "a", [rewritten(lambda es: es.pop(), promise=False)]))
    assert "eStargz TOC: digest" in problem
    blob, media_type, diff_id, notes = rewritten(lambda _: None)
    wrong = {**notes, "io.containers.estargz.uncompressed-size": "5"}
    (problem,) = problems(write_image(tmp_path / "b", [(blob, media_type, diff_id, wrong)]))
    assert "says 5" in problem


def test_a_footer_without_annotation_is_checked_too(tmp_path: Path) -> None:
    """A blob that ends in an eStargz footer is one, whether its descriptor says so or not."""
    blob, media_type, diff_id, _ = rewritten(lambda es: setattr(entry(es, "data/s1"), "uid", 7))
    problem, together = problems(write_image(tmp_path / "x", [(blob, media_type, diff_id, {})]))
    assert "uid is" in problem
    assert "owner is (7, 1000), unpacking gives (1000, 1000)" in together


def test_the_command_lists_the_checks_and_ends_in_5_when_one_fails(tmp_path: Path) -> None:
    """One line per check; the error is one line with the first problem; --json has them all."""
    load_commands()
    runner = CliRunner()
    good = runner.invoke(app, ["verify", write_image(tmp_path / "a", golden_layers())])
    assert good.exit_code == 0
    assert good.stdout.count("ok") >= 5
    name = write_image(tmp_path / "b", [rewritten(lambda es: setattr(entry(es, "data/s1"), "uid", 7))])
    bad = runner.invoke(app, ["verify", name, "--json"])
    assert isinstance(bad.exception, ContentError)
    assert bad.exception.exit_code == 5
    assert "\n" not in str(bad.exception)
    document = json.loads(bad.stdout)
    assert document["ok"] is False
    assert [check["ok"] for check in document["checks"]] == [True, True, True, False, True, False]


def test_a_sparse_file_is_compared_in_full(tmp_path: Path) -> None:
    """Holes count as zeros on both sides: our eStargz of a sparse tar verifies, and so does its own tar."""
    from tests.formats.estargz.test_writer import sparse_tar

    tar = sparse_tar(pax=True)
    name = write_image(tmp_path / "source", [(tar, OCI_LAYER, digest_bytes(tar), {})])
    with open_source(name) as source:
        target = LayoutStore(tmp_path / "esgz", "x", create=True)
        convert_image(source, source.resolve(), target, EstargzOptions(), scratch=tmp_path)
    assert problems(f"oci:{tmp_path / 'esgz'}") == []
    assert io.BytesIO(tar).read(1) == b"."


def read_json(path: Path) -> Any:
    return json.loads(path.read_bytes())


def test_every_blob_of_an_index_counts(tmp_path: Path) -> None:
    """A changed configuration, prefetch list or manifest of an index is found, whichever index it is."""
    plain = write_image(tmp_path / "source", golden_layers())
    with open_source(plain) as source:
        options = Options(V2, 65536, 0, prefetch_files=("data/s513",))
        index_image(source, LayoutStore(tmp_path / "soci", "x", create=True), options)
        index_erofs(source, LayoutStore(tmp_path / "erofs", "x", create=True), ErofsOptions(64 << 10))
    for place, types in (("soci", (V2, PREFETCH_TYPE)), ("erofs", (OCI_EMPTY, WINDOWS_TYPE, OCI_MANIFEST))):
        assert problems(f"oci:{tmp_path / place}:x") == []
        blobs = tmp_path / place / "blobs" / "sha256"
        named = {
            part["mediaType"]: blobs / part["digest"].partition(":")[2]
            for path in blobs.iterdir()
            if path.stat().st_size < 10_000 and path.read_bytes()[:1] == b"{" and b'"layers":[' in path.read_bytes()
            for part in (read_json(path)["config"], *read_json(path)["layers"])
        }
        for entry in read_json(tmp_path / place / "index.json")["manifests"]:
            if entry.get("artifactType"):
                named[OCI_MANIFEST] = blobs / entry["digest"].partition(":")[2]
        for media_type in types:
            whole = named[media_type].read_bytes()
            named[media_type].write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
            found = problems(f"oci:{tmp_path / place}:x")
            assert len(found) == (2 if media_type == OCI_MANIFEST else 1)  # a damaged one may be of either kind
            assert all("index" in problem for problem in found)
            named[media_type].write_bytes(whole)


def test_a_prefetch_list_of_other_spans_is_found(tmp_path: Path) -> None:
    """Spans that the layer does not have are named, though every digest holds."""
    with open_source(write_image(tmp_path / "source", golden_layers())) as source:
        store = LayoutStore(tmp_path / "soci", "x", create=True)
        result = index_image(source, store, Options(V1, 65536, 0, prefetch_files=("data/s513",)))
    index = parse_index(store.manifest(result.index.digest)[0])
    ((layer, _),) = index.prefetch.items()
    lie = prefetch_bytes([(0, 10_000)])
    store.put_blob(Descriptor.of(lie, PREFETCH_TYPE), lie)
    document = replace(index, prefetch={layer: Descriptor.of(lie, PREFETCH_TYPE)}).to_bytes()
    (tmp_path / "soci" / "index.json").write_bytes(
        go_json({"schemaVersion": 2, "manifests": [{**result.head.to_json(), "annotations": {REF_NAME: "x"}}]})
    )
    store.add_referrer(result.image, document, OCI_MANIFEST)
    (problem,) = problems(f"oci:{tmp_path / 'soci'}:x")
    assert "names spans 0 to 10000" in problem


def test_zstd_chunked_holds_like_estargz(tmp_path: Path) -> None:
    """A zstd:chunked layer with its TOC digest is compared as well; a TOC of another digest is found."""
    vector = next(v for v in read_json(GOLDEN / "made" / "vectors.json")["estargz"] if "zstd" in v["Kind"])
    blob, notes = (GOLDEN / "made" / vector["Blob"]).read_bytes(), {TOC_DIGEST_ANNOTATION: vector["TOCDigest"]}
    layer = (blob, "application/vnd.oci.image.layer.v1.tar+zstd", vector["DiffID"], notes)
    with open_source(write_image(tmp_path / "sound", [layer])) as source:
        checks = verify_image(source, source.resolve()).checks
    assert [check.holds for check in checks] == [True] * 6
    lie = {TOC_DIGEST_ANNOTATION: "sha256:" + "5" * 64}
    (problem,) = problems(write_image(tmp_path / "lie", [(*layer[:3], lie)]))
    assert "TOC" in problem
