"""Start packs: what they hold, what they are made of, and what is no pack."""

from __future__ import annotations

import json
import random
import struct
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest

from harness.errors import DigestMismatch, FormatError, UsageError
from harness.formats.erofs import index as form
from harness.formats.erofs.image import Options, find_erofs_index, index_image
from harness.formats.erofs.pack import (
    ANNOTATION_TABLE_DIGEST,
    ANNOTATION_TABLE_SIZE,
    PAGE_BYTES,
    decode_table,
    encode_table,
    pack_descriptor,
    table_bytes,
)
from harness.formats.erofs.pack_build import frames_of, pages_of
from harness.formats.erofs.packing import load_pack, recording_of
from harness.formats.erofs.recording import Recording, unite
from harness.oci.descriptor import digest_bytes
from harness.oci.store import ImageSource
from tests.formats.erofs.packs import index_of, loaded_pack, whole_image, with_ranges
from tests.formats.erofs.test_index import SPAN, layer_tar, make_layout, space_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from harness.formats.erofs.pack import Frame
    from harness.oci.layout import LayoutStore

LAYER = "sha256:" + "1" * 64


def packed_layout(place: Path, recording: Recording | None = None, most: int = 64 << 20) -> LayoutStore:
    """An image of two layers with a pack of all of it, or of a recording."""
    layout = make_layout(place, [(layer_tar(0), "gzip"), (layer_tar(1), "none")])
    source = ImageSource(layout, "image")
    index_image(source, layout, Options(span_bytes=SPAN), copy=False)
    wanted = recording or whole_image(source)
    index_image(source, layout, Options(span_bytes=SPAN, recordings=(wanted,), pack_bytes=most), copy=False)
    return layout


@pytest.mark.files
def test_a_pack_holds_what_the_image_file_has(tmp_path: Path) -> None:
    """Every range of every frame is the layers' bytes at that place, padding is zeros, and each page is there once."""
    layout = packed_layout(tmp_path / "layout")
    made, index, _ = loaded_pack(ImageSource(layout, "image"))
    image = bytearray(index.image_bytes)
    for layer in index.layers:
        image[layer.start : layer.start + layer.size] = space_of(layout, index, layer.number)
    seen = 0
    for number, frame in enumerate(made.pack.frames):
        data = frame.decode(made.blob[frame.offset : frame.offset + frame.packed_bytes], number)
        for begin, end, place in zip(frame.begins, frame.ends, frame.places, strict=True):
            assert data[place : place + end - begin] == image[begin:end]
            seen += end - begin
    first = index.layers[0].start
    assert seen == made.pack.raw_bytes == index.image_bytes - first
    assert made.pack.places(first + 5, 1 << 18) is not None
    assert made.pack.places(first - 1, 2) is None
    assert made.pack.places(index.image_bytes - 1, 2) is None


@pytest.mark.files
def test_the_same_recording_gives_the_same_bytes(tmp_path: Path) -> None:
    """A pack is a function of index, recording and limit, and what it holds makes the same pack again."""
    layout = packed_layout(tmp_path / "layout")
    source = ImageSource(layout, "image")
    made, index, _ = loaded_pack(source)
    other, _, _ = loaded_pack(ImageSource(packed_layout(tmp_path / "again"), "image"))
    assert other.descriptor == made.descriptor
    recording = recording_of(made.pack, index)
    index_image(source, layout, Options(span_bytes=SPAN, recordings=(recording,)), copy=False)
    again, _, _ = loaded_pack(source)
    assert again.pack.ranges() == made.pack.ranges()


