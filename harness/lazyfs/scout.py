"""Asks for what a lazy mount will want as soon as its name is known, beside the way that resolving an image takes.

Resolving asks for a manifest, then its configuration; finding an index asks for referrers, then the index's manifest,
then its blobs. A scout sees each manifest as it comes and sends the next requests of the other way at once, so that a
mode waits for no more than three round trips before its mount: the image's name; what the manifest names; what the
index names. A name that is a digest already says what to look for, so that what refers to it is asked for with the
first. Only SOCI's index v1, found by a tag, takes four: name, referrers, index and zTOCs, each named by the one before,
in a format that has no place for more. A scout decides nothing: what it asked for too much is not used, and errors come
out where the answer is wanted.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, TypeAlias

from harness.errors import ColdbenchError
from harness.formats.estargz.toc import TOC_DIGEST_ANNOTATION
from harness.formats.soci.index import INDEX_DIGEST, V1, parse_index
from harness.lazyfs.data.pace import far_tail
from harness.lazyfs.messages import Wanted
from harness.lazyfs.plan import EROFS_INDEX_TYPE, HEAD_ANNOTATION, parse_head
from harness.model.modes import Form
from harness.oci.ahead import quietly
from harness.oci.descriptor import INDEX_TYPES, Descriptor, is_digest
from harness.oci.image import parse_json, platform_candidates

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from harness.formats.soci.index import SociIndex
    from harness.oci.ahead import Ahead
    from harness.oci.descriptor import Platform

_HEAD_PARTS = 4
"""A connection in slow start brings a few segments a round trip; four bring a head of a megabyte two rounds sooner."""

_SMALL_BYTES = 1 << 20
"""Layers up to here are asked for at once; a larger one takes longer than the round trip that this saves."""

_Layers: TypeAlias = "Sequence[Descriptor] | None"
"""Lists the layers of a manifest; None while only the index that lists it is known."""


class Scout:
    """Looks out for one image. ``expect`` hands on what the daemon will want, and may be called from threads."""

    def __init__(
        self,
        store: Ahead,
        form: Form,
        platform: Platform,
        expect: Callable[[Sequence[Wanted]], object],
        index: str = "",
    ) -> None:
        """``index`` is the digest of the one EROFS index to use, if only one may be used."""
        self._store = store
        self._platform = platform
        self._expect = expect
        self._index = index
        self._followed: set[str] = set()
        self._layers: list[Sequence[Descriptor]] = []
        self._indexes: list[SociIndex] = []
        self._form = form
        self._look = {Form.EROFS: self._erofs, Form.SOCI: self._soci, Form.ESTARGZ: self._estargz}.get(form)

    def begin(self, name: str) -> None:
        """Asks, where the image's ``name`` is a digest, for what refers to it beside its manifest. Never raises."""
        if is_digest(name) and self._form is Form.EROFS:
            self._erofs(name, {}, None)
        elif is_digest(name) and self._form is Form.SOCI:
            self._referring_soci(name)

    def __call__(self, descriptor: Descriptor, data: bytes) -> None:
        """Takes a manifest or index on the way to the image, and asks for what follows from it. Never raises."""
        if self._look is None:
            return
        try:
            document = parse_json(data, "manifest")
            if descriptor.media_type in INDEX_TYPES:
                for entry in platform_candidates(document, self._platform, "index").fitting[:1]:
                    if not entry.is_index:
                        self._look(entry.digest, entry.annotations, None)
                return
            entries = document.get("layers")
            layers = Descriptor.list_from_json(entries, "layers") if isinstance(entries, list) else []
            annotations = document.get("annotations")
            self._look(descriptor.digest, annotations if isinstance(annotations, dict) else {}, layers)
        except ColdbenchError:
            return

    def _first(self, what: str) -> bool:
        """Says whether ``what`` is followed for the first time."""
        new = what not in self._followed
        self._followed.add(what)
        return new

    def _erofs(self, image: str, _annotations: Mapping[str, object], _layers: _Layers) -> None:
        if self._first(image):
            listed = self._store.expect_referrers(image, EROFS_INDEX_TYPE)
            quietly(partial(self._follow_erofs, listed.result))

    def _follow_erofs(self, listed: Callable[[], list[Descriptor]]) -> None:
        fitting = [entry for entry in listed() if self._index in {"", entry.digest}]
        for entry in fitting[-1:]:
            self._store.expect_manifest(entry.digest)
            head = parse_head(entry.annotations.get(HEAD_ANNOTATION, ""))
            if head is not None:
                self._expect([Wanted(head[0], 0, head[1], _HEAD_PARTS)])

    def _soci(self, image: str, annotations: Mapping[str, object], layers: _Layers) -> None:
        digest = str(annotations.get(INDEX_DIGEST, ""))
        if layers is not None:
            self._layers.append(layers)
            self._expect_small()
        if digest:
            if is_digest(digest) and self._first(digest):
                quietly(partial(self._follow_soci, digest))
        elif layers is not None:
            self._referring_soci(image)

    def _referring_soci(self, image: str) -> None:
        if self._first(image):
            listed = self._store.expect_referrers(image, V1)

            def follow() -> None:
                for entry in listed.result()[:1]:
                    self._follow_soci(entry.digest)

            quietly(follow)

    def _follow_soci(self, digest: str) -> None:
        data, _ = self._store.expect_manifest(digest).result()
        index = parse_index(data)
        blobs = [layer.ztoc for layer in index.layers] + list(index.prefetch.values())
        self._indexes.append(index)
        self._expect_small()
        self._expect([Wanted(blob.digest, 0, blob.size, _HEAD_PARTS) for blob in blobs])

    def _expect_small(self) -> None:
        """Asks for small layers without a zTOC, pulled before the mount; manifest and index together say which."""
        for layers in self._layers:
            for index in self._indexes:
                for layer in layers:
                    if index.layer(layer.digest) is None and layer.size <= _SMALL_BYTES:
                        self._store.expect_blob(layer.digest, layer.size)

    def _estargz(self, _image: str, _annotations: Mapping[str, object], layers: _Layers) -> None:
        link = self._store.link
        far = link is not None and link.perhaps_far
        wanted = []
        for layer in layers or ():
            if layer.annotations.get(TOC_DIGEST_ANNOTATION) and self._first(layer.digest):
                tail = far_tail(layer.size, far=far)
                wanted.append(Wanted(layer.digest, max(0, layer.size - tail), min(tail, layer.size), _HEAD_PARTS))
        if wanted:
            quietly(partial(self._expect, wanted))
