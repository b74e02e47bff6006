"""This TCP relay makes a near registry far: it adds round trips, first bytes and rates per connection, without netem.

Run as a plain script, outside the machine: ``relay.py ADDRESS UPSTREAM-HOST UPSTREAM-PORT RTT_S FIRST_BYTE_S RATE
UPLINK`` (bytes/s per connection, and of all connections together; 0 for no limit). It prints the port it listens on and
ends when its stdin does.

What it holds back, seen from the machine:

- each direction by half a round trip, and what a new connection is first asked until a round trip after it was opened,
  which is when the handshake would have ended (it ends in the relay, at once);
- the first bytes of each answer until ``FIRST_BYTE_S`` after their request reached the registry. A request is
  whatever the client sends after the registry last spoke, so a TLS handshake counts as one, too;
- each connection to its rate, and with a round trip to TCP's slow start (RFC 6928: ten segments, doubling each
  round trip, anew after a second of silence), which a relay on the same host would hide otherwise.
"""

from __future__ import annotations

import contextlib
import errno
import heapq
import os
import selectors
import socket
import sys
import time
from collections import deque

_CHUNK_BYTES = 256 << 10
_QUEUE_BYTES = 16 << 20
_SEGMENT_BYTES = 1448
_INITIAL_WINDOW_BYTES = 10 * _SEGMENT_BYTES
_IDLE_RESET_S = 1.0


class Pacer:
    """Says when the chunks of one direction may leave; it is pure, times are the caller's clock."""

    def __init__(self, rtt_s: float, rate_bytes_s: float) -> None:
        self._rtt_s = rtt_s
        self._rate = rate_bytes_s
        self._window = _INITIAL_WINDOW_BYTES
        self._free_at = 0.0

    def due(self, earliest_s: float, size: int) -> float:
        """Returns the time at which a chunk of ``size`` bytes has left whole, if its first byte may leave at
        ``earliest_s``.
        """
        rate = self._rate
        if self._rtt_s > 0:
            if earliest_s - self._free_at > _IDLE_RESET_S:
                self._window = _INITIAL_WINDOW_BYTES
            # With a window w, w bytes leave per round trip, and each acknowledged byte widens it by one.
            grown = self._window / self._rtt_s
            rate = min(rate, grown) if rate else grown
            self._window = min(self._window + size, 1 << 30)
        start = max(earliest_s, self._free_at)
        self._free_at = start + (size / rate if rate else 0.0)
        return self._free_at

    def piece(self) -> int:
        """Says how much to take at once: little while the window is small, so that pacing stays smooth."""
        return int(min(_CHUNK_BYTES, self._window)) if self._rtt_s > 0 else _CHUNK_BYTES


class Uplink:
    """Paces the line that all connections share on the way from the registry; it is pure, times are the caller's clock.

    Chunks leave in the order in which they came, small ones, so that connections take turns.
    """

    PIECE_BYTES = 64 << 10

    def __init__(self, rate_bytes_s: float) -> None:
        self._rate = rate_bytes_s
        # A connection that read far ahead would hold the line for all others.
        self.queue_bytes = 4 * self.PIECE_BYTES if rate_bytes_s else _QUEUE_BYTES
        self._free_at = 0.0

    def due(self, earliest_s: float, size: int) -> float:
        """Returns the time at which a chunk has left whole."""
        if not self._rate:
            return earliest_s
        self._free_at = max(earliest_s, self._free_at) + size / self._rate
        return self._free_at

    def piece(self, size: int) -> int:
        """Says how much to take at once, of at most ``size``."""
        return min(size, self.PIECE_BYTES) if self._rate else size


