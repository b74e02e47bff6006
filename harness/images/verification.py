"""This module checks an image to the last byte: every digest, and that its lazy forms give what unpacking it gives.

Each layer is read once in full (its digest and its diff ID are checked on the way) and its tar kept beside; every lazy
form the image has for that layer is then read through the same table and byte source that a mount uses, and compared
entry by entry and byte by byte. At the end what each form shows of all layers together is compared with what unpacking
them shows (``together``). A new lazy form is one more function in ``FINDERS``.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from harness.errors import ContentError, FormatError
from harness.formats.estargz.footer import FOOTER_BYTES, is_estargz
from harness.formats.estargz.reader import open_estargz
from harness.formats.estargz.toc import HIDDEN_NAMES, TOC_DIGEST_ANNOTATION, UNCOMPRESSED_SIZE_ANNOTATION
from harness.formats.gzip.layer_stream import spool
from harness.images.together import Together
from harness.images.verification_compare import LazyLayer, differences
from harness.oci.descriptor import Descriptor
from harness.oci.image import parse_json

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Iterator

    from harness.formats.erofs.spans import ErofsIndex
    from harness.formats.gzip.layer_stream import SpooledTar
    from harness.oci.image import Image
    from harness.oci.store import Blob, ImageSource

MAX_PROBLEMS_PER_CHECK = 10


@dataclass(frozen=True, slots=True)
class LazyForm:
    """Names a lazy form the image claims to have for one layer; ``open`` reads its table and gives its byte source."""

    layer: int
    name: str
    open: Callable[[SpooledTar], LazyLayer]
    erofs: ErofsIndex | None = None
    """Says whether the form has one index for all layers."""


@dataclass(frozen=True, slots=True)
class Check:
    """Holds one thing that was checked; ``problems`` is empty when it holds, each a line that says
    what differs where.
    """

    subject: str
    what: str
    problems: tuple[str, ...] = ()

    @property
    def holds(self) -> bool:
        return not self.problems


@dataclass(frozen=True, slots=True)
class Verification:
    """Holds all checks of one image, in the order they were made."""

    checks: tuple[Check, ...]

    @property
    def problems(self) -> list[str]:
        """Returns one line per problem: subject, check and what differs."""
        return [f"{check.subject}: {check.what}: {problem}" for check in self.checks for problem in check.problems]


def verify_image(
    source: ImageSource,
    image: Image,
    *,
    scratch: str | os.PathLike[str] | None = None,
    progress: Callable[[int, int], None] = lambda _layer, _count: None,
) -> Verification:
    """Checks everything of ``image``, whose manifest and config ``source`` verified when it resolved them.

    What does not hold is in the result, not raised; RegistryError, ImageNotFound and DiskFull are raised.
    ``progress(layer, count)`` is told stored bytes read.
    """
    checks = [Check(f"manifest {image.descriptor.digest}", "digest, config and layer list")]
    forms: list[LazyForm] = []
    for finder in FINDERS:
        try:
            forms += finder(source, image)
        except ContentError as error:
            checks.append(Check("image", f"{finder.__name__.removeprefix('find_')} index", (str(error),)))
    together = Together()
    for number, layer in enumerate(image.layers):
        subject = f"layer {number} {layer.digest}"
        pieces = _counted(source.open_blob(layer).stream(), number, progress)
        of_layer = [form for form in forms if form.layer == number]
        checks += _layer(subject, pieces, image.diff_ids[number], of_layer, together, scratch=scratch)
    if len(together.layers) == len(image.layers):
        together.erofs = next((form.erofs for form in forms if form.erofs is not None), None)
        checks += [Check("image", what, _few(problems)) for what, problems in together.differences()]
    return Verification(tuple(checks))


def _few(problems: Iterable[str]) -> tuple[str, ...]:
    """Returns the first problems, and says that there may be more."""
    found = tuple(islice(problems, MAX_PROBLEMS_PER_CHECK + 1))
    return found if len(found) <= MAX_PROBLEMS_PER_CHECK else (*found[:-1], "and perhaps more")


def _counted(pieces: Iterable[bytes], number: int, progress: Callable[[int, int], None]) -> Iterator[bytes]:
    for piece in pieces:
        yield piece
        progress(number, len(piece))


def _layer(
    subject: str,
    pieces: Iterable[bytes],
    diff_id: str,
    forms: list[LazyForm],
    together: Together,
    *,
    scratch: str | os.PathLike[str] | None,
) -> Iterator[Check]:
    try:
        tar = spool(pieces, "its tar", directory=scratch)
    except ContentError as error:
        yield Check(subject, "digest", (str(error),))
        return
    with tar:
        yield Check(subject, "digest")
        differs = tar.diff_id != diff_id
        yield Check(
            subject, "diff ID", (f"the config promises {diff_id}, its tar is {tar.diff_id}",) if differs else ()
        )
        if not differs:
            together.add(tar)
        for form in forms:
            yield _form(subject, form, tar, together)


def _form(subject: str, form: LazyForm, tar: SpooledTar, together: Together) -> Check:
    try:
        lazy = form.open(tar)
        if form.erofs is None:
            together.tables.setdefault(form.name, {})[form.layer] = lazy.table
        return Check(subject, form.name, _few(differences(tar, lazy)))
    except ContentError as error:
        return Check(subject, form.name, (str(error),))


def find_estargz(source: ImageSource, image: Image) -> Iterator[LazyForm]:
    """Finds layers that carry a TOC digest (eStargz, or zstd:chunked in stargz's form) or end in an eStargz footer."""
    for number, layer in enumerate(image.layers):
        blob = source.open_blob(layer)
        promised = layer.annotations.get(TOC_DIGEST_ANNOTATION)
        if promised is None and not (
            layer.compression == "gzip"
            and layer.size >= FOOTER_BYTES
            and is_estargz(blob.read_range(layer.size - FOOTER_BYTES, FOOTER_BYTES))
        ):
            continue

        def opened(
            tar: SpooledTar, blob: Blob = blob, layer: Descriptor = layer, promised: str | None = promised
        ) -> LazyLayer:
            stated = layer.annotations.get(UNCOMPRESSED_SIZE_ANNOTATION)
            if stated is not None and stated != str(tar.size):
                raise FormatError(UNCOMPRESSED_SIZE_ANNOTATION, f"says {stated}, the tar has {tar.size} bytes")
            toc, data = open_estargz(blob, layer.size, promised)
            hidden = frozenset(name.encode() for name in HIDDEN_NAMES)
            return LazyLayer(toc.table, data, hidden=hidden, file_digests=toc.file_digests, whole_seconds=True)

        yield LazyForm(number, "eStargz TOC, chunks and files", opened)


def find_soci(source: ImageSource, image: Image) -> Iterator[LazyForm]:
    """Finds layers for which the image's SOCI index (v2, else the first v1 referrer) has a zTOC."""
    from harness.formats.gzip.spans import ZtocByteSource
    from harness.formats.soci.index import ZTOC_TYPE, find_index, parse_prefetch
    from harness.formats.soci.ztoc import parse

    found = find_index(source, image)
    if found is None:
        return
    descriptor, index = found
    read_parts(source, descriptor.digest, leave=frozenset({ZTOC_TYPE}))  # each zTOC is read with its layer
    known = {layer.digest for layer in image.layers}
    for entry in index.layers:
        if entry.layer_digest not in known:
            raise FormatError("SOCI index", f"names layer {entry.layer_digest}, which the image does not have")
    for number, layer in enumerate(image.layers):
        indexed = index.layer(layer.digest)
        if indexed is None:
            continue

        def opened(_: SpooledTar, layer: Descriptor = layer, descriptor: Descriptor = indexed.ztoc) -> LazyLayer:
            ztoc = parse(source.open_blob(descriptor).read())
            if ztoc.compressed_bytes != layer.size:
                raise FormatError("zTOC", f"made for a layer of {ztoc.compressed_bytes} bytes, this has {layer.size}")
            if layer.digest in index.prefetch:
                parse_prefetch(source.open_blob(index.prefetch[layer.digest]).read(), ztoc.spans)
            data = ZtocByteSource(ztoc, source.open_blob(layer))
            for span in range(len(data.spans)):
                data.span(span)  # also those that hold no file's bytes
            return LazyLayer(ztoc.to_table(), data)

        yield LazyForm(number, "SOCI zTOC, spans and files", opened)


def read_parts(source: ImageSource, manifest: str, leave: frozenset[str]) -> None:
    """Reads every blob that an artefact's manifest names, but those of media types to ``leave``; all are verified."""
    document = parse_json(source.manifest(manifest)[0], f"{source.where}: {manifest}")
    where = f"{source.where}: {manifest}"
    parts = Descriptor.list_from_json(document.get("layers"), where)
    for descriptor in (Descriptor.from_json(document.get("config"), where), *parts):
        if descriptor.media_type not in leave:
            source.open_blob(descriptor).copy_to(lambda _: None)


def find_erofs(source: ImageSource, image: Image) -> Iterator[LazyForm]:
    """Finds layers of the image's EROFS index; the last one's check holds the metadata against all of them."""
    from harness.errors import ImageNotFound
    from harness.formats.erofs.image import find_erofs_index
    from harness.formats.erofs.index import HEAD_TYPE
    from harness.images.erofs_verification import index_checks

    try:
        artefact, manifest = find_erofs_index(source, image.descriptor)
    except ImageNotFound:
        return
    read_parts(source, artefact.digest, leave=frozenset({HEAD_TYPE}))
    index, checks = index_checks(source, image, manifest)
    for number, name, check in checks:
        yield LazyForm(number, name, check, index)


FINDERS: tuple[Callable[[ImageSource, Image], Iterator[LazyForm]], ...] = (find_estargz, find_soci, find_erofs)
"""These are all lazy forms ``verify_image`` knows, in the order they are checked."""
