"""The lazy-pulling daemon: ``python -m harness.lazyfs.daemon --agent-fd N --harness-fd M``.

It is started before the machine is told to deploy: everything is imported, and the (still empty) FUSE session is
mounted, before it says ``{"event": "up"}`` on both sockets. Then it answers requests, one JSON object per line, each
with an ``id`` that the answer repeats:

``mount``        serve an image (``Service.mount``); spans come as ``{"event": "span"}`` before the answer
``device``       the loop device that EROFS is mounted from (``path``)
``ready``        the container is ready: counters are frozen, the background fetch may begin
``stats``        counters; ``trace``: first touches
``background``   answered when the background fetch has ended, or after ``wait_s``
``end``          unmount and exit; also what the end of the harness's socket means, or SIGTERM

An answer has ``"ok": true`` and fields of its own, or ``"error": {"kind", "message"}``.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import logging
import os
import signal
import socket
import sys
import tempfile
from functools import partial
from typing import TYPE_CHECKING, Any

import trio

from harness.errors import ColdbenchError, UsageError
from harness.lazyfs.fuse.connection import Session
from harness.lazyfs.mounting import mounts
from harness.lazyfs.service import Service

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

log = logging.getLogger(__name__)

_MAX_LINE = 64 << 20
_M_ARENA_MAX = -8


class Peer:
    """One control socket."""

    def __init__(self, descriptor: int) -> None:
        self._stream = trio.SocketStream(trio.socket.from_stdlib_socket(socket.socket(fileno=descriptor)))
        self._lock = trio.Lock()
        self._pending: list[dict[str, Any]] = []

    async def send(self, message: dict[str, Any]) -> None:
        """Send one message; silent when the other end is gone."""
        async with self._lock:
            try:
                await self._stream.send_all(json.dumps(message, separators=(",", ":")).encode() + b"\n")
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass

    async def messages(self) -> AsyncIterator[dict[str, Any]]:
        """Messages until the other end is gone."""
        buffer = bytearray()
        while True:
            try:
                data = await self._stream.receive_some(1 << 20)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                return
            if not data:
                return
            buffer += data
            if len(buffer) > _MAX_LINE:
                return
            *lines, rest = bytes(buffer).split(b"\n")
            buffer = bytearray(rest)
            for line in lines:
                message = json.loads(line)
                if isinstance(message, dict):
                    yield message


class Daemon:
    """Ties sockets, service and FUSE session together."""

    def __init__(self, mountpoint: str) -> None:
        self.mountpoint = mountpoint
        self.session = Session(mountpoint)
        self._ended = trio.Event()

    async def run(self, peers: list[int]) -> None:
        """Serve until told to end, until unmounted from outside, or until the last peer (the harness) is gone."""
        async with trio.open_nursery() as nursery:
            self.service = Service(self.mountpoint, self.session, nursery)
            nursery.start_soon(self._serve_fuse)
            nursery.start_soon(self._watch_signals)
            for position, descriptor in enumerate(peers):
                nursery.start_soon(self._converse, Peer(descriptor), position == len(peers) - 1, nursery)
            await self._ended.wait()
            self.session.close()
            nursery.cancel_scope.cancel()

    async def _serve_fuse(self) -> None:
        try:
            await self.session.serve()
        finally:
            self._ended.set()

    async def _watch_signals(self) -> None:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async for _ in signals:
                self._ended.set()

    async def _converse(self, peer: Peer, last: bool, nursery: trio.Nursery) -> None:
        await peer.send({"event": "up", "pid": os.getpid(), "root": self.mountpoint})
        async for message in peer.messages():
            nursery.start_soon(self._answer, peer, message)
        if last:
            self._ended.set()

    async def _answer(self, peer: Peer, message: dict[str, Any]) -> None:
        answer: dict[str, Any] = {"id": message.get("id")}
        try:
            answer.update(await self._do(peer, message))
            answer["ok"] = True
        except ColdbenchError as error:
            answer["error"] = {"kind": error.kind, "message": str(error)}
        except Exception as error:
            log.exception("request %s", message.get("do"))
            text = f"lazyfs daemon: {type(error).__name__}: {error}".replace("\n", " ")
            answer["error"] = {"kind": "ColdbenchError", "message": text}
        await peer.send(answer)
        if message.get("do") == "end":
            self._ended.set()

    async def _do(self, peer: Peer, message: dict[str, Any]) -> dict[str, Any]:
        kind, service = message.get("do"), self.service
        if kind == "mount":
            spans: list[dict[str, Any]] = []

            def report(name: str, start_ns: int, end_ns: int, layer: int | None, detail: str) -> None:
                span = {"name": name, "start_ns": start_ns, "end_ns": end_ns, "detail": detail}
                spans.append(span if layer is None else {**span, "layer": layer})

            answer = await service.mount(message, report)
            return {**answer, "spans": spans}
        if kind == "device":
            await service.use_device(str(message["path"]), str(message["mounted"]))
            return {}
        if kind == "ready":
            service.mark_ready()
            return {}
        if kind == "stats":
            return {"stats": service.stats()}
        if kind == "trace":
            return {"touches": service.first_touches()}
        if kind == "background":
            with trio.move_on_after(float(message.get("wait_s", 3600))):
                await service.background_done.wait()
            return {
                "complete": service.background_done.is_set() and service.background_complete,
                "spans": [{"name": name, "start_ns": start, "end_ns": end} for name, start, end in service.spans],
            }
        if kind == "end":
            return {}
        raise UsageError(f"the lazyfs daemon knows no request {kind!r}")


def import_formats() -> None:
    """What the first mount would import, imported before T0."""
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
    options = parser.parse_args()
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="lazyfs: %(message)s")
    os.umask(0)
    import_formats()
    made = None if options.mountpoint else tempfile.mkdtemp(prefix="coldbench-lazyfs-")
    mountpoint = os.path.abspath(options.mountpoint or made or "")
    # One malloc arena: inflated pieces are made in worker threads and freed here; an arena for each thread kept 40 MB
    # more resident and saved no CPU (python-data, import pandas).
    ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)
    try:
        daemon = Daemon(mountpoint)
        gc.collect()
        gc.freeze()
        gc.disable()  # reference counting frees what requests make; a few exceptions make cycles
        descriptors = [fd for fd in (options.agent_fd, options.harness_fd) if fd is not None]
        try:
            trio.run(partial(daemon.run, descriptors))
        finally:
            mounts.unmount(mountpoint)
    finally:
        if made is not None:
            try:
                os.rmdir(made)
            except OSError:
                pass
    # Worker threads may still wait for a registry that is gone; nothing of theirs is worth waiting for.
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
