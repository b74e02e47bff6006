"""The EROFS index of an image: what it holds, that every byte is checked, and that hostile ones are refused."""

from __future__ import annotations

import gzip
import hashlib
import json
import struct
import tarfile
import zlib
from typing import TYPE_CHECKING

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.errors import ContentError, DigestMismatch, FormatError, ImageNotFound, UsageError
from harness.formats.erofs import index as form
from harness.formats.erofs.head import decode_head
from harness.formats.erofs.image import IndexedImage, Options, find_erofs_index, index_image
from harness.formats.erofs.reader import ErofsImage, over_bytes
from harness.formats.estargz.writer import EstargzOptions
from harness.images.verification import verify_image
from harness.oci.descriptor import OCI_CONFIG, OCI_MANIFEST, Descriptor, digest_bytes
from harness.oci.layout import LayoutStore
from harness.oci.store import ImageSource
from tests.formats.erofs.layers import assemble, seen_in, tar_image, tar_of
from tests.formats.estargz.blobs import write as write_estargz_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from harness.formats.erofs.index import ErofsIndex

SPAN = 64 << 10
MEDIA = "application/vnd.oci.image.layer.v1.tar"


def layer_tar(number: int, files: int = 6) -> bytes:
    """A layer of text that compresses, and so inflates over many blocks and spans."""
    members = []
    for index in range(files):
        info = tarfile.TarInfo(f"layer{number}/file{index}")
        info.mtime = 1000 + index
        payload = "\n".join(hashlib.md5(b"%d %d %d" % (number, index, n)).hexdigest() for n in range(1 + 1900 * index))
        members.append((info, payload.encode()))
    info = tarfile.TarInfo("shared")
    members.append((info, b"from layer %d" % number))
    return tar_of(members)


def many_members(data: bytes) -> bytes:
    return b"".join(gzip.compress(data[at : at + 50_000], mtime=0) for at in range(0, len(data), 50_000))


PACKERS: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "gzip": (lambda data: gzip.compress(data, mtime=0), MEDIA + "+gzip"),
    "members": (many_members, MEDIA + "+gzip"),
    "stored": (lambda data: gzip.compress(data, 0, mtime=0), MEDIA + "+gzip"),
    "none": (lambda data: data, MEDIA),
    "zstd": (zstandard.ZstdCompressor().compress, MEDIA + "+zstd"),
}


def make_layout(place: Path, layers: Sequence[tuple[bytes, str | bytes]]) -> LayoutStore:
    """An OCI layout of one image with these layers: a tar, and its packer's name or the gzip blob itself."""
    layout = LayoutStore(place, "image", create=True)
    descriptors = []
    for tar, packer in layers:
        pack, media_type = PACKERS["gzip" if isinstance(packer, bytes) else packer]
        stored = packer if isinstance(packer, bytes) else pack(tar)
        descriptors.append(Descriptor.of(stored, media_type))
        layout.put_blob(descriptors[-1], stored)
    config = json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "rootfs": {"type": "layers", "diff_ids": [digest_bytes(tar) for tar, _ in layers]},
        }
    ).encode()
    layout.put_blob(Descriptor.of(config, OCI_CONFIG), config)
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": Descriptor.of(config, OCI_CONFIG).to_json(),
        "layers": [layer.to_json() for layer in descriptors],
    }
    layout.put_manifest(json.dumps(manifest).encode(), OCI_MANIFEST)
    return layout


def indexed(layout: LayoutStore, prefetch: tuple[str, ...] = ()) -> IndexedImage:
    return index_image(ImageSource(layout, "image"), layout, Options(span_bytes=SPAN, prefetch=prefetch), copy=False)


def loaded(layout: LayoutStore) -> tuple[ErofsIndex, bytes]:
    """The index as a start loads it, and its head."""
    source = ImageSource(layout, "image")
    image = source.resolve()
    _, manifest = find_erofs_index(source, image.descriptor)
    head, _ = form.index_parts(manifest, image.descriptor.digest)
    data = source.open_blob(head).read()
    return form.load_erofs_index(manifest, data, image.descriptor, image.layers), data


