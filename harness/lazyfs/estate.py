"""This module keeps what a daemon leaves to the next one: descriptors in the holder, and records in the ledger.

Everything is handed over when it is made, since a daemon that is killed has no last word. A daemon without a holder,
under a kernel that cannot send waiting requests again, or with the policy ``restart`` off leaves nothing: it dies with
its mount.
"""

from __future__ import annotations

import logging
import os
import socket
import struct
from array import array
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from harness.lazyfs.channel import Lines, encode
from harness.lazyfs.data.disk_cache import CacheFiles, SparseFile
from harness.lazyfs.data.remembered import Answer
from harness.lazyfs.holder import FUSE, UP
from harness.lazyfs.ledger import Kind, Ledger
from harness.lazyfs.messages import ANSWERS, REQUESTS, BlobMounted, MountBlob, MountTree, TreeMounted, UseDevices
from harness.lazyfs.totals import Totals

if TYPE_CHECKING:
    from harness.lazyfs.data.disk_cache import DiskHealth

log = logging.getLogger(__name__)

LEDGER, TOTALS = "ledger", "totals"
_UNIT = struct.Struct("<IB")
"""Holds unit, length of the file's name; then come the name and the checksums."""
_READY = struct.Struct("<QQQ")
"""Holds bytes, requests and streamed bytes before ready."""
_RANGE = struct.Struct("<QQQIB")
"""Holds offset in the blob, size, place in the file, checksum, length of the digest; then comes the digest."""


@dataclass(slots=True)
class Past:
    """Holds what earlier daemons did."""

    mountpoint: str = ""
    made: bool = False
    """Says whether the mount point was made for the daemon."""
    request: MountTree | MountBlob | None = None
    answer: TreeMounted | BlobMounted | None = None
    devices: UseDevices | None = None
    before_ready: tuple[int, int, int] | None = None
    """Holds bytes, requests and streamed bytes, if the container was ready."""
    turned: bool = False
    units: dict[str, dict[int, array[int]]] = field(default_factory=dict)
    """Holds, by file and unit, the checksums of what was written."""
    answers: list[Answer] = field(default_factory=list)


class Estate(CacheFiles):
    """Keeps what this daemon leaves, and what earlier ones left.

    ``held`` are the descriptors that a holder gave, by name; ``restarts`` counts the daemons that died before this one.
    """

    def __init__(self, holder: int | None = None, held: dict[str, int] | None = None, restarts: int = 0) -> None:
        self.restarts = restarts
        self._held = held or {}
        self._holder = None if holder is None else socket.socket(fileno=holder)
        self._ledger: Ledger | None = None
        self.totals: Totals | None = None
        self.past = Past()
        if LEDGER in self._held:
            self._ledger = Ledger(self._held[LEDGER])
            self.past = _read(self._ledger)
        if TOTALS in self._held:
            self.totals = Totals(self._held[TOTALS])
        self.mountpoint, self.made = self.past.mountpoint, self.past.made
        """Say where the session is mounted, and whether the directory was made for it."""

    @property
    def survives(self) -> bool:
        """Says whether another daemon will take over when this one dies."""
        return self._ledger is not None

    def begin(self, session: int | None) -> bool:
        """Hands over everything from now on, if somebody takes it; returns whether that is so.

        ``session`` is the FUSE descriptor, if it can be handed over.
        """
        if self._ledger is None and self._holder is not None and session is not None:
            ledger = Ledger()
            ledger.note(Kind.PLACE, bytes([self.made]) + self.mountpoint.encode("utf-8", "surrogateescape"))
            self._ledger = ledger
            self.totals = Totals()
            self.keep(LEDGER, ledger.descriptor)
            self.keep(TOTALS, self.totals.descriptor)
            self.keep(FUSE, session)
        return self.survives

    def up(self) -> None:
        """Tells the holder that this daemon answers the kernel."""
        self._tell(UP)

    def keep(self, name: str, descriptor: int) -> None:
        """Hand a descriptor over; nothing happens where nothing is left to another daemon."""
        if self._ledger is not None:
            self._tell(name, descriptor)

    def _tell(self, name: str, *descriptors: int) -> None:
        if self._holder is None:
            return
        try:
            socket.send_fds(self._holder, [name.encode()], descriptors)
        except OSError:
            # The holder is gone: this daemon is the last one.
            self._holder.close()
            self._holder = None
            log.warning("the process that would start another daemon is gone; the mount now dies with this one")

    def taken(self, name: str) -> int | None:
        """Returns the descriptor that an earlier daemon handed over under this name, if one did."""
        return self._held.get(name)

    # Records

    def _note(self, kind: Kind, payload: bytes) -> None:
        if self._ledger is not None:
            self._ledger.note(kind, payload)

    def note_mounted(self, request: MountTree | MountBlob, answer: TreeMounted | BlobMounted) -> None:
        self._note(Kind.MOUNTED, encode(request) + encode(answer))

    def note_devices(self, request: UseDevices) -> None:
        self._note(Kind.DEVICES, encode(request))

    def note_ready(self, fetched_bytes: int, requests: int, streamed_bytes: int) -> None:
        self._note(Kind.READY, _READY.pack(fetched_bytes, requests, streamed_bytes))

    def note_turned(self) -> None:
        self._note(Kind.TURNED, b"")

    def note_answer(self, answer: Answer) -> None:
        name = answer.digest.encode()
        fields = _RANGE.pack(answer.offset, answer.size, answer.place, answer.checksum, len(name))
        self._note(Kind.ANSWER, fields + name)

    # Files

    def open(self, directory: str, name: str, health: DiskHealth) -> SparseFile:
        """Returns the earlier daemon's file, where there was one, else a new one."""
        taken = self._held.get(name)
        if taken is not None:
            return SparseFile.of_descriptor(os.dup(taken), health)
        file = super().open(directory, name, health)
        self.keep(name, file.descriptor)
        return file

    def written(self, name: str) -> dict[int, array[int]]:
        return self.past.units.get(name, {})

    def note_unit(self, name: str, unit: int, sums: array[int]) -> None:
        if self._ledger is not None:
            label = name.encode()
            self._ledger.note(Kind.UNIT, _UNIT.pack(unit, len(label)) + label + sums.tobytes())


def _read(ledger: Ledger) -> Past:
    past = Past()
    lines = Lines((*REQUESTS, *ANSWERS))
    for kind, payload in ledger.records():
        match kind:
            case Kind.PLACE:
                past.made = bool(payload[0])
                past.mountpoint = payload[1:].decode("utf-8", "surrogateescape")
            case Kind.MOUNTED:
                request, answer = (received.message for received in lines.feed(payload))
                assert isinstance(request, MountTree | MountBlob)
                assert isinstance(answer, TreeMounted | BlobMounted)
                past.request, past.answer = request, answer
            case Kind.DEVICES:
                (received,) = lines.feed(payload)
                assert isinstance(received.message, UseDevices)
                past.devices = received.message
            case Kind.READY:
                fetched_bytes, requests, streamed_bytes = _READY.unpack(payload)
                past.before_ready = fetched_bytes, requests, streamed_bytes
            case Kind.TURNED:
                past.turned = True
            case Kind.UNIT:
                unit, size = _UNIT.unpack_from(payload)
                name = payload[_UNIT.size : _UNIT.size + size].decode()
                sums = array("I", payload[_UNIT.size + size :])
                past.units.setdefault(name, {})[unit] = sums
            case Kind.ANSWER:
                offset, size, place, summed, _ = _RANGE.unpack_from(payload)
                digest = payload[_RANGE.size :].decode()
                past.answers.append(Answer(digest, offset, size, place, summed))
    return past
