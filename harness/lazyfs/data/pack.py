"""This module starts an image from its pack: what an earlier start asked for comes in one stream into the page cache.

Three kinds of threads share the work. One receives and checks frames, one decodes them in order and pushes their pages
into the FUSE file's page cache, and workers decode the frames that reads wait for. They have to be apart: a push waits
for a page that the kernel is waiting for us to fill, and that read may wait for a later frame.

The pack changes nothing else. A unit that it holds bytes of is as absent as before, and whatever goes wrong with it
(``failure``) leaves the start as fast as one without: reads then take their spans.
"""

from __future__ import annotations

import logging
import threading
import time
from queue import SimpleQueue
from typing import TYPE_CHECKING

import trio

from harness.errors import ColdbenchError
from harness.lazyfs.data.pack_frames import PackFrames
from harness.lazyfs.data.pack_stream import PackStream
from harness.lazyfs.data.workers import Workers
from harness.lazyfs.messages import Span

if TYPE_CHECKING:
    from collections.abc import Callable

    from harness.formats.erofs.pack import Pack, Place
    from harness.formats.erofs.spans import ErofsIndex
    from harness.lazyfs.counters import PackCounters
    from harness.oci.descriptor import Descriptor
    from harness.oci.store import BlobStore

log = logging.getLogger(__name__)

STALLED_S = 1.0
"""Says for how long a stream may bring nothing before reads no longer wait for it."""
LONGEST_WAIT_S = 1.5
"""Says how far off a frame may be, at the stream's rate so far, for a read to wait for it."""
_LOOK_S = 0.1
OUTSIDE_READS = 4
"""Says how many reads outside the pack show that a start is not the recorded one: the recorded ones had one in 128."""