class Pipe:
    """Carries one direction of one connection: bytes wait in a queue until they are due."""

    __slots__ = ("blocked", "ended", "passed_end", "queue", "queued", "sink", "source")

    def __init__(self, source: socket.socket, sink: socket.socket) -> None:
        self.source = source
        self.sink = sink
        self.queue: deque[tuple[float, memoryview]] = deque()
        self.queued = 0
        self.blocked = False
        self.ended = False
        self.passed_end = False

    def put(self, due_s: float, data: bytes) -> None:
        self.queue.append((due_s, memoryview(data)))
        self.queued += len(data)

    def flush(self, now_s: float) -> None:
        """Sends what is due; ``blocked`` says that the sink takes no more at present."""
        self.blocked = False
        while self.queue and self.queue[0][0] <= now_s:
            due_s, data = self.queue.popleft()
            try:
                sent = self.sink.send(data)
            except BlockingIOError:
                sent = 0
            self.queued -= sent
            if sent < len(data):
                self.queue.appendleft((due_s, data[sent:]))
                self.blocked = True
                return
        if self.ended and not self.queue and not self.passed_end:
            self.passed_end = True
            with contextlib.suppress(OSError):
                self.sink.shutdown(socket.SHUT_WR)


class Connection:
    """Joins a client's connection and the one to the registry that stands for it."""

    def __init__(
        self,
        client: socket.socket,
        server: socket.socket,
        opened_s: float,
        settings: tuple[float, float, float],
        uplink: Uplink | None = None,
    ) -> None:
        """Takes ``settings``: round trip and first byte in seconds, bytes per second of this connection."""
        rtt_s, first_byte_s, rate = settings
        self.client = client
        self.server = server
        self.up = Pipe(client, server)
        self.down = Pipe(server, client)
        self.connecting = True
        self.timer_s = 0.0
        self._rtt_s = rtt_s
        self._first_byte_s = first_byte_s
        self._pacer = Pacer(rtt_s, rate)
        self._open_at_s = opened_s + rtt_s
        self._uplink = uplink or Uplink(0.0)
        self._answered = True
        self._not_before_s = 0.0

    def receive(self, source: socket.socket, now_s: float) -> None:
        """Takes what a side sent and decides when it may go on."""
        pipe = self.up if source is self.client else self.down
        try:
            data = source.recv(_CHUNK_BYTES)
        except BlockingIOError:
            return
        if not data:
            pipe.ended = True
            return
        if pipe is self.up:
            arrives = max(now_s, self._open_at_s) + self._rtt_s / 2
            pipe.put(arrives, data)
            self._not_before_s = arrives + self._first_byte_s
            self._answered = False
            return
        earliest = now_s + self._rtt_s / 2
        if not self._answered:
            self._answered = True
            earliest = max(earliest, self._not_before_s + self._rtt_s / 2)
        start = 0
        while start < len(data):
            piece = data[start : start + self._uplink.piece(self._pacer.piece())]
            pipe.put(self._pacer.due(self._uplink.due(earliest, len(piece)), len(piece)), piece)
            start += len(piece)

    def next_due(self) -> float | None:
        """Says when the next chunk that nothing but time holds back may go."""
        heads = [p.queue[0][0] for p in (self.up, self.down) if p.queue and not p.blocked]
        return None if self.connecting else min(heads, default=None)

    def interest(self, which: socket.socket) -> int:
        """Says what to wait for on one of the two sockets."""
        inward, outward = (self.up, self.down) if which is self.client else (self.down, self.up)
        mask = 0
        if not inward.ended and inward.queued < self._uplink.queue_bytes:
            mask |= selectors.EVENT_READ
        if outward.blocked or (self.connecting and which is self.server):
            mask |= selectors.EVENT_WRITE
        return mask

    @property
    def done(self) -> bool:
        return self.up.passed_end and self.down.passed_end

    def close(self) -> None:
        self.client.close()
        self.server.close()


