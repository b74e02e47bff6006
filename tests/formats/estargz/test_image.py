"""Converting whole images: every layer, the configuration, the manifest, and what is passed on unchanged."""

from __future__ import annotations

import gzip
import json
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest
import zstandard
from typer.testing import CliRunner

from harness.cli.main import app, load_commands
from harness.errors import DigestMismatch, UsageError
from harness.formats.estargz.image import ImageConversion, convert_image
from harness.formats.estargz.toc import TOC_DIGEST_ANNOTATION, UNCOMPRESSED_SIZE_ANNOTATION
from harness.formats.estargz.writer import EstargzOptions
from harness.images.verification import verify_image
from harness.oci.descriptor import DOCKER_LAYER_GZIP, OCI_LAYER, OCI_LAYER_GZIP, OCI_LAYER_ZSTD, digest_bytes
from harness.oci.layout import LayoutStore
from harness.oci.location import copy_image, open_destination, open_source
from harness.oci.registry.server import RegistryServer
from tests.formats.estargz.blobs import golden_tar
from tests.images.test_verification import golden_layers, write_image

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.files


def convert(name: str, target: Path, options: EstargzOptions | None = None) -> ImageConversion:
    with open_source(name) as source:
        destination = LayoutStore(target, "x", create=True)
        return convert_image(source, source.resolve(), destination, options or EstargzOptions(), scratch=target)


def blobs(directory: Path) -> set[str]:
    return {path.name for path in (directory / "blobs" / "sha256").iterdir()}


def test_layers_of_every_kind_become_estargz(tmp_path: Path) -> None:
    """gzip, zstd, uncompressed, and Docker's media type; the new manifest and config fit together and verify."""
    tar = golden_tar("pax.tar")
    diff_id = digest_bytes(tar)
    name = write_image(
        tmp_path / "source",
        [
            (gzip.compress(tar, 1), DOCKER_LAYER_GZIP, diff_id, {}),
            (zstandard.compress(tar), OCI_LAYER_ZSTD, diff_id, {"note": "kept"}),
            (tar, OCI_LAYER, diff_id, {}),
        ],
    )
    result = convert(name, tmp_path / "esgz")
    assert len({layer.target.digest for layer in result.layers}) == 1, "the same tar gives the same blob"
    with open_source(f"oci:{tmp_path / 'esgz'}") as source:
        image = source.resolve()
        assert verify_image(source, image).problems == []
    assert image.descriptor.digest == result.manifest.digest
    assert [layer.media_type for layer in image.layers] == [OCI_LAYER_GZIP] * 3
    assert image.layers[1].annotations["note"] == "kept"
    assert all(
        {TOC_DIGEST_ANNOTATION, UNCOMPRESSED_SIZE_ANNOTATION} <= set(layer.annotations) for layer in image.layers
    )
    assert image.config["config"] == {"Cmd": ["/bin/<a>"]}
    assert image.annotations == {"kept": "yes"}
    assert list((tmp_path / "esgz").glob("coldbench-*")) == []


def test_converting_twice_gives_the_same_image_and_passes_estargz_layers_on(tmp_path: Path) -> None:
    """Deterministic from the source; a converted image converts to itself, its blobs untouched."""
    name = write_image(tmp_path / "source", golden_layers())
    first = convert(name, tmp_path / "first")
    assert convert(name, tmp_path / "second").manifest == first.manifest
    again = convert(f"oci:{tmp_path / 'first'}", tmp_path / "third")
    assert [layer.unchanged for layer in again.layers] == ["already eStargz"] * 2
    assert again.manifest == first.manifest
    assert blobs(tmp_path / "third") == blobs(tmp_path / "first")


def test_a_layer_that_only_claims_to_be_estargz_is_converted(tmp_path: Path) -> None:
    """An annotation without a footer, or with another TOC digest, is not believed."""
    blob, media_type, diff_id, _ = golden_layers()[0]
    liar = {TOC_DIGEST_ANNOTATION: "sha256:" + "0" * 64}
    result = convert(write_image(tmp_path / "a", [(blob, media_type, diff_id, liar)]), tmp_path / "b")
    assert result.layers[0].unchanged == ""
    assert result.layers[0].target.annotations[TOC_DIGEST_ANNOTATION] != liar[TOC_DIGEST_ANNOTATION]


