"""This process runs run-time workloads: inside the machine, in the container's namespaces, with its rights only.

Started before the container's files are touched, it imports all it needs, is told in its first line what to enter
(``harness.probes.entering``), and then takes one ``Request`` per line on stdin, as JSON; it answers one line, an
``Answer`` with figures of one pass. ``{"hold": REQUEST}`` only parses a request and ``{"go": true}`` runs it, so that
reading a list of ten thousand paths is no part of what is measured from outside. Programs of the image inherit none of
its descriptors and cannot look at it, so they cannot answer in its place. It imports little but the standard library,
since it lives in small machines.
"""

from __future__ import annotations

import json
import mmap
import os
import random
import resource
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NotRequired, TypedDict

from harness.probes import reference_job
from harness.probes.entering import Entry, enter

if TYPE_CHECKING:
    from collections.abc import Callable

PAGE = 4096
RANDOM_READS = 512
BLOCK = 128 * 1024
READERS = 8
MAX_PASSES = 100
TAIL_BYTES = 500


class Request(TypedDict, total=False):
    """Asks for one workload. ``paths`` and ``argv`` are there for the workloads that take them."""

    workload: str
    paths: list[str]
    argv: list[str]
    env: dict[str, str]
    seed: int
    repeat_s: float


class Hold(TypedDict):
    """Parses a request and keeps it, without running it."""

    hold: Request


class Go(TypedDict):
    """Runs the request that is kept."""

    go: bool


class Answer(TypedDict):
    """Says what one pass of a workload took. With ``error`` it failed, and the figures count for nothing."""

    wall_s: float
    cpu_s: float
    operations: int
    bytes: int
    passes: int
    error: NotRequired[str]


def stat_walk(request: Request) -> tuple[int, int]:
    """Calls lstat on every path."""
    paths = request["paths"]
    for path in paths:
        os.lstat(path)
    return len(paths), 0


def readdir_walk(request: Request) -> tuple[int, int]:
    """Lists every directory, names only."""
    entries = 0
    for path in request["paths"]:
        entries += len(os.listdir(path))
    return entries, 0


def read_files(request: Request) -> tuple[int, int]:
    """Opens each file, reads it to the end in 128 KiB blocks and closes it: small files or large ones, as the list
    says.
    """
    buffer = bytearray(BLOCK)
    total = 0
    for path in request["paths"]:
        handle = os.open(path, os.O_RDONLY)
        try:
            while count := os.readv(handle, [buffer]):
                total += count
        finally:
            os.close(handle)
    return len(request["paths"]), total


def read_parallel(request: Request) -> tuple[int, int]:
    """Reads the files by eight threads at once, each with its share of the list: what one waits for, others need
    not.
    """
    paths = request["paths"]
    shares: list[Request] = [{"paths": paths[first::READERS]} for first in range(READERS)]
    with ThreadPoolExecutor(READERS) as pool:
        return len(paths), sum(size for _, size in pool.map(read_files, shares))