def space_of(layout: LayoutStore, index: ErofsIndex, number: int) -> bytes:
    """A layer's address space, put together span by span, each verified and inflated on its own, last one first."""
    layer = index.layers[number]
    parts = []
    for span in reversed(range(len(layer))):
        stored = layout.get_range(layer.digest, *layer.span_compressed_extent(span))
        layer.verify(span, stored)
        if layer.kind == form.WHOLE:
            return zstandard.ZstdDecompressor().decompress(stored, max_output_size=layer.size)
        offset, size = layer.window_extent(span)
        packed = layout.get_range(index.windows.digest, offset, size) if size and index.windows else b""
        start, end = layer.span_bounds(span)
        if start == end:
            continue
        assert layer.span_of(start) == layer.span_of(end - 1) == span
        data = layer.inflate_span(span, stored, layer.window(span, packed))
        assert layer.inflate_span(span, stored, layer.window(span, packed), 10) == data[:10]
        parts.append(data)
    return b"".join(reversed(parts))


@pytest.mark.files
@pytest.mark.parametrize("packer", PACKERS)
def test_every_span_stands_alone(tmp_path: Path, packer: str) -> None:
    """Every span of every kind of layer inflates on its own to its piece of the tar; zstd comes whole."""
    tar = layer_tar(0)
    layout = make_layout(tmp_path, [(tar, packer)])
    result = indexed(layout)
    index, _ = loaded(layout)
    assert space_of(layout, index, 0) == tar
    assert (len(index.layers[0]) > 3) == (packer != "zstd")
    assert bool(result.layers[0]["remark"]) == (packer in {"none", "zstd"})
    assert index.layers[0].size == len(tar)


@pytest.mark.files
def test_image_of_mixed_layers_is_the_merged_tree(tmp_path: Path) -> None:
    """Metadata and layers of the index, put together, are the EROFS image of the merged layers."""
    tars = [layer_tar(number) for number in range(5)]
    layout = make_layout(tmp_path, [*zip(tars, PACKERS, strict=True)])
    result = indexed(layout)
    index, _ = loaded(layout)
    spaces = [space_of(layout, index, number) for number in range(5)]
    image = assemble(index.metadata, spaces)
    assert len(image) == index.image_bytes
    assert seen_in(ErofsImage(over_bytes(image))) == seen_in(ErofsImage(over_bytes(tar_image(tars))))
    assert index.layer_starts == sorted(index.layer_starts)
    assert result.inodes == 1 + 5 + 5 * 6 + 1


@pytest.mark.files
def test_empty_layers(tmp_path: Path) -> None:
    """A layer without entries, and one layer twice, are part of the image like any other."""
    empty, tar = bytes(1024), layer_tar(1, 2)
    layout = make_layout(tmp_path, [(empty, "gzip"), (tar, "gzip"), (empty, "gzip"), (tar, "gzip"), (empty, "none")])
    indexed(layout)
    index, _ = loaded(layout)
    assert [space_of(layout, index, number) for number in range(5)] == [empty, tar, empty, tar, empty]
    assert ErofsImage(over_bytes(index.metadata)).lookup(b"layer1/file1") is not None


@pytest.mark.files
def test_same_image_gives_the_same_index(tmp_path: Path) -> None:
    """The artefact is a function of the image and the options: indexing again changes nothing in the layout."""
    layout = make_layout(tmp_path, [(layer_tar(0), "gzip"), (layer_tar(1), "none")])
    first = indexed(layout)
    before = (tmp_path / "index.json").read_bytes()
    assert indexed(layout).index == first.index
    assert (tmp_path / "index.json").read_bytes() == before


@pytest.mark.files
def test_copy_takes_the_image_along(tmp_path: Path) -> None:
    """With a destination of its own the image is copied there, its manifest unchanged, and the index refers to it."""
    layout = make_layout(tmp_path / "a", [(layer_tar(0), "gzip")])
    destination = LayoutStore(tmp_path / "b", "image", create=True)
    result = index_image(ImageSource(layout, "image"), destination, Options(span_bytes=SPAN))
    image = ImageSource(destination, "image").resolve()
    assert image.descriptor.digest == ImageSource(layout, "image").resolve().descriptor.digest == result.image.digest
    index, _ = loaded(destination)
    assert space_of(destination, index, 0) == layer_tar(0)


