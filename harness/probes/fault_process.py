"""This process reads files while their supply fails: inside the machine, in the container's namespaces.

It reads nothing itself. Each read is made by a child, since a read may never return and a page fault may kill; children
that are held up are left waiting, and others go on in their place, up to ``MAX_HELD``. Beside the readers two children
are asked every second whether they are well: one answers from memory, the other lists the root directory before.

The first line of stdin says what to enter (``harness.probes.entering``). Each further line is a ``Request`` as JSON,
and gets one line with an ``Answer``.
"""

from __future__ import annotations

import errno
import hashlib
import json
import mmap
import os
import select
import signal
import sys
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TypedDict

from harness.probes.entering import Entry, enter

BLOCK = 256 * 1024
PAGE = 4096
MAX_HELD = 48
PULSE_S = 1.0
_LINE = 1 << 16

ReadRow = tuple[str, str, float, int, str, float]
"""This is path, outcome, seconds, bytes, sha256, and when it began.

The outcome is ``ok``, ``hung``, ``untried`` or the name of an error or signal.
"""
PulseRow = tuple[float, bool, bool]
"""This is a time, and whether the child that answers from memory and the one that lists the root directory were well
then.
"""


class Request(TypedDict, total=False):
    """Asks for files to be read, none of them begun after ``budget_s``; ``watch_s`` is the least time that a request
    takes.
    """

    paths: list[str]
    mapped: bool
    width: int
    deadline_s: float
    budget_s: float
    watch_s: float


class Answer(TypedDict):
    """Says how each read ended, and how the two children were each second. Times of day are CLOCK_MONOTONIC seconds."""

    reads: list[ReadRow]
    pulses: list[PulseRow]


Outcome = tuple[str, float, int, str]
"""These are how a read ended, seconds, bytes, sha256."""


def read_file(path: str) -> tuple[int, str]:
    """Reads a file to its end, and returns bytes and sha256."""
    digest, size = hashlib.sha256(), 0
    handle = os.open(path, os.O_RDONLY)
    try:
        while data := os.read(handle, BLOCK):
            digest.update(data)
            size += len(data)
    finally:
        os.close(handle)
    return size, digest.hexdigest()


def map_file(path: str) -> tuple[int, str]:
    """Reads a file through a mapping: a page that cannot be had kills this process with SIGBUS."""
    handle = os.open(path, os.O_RDONLY)
    try:
        size = os.fstat(handle).st_size
        with mmap.mmap(handle, size, prot=mmap.PROT_READ) as mapped:
            digest = hashlib.sha256()
            for at in range(0, size, BLOCK):
                digest.update(mapped[at : at + BLOCK])
            return size, digest.hexdigest()
    finally:
        os.close(handle)


def list_root(_path: str) -> tuple[int, str]:
    """Lists the root directory and looks at all that is in it."""
    with os.scandir("/") as entries:
        for entry in entries:
            entry.stat(follow_symlinks=False)
    return 0, ""


def answer_only(_path: str) -> tuple[int, str]:
    """Touches no file."""
    return 0, ""


KINDS = {"read": read_file, "map": map_file, "list": list_root, "memory": answer_only}


@dataclass(eq=False)
class Child:
    """Speaks to a child that does one thing at a time, on request."""

    pid: int
    ask: int
    told: int
    path: str = ""
    busy: bool = False
    began: float = 0.0
    held: bool = False
    """Says that nobody waits for it any more."""
    text: bytes = b""

    def start(self, kind: str, path: str, now: float) -> None:
        self.path, self.busy, self.held, self.began = path, True, False, now
        os.write(self.ask, json.dumps([kind, path]).encode() + b"\n")

    def result(self) -> Outcome | None:
        """Returns what it says now that it can be read; None where that is not whole yet."""
        data = os.read(self.told, _LINE)
        if not data:
            _, status = os.waitpid(self.pid, 0)
            self.pid = 0
            code = os.waitstatus_to_exitcode(status)
            return (signal.Signals(-code).name if code < 0 else f"exit {code}", 0.0, 0, "")
        self.text += data
        if not self.text.endswith(b"\n"):
            return None
        outcome, seconds, size, digest = json.loads(self.text)
        self.text = b""
        self.busy = False
        return outcome, seconds, size, digest

    def close(self) -> None:
        for descriptor in (self.ask, self.told):
            os.close(descriptor)


def fork_child(others: list[Child]) -> Child:
    """Forks a new child; it dies with us."""
    ask_read, ask_write = os.pipe()
    told_read, told_write = os.pipe()
    pid = os.fork()
    if pid:
        os.close(ask_read)
        os.close(told_write)
        return Child(pid, ask_write, told_read)
    try:
        # Its own ends only: a pipe whose other end is held by a brother never ends.
        for descriptor in (ask_write, told_read, *(d for c in others for d in (c.ask, c.told))):
            os.close(descriptor)
        _serve(ask_read, told_write)
    finally:
        os._exit(0)


