"""The lower bound of every case of a scenario, from its image's figures and this host's rates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.model import bound as model

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.model.bound import ImageSize, Rates
    from harness.model.observation import Bound
    from harness.model.plan import PlannedCase
    from harness.oci.image import Image
    from harness.session.image_files import ListedFile

#: Requests of a lazy start that must answer one after the other before data can be asked for: manifest, index.
_LAZY_ROUNDS = 2


def image_size(image: Image, files: Sequence[ListedFile]) -> ImageSize:
    """An image in the figures that bounds are made of; what cannot be told is taken so that the bound is lower."""
    layers = {layer.digest: layer for layer in image.layers}.values()
    compressions = {layer.compression or "none" for layer in layers}
    return model.ImageSize(
        compressed_bytes=sum(layer.size for layer in layers),
        uncompressed_bytes=sum(file.size for file in files),
        files=sum(file.kind == "file" for file in files),
        compression="gzip" if compressions == {"gzip"} else "zstd" if "none" not in compressions else "none",
    )


@dataclass(frozen=True, slots=True)
class Bounder:
    """Computes bounds on one host."""

    rates: Rates
    host_cores: int

    def bound(self, case: PlannedCase, image: ImageSize, fetched_bytes: int) -> Bound:
        """The least time to ready of a case; for a lazy one, given the bytes it had fetched by then."""
        setting = model.Setting(
            shape=case.shape,
            distance=case.distance,
            rates=self.rates,
            host_cores=self.host_cores,
            control_rounds=_LAZY_ROUNDS if case.lazy else 1,
        )
        if case.lazy:
            work = model.LazyWork(fetched_bytes, 0, compression=image.compression)
            return model.lazy(setting, work)
        if case.choice.preset == "eager":  # unpacks no file
            image = model.ImageSize(image.compressed_bytes, image.uncompressed_bytes, 0, image.compression)
        return model.full_pull(setting, image)
