"""This module writes gzip as container builders do (deflate, level 6 by default), on all cores; their number changes no
byte.

Blocks of 1 MiB are deflated independently, each primed with the 32 KiB before it and ended by a sync flush, and form
one gzip member: pigz's method, which Docker's own parallel gzip follows.
"""

from __future__ import annotations

import hashlib
import os
import struct
import zlib
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from types import TracebackType

BLOCK_BYTES = 1 << 20
LEVEL = 6
_WINDOW_BYTES = 32 << 10
_HEADER = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"  # no name, no time, unknown system


class Sink(Protocol):
    """This takes what is written of a file."""

    def write(self, data: bytes, /) -> object: ...


def _deflate(block: bytes, window: bytes, last: bool, level: int) -> bytes:
    packer = zlib.compressobj(level, zlib.DEFLATED, -15, 8, zlib.Z_DEFAULT_STRATEGY, window)
    return packer.compress(block) + packer.flush(zlib.Z_FINISH if last else zlib.Z_SYNC_FLUSH)


class GzipLayerWriter:
    """Takes a tar, writes the gzip member to ``file`` and hashes both sides; results are there after ``close``."""

    def __init__(self, file: Sink, threads: int | None = None, level: int = LEVEL) -> None:
        self._file = file
        self._level = level
        self._pool = ThreadPoolExecutor(threads or min(8, os.cpu_count() or 1), thread_name_prefix="gzip")
        self._pending: deque[Future[bytes]] = deque()
        self._ahead = 2 * (threads or min(8, os.cpu_count() or 1)) + 2
        self._buffer = bytearray()
        self._window = b""
        self._crc = 0
        self._plain_hash = hashlib.sha256()
        self._packed_hash = hashlib.sha256()
        self.plain_bytes = 0
        self.packed_bytes = 0
        self._emit(_HEADER)

    def __enter__(self) -> GzipLayerWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        self._pool.shutdown(cancel_futures=True)

    @property
    def diff_id(self) -> str:
        return f"sha256:{self._plain_hash.hexdigest()}"

    @property
    def digest(self) -> str:
        return f"sha256:{self._packed_hash.hexdigest()}"

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self._buffer += data
        # Strictly more: the last block is only known to be the last at close.
        if len(self._buffer) > BLOCK_BYTES:
            view = memoryview(self._buffer)
            offset = 0
            while len(view) - offset > BLOCK_BYTES:
                self._submit(bytes(view[offset : offset + BLOCK_BYTES]), last=False)
                offset += BLOCK_BYTES
            view.release()
            del self._buffer[:offset]

    def close(self) -> None:
        self._submit(bytes(self._buffer), last=True)
        self._buffer.clear()
        while self._pending:
            self._emit(self._pending.popleft().result())
        self._emit(struct.pack("<II", self._crc, self.plain_bytes & 0xFFFFFFFF))

    def _submit(self, block: bytes, *, last: bool) -> None:
        self._pending.append(self._pool.submit(_deflate, block, self._window, last, self._level))
        self._window = block[-_WINDOW_BYTES:]
        self._plain_hash.update(block)
        self._crc = zlib.crc32(block, self._crc)
        self.plain_bytes += len(block)
        while len(self._pending) > self._ahead:
            self._emit(self._pending.popleft().result())

    def _emit(self, data: bytes) -> None:
        self._file.write(data)
        self._packed_hash.update(data)
        self.packed_bytes += len(data)