@pytest.mark.files
def test_what_a_start_asks_for_first_stands_first(tmp_path: Path) -> None:
    """Pages are in first-touch order up to the limit, and layers that the image has not are left out."""
    layout = packed_layout(tmp_path / "layout")
    source = ImageSource(layout, "image")
    _, manifest = find_erofs_index(source, source.resolve().descriptor)
    index = index_of(source, manifest)
    low, high = index.layers
    recording = Recording(
        ((high.digest, 5000, 9000), (LAYER, 0, 1 << 40), (low.digest, 0, 1), (high.digest, 0, 1 << 40))
    )
    pages = pages_of(index, recording, 5 * PAGE_BYTES)
    assert pages == [(high.start // PAGE_BYTES + 1, 2), (low.start // PAGE_BYTES, 1), (high.start // PAGE_BYTES, 1),
                     (high.start // PAGE_BYTES + 3, 1)]  # fmt: skip
    assert frames_of(pages, 3 * PAGE_BYTES) == [
        [(low.start, low.start + 4096), (high.start + 4096, high.start + 3 * 4096)],
        [(high.start, high.start + 4096), (high.start + 3 * 4096, high.start + 4 * 4096)],
    ]


@pytest.mark.files
def test_older_readers_go_on(tmp_path: Path) -> None:
    """A pack changes nothing for who does not know it, and an index without one has none."""
    layout = packed_layout(tmp_path / "layout")
    source = ImageSource(layout, "image")
    image = source.resolve()
    _, manifest = find_erofs_index(source, image.descriptor)
    document = json.loads(manifest)
    assert [part["mediaType"] for part in document["layers"]][-1] == form.PACK_TYPE
    document["layers"].pop()
    without = json.dumps(document).encode()
    assert form.index_parts(manifest, image.descriptor.digest) == form.index_parts(without, image.descriptor.digest)
    assert form.index_pack(without) is None
    assert load_pack(source, image, without, index_of(source, without)) is None


@pytest.mark.files
def test_two_packs_are_refused(tmp_path: Path) -> None:
    """Which of them would be used nobody could tell."""
    layout = packed_layout(tmp_path / "layout")
    source = ImageSource(layout, "image")
    image = source.resolve()
    _, manifest = find_erofs_index(source, image.descriptor)
    document = json.loads(manifest)
    document["layers"].append(document["layers"][-1])
    with pytest.raises(FormatError, match="parts twice"):
        form.index_parts(json.dumps(document).encode(), image.descriptor.digest)


@pytest.mark.files
def test_a_recording_of_another_image_makes_no_pack(tmp_path: Path) -> None:
    """Nothing of it is in the image, and the message says how to make one."""
    with pytest.raises(UsageError, match="--record SCENARIO"):
        packed_layout(tmp_path / "layout", Recording(((LAYER, 0, 4096),)))


def _last_moved(frames: list[Frame], first: int, size: int) -> list[Frame]:
    begin, end = frames[-1].begins[-1], frames[-1].ends[-1]
    return [*frames[:-1], with_ranges(frames[-1], (begin + size, end + size))]


TABLES: dict[str, tuple[Callable[[list[Frame], int, int], list[Frame]], str]] = {
    "in the metadata": (
        lambda frames, first, size: [with_ranges(frames[0], (first - 4096, first - 4096 + frames[0].raw_bytes))],
        "outside the layers",
    ),
    "behind the image": (_last_moved, "outside the layers"),
    "overlapping": (lambda frames, first, size: [frames[0], frames[0]], "overlap"),
    "of no bytes": (
        lambda frames, first, size: [with_ranges(frames[0], (first, first), (first, first + frames[0].raw_bytes))],
        "no bytes",
    ),
    "unsorted": (
        lambda frames, first, size: [
            with_ranges(frames[0], (first + 4096, first + frames[0].raw_bytes), (first, first + 4096))
        ],
        "not in order",
    ),
    "of another size": (
        lambda frames, first, size: [replace(frames[0], raw_bytes=frames[0].raw_bytes - 4096)], "for ranges of"
    ),
    "a bomb": (
        lambda frames, first, size: [
            replace(with_ranges(frames[0], (first, first + (8 << 20))), raw_bytes=8 << 20, packed_bytes=100)
        ],
        "outside the layers|unpacked 8388608",
    ),
    "larger than raw": (lambda frames, first, size: [replace(frames[0], packed_bytes=4 << 20)], "bytes, unpacked"),
    "no packed bytes": (lambda frames, first, size: [replace(frames[0], packed_bytes=0)], "frame 0 of 0 bytes"),
}  # fmt: skip


@pytest.mark.files
@pytest.mark.parametrize("fault", TABLES)
def test_tables_that_are_none(fault: str, tmp_path: Path) -> None:
    """Ranges and frames that a pack cannot have are refused with words, though every digest is right."""
    source = ImageSource(packed_layout(tmp_path / "layout"), "image")
    made, index, manifest = loaded_pack(source)
    head, _ = form.index_parts(manifest, source.resolve().descriptor.digest)
    change, words = TABLES[fault]
    frames = change(list(made.pack.frames), index.layers[0].start, index.image_bytes)
    table = encode_table(head.digest, frames)
    pack = pack_descriptor(table, table + bytes(sum(frame.packed_bytes for frame in frames)))
    with pytest.raises(FormatError, match=words):
        decode_table(table, pack, head.digest, index)


@pytest.mark.files
def test_tables_of_another_index_or_cut(tmp_path: Path) -> None:
    """A table belongs to one index, has one digest and one size, and describes its blob to the last byte."""
    source = ImageSource(packed_layout(tmp_path / "layout"), "image")
    made, index, manifest = loaded_pack(source)
    head, _ = form.index_parts(manifest, source.resolve().descriptor.digest)
    table, pack = made.blob[: made.pack.table_bytes], made.descriptor
    assert decode_table(table, pack, head.digest, index).ranges() == made.pack.ranges()
    with pytest.raises(FormatError, match="another index"):
        decode_table(table, pack, LAYER, index)
    with pytest.raises(DigestMismatch):
        decode_table(table[:-1] + b"x", pack, head.digest, index)
    for size in (-1, 1):
        with pytest.raises(FormatError, match="are described"):
            decode_table(table, replace(pack, size=pack.size + size), head.digest, index)
    for wrong in (table[:-1], table + b"x", b"", table[:30], b"x" + table[1:]):
        named = replace(pack, annotations={**pack.annotations, ANNOTATION_TABLE_DIGEST: digest_bytes(wrong)})
        with pytest.raises(FormatError, match=r"a table of|not one, or cut"):
            decode_table(wrong, named, head.digest, index)
    many = bytearray(table)
    struct.pack_into("<II", many, 40, 1 << 31, 1 << 31)
    named = replace(pack, annotations={**pack.annotations, ANNOTATION_TABLE_DIGEST: digest_bytes(bytes(many))})
    with pytest.raises(FormatError, match="not one, or cut"):
        decode_table(bytes(many), named, head.digest, index)


@pytest.mark.parametrize("text", ["", "-1", "1e3", "999999999999999", "0", "\u0665\u0665", None])
def test_a_table_has_a_size(text: str | None) -> None:
    """The descriptor says it, in digits, and no more than the blob has."""
    pack = pack_descriptor(bytes(60), bytes(100))
    annotations: dict[str, Any] = {ANNOTATION_TABLE_SIZE: text} if text is not None else {}
    assert table_bytes(pack) == 60
    with pytest.raises(FormatError, match="no size of the table"):
        table_bytes(replace(pack, annotations=annotations))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "no JSON"),
        (b"[1]", "none of version 1"),
        (b'{"recording":2,"ranges":[]}', "none of version 1"),
        (b'{"recording":1}', "no list"),
        (b'{"recording":1,"ranges":[["sha256:12",0,1]]}', "is no "),
        (b'{"recording":1,"ranges":[["%s",5,5]]}' % LAYER.encode(), "is no "),
        (b'{"recording":1,"ranges":[["%s",-5,5]]}' % LAYER.encode(), "is no "),
        (b'{"recording":1,"ranges":[["%s",0]]}' % LAYER.encode(), "is no "),
        (b'{"recording":1,"ranges":' + b"[" * 5000, "no JSON"),
    ],
)
def test_what_is_no_recording(data: bytes, words: str) -> None:
    """It is refused with what is wrong with it."""
    with pytest.raises(FormatError, match=words):
        Recording.decode(data)


