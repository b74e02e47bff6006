"""Images as people have them: gaps in indexes, entries without platform, archives of every origin, foreign layers."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import tarfile
from typing import TYPE_CHECKING, Any

import pytest
import zstandard

from harness.errors import FormatError, ImageNotFound, RegistryError, UnsupportedMediaType, UsageError
from harness.oci.archive import detect_archive, open_detected
from harness.oci.descriptor import OCI_INDEX, OCI_MANIFEST, Descriptor, Platform, digest_bytes, go_json
from harness.oci.layout import LayoutStore
from harness.oci.location import copy_image, open_destination, open_source
from harness.oci.registry.client import RegistryClient
from harness.oci.store import ImageSource, referring
from tests.oci.registry.fault_server import Answer, FaultServer, Request
from tests.oci.samples import artefact, make_tar, put_files
from tests.support.images import Layer, put_image

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.files

HERE = Platform.of_host()
ELSEWHERE = Platform("linux", "s390x")


def entry(found: Descriptor, platform: Platform | None) -> dict[str, Any]:
    return Descriptor(OCI_MANIFEST, found.digest, found.size, platform=platform).to_json()


def put_index(store: LayoutStore, tag: str, *entries: dict[str, Any]) -> bytes:
    data = go_json({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": list(entries)})
    store.put_manifest(data, OCI_INDEX, tag)
    return data


def forget(store: LayoutStore, digest: str) -> None:
    path = store.blob_path(digest)
    assert path is not None
    path.unlink()


def partial_layout(directory: Path) -> tuple[LayoutStore, Descriptor, Descriptor]:
    """An index of two platforms, of which this host's is there: what ``docker save`` writes."""
    store = LayoutStore(directory, create=True)
    here = put_files(store, "here", [{"a": b"here"}])
    there = put_image(store, "there", [Layer.of_tar(make_tar({"a": b"there"}))], platform=ELSEWHERE)
    put_index(store, "all", entry(there, ELSEWHERE), entry(here, HERE))
    forget(store, there.digest)
    return store, here, there


class TakesEverything:
    """A registry that takes pushes, and refuses an index that lists what it does not have, as registries do."""

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}
        self.manifests: dict[str, bytes] = {}

    def __call__(self, request: Request) -> Answer:
        name = request.path.partition("?")[0].rpartition("/")[2]
        if request.method == "HEAD":
            return Answer(200 if name in self.blobs else 404)
        if request.method == "POST":
            return Answer(202, headers={"Location": "/v2/some/image/blobs/uploads/1"})
        if request.method == "PUT" and "/manifests/" in request.path:
            for listed in json.loads(request.body).get("manifests") or []:
                if listed["digest"] not in self.manifests:
                    return Answer(404, b'{"errors": [{"code": "MANIFEST_BLOB_UNKNOWN"}]}')
            self.manifests[name] = self.manifests[digest_bytes(request.body)] = request.body
            return Answer(201)
        if request.method == "PUT":
            self.blobs[digest_bytes(request.body)] = request.body
            return Answer(201)
        return Answer(404)


def test_an_index_with_gaps_resolves_to_what_is_there(tmp_path: Path) -> None:
    """This host's image is found; another platform's is missed by name, and so is one whose blobs are gone."""
    store, here, there = partial_layout(tmp_path / "l")
    source = ImageSource(store, "all")
    assert source.resolve().descriptor.digest == here.digest
    with pytest.raises(ImageNotFound, match=rf"lists linux/s390x, but the content of {there.digest} is not there"):
        source.resolve(ELSEWHERE)
    forget(store, source.resolve().config_descriptor.digest)
    with pytest.raises(ImageNotFound, match="docker save"):
        source.resolve()


