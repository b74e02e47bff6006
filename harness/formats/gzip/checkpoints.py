"""This module finds checkpoints of a gzip stream: places from which inflation can start again, as zran and SOCI define
them.

A checkpoint is taken at a deflate block boundary that is not the end of a member's last block: at the very start,
and then at the first boundary where more than ``span_size`` bytes came out since the last one. Concatenated members
are one stream. Sources: zlib manual (inflate with Z_BLOCK, data_type), zlib examples/zran.c, RFC 1951, RFC 1952.

The system's zlib is called through ctypes, which releases the GIL: one thread inflates, the caller's thread hashes
spans and parses what came out. Boundaries matter only beyond ``span_size``, so up to there inflate runs undisturbed
(4 MiB spans: about a dozen calls per span instead of one per deflate block).
"""

from __future__ import annotations

import ctypes
import ctypes.util
import hashlib
import threading
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import TYPE_CHECKING, NamedTuple

from harness.errors import FormatError, MissingTool
from harness.formats.gzip.inflate import behind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

WINDOW_BYTES = 32768
OUTPUT_BYTES = 1 << 20
"""So many decompressed bytes are handed over at a time."""
MAX_INFLATED_BYTES = 1 << 40
"""A stream that inflates to more is refused as a bomb."""
MAX_EMPTY_BLOCKS = 1 << 10
"""So many boundaries may come before the first byte: each is a checkpoint of 32 KiB (the rule of zran) for a block of 5
bytes.
"""
MAX_CHECKPOINTS = 1 << 22

_Z_NO_FLUSH, _Z_BLOCK = 0, 5
_Z_OK, _Z_STREAM_END, _Z_BUF_ERROR = 0, 1, -5


class Checkpoint(NamedTuple):
    """Names a place from which inflation can start.

    ``in_offset`` is the first whole byte in the compressed file; ``bits`` says how many bits of the byte before it
    still belong to the block that starts here; ``out_offset`` is the same place in the decompressed stream.
    """

    in_offset: int
    out_offset: int
    bits: int


@dataclass(slots=True)
class GzipIndex:
    """Holds what one pass over a gzip stream found. ``span_digests[i]`` is the sha256 of span i's stored bytes."""

    span_size: int
    checkpoints: list[Checkpoint] = field(default_factory=list)
    span_digests: list[bytes] = field(default_factory=list)
    compressed_bytes: int = 0
    inflated_bytes: int = 0


class _ZStream(ctypes.Structure):
    _fields_ = (
        ("next_in", ctypes.c_void_p),
        ("avail_in", ctypes.c_uint),
        ("total_in", ctypes.c_ulong),
        ("next_out", ctypes.c_void_p),
        ("avail_out", ctypes.c_uint),
        ("total_out", ctypes.c_ulong),
        ("msg", ctypes.c_char_p),
        ("state", ctypes.c_void_p),
        ("zalloc", ctypes.c_void_p),
        ("zfree", ctypes.c_void_p),
        ("opaque", ctypes.c_void_p),
        ("data_type", ctypes.c_int),
        ("adler", ctypes.c_ulong),
        ("reserved", ctypes.c_ulong),
    )


def _load_zlib() -> ctypes.CDLL:
    for name in ("libz.so.1", ctypes.util.find_library("z")):
        try:
            library = ctypes.CDLL(name) if name else None
        except OSError:
            continue
        if library is not None:
            library.zlibVersion.restype = ctypes.c_char_p
            return library
    raise MissingTool("the zlib shared library (libz.so.1) was not found; install the package zlib1g")


