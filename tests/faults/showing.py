"""An image in every form, shown by every mode and preset that serves it: through the providers that a trial uses."""

from __future__ import annotations

import os
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.engines.embedded import lazy, overlay2
from harness.engines.embedded.modes import Context
from harness.formats.erofs import image as erofs_image
from harness.formats.estargz import image as estargz_image
from harness.formats.estargz.writer import EstargzOptions
from harness.formats.soci import image as soci_image
from harness.lazyfs.compare import survey
from harness.lazyfs.control import spawn
from harness.lazyfs.messages import StoreAddress
from harness.oci.layout import LayoutStore
from harness.oci.store import ImageSource
from tests.faults.cases import DIRECTORY
from tests.lazyfs.support import overlay
from tests.support.images import Layer, put_image

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from harness.lazyfs.compare import Facts
    from tests.faults.cases import Shown, Stored

TAG = "x"


@dataclass(frozen=True)
class Way:
    """A mode and preset, and the form of the image that it serves."""

    mode: str
    preset: str
    form: str

    def __str__(self) -> str:
        return f"{self.mode}:{self.preset}"


WAYS = (
    Way("overlay2", "sequential", "image"), Way("overlay2", "tuned", "image"), Way("estargz", "tuned", "estargz"),
    Way("soci", "tuned", "soci"), Way("erofs", "tuned", "erofs"), Way("erofs", "eager", "erofs"),
    Way("soci", "pyfuse3", "soci"),
)  # fmt: skip
FORMS = ("estargz", "soci", "erofs")


def write(layers: Sequence[Stored], directory: Path) -> ImageSource:
    """The image as an OCI layout."""
    from harness.oci.descriptor import digest_bytes

    layout = LayoutStore(directory, TAG, create=True)
    put_image(layout, TAG, [Layer(it.blob, it.media_type, digest_bytes(it.tar)) for it in layers])
    return ImageSource(LayoutStore(directory, TAG))


def convert(source: ImageSource, form: str, directory: Path) -> ImageSource:
    """The image in another form, in a layout of its own."""
    if form == "image":
        return source
    layout = LayoutStore(directory, TAG, create=True)
    if form == "estargz":
        estargz_image.convert_image(source, source.resolve(), layout, EstargzOptions())
    elif form == "soci":
        soci_image.index_image(source, layout, soci_image.Options(min_layer_bytes=0, span_size=1 << 16))
    else:
        erofs_image.index_image(source, layout, erofs_image.Options(span_bytes=1 << 16))
    return ImageSource(LayoutStore(directory, TAG))


@contextmanager
def shown(source: ImageSource, way: Way, place: Path) -> Iterator[Path]:
    """The image's root file system as a container of this mode sees it, read-only."""
    place.mkdir(parents=True)
    store = source.store
    assert isinstance(store, LayoutStore)
    with ExitStack() as stack:
        mask = os.umask(0)  # as the agent's
        stack.callback(os.umask, mask)
        daemon = None
        if way.mode != "overlay2":
            process, daemon = spawn()
            stack.callback(process.wait, 20)
            stack.callback(daemon.close)
        scratch = place / "scratch"
        scratch.mkdir()
        address = StoreAddress(layout=str(store.directory.resolve()))
        context = Context(store, way.mode, address, TAG, str(scratch), lambda *_: None, daemon)
        provide = overlay2.provide if daemon is None else lazy.provide
        rootfs = provide(context, source.resolve(), way.preset, {})
        stack.callback(rootfs.cleanup)
        yield stack.enter_context(overlay(rootfs.lowerdirs, place / "root"))


def surveyed(source: ImageSource, way: Way, place: Path) -> dict[bytes, Facts]:
    """Every fact of every name that the mode shows."""
    with shown(source, way, place) as root:
        return survey(str(root))


def tree_of(root: Path) -> dict[str, Shown]:
    """A shown tree in the form of the expected ones."""
    found: dict[str, Shown] = {}
    for base, directories, files in os.walk(root):
        for name in directories + files:
            path = os.path.join(base, name)
            at = os.path.relpath(path, root)
            if os.path.islink(path):
                found[at] = "-> " + os.readlink(path)
            elif os.path.isdir(path):
                found[at] = DIRECTORY
            elif os.path.lexists(path):  # OverlayFS lists the whiteouts of a directory that only one layer has
                with open(path, "rb") as file:
                    found[at] = file.read()
    return found
