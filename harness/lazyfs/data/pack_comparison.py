"""This module compares a start pack with the layers, once they are all inflated into the cache file.

No layer's digest vouches for a pack's bytes, so that they are as trusted as the index's metadata until here. Where one
differs, the start has run on other bytes than the image's: it is counted as a digest that does not match.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

import trio

from harness.errors import ColdbenchError

if TYPE_CHECKING:
    from harness.lazyfs.counters import Counters
    from harness.lazyfs.data.disk_cache import SparseFile
    from harness.lazyfs.data.pack import StartPack
    from harness.lazyfs.data.pack_frames import PackFrames

log = logging.getLogger(__name__)


async def compare(pack: StartPack, image: SparseFile, counters: Counters) -> None:
    """Compare each frame that came with the inflated layers; the first difference is counted, logged and kept."""
    frames = pack.frames
    if frames is None:
        return
    for number in range(len(frames.pack.frames)):
        if not frames.has(number):
            continue
        try:
            different = await trio.to_thread.run_sync(_difference, frames, number, image)
        except (ColdbenchError, KeyError, OSError):
            continue  # it was of no use to the start either, and said so
        if different:
            pack.counters.differs = different
            counters.digest_mismatches += 1
            log.error("the start pack does not match the layers: %s", different)
            return


def _difference(frames: PackFrames, number: int, image: SparseFile) -> str:
    """Says where a frame has other bytes than the layers, "" where it has not; blocks."""
    frame, data = frames.pack.frames[number], memoryview(frames.decode(number))
    for begin, end, place in zip(frame.begins, frame.ends, frame.places, strict=True):
        layers = os.pread(image.descriptor, end - begin, begin)
        # The cache file ends with the last layer's bytes, and what is behind them is padding.
        if data[place : place + end - begin] != layers + bytes(end - begin - len(layers)):
            return f"bytes {begin} to {end} of the image file"
    return ""