class _Pass:
    """Inflates in a thread: reads the stream, finds checkpoints, posts events to the caller's thread."""

    def __init__(self, stream: Iterable[bytes], span_size: int, sink: Callable[[Checkpoint, bytes], object]) -> None:
        self.events: SimpleQueue[tuple[bytes, list[Checkpoint]] | tuple[int, int] | BaseException | None] = (
            SimpleQueue()
        )
        self.buffers = [bytearray(WINDOW_BYTES + OUTPUT_BYTES) for _ in range(4)]
        self.free = threading.Semaphore(len(self.buffers) - 1)
        self.ahead = threading.Semaphore(8)
        self.stopped = False
        self._stream = stream
        self._span = span_size
        self._sink = sink

    def run(self) -> None:
        try:
            self._run()
        except BaseException as error:
            self.events.put(error)
        else:
            self.events.put(None)

    def _run(self) -> None:
        zlib = _load_zlib()
        z = _ZStream()
        pointer = ctypes.byref(z)
        inflate, reset = zlib.inflate, zlib.inflateReset
        if zlib.inflateInit2_(pointer, 31, zlib.zlibVersion(), ctypes.sizeof(z)) != _Z_OK:
            raise MemoryError
        try:
            self._inflate(z, lambda flush: int(inflate(pointer, flush)), lambda: reset(pointer))
        finally:
            zlib.inflateEnd(pointer)

    def _inflate(self, z: _ZStream, inflate: Callable[[int], int], reset: Callable[[], object]) -> None:
        span, sink = self._span, self._sink
        which = 0
        buffer = self.buffers[0]
        base = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
        filled = WINDOW_BYTES  # end of the output in the buffer
        total_in = total_out = last = count = 0
        member_ended = False
        for chunk in self._stream:
            if not chunk:
                continue
            found: list[Checkpoint] = []
            z.next_in = ctypes.cast(ctypes.c_char_p(chunk), ctypes.c_void_p).value
            z.avail_in = len(chunk)
            while z.avail_in or not z.avail_out:
                if member_ended:
                    at = len(chunk) - z.avail_in
                    if z.avail_in and not chunk[at]:
                        padding = z.avail_in - len(chunk[at:].lstrip(b"\0"))
                        at, total_in = at + padding, total_in + padding
                        z.next_in += padding
                        z.avail_in -= padding
                    if not z.avail_in:
                        break
                    if not b"\x1f\x8b".startswith(chunk[at : at + 2]):
                        raise behind(f"gzip stream at offset {total_in}")
                    reset()
                    member_ended = False
                if filled == len(buffer):
                    self.events.put((which, filled))
                    self.free.acquire()
                    if self.stopped:
                        return
                    which = (which + 1) % len(self.buffers)
                    following = self.buffers[which]
                    following[:WINDOW_BYTES] = buffer[-WINDOW_BYTES:]
                    buffer = following
                    base = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
                    filled = WINDOW_BYTES
                room = len(buffer) - filled
                # A boundary at or before last + span is of no interest: no need to stop there.
                quiet = last + span - total_out if total_out else 0
                flush = _Z_NO_FLUSH if quiet > 0 else _Z_BLOCK
                offered = min(room, quiet) if quiet > 0 else room
                before_in = z.avail_in
                z.next_out = base + filled
                z.avail_out = offered
                code = inflate(flush)
                produced = offered - z.avail_out
                filled += produced
                total_out += produced
                total_in += before_in - z.avail_in
                if code not in (_Z_OK, _Z_STREAM_END, _Z_BUF_ERROR):
                    reason = z.msg.decode("ascii", "replace") if z.msg else f"zlib error {code}"
                    raise FormatError(f"gzip stream at offset {total_in}", reason)
                if code == _Z_BUF_ERROR and z.avail_out:
                    break
                member_ended = code == _Z_STREAM_END
                if total_out > MAX_INFLATED_BYTES:
                    raise FormatError(
                        f"gzip stream at offset {total_in}", f"inflates to over {MAX_INFLATED_BYTES} bytes"
                    )
                state = z.data_type
                if flush == _Z_BLOCK and state & 128 and not state & 64 and (not total_out or total_out - last > span):
                    count += 1
                    if count > (MAX_CHECKPOINTS if total_out else MAX_EMPTY_BLOCKS):
                        raise FormatError(
                            f"gzip stream at offset {total_in}",
                            f"{count} checkpoints in {total_out} bytes are too many",
                        )
                    checkpoint = Checkpoint(total_in, total_out, state & 7)
                    found.append(checkpoint)
                    sink(checkpoint, bytes(buffer[filled - WINDOW_BYTES : filled]))
                    last = total_out
            self.events.put((chunk, found))
            self.ahead.acquire()
            if self.stopped:
                return
        if not total_in:
            raise FormatError("gzip stream", "holds no data")
        if not member_ended:
            raise FormatError(f"gzip stream at offset {total_in}", "ends early, inside a member")
        self.events.put((which, filled))


def index_gzip(
    stream: Iterable[bytes],
    span_size: int,
    sink: Callable[[Checkpoint, bytes], object],
    on_output: Callable[[memoryview], object] | None = None,
    on_input: Callable[[bytes], object] | None = None,
) -> GzipIndex:
    """Inflates ``stream`` (pieces of the compressed file) once and indexes it.

    ``sink`` gets every checkpoint with its 32 KiB window (from the inflating thread, in order); ``on_output`` the
    decompressed bytes (the view is valid only during the call), ``on_input`` the compressed pieces, both in the
    caller's thread. It holds a dozen pieces and 4 MiB, whatever the stream's size. Raises FormatError.
    """
    if span_size < 1:
        raise ValueError("span_size must be positive")
    index = GzipIndex(span_size)
    work = _Pass(stream, span_size, sink)
    thread = threading.Thread(target=work.run, name="inflate", daemon=True)
    thread.start()
    digest = None
    last_byte = b""
    try:
        while (event := work.events.get()) is not None:
            if isinstance(event, BaseException):
                raise event
            first, second = event
            if isinstance(first, int):
                assert isinstance(second, int)
                index.inflated_bytes += second - WINDOW_BYTES
                if on_output is not None:
                    on_output(memoryview(work.buffers[first])[WINDOW_BYTES:second])
                work.free.release()
                continue
            assert isinstance(second, list)
            if on_input is not None:
                on_input(first)
            start, position = index.compressed_bytes, 0
            view = memoryview(first)
            for checkpoint in second:
                end = checkpoint.in_offset - start
                if digest is not None:
                    digest.update(view[position:end])
                    index.span_digests.append(digest.digest())
                digest = hashlib.sha256()
                if checkpoint.bits:
                    digest.update(first[end - 1 : end] if end else last_byte)
                index.checkpoints.append(checkpoint)
                position = end
            if digest is not None:
                digest.update(view[position:])
            last_byte = first[-1:]
            index.compressed_bytes += len(first)
            work.ahead.release()
    finally:
        work.stopped = True
        for semaphore in (work.free, work.ahead):
            semaphore.release()
        thread.join()
    if digest is not None:  # else there was nothing but members whose only block is their last
        index.span_digests.append(digest.digest())
    return index


def build_checkpoints(
    stream: Iterable[bytes], span_size: int, sink: Callable[[Checkpoint, bytes], object]
) -> list[Checkpoint]:
    """Returns only the checkpoints of a gzip stream (any span size; ``sink`` stores the windows as it likes)."""
    return index_gzip(stream, span_size, sink).checkpoints


def file_pieces(path: str, size: int = 1 << 18) -> Iterator[bytes]:
    """Reads a file in pieces, for :func:`index_gzip`."""
    with open(path, "rb", buffering=0) as file:
        while piece := file.read(size):
            yield piece