def _serve(asked: int, tell: int) -> None:
    with os.fdopen(asked, "rb") as requests:
        for line in requests:
            kind, path = json.loads(line)
            began = time.monotonic()
            try:
                size, digest = KINDS[kind](path)
                outcome = "ok"
            except OSError as error:
                outcome, size, digest = errno.errorcode.get(error.errno or 0, str(error.errno)), 0, ""
            except ValueError:  # an empty file cannot be mapped
                outcome, size, digest = "EINVAL", 0, ""
            os.write(tell, json.dumps([outcome, time.monotonic() - began, size, digest]).encode() + b"\n")


@dataclass
class Readers:
    """Holds children that read, and the two that are asked how they are."""

    idle: list[Child] = field(default_factory=list)
    busy: list[Child] = field(default_factory=list)
    held: list[Child] = field(default_factory=list)
    memory: Child | None = None
    listing: Child | None = None
    _pulsed: float = 0.0
    _well: dict[str, bool] = field(default_factory=dict)

    def start(self) -> None:
        self.memory = self._fork()
        self.listing = self._fork()

    def _fork(self) -> Child:
        return fork_child(self._all())

    def _all(self) -> list[Child]:
        return [*self.idle, *self.busy, *self.held, *(c for c in (self.memory, self.listing) if c is not None)]

    def run(self, request: Request) -> Answer:
        """Makes the reads of one request, and watches while they last."""
        queue = deque(request.get("paths", []))
        kind = "map" if request.get("mapped") else "read"
        began = time.monotonic()
        until, deadline_s = began + request.get("budget_s", 0.0), request.get("deadline_s", 0.0)
        least = began + request.get("watch_s", 0.0)
        reads: list[ReadRow] = []
        pulses: list[PulseRow] = []
        while queue or self.busy or time.monotonic() < least:
            now = time.monotonic()
            self._pulse(now, pulses)
            while queue and now < until and len(self.busy) < request.get("width", 1) and len(self.held) < MAX_HELD:
                child = self.idle.pop() if self.idle else self._fork()
                child.start(kind, queue.popleft(), now)
                self.busy.append(child)
            if queue and (now >= until or (len(self.held) >= MAX_HELD and not self.busy)):
                reads += [(path, "untried", 0.0, 0, "", now) for path in queue]
                queue.clear()
            self._collect(self._patience(now, deadline_s, least), reads)
            now = time.monotonic()
            for child in [c for c in self.busy if now - c.began > deadline_s]:
                self.busy.remove(child)
                self.held.append(child)
                child.held = True
                reads.append((child.path, "hung", now - child.began, 0, "", child.began))
        return {"reads": reads, "pulses": pulses}

    def _patience(self, now: float, deadline_s: float, least: float) -> float:
        """Says for how long nothing has to be done."""
        ends = [c.began + deadline_s for c in self.busy] + [self._pulsed + PULSE_S]
        if not self.busy:
            ends.append(max(least, now + 0.05))
        return max(0.0, min(ends) - now)

    def _collect(self, timeout_s: float, reads: list[ReadRow]) -> None:
        """Takes what children have to say within a time."""
        children = {c.told: c for c in self._all() if c.busy}
        ready, _, _ = select.select(list(children), [], [], timeout_s)
        for descriptor in ready:
            child = children[descriptor]
            outcome = child.result()
            if outcome is None:
                continue
            if child is self.memory or child is self.listing:
                name = "memory" if child is self.memory else "listing"
                self._well[name] = outcome[0] == "ok" and time.monotonic() - child.began < PULSE_S
                continue
            if not child.held:
                self.busy.remove(child)
                seconds = outcome[1] or time.monotonic() - child.began
                reads.append((child.path, outcome[0], seconds, *outcome[2:], child.began))
            else:
                self.held.remove(child)
            if child.pid:
                self.idle.append(child)
            else:
                child.close()

    def _pulse(self, now: float, pulses: list[PulseRow]) -> None:
        """Takes, once a second, what the two said to the last question, and asks the next one."""
        if now - self._pulsed < PULSE_S:
            return
        assert self.memory is not None
        assert self.listing is not None
        if self._pulsed:
            pulses.append((self._pulsed, self._well.get("memory", False), self._well.get("listing", False)))
        self._pulsed = now
        for name, child in (("memory", self.memory), ("listing", self.listing)):
            self._well[name] = False
            if not child.busy:
                child.start("list" if name == "listing" else "memory", "", now)


def main() -> None:
    """Runs as ``python -m harness.probes.fault_process``; stdin and stdout are the conversation."""
    enter(Entry.decode(sys.stdin.readline()))
    readers = Readers()
    readers.start()
    sys.stdout.write('{"entered": true}\n')
    sys.stdout.flush()
    for line in sys.stdin:
        sys.stdout.write(json.dumps(readers.run(json.loads(line))) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
