"""Read-only stacks of lazily mounted directories, for looking at them without a container."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

from harness.kernel.syscalls import mount
from harness.lazyfs.mounting.mounts import MS_RDONLY, unmount

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_MS_BIND = 4096


@contextmanager
def stacked(lowerdirs: Sequence[str], target: str) -> Iterator[str]:
    """``lowerdirs`` (topmost first) on ``target`` while the context is open. Raises OSError."""
    if len(lowerdirs) == 1:
        mount(lowerdirs[0], target, None, _MS_BIND)
    else:
        mount("overlay", target, "overlay", MS_RDONLY, f"lowerdir={':'.join(map(_escape, lowerdirs))}")
    try:
        yield target
    finally:
        unmount(target)


def _escape(path: str) -> str:
    return os.path.abspath(path).replace("\\", "\\\\").replace(":", "\\:").replace(",", "\\,")