def test_an_index_with_gaps_is_copied_as_it_is(tmp_path: Path) -> None:
    """A layout keeps the index byte for byte; what it lacks is remarked, not lost in silence."""
    store, here, _ = partial_layout(tmp_path / "l")
    source = ImageSource(store, "all")
    head, data = source.head()
    copied = copy_image(source, open_destination(f"oci:{tmp_path}/copy:all"))
    assert copied.digest == head.digest
    assert ImageSource(LayoutStore(tmp_path / "copy"), "all").head()[1] == data
    assert [text.partition("not there: ")[2].split()[0] for text in store.remarks] == ["linux/s390x"]
    assert ImageSource(LayoutStore(tmp_path / "copy"), "all").resolve().descriptor.digest == here.digest


def test_a_registry_gets_an_index_of_what_is_there(tmp_path: Path) -> None:
    """Registries refuse an index with gaps, so they get one without them; its digest is the one returned."""
    store, here, _ = partial_layout(tmp_path / "l")
    taken = TakesEverything()
    with FaultServer(taken) as server:
        pushed = copy_image(ImageSource(store, "all"), open_destination(f"docker://{server.host}/some/image:all"))
    index = json.loads(taken.manifests["all"])
    assert [one["digest"] for one in index["manifests"]] == [here.digest]
    assert pushed.digest == digest_bytes(taken.manifests["all"])
    assert here.digest in taken.manifests


def test_an_index_of_nothing_is_refused(tmp_path: Path) -> None:
    """Where nothing of an index is there, nothing is copied."""
    store, here, _ = partial_layout(tmp_path / "l")
    forget(store, here.digest)
    with pytest.raises(ImageNotFound, match="nothing of what its index lists"):
        copy_image(ImageSource(store, "all"), open_destination(f"oci:{tmp_path}/copy:all"))
    assert LayoutStore(tmp_path / "copy").entries() == []


def test_an_entry_without_platform_is_judged_by_its_configuration(tmp_path: Path) -> None:
    """The first whose configuration fits is taken; one for another platform is not, even when it is alone."""
    store = LayoutStore(tmp_path / "l", create=True)
    here = put_files(store, "here", [{"a": b"here"}])
    there = put_image(store, "there", [Layer.of_tar(make_tar({"a": b"there"}))], platform=ELSEWHERE)
    attested = entry(Descriptor(OCI_MANIFEST, digest_bytes(b"gone"), 4), Platform("unknown", "unknown"))
    put_index(store, "both", attested, entry(there, None), entry(here, None))
    assert ImageSource(store, "both").resolve().descriptor.digest == here.digest
    assert ImageSource(store, "both").resolve(ELSEWHERE).descriptor.digest == there.digest
    put_index(store, "one", entry(there, None))
    with pytest.raises(ImageNotFound, match=f"no image for platform {HERE}"):
        ImageSource(store, "one").resolve()


def test_an_artefact_without_platform_is_no_image(tmp_path: Path) -> None:
    """It is passed over for the image behind it, also where its entry does not say what it is; alone it is named."""
    store = LayoutStore(tmp_path / "l", create=True)
    here = put_files(store, "here", [{"a": b"here"}])
    signed = store.put_manifest(artefact(here), OCI_MANIFEST, "signed")
    store.put_blob(Descriptor.of(b"{}", "application/vnd.oci.empty.v1+json"), b"{}")
    put_index(store, "both", entry(signed, None), entry(here, None))
    assert ImageSource(store, "both").resolve().descriptor.digest == here.digest
    put_index(store, "alone", entry(signed, None))
    with pytest.raises(UnsupportedMediaType, match=r"application/vnd\.oci\.empty\.v1\+json is not a container image's"):
        ImageSource(store, "alone").resolve()
    put_index(store, "other", entry(signed, None), entry(here, ELSEWHERE))
    with pytest.raises(ImageNotFound, match="offers linux/s390x"):
        ImageSource(store, "other").resolve()


def nested(store: LayoutStore, depth: int) -> None:
    """An image behind so many indexes, under the tag ``deep``."""
    found = put_files(store, "x", [{"a": b"1"}])
    listed = entry(found, HERE)
    for _ in range(depth):
        data = put_index(store, "deep", listed)
        listed = Descriptor.of(data, OCI_INDEX, platform=HERE).to_json()


