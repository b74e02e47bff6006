"""This module says how much larger an image's layers would be if they were packed less, or not at all."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

from harness.formats.gzip.inflate import inflate

if TYPE_CHECKING:
    from harness.oci.image import Image
    from harness.oci.store import ImageSource

SAMPLE_BYTES = 32 << 20


def light_growth(source: ImageSource, image: Image) -> float:
    """Returns the size of the largest layer's first 32 MiB at zlib's level 1, over what it is at level 6; at least 1.

    Both are made here, so that the builder's own compressor does not enter. Raises ContentError for a bad layer.
    """
    number = max(range(len(image.layers)), key=lambda n: image.layers[n].size)
    packers = {level: zlib.compressobj(level, zlib.DEFLATED, -15) for level in (1, 6)}
    sizes = dict.fromkeys(packers, 0)
    taken = 0
    for piece in inflate(source.open_blob(image.layers[number]).stream(), f"layer {number} of {source.where}"):
        taken += len(piece)
        for level, packer in packers.items():
            sizes[level] += len(packer.compress(piece))
        if taken >= SAMPLE_BYTES:
            break
    for level, packer in packers.items():
        sizes[level] += len(packer.flush())
    return max(1.0, sizes[1] / sizes[6])