@pytest.mark.files
def test_prefetch_names_extents_in_order_and_their_windows_stand_together(tmp_path: Path) -> None:
    """Named files become extents in their order; windows of their spans are one run at the windows' beginning."""
    layout = make_layout(tmp_path, [(layer_tar(0, 12), "gzip"), (layer_tar(1), "gzip")])
    result = indexed(layout, prefetch=("/layer1/file5", "layer0/file9", "shared", "/absent", "layer0"))
    assert result.prefetch_missing == ("/absent", "layer0")
    index, _ = loaded(layout)
    image = ErofsImage(over_bytes(index.metadata))
    expected = []
    for path, number in ((b"layer1/file5", 1), (b"layer0/file9", 0), (b"shared", 1)):
        inode = image.lookup(path)
        assert inode is not None
        (extent,) = image.extents(inode)
        begin = extent.image_offset - index.layer_starts[number]
        expected.append((number, begin, begin + extent.size))
    assert list(index.prefetch) == expected
    wanted = {
        (number, span)
        for number, begin, end in index.prefetch
        for span in range(index.layers[number].span_of(begin), index.layers[number].span_of(end - 1) + 1)
    }
    extents = sorted(index.layers[number].window_extent(span) for number, span in wanted)
    assert extents[0][0] == 0
    assert max(offset + size for offset, size in extents) == sum(size for _, size in extents)


@pytest.mark.files
def test_finer_spans_are_a_parameter_with_limits(tmp_path: Path) -> None:
    """Span sizes that no reader could use are refused as usage errors."""
    layout = make_layout(tmp_path, [(layer_tar(0), "gzip")])
    for size in (0, 1000, 1 << 30):
        with pytest.raises(UsageError):
            index_image(ImageSource(layout, "image"), layout, Options(span_bytes=size), copy=False)


@pytest.mark.files
def test_without_an_index_the_error_names_the_command(tmp_path: Path) -> None:
    """An image that was never indexed raises ImageNotFound, which says how to write an index."""
    layout = make_layout(tmp_path, [(layer_tar(0), "gzip")])
    image = ImageSource(layout, "image").resolve()
    with pytest.raises(ImageNotFound, match="coldbench index erofs"):
        find_erofs_index(layout, image.descriptor)


@pytest.mark.files
def test_damaged_layers_are_not_indexed(tmp_path: Path) -> None:
    """A cut gzip stream, damaged tar headers and a blob that is not its digest's raise ContentError."""
    cut = gzip.compress(layer_tar(0), mtime=0)[:-9]
    layout = make_layout(tmp_path / "cut", [(layer_tar(0), cut)])
    with pytest.raises(ContentError, match="ends early"):
        indexed(layout)
    bad = bytearray(layer_tar(0))
    bad[10] ^= 1
    layout = make_layout(tmp_path / "tar", [(bytes(bad), "gzip")])
    with pytest.raises(ContentError, match="checksum"):
        indexed(layout)
    layout = make_layout(tmp_path / "blob", [(layer_tar(0), "none")])
    layer = ImageSource(layout, "image").resolve().layers[0]
    path = layout.blob_path(layer.digest)
    assert path is not None
    data = bytearray(path.read_bytes())
    data[-2000] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)
    with pytest.raises(DigestMismatch):
        indexed(layout)


