"""This module finds who a container runs as: it looks an image's ``User`` up in the image's own /etc/passwd and
/etc/group.

The files are opened with openat2(RESOLVE_IN_ROOT), so that a symlink in the image never reaches the host's.

Source: OCI image spec 1.1, config.md (User); openat2(2); passwd(5), group(5).
"""

from __future__ import annotations

import ctypes
import os
import stat
from dataclasses import dataclass

from harness.errors import FormatError

_SYS_OPENAT2 = 437
_RESOLVE_IN_ROOT = 0x10
_MAX_BYTES = 4 << 20
LAST_ID = 2**32 - 2
"""This is the last ID, since the one above means "leave it as it is" to the kernel."""

_libc = ctypes.CDLL(None, use_errno=True)


class _OpenHow(ctypes.Structure):
    _fields_ = [("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64)]


_ANOTHER = "`user` of the scenario's workload names another"


@dataclass(frozen=True, slots=True)
class Identity:
    uid: int = 0
    gid: int = 0
    additional_gids: tuple[int, ...] = ()
    home: str = "/"


def read_in_root(root: str, path: str) -> bytes:
    """Reads a regular file of the image, symlinks resolved inside ``root``; empty when there is none."""
    directory = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        how = _OpenHow(os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY, 0, _RESOLVE_IN_ROOT)
        descriptor = _libc.syscall(_SYS_OPENAT2, directory, path.encode(), ctypes.byref(how), ctypes.sizeof(how))
    finally:
        os.close(directory)
    if descriptor < 0:
        return b""
    with open(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            return b""
        return file.read(_MAX_BYTES)


def _lines(data: bytes, fields: int) -> list[list[str]]:
    rows = [line.split(":") for line in data.decode(errors="surrogateescape").splitlines()]
    return [row for row in rows if len(row) >= fields]


def resolve_user(root: str, user: str) -> Identity:
    """Returns the identity for ``user``, ``uid``, ``user:group``, ``uid:gid`` (any mix); FormatError for a name that is
    unknown.

    As in Docker: a bare uid without a passwd entry has gid 0; supplementary groups come with no explicit group only.
    """
    name, _, group = user.partition(":")
    passwd = _lines(read_in_root(root, "etc/passwd"), 6)
    groups = _lines(read_in_root(root, "etc/group"), 3)
    entry = next((row for row in passwd if row[0] == name), None) if name else None
    if entry is None:
        if name.isdecimal() or not name:
            entry = next((row for row in passwd if row[2] == (name or "0")), None)
        else:
            raise FormatError(
                "image config: User",
                f"no user {name!r} in the image's /etc/passwd; {_ANOTHER}",
            )
    try:
        uid = int(entry[2]) if entry else int(name or 0)
        gid = int(entry[3]) if entry else 0
        additional: tuple[int, ...] = ()
        if group:
            row = next((row for row in groups if row[0] == group), None)
            if row is None and not group.isdecimal():
                raise FormatError(
                    "image config: User",
                    f"no group {group!r} in the image's /etc/group; {_ANOTHER}",
                )
            gid = int(row[2]) if row else int(group)
        elif entry:
            additional = tuple(int(row[2]) for row in groups if len(row) > 3 and entry[0] in row[3].split(","))
    except ValueError:
        raise FormatError("image config: User", f"the image's entry for {user!r} holds no number") from None
    if wrong := [number for number in (uid, gid, *additional) if not 0 <= number <= LAST_ID]:
        raise FormatError("image config: User", f"{user!r} is ID {wrong[0]}, which no kernel takes")
    return Identity(uid, gid, additional, (entry[5] if entry else "") or "/")