def test_nested_indexes_end(tmp_path: Path) -> None:
    """Four indexes inside each other are followed; more are refused, by reading and by copying."""
    store = LayoutStore(tmp_path / "l", create=True)
    nested(store, 4)
    assert ImageSource(store, "deep").resolve()
    copy_image(ImageSource(store, "deep"), open_destination(f"oci:{tmp_path}/copy:deep"))
    nested(store, 5)
    with pytest.raises(FormatError, match="nested deeper than 4"):
        ImageSource(store, "deep").resolve()
    with pytest.raises(FormatError, match="nested deeper than 4"):
        copy_image(ImageSource(store, "deep"), open_destination(f"oci:{tmp_path}/copy:deep"))


def test_an_entry_that_is_listed_often_is_copied_once(tmp_path: Path) -> None:
    """The same nested index a thousand times is the work of one, so that a small index cannot make a long copy."""
    store = LayoutStore(tmp_path / "l", create=True)
    found = put_files(store, "x", [{"a": b"1"}])
    listed = entry(found, HERE)
    for _ in range(4):
        listed = Descriptor.of(put_index(store, "wide", *[listed] * 1000), OCI_INDEX, platform=HERE).to_json()
    moved: list[str] = []
    copy_image(
        ImageSource(store, "wide"),
        open_destination(f"oci:{tmp_path}/copy:wide"),
        progress=lambda descriptor, _: moved.append(descriptor.digest),
    )
    assert len(moved) == len(set(moved))


# names inside


def named(store: LayoutStore, tag: str, whole_name: str) -> Descriptor:
    """An image under both names that containerd and Docker write into an index.json."""
    found = put_files(store, tag, [{"a": whole_name.encode()}])
    entries = [
        {**one.to_json(), "annotations": {**one.annotations, "io.containerd.image.name": whole_name}}
        if one.digest == found.digest
        else one.to_json()
        for one in store.entries()
    ]
    index = {"schemaVersion": 2, "manifests": entries}
    (store.directory / "index.json").write_bytes(go_json(index))
    return found


def test_names_inside_a_layout(tmp_path: Path) -> None:
    """skopeo's ways to choose: the entry's own name, the image's whole or short name, and its number."""
    store = LayoutStore(tmp_path / "l", create=True)
    first = named(store, "1", "docker.io/library/a:1")
    second = named(store, "2", "docker.io/library/b:2")
    for selector, wanted in {
        "2": second,
        "docker.io/library/b:2": second,
        "b:2": second,
        "a:1": first,
        "@0": first,
        "@1": second,
    }.items():
        with open_source(f"oci:{tmp_path}/l:{selector}") as source:
            assert source.resolve().descriptor.digest == wanted.digest, selector
    with pytest.raises(ImageNotFound, match=r"names there: docker.io/library/a:1, docker.io/library/b:2"):
        open_source(f"oci:{tmp_path}/l:c").resolve()
    with pytest.raises(ImageNotFound, match=r"no image @7; it holds 2"):
        open_source(f"oci:{tmp_path}/l:@7").resolve()
    with pytest.raises(UsageError, match="not by a digest or number"):
        open_destination(f"oci:{tmp_path}/l:@0")


def test_a_name_that_two_images_have_is_asked_for(tmp_path: Path) -> None:
    """containerd writes the bare tag of every image: `latest` of two says nothing."""
    store = LayoutStore(tmp_path / "l", create=True)
    wanted = named(store, "x", "docker.io/library/a:latest")
    other = named(store, "y", "docker.io/library/b:latest")
    text = (tmp_path / "l" / "index.json").read_text()
    (tmp_path / "l" / "index.json").write_text(text.replace('"x"', '"latest"').replace('"y"', '"latest"'))
    with pytest.raises(UsageError, match=r"say which: docker.io/library/a:latest, docker.io/library/b:latest"):
        open_source(f"oci:{tmp_path}/l:latest").resolve()
    assert open_source(f"oci:{tmp_path}/l:a").resolve().descriptor.digest == wanted.digest
    assert open_source(f"oci:{tmp_path}/l:b").resolve().descriptor.digest == other.digest