def read_random(request: Request) -> tuple[int, int]:
    """Makes 512 reads of 4 KiB at page-aligned places drawn from the seed."""
    chooser = random.Random(request.get("seed", 0))
    handles = [os.open(path, os.O_RDONLY) for path in request["paths"]]
    total = 0
    try:
        for handle in handles:
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_RANDOM)
        sizes = [os.fstat(handle).st_size for handle in handles]
        for _ in range(RANDOM_READS):
            i = chooser.randrange(len(handles))
            total += len(os.pread(handles[i], PAGE, chooser.randrange(max(1, sizes[i] // PAGE)) * PAGE))
    finally:
        for handle in handles:
            os.close(handle)
    return RANDOM_READS, total


def mmap_read(request: Request) -> tuple[int, int]:
    """Maps every file and touches each of its pages."""
    pages = 0
    for path in request["paths"]:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
            pages += len(mapped[::PAGE])
    return pages, pages * PAGE


def exec_many(request: Request) -> tuple[int, int]:
    """Executes every program with --version, one after the other, and throws the output away."""
    null = os.open(os.devnull, os.O_RDWR)
    try:
        for path in request["paths"]:
            _wait(_spawn([path, "--version"], null, {"PATH": "/usr/bin:/bin", "LC_ALL": "C"}), path, exact=False)
    finally:
        os.close(null)
    return len(request["paths"]), 0


def write_small(request: Request) -> tuple[int, int]:
    """Appends to every file (a copy-up each, on OverlayFS) and creates a new one of 4 KiB beside it."""
    payload = b"\0" * PAGE
    for path in request["paths"]:
        for target, flags in ((path, os.O_WRONLY | os.O_APPEND), (path + ".coldbench", os.O_WRONLY | os.O_CREAT)):
            handle = os.open(target, flags, 0o644)
            try:
                if target is path:
                    _appended.append((path, os.fstat(handle)))
                os.write(handle, payload)
            finally:
                os.close(handle)
    return 2 * len(request["paths"]), 2 * PAGE * len(request["paths"])


_appended: list[tuple[str, os.stat_result]] = []


def put_back() -> None:
    """Undoes what ``write_small`` did, times included: later passes run programs that read these files."""
    for path, before in _appended:
        os.truncate(path, before.st_size)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        if os.path.lexists(path + ".coldbench"):
            os.unlink(path + ".coldbench")
    _appended.clear()


def copy_up_large(request: Request) -> tuple[int, int]:
    """Changes one byte of a large file: OverlayFS copies all of it up."""
    total = 0
    for path in request["paths"]:
        handle = os.open(path, os.O_RDWR)
        try:
            total += os.fstat(handle).st_size
            first = os.pread(handle, 1, 0)
            os.pwrite(handle, first, 0)
        finally:
            os.close(handle)
    return len(request["paths"]), total


def command(request: Request) -> tuple[int, int]:
    """Runs the scenario's own command once; anything but exit code 0 is an error that quotes its last words."""
    null = os.open(os.devnull, os.O_RDWR)
    words = os.memfd_create("stderr", os.MFD_CLOEXEC)
    try:
        _wait(_spawn(request["argv"], null, request.get("env") or {}, words), request["argv"][0], exact=True)
    except ChildProcessError as error:
        size = os.fstat(words).st_size
        said = os.pread(words, TAIL_BYTES, max(0, size - TAIL_BYTES)).decode(errors="replace").strip()
        raise ChildProcessError(f"{error}: {said.splitlines()[-1]}" if said else str(error)) from None
    finally:
        os.close(words)
        os.close(null)
    return 1, 0


def _spawn(argv: list[str], null: int, env: dict[str, str], stderr: int | None = None) -> int:
    targets = ((null, 0), (null, 1), (null if stderr is None else stderr, 2))
    actions = [(os.POSIX_SPAWN_DUP2, source, target) for source, target in targets]
    environment = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", **env}
    if "/" in argv[0]:
        return os.posix_spawn(argv[0], argv, environment, file_actions=actions)
    # posix_spawnp searches the parent's PATH; the container's is what the command must be found on.
    for directory in environment["PATH"].split(":"):
        candidate = f"{directory}/{argv[0]}"
        if os.access(candidate, os.X_OK):
            return os.posix_spawn(candidate, argv, environment, file_actions=actions)
    raise FileNotFoundError(2, "No such program in the image", argv[0])


def _wait(pid: int, what: str, *, exact: bool) -> None:
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    if code < 0 or (exact and code != 0):
        raise ChildProcessError(f"{what} ended with {code}")


HANDLERS: dict[str, Callable[[Request], tuple[int, int]]] = {
    "stat-walk": stat_walk,
    "readdir-walk": readdir_walk,
    "read-small": read_files,
    "read-small-parallel": read_parallel,
    "read-sequential": read_files,
    "read-random": read_random,
    "mmap-read": mmap_read,
    "exec-many": exec_many,
    "write-small": write_small,
    "copy-up-large": copy_up_large,
    "command": command,
    "reference-job": reference_job.reference_job,
}


def _cpu_s() -> float:
    mine, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return mine.ru_utime + mine.ru_stime + children.ru_utime + children.ru_stime


def serve_one(request: Request) -> Answer:
    """Runs one request; errors become a field, as the process must live on for the next one.

    With ``repeat_s`` passes are repeated until they have taken so long; then the time is the median of theirs (one of a
    few milliseconds may meet anything), the CPU time their mean.
    """
    handler = HANDLERS[request["workload"]]
    repeat_s = float(request.get("repeat_s", 0.0))
    times: list[float] = []
    cpu, start = _cpu_s(), time.monotonic()
    try:
        while True:
            began = time.monotonic()
            operations, size = handler(request)
            ended = time.monotonic()
            times.append(ended - began)
            if ended - start >= repeat_s or len(times) >= MAX_PASSES:
                break
    except OSError as error:
        return {
            "wall_s": time.monotonic() - start, "cpu_s": 0.0, "operations": 0, "bytes": 0, "passes": 1,
            "error": str(error),
        }  # fmt: skip
    return {
        "wall_s": statistics.median(times),
        "cpu_s": (_cpu_s() - cpu) / len(times),
        "operations": operations,
        "bytes": size,
        "passes": len(times),
    }


def main() -> None:
    """Runs as ``python -m harness.probes.workload_process``; stdin and stdout are the conversation."""
    reference_job.prepare()  # before the container is entered: it mounts
    enter(Entry.decode(sys.stdin.readline()))
    answer = sys.stdout
    answer.write('{"entered": true}\n')
    answer.flush()
    held: Request = {}
    for line in sys.stdin:
        request = json.loads(line)
        put_back()  # not right after the pass, whose CPU is still being read
        if "hold" in request:
            held = request["hold"]
            answer.write('{"held": true}\n')
        else:
            answer.write(json.dumps(serve_one(held if "go" in request else request)) + "\n")
        answer.flush()


if __name__ == "__main__":
    main()