class Relay:
    """Listens, and moves bytes between pairs of connections, in one thread."""

    def __init__(
        self, address: str, upstream: tuple[str, int], settings: tuple[float, float, float], uplink_rate: float
    ) -> None:
        """Takes ``settings``: round trip and first byte in seconds, bytes per second of each connection."""
        family, _type, _proto, _name, sockaddr = socket.getaddrinfo(*upstream, type=socket.SOCK_STREAM)[0]
        self._family: int = family
        self._upstream: tuple[object, ...] = sockaddr
        self._settings = settings
        self._uplink = Uplink(uplink_rate)
        self._listener = socket.create_server((address, 0), backlog=256)
        self._listener.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._registered: dict[socket.socket, int] = {}
        self._connections: set[Connection] = set()
        self._timers: list[tuple[float, int, Connection]] = []
        self._serial = 0
        self.port: int = self._listener.getsockname()[1]

    def run(self, stop_fd: int) -> None:
        """Runs until ``stop_fd`` reaches its end."""
        self._selector.register(stop_fd, selectors.EVENT_READ)
        while True:
            timeout = max(0.0, self._timers[0][0] - time.monotonic()) if self._timers else None
            touched: set[Connection] = set()
            for key, mask in self._selector.select(timeout):
                if key.fileobj is self._listener:
                    touched |= self._accept()
                elif key.fd == stop_fd:
                    if not os.read(stop_fd, 64):
                        return
                else:
                    connection: Connection = key.data
                    touched.add(connection)
                    self._handle(connection, key.fileobj, mask)  # type: ignore[arg-type]
            now = time.monotonic()
            while self._timers and self._timers[0][0] <= now:
                touched.add(heapq.heappop(self._timers)[2])
            for connection in touched & self._connections:
                self._advance(connection, now)

    def _accept(self) -> set[Connection]:
        try:
            client, _address = self._listener.accept()
        except OSError:
            return set()
        server = socket.socket(self._family, socket.SOCK_STREAM)
        for end in (client, server):
            end.setblocking(False)
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection = Connection(client, server, time.monotonic(), self._settings, self._uplink)
        self._connections.add(connection)
        if server.connect_ex(self._upstream) not in (0, errno.EINPROGRESS):
            self._drop(connection)
        return {connection}

    def _handle(self, connection: Connection, which: socket.socket, mask: int) -> None:
        if connection not in self._connections:
            return
        if connection.connecting and which is connection.server and mask:
            if connection.server.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                self._drop(connection)
                return
            connection.connecting = False
        if mask & selectors.EVENT_READ:
            try:
                connection.receive(which, time.monotonic())
            except OSError:
                self._drop(connection)

    def _advance(self, connection: Connection, now: float) -> None:
        if not connection.connecting:
            try:
                connection.up.flush(now)
                connection.down.flush(now)
            except OSError:
                self._drop(connection)
                return
        if connection.done:
            self._drop(connection)
            return
        due = connection.next_due()
        if due is not None and due != connection.timer_s:
            connection.timer_s = due
            self._serial += 1
            heapq.heappush(self._timers, (due, self._serial, connection))
        for end in (connection.client, connection.server):
            self._watch(end, connection.interest(end), connection)

    def _watch(self, end: socket.socket, mask: int, connection: Connection) -> None:
        before = self._registered.get(end, 0)
        if mask == before:
            return
        if not mask:
            self._selector.unregister(end)
            del self._registered[end]
            return
        if before:
            self._selector.modify(end, mask, connection)
        else:
            self._selector.register(end, mask, connection)
        self._registered[end] = mask

    def _drop(self, connection: Connection) -> None:
        self._connections.discard(connection)
        for end in (connection.client, connection.server):
            if self._registered.pop(end, 0):
                self._selector.unregister(end)
        connection.close()


def main() -> None:
    address, host, port, rtt_s, first_byte_s, rate, uplink = sys.argv[1:]
    settings = (float(rtt_s), float(first_byte_s), float(rate))
    relay = Relay(address, (host, int(port)), settings, float(uplink))
    os.write(1, f"{relay.port}\n".encode())
    relay.run(0)


if __name__ == "__main__":
    main()
