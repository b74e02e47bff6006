"""Compare two mounted trees: names, types, every attribute, extended attributes and content."""

from __future__ import annotations

import hashlib
import os
import stat
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_READ_BYTES = 1 << 20


def differences(left: str, right: str, *, directory_nlinks: bool = False) -> Iterator[str]:
    """One line for each way in which the trees differ; names are relative to their roots.

    Compared: type, mode, owner, size (of files and links), nanosecond times of modification, device numbers, link
    counts, which names are links to one inode, targets, xattrs (``trusted.overlay.*`` included), and every byte.
    Sizes of directories, and their link counts unless asked for, are a file system's own affair.
    """
    seen_left = dict(_walk(left))
    seen_right = dict(_walk(right))
    for path in sorted(seen_left.keys() - seen_right.keys()):
        yield f"{_show(path)}: only in {left}"
    for path in sorted(seen_right.keys() - seen_left.keys()):
        yield f"{_show(path)}: only in {right}"
    first_left: dict[tuple[int, int], bytes] = {}
    first_right: dict[tuple[int, int], bytes] = {}
    for path in sorted(seen_left.keys() & seen_right.keys()):
        ours, theirs = seen_left[path], seen_right[path]
        for name, mine, other in _attributes(ours, theirs, directory_nlinks):
            if mine != other:
                yield f"{_show(path)}: {name} is {mine!r}, {other!r} on the right"
        if ours.st_nlink > 1 and stat.S_ISREG(ours.st_mode):
            mine_first = first_left.setdefault((ours.st_dev, ours.st_ino), path)
            other_first = first_right.setdefault((theirs.st_dev, theirs.st_ino), path)
            if mine_first != other_first:
                yield f"{_show(path)}: linked to {_show(mine_first)}, to {_show(other_first)} on the right"
        if stat.S_IFMT(ours.st_mode) == stat.S_IFMT(theirs.st_mode):
            yield from _contents(
                path, os.path.join(os.fsencode(left), path), os.path.join(os.fsencode(right), path), ours
            )


def _attributes(
    ours: os.stat_result, theirs: os.stat_result, directory_nlinks: bool
) -> Iterator[tuple[str, object, object]]:
    yield "mode", oct(ours.st_mode), oct(theirs.st_mode)
    yield "owner", (ours.st_uid, ours.st_gid), (theirs.st_uid, theirs.st_gid)
    yield "mtime", ours.st_mtime_ns, theirs.st_mtime_ns
    if not stat.S_ISDIR(ours.st_mode):
        yield "size", ours.st_size, theirs.st_size
    if directory_nlinks or not stat.S_ISDIR(ours.st_mode):
        yield "nlink", ours.st_nlink, theirs.st_nlink
    if stat.S_ISCHR(ours.st_mode) or stat.S_ISBLK(ours.st_mode):
        yield "device", ours.st_rdev, theirs.st_rdev


def _contents(path: bytes, left: bytes, right: bytes, status: os.stat_result) -> Iterator[str]:
    mine, other = _xattrs(left), _xattrs(right)
    if mine != other:
        yield f"{_show(path)}: xattrs are {mine!r}, {other!r} on the right"
    if stat.S_ISLNK(status.st_mode):
        if os.readlink(left) != os.readlink(right):
            yield f"{_show(path)}: target is {os.readlink(left)!r}, {os.readlink(right)!r} on the right"
    elif stat.S_ISREG(status.st_mode) and _digest(left) != _digest(right):
        yield f"{_show(path)}: other bytes"


def _walk(root: str) -> Iterator[tuple[bytes, os.stat_result]]:
    base = os.fsencode(root)
    yield b"", os.lstat(base)
    waiting = [b""]
    while waiting:
        directory = waiting.pop()
        with os.scandir(os.path.join(base, directory)) as entries:
            for entry in entries:
                path = os.path.join(directory, entry.name)
                try:
                    status = os.lstat(os.path.join(base, path))
                except FileNotFoundError:
                    continue  # OverlayFS lists the whiteouts of a directory that only one layer has
                yield path, status
                if stat.S_ISDIR(status.st_mode):
                    waiting.append(path)


def _xattrs(path: bytes) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    try:
        names = os.listxattr(path, follow_symlinks=False)
    except OSError:
        return found
    for name in names:
        try:
            found[name] = os.getxattr(path, name, follow_symlinks=False)
        except OSError:
            continue  # listed, but the kernel refuses its value (a malformed capability)
    return found


def _digest(path: bytes) -> str:
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        while data := file.read(_READ_BYTES):
            digest.update(data)
    return digest.hexdigest()


def _show(path: bytes) -> str:
    return "/" + path.decode("utf-8", "backslashreplace")