@pytest.mark.files
def test_every_part_is_checked_against_its_digest(tmp_path: Path) -> None:
    """A changed head, window or span, an index about another image, and other layers, are all refused."""
    layout = make_layout(tmp_path, [(layer_tar(0, 9), "gzip")])
    indexed(layout)
    source = ImageSource(layout, "image")
    image = source.resolve()
    _, manifest = find_erofs_index(source, image.descriptor)
    index, head = loaded(layout)
    flipped = bytearray(head)
    flipped[len(head) // 2] ^= 1
    with pytest.raises(DigestMismatch, match="head"):
        form.load_erofs_index(manifest, bytes(flipped), image.descriptor, image.layers)
    with pytest.raises(FormatError, match="is about"):
        form.load_erofs_index(manifest, head, Descriptor.of(b"other", OCI_MANIFEST), image.layers)
    with pytest.raises(FormatError, match="layers are not the image's"):
        form.load_erofs_index(manifest, head, image.descriptor, [Descriptor.of(b"other", MEDIA)])
    layer = index.layers[0]
    stored = bytearray(layout.get_range(layer.digest, *layer.span_compressed_extent(1)))
    stored[5] ^= 1
    with pytest.raises(DigestMismatch, match="span 1"):
        layer.verify(1, bytes(stored))
    assert index.windows is not None
    packed = bytearray(layout.get_range(index.windows.digest, *layer.window_extent(1)))
    packed[5] ^= 1
    with pytest.raises(DigestMismatch, match="window 1"):
        layer.window(1, bytes(packed))


@pytest.mark.files
def test_offsets_outside_a_layer_are_refused(tmp_path: Path) -> None:
    """Asking for a byte beyond the address space raises FormatError."""
    layout = make_layout(tmp_path, [(layer_tar(0), "gzip")])
    indexed(layout)
    layer = loaded(layout)[0].layers[0]
    for offset in (-1, layer.size, 1 << 60):
        with pytest.raises(FormatError):
            layer.span_of(offset)


@pytest.fixture(scope="module")
def sound_head(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, Sequence[Descriptor], Descriptor]:
    layout = make_layout(tmp_path_factory.mktemp("head"), [(layer_tar(0), "gzip"), (layer_tar(1), "none")])
    indexed(layout, prefetch=("shared",))
    index, head = loaded(layout)
    assert index.windows is not None
    return head, ImageSource(layout, "image").resolve().layers, index.windows


@pytest.mark.files
@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damaged_heads_give_format_errors(
    sound_head: tuple[bytes, Sequence[Descriptor], Descriptor], data: st.DataObject
) -> None:
    """A head with changed, cut or added bytes, past its digest, is refused or harmless: no other error, no hang."""
    head, layers, windows = sound_head
    changed = bytearray(head)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, min(len(head), 900) - 1) | st.integers(0, len(head) - 1))
        changed[at] = data.draw(st.integers(0, 255))
    cut = data.draw(st.none() | st.integers(0, len(head)))
    raw = bytes(changed if cut is None else changed[:cut])
    try:
        index = decode_head(raw, layers, windows)
    except FormatError:
        return
    assert index.image_bytes >= len(index.metadata)


def rewritten(head: bytes, change: dict[str, object], columns: dict[int, bytes] | None = None) -> bytes:
    """The head with members of its JSON, or bytes of its packed part, replaced."""
    text_bytes, packed_bytes = struct.unpack_from("<II", head, 8)
    document = json.loads(head[24 : 24 + text_bytes])
    for path, value in change.items():
        target = document
        *front, last = path.split(".")
        for key in front:
            target = target[int(key) if key.isdigit() else key]
        target[last] = value
    text = json.dumps(document).encode()
    raw = bytearray(zstandard.ZstdDecompressor().decompress(head[24 + text_bytes : 24 + text_bytes + packed_bytes]))
    for at, piece in (columns or {}).items():
        start = document["metadataBytes"] + at
        raw[start : start + len(piece)] = piece
    packed = zstandard.ZstdCompressor().compress(bytes(raw))
    return (
        head[:8] + struct.pack("<II", len(text), len(packed)) + head[16:24] + text + packed
        + head[24 + text_bytes + packed_bytes :]
    )  # fmt: skip


@pytest.mark.files
@pytest.mark.parametrize(
    "change",
    [
        {"metadataBytes": 1 << 40}, {"metadataBytes": -1}, {"metadataBytes": 0}, {"imageBytes": 4096},
        {"imageBytes": True}, {"prefetch": 1 << 30}, {"blockSize": 4096}, {"windowsBytes": 1}, {"layers": []},
        {"layers": 5}, {"layers.0.start": 0}, {"layers.0.start": 512}, {"layers.1.start": 1 << 61},
        {"layers.0.bytes": 1}, {"layers.0.compression": "lzma"}, {"layers.0.compression": "none"},
        {"layers.0.compression": "zstd"}, {"layers.0.spans": 0}, {"layers.0.size": 1},
        {"layers.1.digest": "sha256:" + "0" * 64},
    ],
)  # fmt: skip
def test_lying_descriptions_are_refused(
    sound_head: tuple[bytes, Sequence[Descriptor], Descriptor], change: dict[str, object]
) -> None:
    """Sizes, places and kinds that do not agree with each other or with the image raise FormatError."""
    head, layers, windows = sound_head
    decode_head(rewritten(head, {}), layers, windows)
    with pytest.raises(FormatError):
        decode_head(rewritten(head, change), layers, windows)


