"""This module says what the kernel takes of an entry's metadata: owners, times, devices, attributes, link targets.

Every mode shows the same only if each says the same of what cannot be shown. A value that an unpacker could not set is
refused (owners, devices, targets), moved to the nearest that can be held (times, as the kernel's ext4 does) or left out
(attributes, as Docker and containerd do), here for all modes.

Sources: chown(2), mknod(2), symlink(2), xattr(7); Linux fs/ext4/inode.c and fs/inode.c (timestamp_truncate).
"""

from __future__ import annotations

import struct
from dataclasses import replace
from typing import TYPE_CHECKING

from harness.errors import FormatError
from harness.formats.tar.names import PATH_MAX, entry_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from harness.formats.table import LayerTable

MAX_OWNER = (1 << 32) - 2
"""This is the largest owner, since 4294967295 tells chown(2) to leave an owner as it is."""
MAX_MAJOR, MAX_MINOR = (1 << 12) - 1, (1 << 20) - 1
MIN_TIME_S, MAX_TIME_S = -(1 << 31), (1 << 34) - (1 << 31) - 1
"""These are what ext4 can hold: 1901 to 2446."""

OPAQUE_XATTR = b"trusted.overlay.opaque"
OVERLAY_PREFIXES = (b"trusted.overlay.", b"user.overlay.")
"""These are OverlayFS's own: leftovers of the builder's storage driver, which would steer ours."""
_REG, _DIR = 1, 2
_ACLS = frozenset({b"system.posix_acl_access", b"system.posix_acl_default"})
_NAMESPACES = (b"user.", b"trusted.", b"security.")
_CAPABILITY = b"security.capability"
_CAPABILITY_BYTES = {0x01000000: 12, 0x02000000: 20, 0x03000000: 24}
MAX_XATTR_NAME, MAX_XATTR_VALUE = 255, (1 << 16) - 1


def check_owner(name: bytes, uid: int, gid: int) -> None:
    """Raises FormatError for an owner that no kernel takes."""
    if not (0 <= uid <= MAX_OWNER and 0 <= gid <= MAX_OWNER):
        raise FormatError(entry_of(name), f"owner {uid}:{gid}, which no kernel takes (0 to {MAX_OWNER})")


def check_device(name: bytes, major: int, minor: int) -> None:
    """Raises FormatError for a device number that no kernel takes."""
    if not (0 <= major <= MAX_MAJOR and 0 <= minor <= MAX_MINOR):
        raise FormatError(entry_of(name), f"device {major}:{minor}, which no kernel takes")


def check_symlink(name: bytes, target: bytes) -> None:
    """Raises FormatError for a symbolic link that symlink(2) would not make."""
    if not target or len(target) > PATH_MAX:
        raise FormatError(entry_of(name), f"a symbolic link with a target of {len(target)} bytes (1 to {PATH_MAX})")


def held_time(seconds: int, nanoseconds: int) -> tuple[int, int]:
    """Returns the time as a file system holds it."""
    if MIN_TIME_S <= seconds <= MAX_TIME_S:
        return seconds, nanoseconds
    return min(max(seconds, MIN_TIME_S), MAX_TIME_S), 0


def held_table(table: LayerTable) -> LayerTable:
    """Returns the table with times and attributes as a file system holds them; the same where nothing differs."""
    import numpy as np

    seconds, nanoseconds, xattrs = table.mtimes_s, table.mtimes_ns, table.xattrs
    if len(seconds) and not MIN_TIME_S <= int(seconds.min()) <= int(seconds.max()) <= MAX_TIME_S:
        seconds = np.clip(seconds, MIN_TIME_S, MAX_TIME_S)
        nanoseconds = np.where(seconds == table.mtimes_s, nanoseconds, 0).astype(nanoseconds.dtype)
    if xattrs:
        held = ((index, held_xattrs(int(table.kinds[index]), found)) for index, found in xattrs.items())
        xattrs = {index: found for index, found in held if found}
        if xattrs == table.xattrs:
            xattrs = table.xattrs
    if seconds is table.mtimes_s and xattrs is table.xattrs:
        return table
    return replace(table, mtimes_s=seconds, mtimes_ns=nanoseconds, xattrs=xattrs)


def held_xattrs(kind: int, attributes: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
    """Returns the attributes that a file system under OverlayFS can hold for an entry of this kind, and the opaque
    mark.

    ``trusted.overlay.opaque`` with the value ``y`` stays on a directory: it says that the layer replaces it
    (``reading``). Others that begin as OverlayFS's own are left out, whatever they say.
    """
    return {name: value for name, value in attributes.items() if _held(kind, name, value)}


def _held(kind: int, name: bytes, value: bytes) -> bool:
    if name.startswith(OVERLAY_PREFIXES):
        return kind == _DIR and name == OPAQUE_XATTR and value == b"y"
    if len(name) > MAX_XATTR_NAME or len(value) > MAX_XATTR_VALUE:
        return False
    if name in _ACLS:
        return kind == _DIR or (kind in _FILES_WITH_ACL and name == b"system.posix_acl_access")
    if not name.startswith(_NAMESPACES) or name in _NAMESPACES:
        return False
    if name == _CAPABILITY:
        return kind == _REG and len(value) == _CAPABILITY_BYTES.get(_magic(value), -1)
    return not name.startswith(b"user.") or kind in (_REG, _DIR)


_FILES_WITH_ACL = frozenset({1, 3, 4, 5})


def _magic(value: bytes) -> int:
    return struct.unpack("<I", value[:4])[0] & 0xFF000000 if len(value) >= 4 else 0
