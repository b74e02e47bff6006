"""SOCI index manifests and prefetch artefacts."""

from __future__ import annotations

import hashlib
import itertools
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.errors import ContentError, FormatError, UnsupportedMediaType
from harness.formats.soci import index as soci
from harness.oci.descriptor import OCI_LAYER_GZIP, Descriptor, go_json
from tests.formats.soci.ztocs import GOLDEN


def golden_blobs(image: str) -> list[bytes]:
    return [path.read_bytes() for path in sorted((GOLDEN / "soci" / image / "blobs" / "sha256").iterdir())]


def indexes() -> list[bytes]:
    """Every SOCI index manifest made by the reference tool."""
    found = [blob for name in ("image-soci-v2", "image-soci-v2-prefetch-xattr") for blob in golden_blobs(name)]
    made = [blob for blob in found if b'{"mediaType":"application/vnd.amazon.soci.index' in blob]
    return [*made, (GOLDEN / "soci" / "soci1.index.json").read_bytes()]


@pytest.mark.parametrize("number", range(3))
def test_parse_and_write_is_the_identity(number: int) -> None:
    """A reference manifest read and written again has the same bytes."""
    data = indexes()[number]
    index = soci.parse_index(data)
    assert index.to_bytes() == data
    assert index.tool == soci.REFERENCE_TOOL
    assert (index.subject is not None) == (index.version == soci.V1)
    assert len(index.layers) == 2
    first = index.layers[0]
    assert index.layer(first.layer_digest) is first
    assert index.layer("sha256:" + "0" * 64) is None


def test_an_xattr_mark_survives() -> None:
    """Layers without extended attributes carry the annotation, others don't."""
    digest = "sha256:" + "1" * 64
    marked = soci.IndexedLayer(digest, OCI_LAYER_GZIP, 4096, Descriptor(soci.ZTOC_TYPE, digest, 7), True)
    index = soci.SociIndex(soci.V2, (marked,), "tool <&>")
    data = index.to_bytes()
    assert b'"com.amazon.soci.disable-xattrs":"true"' in data
    assert b"tool \\u003c\\u0026\\u003e" in data
    assert soci.parse_index(data) == index


def change(**parts: Any) -> bytes:
    document = json.loads(indexes()[0])
    document.update(parts)
    return go_json(document)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{}",
        change(layers=None),
        change(layers=[{"mediaType": soci.ZTOC_TYPE}]),
        change(layers=[{"mediaType": soci.ZTOC_TYPE, "digest": "sha256:" + "0" * 64, "size": 1}]),
        change(
            layers=[
                {
                    "mediaType": soci.ZTOC_TYPE,
                    "digest": "sha256:" + "0" * 64,
                    "size": 1,
                    "annotations": {soci.LAYER_DIGEST: "sha256:" + "1" * 64, soci.SPAN_SIZE: "-1"},
                }
            ]
        ),
        change(subject={"digest": "x"}),
        change(config=7),
    ],
)
def test_damaged_indexes(data: bytes) -> None:
    """What is not a SOCI index is refused with its reason."""
    with pytest.raises(ContentError):
        soci.parse_index(data)


def test_other_artefacts_and_unknown_layers() -> None:
    """Another artefact's config is told apart; layers of unknown types are left out."""
    with pytest.raises(UnsupportedMediaType, match="not a SOCI index"):
        soci.parse_index(change(config={"mediaType": "x/y", "digest": "sha256:" + "0" * 64, "size": 2}))
    document = json.loads(indexes()[0])
    document["layers"].append({"mediaType": "x/new", "digest": "sha256:" + "0" * 64, "size": 1})
    assert len(soci.parse_index(go_json(document)).layers) == 2


def test_prefetch_artefact_is_the_references() -> None:
    """The golden prefetch artefact is written and read."""
    data = soci.prefetch_bytes([(0, 0)])
    assert data in golden_blobs("image-soci-v2-prefetch-xattr")
    assert soci.parse_prefetch(data, 3) == [(0, 0)]
    index = next(soci.parse_index(blob) for blob in indexes() if b"prefetch" in blob)
    assert [entry.digest for entry in index.prefetch.values()] == ["sha256:" + hashlib.sha256(data).hexdigest()]


@pytest.mark.parametrize(
    "data",
    [
        b"", b"{}", b"[]", b'{"prefetch_spans":7}', b'{"prefetch_spans":[1]}',
        b'{"prefetch_spans":[{"start_span":0,"end_span":3}]}', b'{"prefetch_spans":[{"start_span":2,"end_span":1}]}',
        b'{"prefetch_spans":[{"start_span":-1,"end_span":1}]}', b'{"prefetch_spans":[{"start_span":0.5,"end_span":1}]}',
        b'{"prefetch_spans":[{"start_span":false,"end_span":1}]}', b" " * (5 << 20), b"[" * 100_000,
    ],
    ids=range(12),
)  # fmt: skip
def test_prefetch_artefacts_that_lie(data: bytes) -> None:
    """Spans that do not exist and anything else than a list of spans are refused."""
    with pytest.raises(FormatError, match="prefetch"):
        soci.parse_prefetch(data, 3)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 8)).map(lambda pair: (pair[0], pair[0] + pair[1]))))
def test_merged_spans_cover_the_same(ranges: list[tuple[int, int]]) -> None:
    """Merging keeps the set of spans and leaves no two ranges that touch."""
    merged = soci.merge_spans(ranges)
    assert {s for a, b in merged for s in range(a, b + 1)} == {s for a, b in ranges for s in range(a, b + 1)}
    assert all(first[1] + 1 < second[0] for first, second in itertools.pairwise(merged))
