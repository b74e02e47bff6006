"""This module makes a scenario's image, puts it into every form its modes need and pushes it, outside all trials.

Each form is an OCI layout in the cache directory, found again by the image's digest, so that a second session starts at
once. What a form costs is recorded on its own.
"""

from __future__ import annotations

import hashlib
import resource
import time
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

from harness.images.catalog import obtain, refuse_foreign
from harness.model.details import PreparationDetails
from harness.model.modes import Form
from harness.model.session import Preparation
from harness.oci.layout import LayoutStore
from harness.oci.location import copy_image, open_destination, open_source
from harness.oci.reference import Reference
from harness.session.store import load_preparations

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from harness.formats.erofs.recording import Recording
    from harness.model.scenario import Scenario
    from harness.oci.cache import Cache
    from harness.oci.image import Image
    from harness.oci.store import ImageSource
    from harness.session.progress import Progress

#: Raised when all forms are made differently, so that what is cached is made anew.
FORMS_VERSION = 2
#: Raised when one of them is.
_FORM_VERSIONS = {Form.EROFS: 3, Form.EROFS_PACKED: 3}
TAG = "latest"


@dataclass(frozen=True, slots=True)
class LocalImage:
    """Names a scenario's image on this disk, as ``open_source`` takes it, with what it resolves to."""

    name: Reference
    image: Image

    @property
    def digest(self) -> str:
        return self.image.descriptor.digest

    @property
    def compressed_bytes(self) -> int:
        """Counts the bytes of its layers; a layer that occurs twice counts once, as it is pulled once."""
        return sum({layer.digest: layer.size for layer in self.image.layers}.values())


@dataclass(frozen=True, slots=True)
class Published:
    """Says where one form is at the registry, and how much a full pull of it moves."""

    repository: str
    reference: str
    compressed_bytes: int
    layers: tuple[str, ...] = ()
    """Lists the digests of its layers, the lowest first."""
    index: str = ""
    """Holds the digest of the EROFS index beside it."""


def pinned_digests(session: Path) -> dict[str, str]:
    """Returns what the tags of a session's scenarios meant when it began, by scenario: a session measures one image
    each.
    """
    return {
        preparation.scenario: preparation.details.digest
        for preparation in load_preparations(session)
        if preparation.form == Form.IMAGE and preparation.details.digest is not None
    }


