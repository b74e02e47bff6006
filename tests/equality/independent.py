"""Reads what an EROFS reader of other people prints: one JSON line per entry, as docs/formats.md describes."""

from __future__ import annotations

import json
import stat
import subprocess
from typing import TYPE_CHECKING, Any

from harness.lazyfs.compare import Facts

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: Go's fs.FileMode: high bits for types and special bits, each with its Unix counterpart.
_TYPES = {1 << 31: stat.S_IFDIR, 1 << 27: stat.S_IFLNK, 1 << 25: stat.S_IFIFO, 1 << 24: stat.S_IFSOCK}
_SPECIAL = {1 << 23: stat.S_ISUID, 1 << 22: stat.S_ISGID, 1 << 20: stat.S_ISVTX}
_DEVICE, _CHARACTER = 1 << 26, 1 << 21


def unix_mode(mode: int) -> int:
    """``st_mode`` of a Go file mode."""
    kind = next((unix for go, unix in _TYPES.items() if mode & go), stat.S_IFREG)
    if mode & _DEVICE:
        kind = stat.S_IFCHR if mode & _CHARACTER else stat.S_IFBLK
    return kind | sum(unix for go, unix in _SPECIAL.items() if mode & go) | mode & 0o777


def independent_survey(program: str, image: Path) -> dict[bytes, Facts]:
    """The tree in an EROFS image as ``program`` reads it; which names share an inode is by inode number."""
    done = subprocess.run([program, str(image)], check=True, capture_output=True)
    entries = sorted(_entries(done.stdout))
    first: dict[int, bytes] = {}
    facts = {}
    for path, entry in entries:
        inner = entry["Sys"]
        mode = unix_mode(inner["Mode"])
        kind = stat.S_IFMT(mode)
        linked = None
        if kind == stat.S_IFREG and inner["Nlink"] > 1:
            linked = "/" + first.setdefault(inner["Ino"], path).decode("utf-8", "backslashreplace")
        facts[path] = Facts(
            mode=oct(mode),
            owner=(inner["UID"], inner["GID"]),
            mtime=entry["ModTimeNs"],
            size=None if kind == stat.S_IFDIR else entry["Size"],
            nlink=None if kind == stat.S_IFDIR else inner["Nlink"],
            device=inner["Rdev"] if kind in {stat.S_IFCHR, stat.S_IFBLK} else None,
            linked=linked,
            target=entry["Link"].encode() if kind == stat.S_IFLNK else None,
            xattrs={name: value.encode("latin-1") for name, value in (inner["Xattrs"] or {}).items()},
            content=entry["SHA256"] if kind == stat.S_IFREG else None,
        )
    return facts


def _entries(lines: bytes) -> Iterator[tuple[bytes, dict[str, Any]]]:
    for line in lines.splitlines():
        entry = json.loads(line)
        path = entry["Path"].encode("utf-8", "surrogateescape")
        yield (b"" if path == b"." else path), entry
