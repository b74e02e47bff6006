"""This module compares two mounted trees: names, types, every attribute, extended attributes and content."""

from __future__ import annotations

import hashlib
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_READ_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Facts:
    """Says what one name of a tree is; every field takes part in the comparison, under its name."""

    mode: str
    owner: tuple[int, int]
    mtime: int
    size: int | None
    """Says the size of files and links; a directory's size is its file system's own affair."""
    nlink: int | None
    """Counts links; None for directories, unless asked for: stacked file systems count otherwise."""
    device: int | None
    linked: str | None
    """Names, for a file of several links, the first name of the same inode."""
    target: bytes | None
    xattrs: dict[str, bytes]
    content: str | None
    """Holds the sha256 of a regular file's bytes."""


def survey(root: str, *, directory_nlinks: bool = False, workers: int = 2) -> dict[bytes, Facts]:
    """Returns all of a tree by relative name (the root's is empty); ``workers`` threads read every byte once."""
    base = os.fsencode(root)
    found = list(_walk(base))
    regular = [path for path, status in found if stat.S_ISREG(status.st_mode)]
    with ThreadPoolExecutor(workers) as pool:
        contents = dict(zip(regular, pool.map(lambda path: _digest(os.path.join(base, path)), regular), strict=True))
    first: dict[tuple[int, int], bytes] = {}
    facts = {}
    for path, status in sorted(found):
        kind = stat.S_IFMT(status.st_mode)
        name = os.path.join(base, path)
        linked = None
        if kind == stat.S_IFREG and status.st_nlink > 1:
            linked = _show(first.setdefault((status.st_dev, status.st_ino), path))
        facts[path] = Facts(
            mode=oct(status.st_mode),
            owner=(status.st_uid, status.st_gid),
            mtime=status.st_mtime_ns,
            size=None if kind == stat.S_IFDIR else status.st_size,
            nlink=status.st_nlink if directory_nlinks or kind != stat.S_IFDIR else None,
            device=status.st_rdev if kind in {stat.S_IFCHR, stat.S_IFBLK} else None,
            linked=linked,
            target=os.readlink(name) if kind == stat.S_IFLNK else None,
            xattrs=_xattrs(name),
            content=contents.get(path),
        )
    return facts


def compare(left: dict[bytes, Facts], right: dict[bytes, Facts]) -> Iterator[str]:
    """Yields one line for each way in which two surveyed trees differ."""
    for path in sorted(left.keys() - right.keys()):
        yield f"{_show(path)}: only on the left"
    for path in sorted(right.keys() - left.keys()):
        yield f"{_show(path)}: only on the right"
    for path in sorted(left.keys() & right.keys()):
        if left[path] == right[path]:
            continue
        for field in fields(Facts):
            mine, other = getattr(left[path], field.name), getattr(right[path], field.name)
            if mine != other:
                yield f"{_show(path)}: {field.name} is {mine!r}, {other!r} on the right"


def differences(left: str, right: str, *, directory_nlinks: bool = False) -> Iterator[str]:
    """Yields one line for each way in which the trees below two directories differ; names are relative to these.

    It compares type, mode, owner, size (of files and links), nanosecond times of modification, device numbers, link
    counts, which names are links to one inode, targets, xattrs (``trusted.overlay.*`` included), and every byte. Sizes
    of directories, and their link counts unless asked for, are a file system's own affair.
    """
    return compare(survey(left, directory_nlinks=directory_nlinks), survey(right, directory_nlinks=directory_nlinks))


def _walk(base: bytes) -> Iterator[tuple[bytes, os.stat_result]]:
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