# archives


def write_tar(path: Path, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def saved(path: Path, *, index: Any = None, layers: bool = True, **changes: Any) -> bytes:
    """What Docker 25 saves: both forms in one file. ``index``: another index.json; returns the layer's tar."""
    layer = make_tar({"etc/x": b"1"})
    diff_ids = [digest_bytes(layer)] if layers else None
    config = go_json({**HERE.to_json(), "rootfs": {"type": "layers", "diff_ids": diff_ids}})
    manifest = go_json(
        {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": Descriptor.of(config, "application/vnd.oci.image.config.v1+json").to_json(),
            "layers": [],
        }
    )
    blobs = {f"blobs/sha256/{digest_bytes(blob)[7:]}": blob for blob in (config, manifest, layer)}
    names = [f"blobs/sha256/{digest_bytes(layer)[7:]}"]
    listing = [{"Config": f"blobs/sha256/{digest_bytes(config)[7:]}", "RepoTags": ["app:x"], "Layers": names} | changes]
    if index is None:
        index = {"schemaVersion": 2, "manifests": [Descriptor.of(manifest, OCI_MANIFEST).to_json()]}
    documents = {"index.json": go_json(index), "manifest.json": json.dumps(listing).encode()}
    write_tar(path, {**blobs, **documents})
    return layer


@pytest.mark.parametrize(
    "index", [None, {"schemaVersion": 2, "manifests": None}, {"schemaVersion": 2, "manifests": []}]
)
def test_manifest_json_counts_where_the_oci_form_is_empty(tmp_path: Path, index: Any) -> None:
    """Docker 25.0 wrote OCI manifests without layers, or none: the archive is read as docker save's."""
    layer = saved(tmp_path / "s.tar", index=index)
    assert detect_archive(str(tmp_path / "s.tar")) == f"docker-archive:{tmp_path}/s.tar"
    with ImageSource(open_detected(str(tmp_path / "s.tar"))) as source:
        assert source.open_blob(source.resolve().layers[0]).read() == layer
    if index is not None:
        with pytest.raises(ImageNotFound, match="docker-archive"):
            open_source(f"oci-archive:{tmp_path}/s.tar")


def test_an_image_without_layers(tmp_path: Path) -> None:
    """docker save writes `Layers: null` for an image made from scratch."""
    saved(tmp_path / "s.tar", layers=False, Layers=None, RepoTags=None)
    with open_source(f"docker-archive:{tmp_path}/s.tar") as source:
        assert source.resolve().layers == ()


@pytest.mark.parametrize("selector", ["app:x", "docker.io/library/app:x", "@0"])
def test_names_inside_what_docker_saved(tmp_path: Path, selector: str) -> None:
    """A tag is chosen as skopeo writes it, short or whole, or by its number."""
    layer = saved(tmp_path / "s.tar")
    with open_source(f"docker-archive:{tmp_path}/s.tar:{selector}") as source:
        assert source.resolve().diff_ids == (digest_bytes(layer),)
    with pytest.raises(ImageNotFound, match="counted from @0"):
        open_source(f"docker-archive:{tmp_path}/s.tar:@1")


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": lambda data: zstandard.compress(data[:700]) + zstandard.compress(data[700:]),
}


@pytest.mark.parametrize("kind", PACKERS)
def test_compressed_archives(tmp_path: Path, kind: str) -> None:
    """An archive that was compressed for the way is read all the same; a cut one is refused by its name."""
    layer = saved(tmp_path / "s.tar")
    packed = PACKERS[kind]((tmp_path / "s.tar").read_bytes())
    path = tmp_path / f"s.tar.{kind}"
    path.write_bytes(packed)
    with open_source(f"docker-archive:{path}") as source:
        assert source.open_blob(source.resolve().layers[0]).read() == layer
    path.write_bytes(packed[:-9])
    with pytest.raises(FormatError, match=rf"s\.tar\.{kind}: its compression is damaged or cut"):
        open_source(f"docker-archive:{path}")


