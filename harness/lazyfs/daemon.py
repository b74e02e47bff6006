"""This module is the lazy-pulling daemon: ``python -m harness.lazyfs.daemon --agent-fd N --harness-fd M``.

It is started before the machine is told to deploy: everything is imported, and the (still empty) FUSE session is
mounted, before it says ``Up`` on both sockets. Then it answers the requests of ``harness.lazyfs.messages``. The end of
the harness's socket means ``End``, and so does SIGTERM.

``harness.lazyfs.holder`` starts it and adds what the daemons before it left (``harness.lazyfs.estate``): it takes over
their session, says ``Up`` once more, has the kernel send again what was not answered, and goes on.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import logging
import os
import signal
import socket
import sys
import tempfile
from functools import partial
from typing import TYPE_CHECKING

import trio

from harness.errors import ColdbenchError, FormatError, UsageError
from harness.lazyfs import messages
from harness.lazyfs.channel import CUT, Lines, encode
from harness.lazyfs.counters import Counters
from harness.lazyfs.estate import Estate
from harness.lazyfs.fuse.connection import Failing, Session
from harness.lazyfs.holder import FUSE
from harness.lazyfs.mounting import mounts
from harness.lazyfs.service import Service
from harness.model.policy import PYFUSE3

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from harness.lazyfs.channel import Received
    from harness.lazyfs.fuse.connection import AnySession

log = logging.getLogger(__name__)

_M_ARENA_MAX = -8
_RETRY_S = 5.0


class Peer:
    """Talks over one control socket."""

    def __init__(self, descriptor: int) -> None:
        self._stream = trio.SocketStream(trio.socket.from_stdlib_socket(socket.socket(fileno=descriptor)))
        self._lock = trio.Lock()
        self._lines = Lines(messages.REQUESTS)

    async def send(self, message: object, number: int = 0, *, after_another: bool = False) -> None:
        """Sends one message; silent when the other end is gone.

        ``after_another`` says that another process wrote there before, whose last line may be cut.
        """
        data = CUT + encode(message, number) if after_another else encode(message, number)
        async with self._lock:
            try:
                await self._stream.send_all(data)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass

    async def received(self) -> AsyncIterator[Received]:
        """Yields requests until the other end is gone, or says what is no request.

        A request that was asked again, because another daemon died over it, comes once.
        """
        last = 0
        while True:
            try:
                data = await self._stream.receive_some(1 << 20)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                return
            if not data:
                return
            try:
                requests = self._lines.feed(data)
            except FormatError as error:
                log.warning("%s", error)
                return
            for request in requests:
                if request.number > last:
                    last = request.number
                    yield request


def open_session(mountpoint: str, library: str, taken: int | None = None) -> AnySession:
    """Mounts an empty tree at ``mountpoint`` with our own session or with pyfuse3.

    With ``taken`` it goes on with a session of another process instead. Raises OSError or MachineError.
    """
    if taken is not None:
        return Session(mountpoint, taken)
    if library == PYFUSE3:
        from harness.lazyfs.fuse.pyfuse3_tree import LibrarySession

        return LibrarySession(mountpoint)
    return Session(mountpoint)


class Daemon:
    """Ties sockets, service and FUSE session together."""

    def __init__(self, mountpoint: str, library: str, estate: Estate | None = None) -> None:
        self.mountpoint = mountpoint
        self._estate = estate or Estate()
        self.session = open_session(mountpoint, library, self._estate.taken(FUSE))
        self._ended = trio.Event()
        self._resumed = trio.Event()

    async def run(self, peers: list[int]) -> None:
        """Serve until told to end, until unmounted from outside, or until the last peer (the harness) is gone."""
        async with trio.open_nursery() as nursery:
            self.service = Service(self.mountpoint, self.session, nursery, self._estate)
            nursery.start_soon(self._watch_signals)
            for position, descriptor in enumerate(peers):
                nursery.start_soon(self._converse, Peer(descriptor), position == len(peers) - 1, nursery)
            nursery.start_soon(self._serve_fuse, nursery)
            await self._ended.wait()
            self.session.close()
            nursery.cancel_scope.cancel()

    async def _serve_fuse(self, nursery: trio.Nursery) -> None:
        try:
            if self._estate.restarts == 0:
                self._resumed.set()
            elif not await self._resume():
                self.session.present(Failing(), Counters())
                nursery.start_soon(self._resume_later, nursery)
            if self._estate.restarts:
                self.session.resend()
            self._estate.up()
            await self.session.serve()
        finally:
            self._ended.set()

    async def _resume(self) -> bool:
        """Goes on where the last daemon was; returns whether that could be done."""
        try:
            await self.service.resume()
        except ColdbenchError as error:
            log.warning("cannot go on where the last daemon was: %s; until that works, reads fail", error)
            return False
        self._resumed.set()
        return True

    async def _resume_later(self, nursery: trio.Nursery) -> None:
        while True:
            self.service.close()
            await trio.sleep(_RETRY_S)
            self.service = Service(self.mountpoint, self.session, nursery, self._estate)
            if await self._resume():
                return

    async def _watch_signals(self) -> None:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async for _ in signals:
                self._ended.set()

    async def _converse(self, peer: Peer, last: bool, nursery: trio.Nursery) -> None:
        restarts = self._estate.restarts
        await peer.send(messages.Up(os.getpid(), self.mountpoint, restarts), after_another=restarts > 0)
        async for request in peer.received():
            nursery.start_soon(self._answer, peer, request)
        if last:
            self._ended.set()

    async def _answer(self, peer: Peer, request: Received) -> None:
        await self._resumed.wait()
        try:
            answer = await self._do(request.message)
        except ColdbenchError as error:
            answer = messages.Refused(error.kind, str(error))
        except Exception as error:
            log.exception("request %s", type(request.message).__name__)
            text = f"lazyfs daemon: {type(error).__name__}: {error}".replace("\n", " ")
            answer = messages.Refused("ColdbenchError", text)
        await peer.send(answer, request.number)
        if isinstance(request.message, messages.End):
            self._ended.set()

    async def _do(self, request: object) -> object:
        service = self.service
        match request:
            case messages.Expect():
                service.expect(request)
            case messages.MountTree():
                return await service.mount_tree(request)
            case messages.MountBlob():
                return await service.mount_blob(request)
            case messages.UseDevices(paths, mounted):
                await service.use_devices(paths, mounted)
            case messages.MarkReady():
                service.mark_ready()
            case messages.GetUsage():
                return service.usage()
            case messages.GetTouches():
                return messages.Touches(tuple(service.first_touches()))
            case messages.GetReadRanges():
                return messages.ReadRanges(tuple(service.read_ranges()))
            case messages.AwaitBackground(wait_s):
                return await service.background(wait_s)
            case messages.End():
                pass
            case _:
                raise UsageError(f"the lazyfs daemon knows no request {type(request).__name__}")
        return messages.Done()


def import_formats() -> None:
    """Imports before T0 what the first mount would import."""
    from harness.formats.estargz import reader as estargz_reader
    from harness.formats.gzip import spans
    from harness.formats.soci import ztoc, ztoc_table
    from harness.lazyfs.data import chunk_units, span_units
    from harness.oci.registry import auth as registry_auth
    from harness.oci.registry import client as registry_client

    del estargz_reader, spans, ztoc, ztoc_table, chunk_units, span_units, registry_auth, registry_client


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--agent-fd", type=int)
    parser.add_argument("--harness-fd", type=int, required=True)
    parser.add_argument("--mountpoint")
    parser.add_argument("--library", default="")
    parser.add_argument("--holder-fd", type=int)
    parser.add_argument("--restarts", type=int, default=0)
    parser.add_argument("--held", type=parse_held, default={})
    options = parser.parse_args()
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="lazyfs: %(message)s")
    os.umask(0)
    import_formats()
    estate = Estate(options.holder_fd, options.held, options.restarts)
    if not estate.mountpoint:
        estate.made = not options.mountpoint
        estate.mountpoint = os.path.abspath(options.mountpoint or tempfile.mkdtemp(prefix="coldbench-lazyfs-"))
    # One malloc arena: inflated pieces are made in worker threads and freed here; an arena for each thread kept 40 MB
    # more resident and saved no CPU (python-data, import pandas).
    ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)
    try:
        daemon = Daemon(estate.mountpoint, options.library, estate)
        gc.collect()
        gc.freeze()
        gc.disable()  # reference counting frees what requests make; a few exceptions make cycles
        # Asked twice to end, it must not die before it has unmounted; while it runs, trio hears of signals.
        signal.signal(signal.SIGTERM, lambda number, frame: None)
        trio.run(partial(daemon.run, [fd for fd in (options.agent_fd, options.harness_fd) if fd is not None]))
    except BaseException:
        if estate.survives:
            log.exception("the daemon dies")
            sys.stderr.flush()
            os._exit(1)  # the mount stays, for the daemon that takes over
        remove(estate)
        raise
    remove(estate)
    # Worker threads may still wait for a registry that is gone; nothing of theirs is worth waiting for.
    sys.stderr.flush()
    os._exit(0)


def parse_held(text: str) -> dict[str, int]:
    """Returns descriptors by name, from the text that the holder writes."""
    pairs = (item.rpartition("=") for item in text.split(",") if item)
    return {name: int(descriptor) for name, _, descriptor in pairs}


def remove(estate: Estate) -> None:
    """Take the mount away, and the directory that was made for it."""
    mounts.unmount(estate.mountpoint)
    if estate.made:
        try:
            os.rmdir(estate.mountpoint)
        except OSError:
            pass


if __name__ == "__main__":
    main()