class StartPack:
    """Serves reads from one image's pack; the event loop calls ``answer`` and ``wait``, a thread of ours ``store``."""

    def __init__(
        self,
        client: BlobStore,
        pack: Descriptor,
        counters: PackCounters,
        store: Callable[[int, list[bytes | memoryview]], bool],
        others_wait: Callable[[], bool] = lambda: False,
    ) -> None:
        """``store`` puts views at a place of the FUSE file; it returns False when that is gone, and raises OSError when
        it is refused. ``others_wait`` says whether reads wait for the registry; they go first where the link is slow.
        """
        self.counters = counters
        self._store = store
        self._descriptor = pack
        self._token = trio.lowlevel.current_trio_token()
        self._stream = PackStream(client, pack, self._began, self._came, self._ended, others_wait=others_wait)
        self._frames: PackFrames | None = None
        self._opened = threading.Event()
        self._pushes: SimpleQueue[int | None] = SimpleQueue()
        self._pusher = threading.Thread(target=self._push_all, name="pack-push", daemon=True)
        self._workers = Workers(2, "pack-decode")
        self._moved = trio.Event()
        """Is set, and replaced, whenever frames have come or no more will."""
        self.released = trio.Event()
        """Is set when the link is free for others: no more frames will come, or many reads are outside the pack."""
        self._over = False
        """Says that no more frames will come."""
        self._closed = False
        self._asked_ns = self._over_ns = 0

    def start(self) -> None:
        """Ask for the pack."""
        self._asked_ns = time.monotonic_ns()
        self._stream.start()
        self._pusher.start()

    def bind(self, head_digest: str, index: ErofsIndex) -> None:
        """Takes the index that the pack belongs to."""
        self._stream.bind(head_digest, index)

    def opened(self) -> None:
        """Notes that the kernel has opened the file: from now on it takes pages."""
        self._opened.set()

    def close(self) -> None:
        """Forgets the frames, since nobody reads the FUSE file any more; what is under way ends soon."""
        self._closed = self._over = True
        self._stream.stop()
        self._opened.set()
        self._pushes.put(None)
        if self._frames is not None:
            self._frames.forget()

    @property
    def spans(self) -> tuple[Span, ...]:
        """Returns the span from the request until all had come, or no more would; nothing before."""
        return (Span("pack", self._asked_ns, self._over_ns),) if self._over_ns else ()

    @property
    def frames(self) -> PackFrames | None:
        """Returns the frames that have come; None before the table has."""
        return self._frames

    # In the stream's thread

    def _began(self, pack: Pack) -> None:
        self.counters.frames_total = len(pack.frames)
        self._frames = PackFrames(pack)
        self._wake(over=False)

    def _came(self, number: int, packed: bytes) -> None:
        assert self._frames is not None
        self._frames.put(number, packed)
        self.counters.frames += 1
        self._pushes.put(number)
        self._wake(over=False)

    def _ended(self, error: ColdbenchError | None) -> None:
        if error is not None and not self._closed:
            self.fail(str(error))
        self._wake(over=True)

    def _wake(self, *, over: bool) -> None:
        try:
            self._token.run_sync_soon(self._note_moved, over)
        except trio.RunFinishedError:
            pass

    def fail(self, why: str) -> None:
        """Count and say once why the pack, or the rest of it, is of no use."""
        self.counters.failures += 1
        if not self.counters.failure:
            self.counters.failure = why
            log.warning("the start goes on without its pack: %s", why)

    # On the event loop

    def _note_moved(self, over: bool) -> None:
        self._over |= over
        if self._over:
            self._over_ns = self._over_ns or time.monotonic_ns()
            self.released.set()
        self._moved.set()
        self._moved = trio.Event()

    def answer(self, offset: int, size: int) -> bytes | memoryview | None:
        """Returns the bytes where that takes no waiting, else None."""
        frames = self._frames
        places = frames.pack.places(offset, size) if frames is not None else None
        if frames is None or places is None:
            return None
        data = frames.join(places, decode=False)
        if data is not None:
            self.counters.reads += 1
        return data

    def may_have(self, offset: int, size: int) -> bool:
        """Says whether ``wait`` may have an answer: the pack holds these bytes, or its table has not come yet."""
        frames = self._frames
        if frames is None:
            return not self._over
        places = frames.pack.places(offset, size)
        if places is None:
            self.counters.outside += 1
            if self.counters.outside >= OUTSIDE_READS:
                self.released.set()
        return places is not None and (not self._over or all(frames.has(place.frame) for place in places))

    async def wait(self, offset: int, size: int) -> bytes | memoryview | None:
        """Returns the bytes once their frames are there; None if they are not the pack's, or not worth the wait."""
        while True:
            frames = self._frames
            places = frames.pack.places(offset, size) if frames is not None else []
            if places is None:
                return None
            if frames is not None and all(frames.has(place.frame) for place in places):
                try:
                    data = await self._workers.run(_joined, frames, places)
                except (ColdbenchError, KeyError) as error:
                    if not self._closed:
                        self.fail(str(error))
                    return None
                self.counters.reads += 1
                return data
            if self._over or not self._worth_waiting(frames, places):
                self.counters.passed_over += not self._over
                return None
            with trio.move_on_after(_LOOK_S):
                await self._moved.wait()

    def _worth_waiting(self, frames: PackFrames | None, places: list[Place]) -> bool:
        """Says whether what is missing will be here soon, as far as the stream tells."""
        now, stream = time.monotonic(), self._stream
        if now - stream.came_at > STALLED_S:
            return False
        if frames is None or not stream.begun_at:
            return True
        last = frames.pack.frames[max(place.frame for place in places)]
        left = last.offset + last.packed_bytes - stream.received_bytes
        took = now - stream.begun_at
        return took < _LOOK_S or left * took <= LONGEST_WAIT_S * stream.received_bytes

    # In the pusher's thread

    def _push_all(self) -> None:
        self._opened.wait()
        while (number := self._pushes.get()) is not None:
            frames = self._frames
            if self._closed or frames is None:
                return
            try:
                data = frames.decode(number)
            except (ColdbenchError, KeyError) as error:
                if not self._closed:
                    self.fail(str(error))
                continue
            if not self._push(frames.pack, number, memoryview(data)):
                return

    def _push(self, pack: Pack, number: int, data: memoryview) -> bool:
        frame = pack.frames[number]
        for begin, end, place in zip(frame.begins, frame.ends, frame.places, strict=True):
            try:
                if not self._store(begin, [data[place : place + end - begin]]):
                    return False
            except OSError as error:
                # Frames go on answering reads: the kernel asks for what it does not take beforehand.
                self.fail(f"the kernel does not take its pages ({error.strerror})")
                return False
            self.counters.bytes_pushed += end - begin
        return True


def _joined(frames: PackFrames, places: list[Place]) -> bytes | memoryview:
    data = frames.join(places, decode=True)
    assert data is not None
    return data


def no_pack(counters: PackCounters) -> None:
    """Counts and logs that the index has no pack, though the policy follows one."""
    counters.failures, counters.failure = 1, "the index has none; make one: coldbench index erofs IMAGE --record"
    log.warning("the start goes on without its pack: %s", counters.failure)