# foreign layers

FOREIGN = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"


def foreign_image(store: LayoutStore, url: str) -> tuple[Descriptor, bytes]:
    """An image whose one layer is named by a URL; the layer's blob is in the store."""
    layer = Layer.of_tar(make_tar({"a": b"1" * 3000}), FOREIGN)
    put_image(store, "x", [layer], platform=HERE)
    data, kind = store.manifest("x")
    document = json.loads(data)
    document["layers"][0]["urls"] = [url]
    return store.put_manifest(go_json(document), kind, "x"), layer.blob


def test_a_foreign_layer_is_fetched_from_its_urls(tmp_path: Path) -> None:
    """It is read and copied though the registry does not have it, without any login, and its digest is checked."""
    store = LayoutStore(tmp_path / "l", create=True)
    answers: dict[str, bytes] = {}
    with FaultServer(lambda request: Answer(200, answers["/layer"])) as elsewhere:
        made, blob = foreign_image(store, f"http://{elsewhere.host}/layer")
        answers["/layer"] = blob
        image = ImageSource(store, "x").resolve()

        def registry(request: Request) -> Answer:
            digest = request.path.rpartition("/")[2]
            if digest in {"x", made.digest}:
                return Answer(200, image.manifest_bytes, {"Content-Type": made.media_type})
            if digest == image.config_descriptor.digest:
                return Answer(200, image.config_bytes)
            return Answer(404)

        with FaultServer(registry) as server:
            with ImageSource(RegistryClient(server.host, "some/image"), "x") as source:
                assert source.open_blob(image.layers[0]).read() == blob
                copy_image(source, open_destination(f"oci:{tmp_path}/copy:x"), referrers=False)
                answers["/layer"] = b"x" * len(blob)
                with pytest.raises(Exception, match="digest is"):
                    source.open_blob(image.layers[0]).read()
        assert all("authorization" not in request.headers for request in elsewhere.requests)
    assert LayoutStore(tmp_path / "copy").has_blob(image.layers[0].digest)


def test_a_foreign_layer_of_a_file_leads_nowhere_near(tmp_path: Path) -> None:
    """An image from a file must not make this machine ask its own services."""
    store = LayoutStore(tmp_path / "l", create=True)
    with FaultServer(lambda request: Answer(200, b"secret")) as server:
        _, blob = foreign_image(store, f"http://{server.host}/layer")
        forget(store, digest_bytes(blob))
        source = ImageSource(store, "x")
        with pytest.raises(RegistryError, match="loopback address of this machine"):
            source.open_blob(source.resolve().layers[0]).read()
        assert server.requests == []


# referrers


def test_listed_referrers_of_others_are_passed_over(tmp_path: Path) -> None:
    """A list may name what is gone, or what is about another image; only the manifest itself says."""
    store = LayoutStore(tmp_path / "l", create=True)
    subject = put_files(store, "x", [{"a": b"1"}])
    other = put_files(store, "y", [{"a": b"2"}])
    mine, theirs = artefact(subject), artefact(other)
    listed = [Descriptor.of(data, OCI_MANIFEST, artifact_type="application/x-test") for data in (theirs, mine)]
    gone = Descriptor(OCI_MANIFEST, digest_bytes(b"gone"), 4, artifact_type="application/x-test")
    store.put_nested_manifest(mine, OCI_MANIFEST)
    store.put_nested_manifest(theirs, OCI_MANIFEST)
    index = [one.to_json() for one in (gone, *listed)]
    store.put_manifest(
        go_json({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": index}),
        OCI_INDEX,
        f"sha256-{subject.hex}",
    )
    assert len(store.referrers(subject.digest)) == 3
    assert [data for _, data in referring(store, subject.digest)] == [mine]
