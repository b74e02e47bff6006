"""This module stacks lazily mounted directories, read-only, for looking at them without a container.

The image is anybody's: no set-user-ID program of it gains anything and none of its device nodes opens, on any of the
mounts (``CONTAINED``). Who may look is decided by the root directory's mode, which OverlayFS takes from the topmost
directory: with a directory in front that is root's alone, nobody else gets in.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

from harness.kernel.syscalls import mount
from harness.lazyfs.mounting.mounts import CONTAINED, unmount

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_MS_BIND, _MS_REMOUNT = 4096, 32


@contextmanager
def stacked(lowerdirs: Sequence[str], target: str, source: str = "overlay") -> Iterator[str]:
    """Mounts ``lowerdirs`` (topmost first) on ``target`` while the context is open. Raises OSError.

    Two or more show ``source`` as where the mount is from.
    """
    if len(lowerdirs) == 1:
        mount(lowerdirs[0], target, None, _MS_BIND)
        mount("none", target, None, _MS_REMOUNT | _MS_BIND | CONTAINED)
    else:
        mount(source, target, "overlay", CONTAINED, f"lowerdir={':'.join(map(_escape, lowerdirs))}")
    try:
        yield target
    finally:
        unmount(target)


def _escape(path: str) -> str:
    return os.path.abspath(path).replace("\\", "\\\\").replace(":", "\\:").replace(",", "\\,")