@pytest.mark.files
def test_lying_spans_are_refused(sound_head: tuple[bytes, Sequence[Descriptor], Descriptor]) -> None:
    """Spans out of order or outside the layer, windows outside their blob, and prefetch beyond it, are refused."""
    head, layers, windows = sound_head
    spans = struct.unpack_from("<I", head, 16)[0]
    far = struct.pack("<q", 1 << 40)
    places = [8, 8 * spans, 8 * spans + 8, 16 * spans + 8, 24 * spans, 24 * spans + 16]
    for at in places:
        with pytest.raises(FormatError):
            decode_head(rewritten(head, {}, {at: far}), layers, windows)
        with pytest.raises(FormatError):
            decode_head(rewritten(head, {}, {at: struct.pack("<q", -5)}), layers, windows)


@pytest.mark.files
def test_zlib_flushes_and_trailing_empty_blocks(tmp_path: Path) -> None:
    """A stream that ends in empty blocks behind its last byte leaves a last span of no bytes, which is no error."""
    tar = layer_tar(0)
    compressor = zlib.compressobj(6, zlib.DEFLATED, 31)
    stored = compressor.compress(tar) + compressor.flush(zlib.Z_FULL_FLUSH) + compressor.flush(zlib.Z_FULL_FLUSH)
    stored += compressor.flush()
    layout = make_layout(tmp_path, [(tar, stored)])
    for span in (SPAN, len(tar) - 2000):
        index_image(ImageSource(layout, "image"), layout, Options(span_bytes=span), copy=False)
        index, _ = loaded(layout)
        assert space_of(layout, index, 0) == tar


def problems_of(layout: LayoutStore) -> list[str]:
    source = ImageSource(layout, "image")
    return verify_image(source, source.resolve()).problems


@pytest.mark.files
def test_verify_checks_spans_windows_and_metadata(tmp_path: Path) -> None:
    """A sound index holds on every kind of layer; one whose metadata or windows are another image's does not."""
    tars = [layer_tar(number, 4) for number in range(5)]
    layout = make_layout(tmp_path, [*zip(tars, PACKERS, strict=True)])
    indexed(layout)
    assert problems_of(layout) == []
    source = ImageSource(layout, "image")
    image = source.resolve()
    index, head = loaded(layout)
    assert index.windows is not None
    other_metadata = rewritten(head, {}, {20 - index.layer_starts[0]: b"\1"})
    other_window = head[:-32] + bytes(32)
    for changed, words in ((other_metadata, "not what the layers give"), (other_window, "window")):
        descriptor = Descriptor.of(changed, form.HEAD_TYPE)
        layout.put_blob(descriptor, changed)
        manifest = form.index_manifest(image.descriptor, descriptor, index.windows, SPAN)
        layout.add_referrer(image.descriptor, manifest, OCI_MANIFEST)
        problems = problems_of(layout)
        assert any("EROFS" in problem and words in problem for problem in problems)


@pytest.mark.files
def test_estargz_layers_work_as_they_are(tmp_path: Path) -> None:
    """A layer in eStargz form is indexed like any gzip; the tree shows the image's files and not the format's."""
    tar = layer_tar(0)
    blob, _ = write_estargz_bytes(tar, EstargzOptions(chunk_size=20_000))
    inner = gzip.decompress(blob)
    layout = make_layout(tmp_path, [(inner, blob)])
    indexed(layout)
    index, _ = loaded(layout)
    assert len(index.layers[0]) > 3
    assert space_of(layout, index, 0) == inner
    shown = seen_in(ErofsImage(over_bytes(assemble(index.metadata, [inner]))))
    assert shown == seen_in(ErofsImage(over_bytes(tar_image([tar]))))
    assert problems_of(layout) == []