class Cost:
    """Counts wall and CPU seconds since it was made, children included."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.monotonic(), self._cpu_s()

    @staticmethod
    def _cpu_s() -> float:
        usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return sum(usage.ru_utime + usage.ru_stime for usage in usages)

    def read(self) -> tuple[float, float]:
        return time.monotonic() - self._wall, self._cpu_s() - self._cpu


@dataclass
class Preparer:
    """Makes and publishes what trials pull. ``host`` is the registry as the harness reaches it."""

    cache: Cache
    host: str
    prefix: str
    record: Callable[[Preparation], None]
    progress: Progress
    offline: bool = False
    """Says whether images are taken as they are in the cache, and no registry is asked what a tag means now."""
    pinned: dict[str, str] = field(default_factory=dict)
    """Holds what the tags of scenarios meant when the session began that is resumed now, as digests."""
    _local: dict[str, LocalImage] = field(default_factory=dict)
    _published: dict[tuple[str, Form, Recording | None], Published] = field(default_factory=dict)

    def local(self, scenario: Scenario) -> LocalImage:
        """Returns the scenario's image, which is built or copied to this disk unless it is there.

        Raises:
            ColdbenchError: it cannot be built, reached or read.
        """
        if scenario.name not in self._local:
            self.progress.preparing(scenario.name, "image")
            cost = Cost()
            step = ""

            def report(what: str, done: int, total: int) -> None:
                nonlocal step
                if what != step:
                    step = what
                    self.progress.preparing(scenario.name, what)
                self.progress.preparing_bytes(done, total)

            obtained = obtain(
                scenario.image,
                self.cache,
                report,
                offline=self.offline,
                pinned=self.pinned.get(scenario.name, ""),
                called=f"scenario:{scenario.name}",
            )
            lookup = obtained.lookup
            if lookup is not None and lookup.news:
                self.progress.remark(lookup.news)
            with open_source(obtained.layout) as source:
                image = source.resolve()
                refuse_foreign(image, str(obtained.layout.called or obtained.layout))
                found = LocalImage(obtained.layout, image)
            self._note(
                scenario,
                Form.IMAGE,
                found.digest,
                found.compressed_bytes,
                cost if obtained.made else None,
                details=PreparationDetails(**asdict(lookup)) if lookup is not None else None,
            )
            self._local[scenario.name] = found
        return self._local[scenario.name]

    def publish(
        self, scenario: Scenario, form: Form, first: tuple[str, ...] = (), recording: Recording | None = None
    ) -> Published:
        """Makes one form of the scenario's image and pushes it. An optimized form needs ``first``, the paths that its
        start reads; one with a start pack needs ``recording``, what the kernel asks for.

        Raises:
            ColdbenchError: it cannot be made or pushed.
        """
        key = (scenario.name, form, recording)
        if key not in self._published:
            local = self.local(scenario)
            name = local.name if form is Form.IMAGE else self._form(scenario, local, form, first, recording)
            self.progress.preparing(scenario.name, f"pushing {form}")
            self._published[key] = self._push(scenario, form, name)
        return self._published[key]

    def _note(
        self,
        scenario: Scenario,
        form: str,
        digest: str,
        size: int,
        cost: Cost | None,
        *,
        details: PreparationDetails | None = None,
    ) -> None:
        """Records an artefact; without a cost it was there already."""
        cached = cost is None
        wall_s, cpu_s = cost.read() if cost is not None else (0.0, 0.0)
        self.record(
            Preparation(
                scenario=scenario.name,
                form=form,
                digest=digest,
                cached=cached,
                wall_s=wall_s,
                cpu_s=cpu_s,
                bytes=size,
                details=details or PreparationDetails(),
            )
        )

    def _bytes(self, image: Image) -> Callable[[object, int], None]:
        """Returns a progress callback that adds pieces up."""
        done = 0
        total = image.compressed_bytes

        def count(_what: object, size: int) -> None:
            nonlocal done
            done += size
            self.progress.preparing_bytes(min(done, total), total)

        return count

    # -- forms

    def _form(
        self,
        scenario: Scenario,
        local: LocalImage,
        form: Form,
        first: tuple[str, ...],
        recording: Recording | None,
    ) -> Reference:
        key = local.digest.partition(":")[2]
        if first:
            key += "-" + hashlib.sha256("\0".join(first).encode()).hexdigest()[:16]
        if recording is not None:
            key += "-" + hashlib.sha256(recording.encode()).hexdigest()[:16]
        place = self.cache.root / "forms" / f"{form}-{_FORM_VERSIONS.get(form, FORMS_VERSION)}" / key
        cost = Cost()
        self.progress.preparing(scenario.name, form)
        with self.cache.lock(f"{form}-{key}"):
            cached = self.cache.has(place)
            if not cached:
                with self.cache.scratch(form) as scratch, open_source(local.name) as source:
                    made = scratch / "layout"
                    destination = LayoutStore(made, TAG, create=True)
                    if form is Form.ESTARGZ_OPTIMIZED:
                        self.make_estargz(source, local.image, destination, scratch, first)
                    elif recording is not None:
                        self.make_packed(scenario, local, destination, recording)
                    else:
                        _MAKERS[form](self, source, local.image, destination, scratch)
                    destination.close()
                    self.cache.commit(made, place)
        name = Reference("oci", path=str(place), tag=TAG, called=f"{local.name.called or local.name} ({form})")
        with open_source(name) as source:
            head, _data = source.head()
            size = sum(p.stat().st_size for p in (place / "blobs" / "sha256").iterdir())
        self._note(scenario, form, head.digest, size, None if cached else cost)
        return name

    def make_estargz(
        self,
        source: ImageSource,
        image: Image,
        destination: LayoutStore,
        scratch: Path,
        first: tuple[str, ...] = (),
    ) -> None:
        """Rewrites the layers so that each file can be read on its own; the files ``first`` lie before all others."""
        from harness.formats.estargz.image import convert_image
        from harness.formats.estargz.writer import EstargzOptions

        counts: dict[int, int] = {}

        def progress(number: int, done: int) -> None:
            counts[number] = done
            self.progress.preparing_bytes(sum(counts.values()), image.compressed_bytes)

        options = EstargzOptions(prioritized=first)
        convert_image(source, image, destination, options, scratch=scratch, progress=progress)

    def make_soci(self, source: ImageSource, image: Image, destination: LayoutStore, _scratch: Path) -> None:
        """Puts an index beside the layers, which stay as they are; where all are small, all are indexed."""
        from harness.formats.soci.image import Options, index_image

        default = Options()
        least = default.min_layer_bytes if any(d.size >= default.min_layer_bytes for d in image.layers) else 0
        index_image(source, destination, Options(min_layer_bytes=least), progress=self._bytes(image))

    def make_erofs(self, source: ImageSource, image: Image, destination: LayoutStore, _scratch: Path) -> None:
        """Puts metadata of a file system and checkpoints beside the layers, which stay as they are."""
        from harness.formats.erofs.image import index_image

        index_image(source, destination, progress=self._bytes(image), copy=True)

    def make_packed(
        self, scenario: Scenario, local: LocalImage, destination: LayoutStore, recording: Recording
    ) -> None:
        """Copies the image and its EROFS index, and puts the index with a pack of the recording beside them."""
        from harness.formats.erofs.image import find_erofs_index
        from harness.formats.erofs.packing import add_pack

        indexed = self._form(scenario, local, Form.EROFS, (), None)
        with open_source(indexed) as source:
            image = source.resolve()
            copy_image(source, destination, referrers=True)
            _, manifest = find_erofs_index(source, image.descriptor)
            add_pack(source, destination, image, manifest, [recording])

    # -- the registry

    def _push(self, scenario: Scenario, form: str, name: Reference) -> Published:
        from harness.formats.erofs.image import find_erofs_index

        repository = f"{self.prefix}{scenario.name}"
        with open_source(name) as source:
            head, _data = source.head()
            image = source.resolve()
            index = ""
            if form in {Form.EROFS, Form.EROFS_PACKED}:
                index = find_erofs_index(source, image.descriptor)[0].digest
            tag = f"{form}-{head.digest.partition(':')[2][:16]}"
            destination = open_destination(f"docker://{self.host}/{repository}:{tag}")
            try:
                pushed = copy_image(source, destination, tag, progress=self._bytes(image))
            finally:
                destination.close()
        size = sum({layer.digest: layer.size for layer in image.layers}.values())
        layers = tuple(layer.digest for layer in image.layers)
        return Published(repository, pushed.digest, size, layers, index)


_MAKERS: dict[Form, Callable[[Preparer, ImageSource, Image, LayoutStore, Path], None]] = {
    Form.ESTARGZ: Preparer.make_estargz,
    Form.SOCI: Preparer.make_soci,
    Form.EROFS: Preparer.make_erofs,
}