def test_prioritized_files_missing_everywhere_are_reported(tmp_path: Path) -> None:
    """A name one layer has is not missing."""
    name = write_image(tmp_path / "source", golden_layers())
    options = EstargzOptions(prioritized=("usr/bin/prog", "no/such"))
    assert convert(name, tmp_path / "esgz", options).missing == ("no/such",)


def test_prioritised_files_move_in_estargz_layers_too(tmp_path: Path) -> None:
    """An eStargz image converts again when something is to go first: the same layers as from the original."""
    name = write_image(tmp_path / "source", golden_layers())
    options = EstargzOptions(prioritized=("usr/bin/prog",))
    convert(name, tmp_path / "plain")
    again = convert(f"oci:{tmp_path / 'plain'}", tmp_path / "again", options)
    direct = convert(name, tmp_path / "direct", options)
    assert [layer.unchanged for layer in again.layers] == ["", ""]
    assert [layer.target.digest for layer in again.layers] == [layer.target.digest for layer in direct.layers]


def test_a_source_that_is_not_what_it_promises_is_refused(tmp_path: Path) -> None:
    """A wrong diff ID is an error, and so is a chunk size that is no size; nothing stays in the scratch directory."""
    blob, media_type, _, notes = golden_layers()[0]
    name = write_image(tmp_path / "a", [(blob, media_type, "sha256:" + "1" * 64, notes)])
    with pytest.raises(DigestMismatch):
        convert(name, tmp_path / "b")
    with pytest.raises(UsageError):
        convert(name, tmp_path / "b", EstargzOptions(chunk_size=0))
    assert list((tmp_path / "b").glob("coldbench-*")) == []


def test_the_command_reports_layers_and_reads_the_priority_file(tmp_path: Path) -> None:
    """``--json`` has sizes and digests; a priority file with comments works, one with bad names is a usage error."""
    load_commands()
    name = write_image(tmp_path / "source", golden_layers())
    names = tmp_path / "names"
    names.write_text("# needed first\n/usr/bin/prog\n\n")
    target = f"oci:{tmp_path / 'esgz'}:x"
    outcome = CliRunner().invoke(app, ["convert", "estargz", name, target, "--prioritize", str(names), "--json"])
    assert outcome.exit_code == 0, outcome.output
    document = json.loads(outcome.stdout)
    assert document["missing"] == []
    assert [layer["entries"] for layer in document["layers"]] == [38, 32]
    plain = CliRunner().invoke(app, ["convert", "estargz", name, target])
    assert plain.exit_code == 0
    assert " before)" in plain.stdout
    names.write_text("../up\n")
    bad = CliRunner().invoke(app, ["convert", "estargz", name, target, "--prioritize", str(names)])
    assert isinstance(bad.exception, UsageError)


@pytest.mark.skipif(shutil.which("skopeo") is None, reason="skopeo is not installed")
def test_skopeo_reads_what_we_write(tmp_path: Path) -> None:
    """Another implementation copies the converted layout, checking digests as it goes."""
    convert(write_image(tmp_path / "source", golden_layers()), tmp_path / "esgz")
    subprocess.run(
        ["skopeo", "copy", "--quiet", f"oci:{tmp_path / 'esgz'}:x", f"dir:{tmp_path / 'copy'}"], check=True, timeout=60
    )
    assert len(list((tmp_path / "copy").iterdir())) >= 4


def test_registries_and_archives_as_source_and_destination(tmp_path: Path) -> None:
    """From a registry to a registry and to an archive and back: the same image every time, and it verifies there."""
    load_commands()
    expected = convert(write_image(tmp_path / "source", golden_layers()), tmp_path / "esgz").manifest.digest
    runner = CliRunner()
    with RegistryServer(storage=tmp_path / "storage") as registry:
        plain, lazy = (f"docker://{registry.host}/app:{tag}" for tag in ("plain", "esgz"))
        with open_source(f"oci:{tmp_path / 'source'}:x") as source:
            destination = open_destination(plain)
            copy_image(source, destination)
            destination.close()
        archive = f"oci-archive:{tmp_path / 'esgz.tar'}"
        for here, there in ((plain, lazy), (plain, archive), (archive, f"oci:{tmp_path / 'back'}:x")):
            outcome = runner.invoke(app, ["convert", "estargz", here, there, "--json"])
            assert outcome.exit_code == 0, outcome.output
            assert json.loads(outcome.stdout)["manifest"]["digest"] == expected
            outcome = runner.invoke(app, ["verify", there, "--json"])
            assert outcome.exit_code == 0, outcome.output
            assert json.loads(outcome.stdout)["ok"]
