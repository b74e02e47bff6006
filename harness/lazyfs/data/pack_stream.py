"""Receives a start pack in one streamed request, and checks it frame by frame as it comes, in a thread of its own."""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING

from harness.errors import ColdbenchError, ContentError, FormatError
from harness.formats.erofs.pack import decode_table, table_bytes

if TYPE_CHECKING:
    from collections.abc import Callable

    from harness.formats.erofs.pack import Pack
    from harness.formats.erofs.spans import ErofsIndex
    from harness.oci.descriptor import Descriptor
    from harness.oci.store import BlobStore

log = logging.getLogger(__name__)


SLOW_S = 1.0
"""A stream that will take longer than this for its rest makes way for reads that wait for the registry."""
PAUSE_S = 0.2
"""Limits how long the stream makes way before each of its pieces, so that it goes on, slowly, whatever else happens."""
_LOOK_S = 0.01


class Stopped(Exception):
    """Says that nobody wants the rest of the stream."""


class PackStream:
    """Receives a start pack in a thread of its own, checks its frames and hands them on.

    In that thread it calls ``began(pack)`` when the table has come, ``came(number, packed)`` for each frame in turn,
    and ``ended(error)`` at the end. The table is checked against the index, which ``bind`` gives when it is there;
    until then what comes is kept.
    """

    def __init__(
        self,
        store: BlobStore,
        pack: Descriptor,
        began: Callable[[Pack], object],
        came: Callable[[int, bytes], object],
        ended: Callable[[ColdbenchError | None], object],
        *,
        others_wait: Callable[[], bool] = lambda: False,
    ) -> None:
        """``others_wait`` says whether reads wait for the registry; they go first where the link is slow."""
        self._store = store
        self._pack = pack
        self._began, self._came, self._ended = began, came, ended
        self._others_wait = others_wait
        self._bound = threading.Event()
        self._index: tuple[str, ErofsIndex] | None = None
        self._stop = False
        self._parts: list[bytes] = []
        self._have = 0
        self._wanted = 0
        self._number = -1
        self._table: Pack | None = None
        self.received_bytes = 0
        self.begun_at = 0.0
        """Says when the first byte came (``time.monotonic``); 0 before."""
        self.came_at = 0.0
        """Says when the latest bytes came, or the index that they waited for."""
        self._thread = threading.Thread(target=self._run, name="pack-stream", daemon=True)

    def start(self) -> None:
        """Send the request."""
        self.came_at = time.monotonic()
        self._thread.start()

    def bind(self, head_digest: str, index: ErofsIndex) -> None:
        """Takes the index, against which the pack's table is checked."""
        self.came_at = time.monotonic()
        self._index = head_digest, index
        self._bound.set()

    def stop(self) -> None:
        """Makes the stream end with the next piece that comes, since nobody wants the rest."""
        self._stop = True
        self._bound.set()

    def _run(self) -> None:
        error: ColdbenchError | None = None
        try:
            self._wanted = table_bytes(self._pack)
            self._store.stream_blob(self._pack.digest, self._take)
            if self._wanted:
                raise ContentError(f"start pack: ends after {self.received_bytes} of its {self._pack.size} bytes")
        except Stopped:
            pass
        except ColdbenchError as caught:
            error = caught
        except Exception as caught:  # a fault of ours costs the pack, not the start
            log.exception("start pack")
            error = ContentError(f"start pack: {type(caught).__name__}: {caught}")
        self._ended(error)

    def _take(self, piece: bytes) -> None:
        if self._stop:
            raise Stopped
        self._make_way()
        self.came_at = time.monotonic()
        self.begun_at = self.begun_at or self.came_at
        self.received_bytes += len(piece)
        if self.received_bytes > self._pack.size:
            raise FormatError("start pack", f"the blob is longer than its {self._pack.size} bytes")
        self._parts.append(piece)
        self._have += len(piece)
        while self._wanted and self._have >= self._wanted:
            self._cut()

    def _make_way(self) -> None:
        """Where the rest will take long, let reads that wait for the registry have the link for a while."""
        took = self.came_at - self.begun_at
        if not self.begun_at or (self._pack.size - self.received_bytes) * took < SLOW_S * self.received_bytes:
            return
        until = time.monotonic() + PAUSE_S
        while not self._stop and time.monotonic() < until and self._others_wait():
            time.sleep(_LOOK_S)

    def _cut(self) -> None:
        """Take the table, or a frame, off what has come."""
        joined = b"".join(self._parts)
        part, rest = joined[: self._wanted], joined[self._wanted :]
        self._parts, self._have = [rest], len(rest)
        if self._table is None:
            self._bound.wait()
            if self._stop or self._index is None:
                raise Stopped
            self._table = decode_table(part, self._pack, *self._index)
            self._began(self._table)
        else:
            self._table.frames[self._number].check(part, self._number)
            self._came(self._number, part)
        self._number += 1
        frames = self._table.frames
        self._wanted = frames[self._number].packed_bytes if self._number < len(frames) else 0
