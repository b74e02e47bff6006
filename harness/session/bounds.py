"""This module computes the lower bound of every case from its image's figures, its workload's CPU and this host's
rates.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from harness.machine import rates as host_rates
from harness.model import bound as model

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from harness.model.bound import ImageSize, Rates
    from harness.model.observation import Bound
    from harness.model.plan import PlannedCase
    from harness.oci.image import Image
    from harness.session.image_files import ListedFile

#: Requests of a lazy start that must answer one after the other before data can be asked for: manifest, index.
_LAZY_ROUNDS = 2


def image_size(image: Image, files: Sequence[ListedFile]) -> ImageSize:
    """Returns an image's figures for bounds; a figure that cannot be told is taken so that the bound is lower."""
    layers = {layer.digest: layer for layer in image.layers}.values()
    compressions = {layer.compression or "none" for layer in layers}
    return model.ImageSize(
        compressed_bytes=sum(layer.size for layer in layers),
        uncompressed_bytes=sum(file.size for file in files),
        files=sum(file.kind == "file" for file in files),
        compression="gzip" if compressions == {"gzip"} else "zstd" if "none" not in compressions else "none",
    )


@dataclass(frozen=True, slots=True)
class Moved:
    """Says what a lazy start had moved when it was ready; 0 where it is not known.

    ``late_core_s``: CPU seconds used between readiness and the moment these counters were read.
    """

    received_bytes: int = 0
    inflated_bytes: int = 0
    unpacked_bytes: int = 0
    """Counts bytes out of a start pack, which is zstd whatever the layers are."""
    fuse_requests: int = 0
    late_core_s: float = 0.0


@dataclass(slots=True)
class Bounder:
    """Computes bounds on one host; ``measure`` measures its rates again, of which the best ever seen count."""

    rates: Rates
    host_cores: int
    measure: Callable[[], Rates] = field(default=host_rates.measure, repr=False)

    def renew(self) -> None:
        """Measures the host's rates again: a bound that a result contradicts may be made of rates from a slow moment.

        They can only get better, and bounds lower.
        """
        self.rates = self.measure()

    def bound(self, case: PlannedCase, image: ImageSize, application_core_s: float, moved: Moved) -> Bound:
        """Returns the least time to ready of a case; for a lazy one, given what it had moved by then."""
        setting = model.Setting(
            shape=case.shape,
            distance=case.distance,
            rates=self.rates,
            host_cores=self.host_cores,
            control_rounds=_LAZY_ROUNDS if case.lazy else 1,
            application_core_s=application_core_s,
        )
        if case.preset.before_t0:
            # Nothing is asked for and nothing is moved: the application alone.
            return model.lazy(replace(setting, control_rounds=0), model.LazyWork(0, 0, dependent_rounds=0))
        if case.lazy:
            return model.lazy(setting, self._work(image, moved))
        if not case.preset.unpacks:
            image = model.ImageSize(image.compressed_bytes, image.uncompressed_bytes, 0, image.compression)
        return model.full_pull(setting, image)

    def _work(self, image: ImageSize, moved: Moved) -> model.LazyWork:
        """Takes off whatever was done after readiness, as if it had been all inflating and all FUSE at once."""
        rates = self.rates
        inflate = rates.inflate_zstd_bytes_s if image.compression == "zstd" else rates.inflate_bytes_s
        late_requests = moved.late_core_s / rates.fuse_request_core_s if rates.fuse_request_core_s else 0.0
        return model.LazyWork(
            compressed_bytes=moved.received_bytes,
            uncompressed_bytes=max(0, int(moved.inflated_bytes - moved.late_core_s * inflate)),
            unpacked_bytes=max(0, int(moved.unpacked_bytes - moved.late_core_s * rates.inflate_zstd_bytes_s)),
            fuse_requests=max(0, int(moved.fuse_requests - late_requests)),
            compression=image.compression,
        )