def test_recordings_are_united_in_turn() -> None:
    """What each start asked for first comes before what any asked for second; a recording survives its file."""
    one, other = Recording(((LAYER, 0, 1), (LAYER, 1, 2), (LAYER, 2, 3))), Recording(((LAYER, 9, 10), (LAYER, 1, 2)))
    united = unite([one, other])
    assert [begin for _, begin, _ in united.ranges] == [0, 9, 1, 2]
    assert Recording.decode(united.encode()) == united


@pytest.mark.files
def test_damaged_tables_never_give_a_pack_outside_the_layers(tmp_path: Path) -> None:
    """Whatever is written over a table, it is refused, or what comes of it keeps to its promises."""
    source = ImageSource(packed_layout(tmp_path / "layout"), "image")
    made, index, manifest = loaded_pack(source)
    head, _ = form.index_parts(manifest, source.resolve().descriptor.digest)
    table, draw = made.blob[: made.pack.table_bytes], random.Random(18)
    for _ in range(300):
        damaged = bytearray(table)
        for _ in range(draw.randint(1, 3)):
            at = draw.randrange(len(damaged) - 4)
            damaged[at : at + 4] = draw.choice([bytes(4), b"\xff" * 4, draw.randbytes(4)])
        named = replace(
            made.descriptor, annotations={**made.descriptor.annotations, ANNOTATION_TABLE_DIGEST: digest_bytes(damaged)}
        )
        try:
            pack = decode_table(bytes(damaged), named, head.digest, index)
        except FormatError:
            continue
        ranges = pack.ranges()
        assert all(index.layers[0].start <= begin < end <= index.image_bytes for begin, end in ranges)
        assert all(end <= begin for (_, end), (begin, _) in pairwise(ranges))
