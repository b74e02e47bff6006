"""This module chooses which files a run-time workload touches, out of band, from the image's own list; workloads share
none.

A *cold* pass is only cold while nothing has touched its files. So directories are dealt out to the workloads by the
hash of their path: no workload's first touch warms another's files, and every mode of a scenario touches the same ones.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

#: Built-in workloads, in the order they run: what warms least first.
BUILTIN = (
    "stat-walk", "readdir-walk", "read-small", "read-small-parallel", "read-sequential", "read-random", "mmap-read",
    "exec-many", "write-small", "copy-up-large",
)  # fmt: skip

SMALL_BYTES = 64 * 1024
LARGE_BYTES = 1024 * 1024
#: Upper limits per pass: a first touch cannot be repeated, so it is as long as the image allows, up to a second or so.
MAX_STATS = 10_000
MAX_DIRECTORIES = 2000
MAX_SMALL_READS = 2500
MAX_SEQUENTIAL_BYTES = 96 * 1024 * 1024
MAX_MMAP_BYTES = 48 * 1024 * 1024
MAX_WRITES = 200
MAX_EXECS = 80
COPY_UP_BYTES = 16 * 1024 * 1024

#: Programs of coreutils that print their version and end: safe to execute, small, present in most images.
PROGRAMS = frozenset({
    "arch", "base32", "base64", "basename", "basenc", "cat", "chgrp", "chmod", "chown", "cksum", "comm", "cp",
    "csplit", "cut", "date", "dd", "df", "dir", "dircolors", "dirname", "du", "echo", "env", "expand", "expr",
    "factor", "false", "fmt", "fold", "groups", "head", "hostid", "id", "install", "join", "link", "ln", "ls",
    "md5sum", "mkdir", "mkfifo", "mknod", "mktemp", "mv", "nice", "nl", "nohup", "nproc", "numfmt", "od", "paste",
    "pathchk", "pinky", "pr", "printenv", "ptx", "pwd", "readlink", "realpath", "rm", "rmdir", "seq", "sha1sum",
    "sha256sum", "sha512sum", "shred", "shuf", "sleep", "sort", "split", "stat", "stdbuf", "sum", "sync", "tac",
    "tail", "tee", "timeout", "touch", "tr", "true", "truncate", "tsort", "tty", "uname", "unexpand", "uniq",
    "unlink", "users", "vdir", "wc", "who", "whoami",
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class ImageFile:
    """Describes one visible entry of the image: absolute path, kind (``file``, ``dir`` or ``other``), size, executable
    bit.
    """

    path: str
    kind: str
    size: int = 0
    executable: bool = False


@dataclass(frozen=True, slots=True)
class Selection:
    """Holds paths per workload; ``write-small`` and ``copy-up-large`` hold four disjoint lists, one per temperature."""

    paths: dict[str, list[str]] = field(default_factory=dict)
    quarters: dict[str, list[list[str]]] = field(default_factory=dict)


def rank(text: str, seed: int) -> int:
    return int.from_bytes(hashlib.blake2b(f"{seed}:{text}".encode(), digest_size=8).digest(), "big")


def _bounded(files: Iterable[ImageFile], limit_bytes: int, limit_count: int) -> list[str]:
    chosen: list[str] = []
    total = 0
    for file in files:
        if len(chosen) >= limit_count or (total + file.size > limit_bytes and chosen):
            break
        chosen.append(file.path)
        total += file.size
    return chosen


def _quarters(paths: Sequence[str], limit: int) -> list[list[str]]:
    paths = paths[: 4 * limit]
    return [list(paths[i::4]) for i in range(4)]


def select(
    files: Sequence[ImageFile], seed: int = 0, skip: Sequence[str] = (), touched: Collection[str] = ()
) -> Selection:
    """Deals the image's files out to the built-in workloads; a workload without fitting files gets an empty list.

    What the container's start touches is not cold: ``touched`` names its files (as a trace recorded them; they and
    the directories they are in are left out), ``skip`` whole directories.
    """
    excluded = tuple(p.rstrip("/") + "/" for p in (*skip, "/proc", "/sys", "/dev"))
    warm = {*touched, *(str(place) for path in touched for place in PurePosixPath(path).parents)}
    usable = [f for f in files if f.path not in warm and not f.path.startswith(excluded)]
    dealt: dict[str, int] = {}

    def turn(directory: str, ways: int) -> int:
        if directory not in dealt:
            dealt[directory] = rank(directory, seed)
        return dealt[directory] % ways

    def parent(file: ImageFile) -> str:
        return str(PurePosixPath(file.path).parent)

    ordered = sorted(usable, key=lambda f: rank(f.path, seed))
    regular = [f for f in ordered if f.kind == "file"]
    small = [f for f in regular if 0 < f.size <= SMALL_BYTES]
    large = [f for f in regular if f.size >= LARGE_BYTES]
    # Small files: four hands by directory; large ones: four hands by rank, as few directories hold most of them.
    hands = {i: [f for f in small if turn(parent(f), 4) == i] for i in range(4)}
    directories = [f for f in ordered if f.kind == "dir" and turn(f.path, 4) == 1]
    large_hands = {i: large[i::4] for i in range(4)}
    programs = [
        f.path
        for f in ordered
        if f.kind == "file" and f.executable and f.path.rpartition("/")[2] in PROGRAMS and "/bin/" in f.path
    ]
    copy_up = sorted(
        (f for f in large_hands[3] if f.size <= 4 * COPY_UP_BYTES), key=lambda f: abs(f.size - COPY_UP_BYTES)
    )
    return Selection(
        paths={
            "stat-walk": [f.path for f in hands[0][:MAX_STATS]],
            "readdir-walk": [f.path for f in directories[:MAX_DIRECTORIES]],
            "read-small": [f.path for f in hands[2][:MAX_SMALL_READS]],
            # Their directories may have been listed, but nothing has read them.
            "read-small-parallel": [f.path for f in hands[1][:MAX_SMALL_READS]],
            "read-sequential": _bounded(large_hands[0], MAX_SEQUENTIAL_BYTES, 64),
            "read-random": [f.path for f in large_hands[1][:64]],
            "mmap-read": _bounded(large_hands[2], MAX_MMAP_BYTES, 32),
            "exec-many": programs[:MAX_EXECS],
        },
        quarters={
            "write-small": _quarters([f.path for f in hands[3]], MAX_WRITES),
            "copy-up-large": _quarters([f.path for f in copy_up], 1),
        },
    )
