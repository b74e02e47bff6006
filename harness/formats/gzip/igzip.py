"""This module inflates by ISA-L into buffers of our choosing, through the library that python-isal ships.

python-isal's own objects inflate into blocks that they join, and copy the input they did not consume: for spans of a
few hundred KB that is a tenth of the time. The library exports the C functions, and the fields used here are the first
ones of ``struct inflate_state``, which have stood still since ISA-L 2.16. Where the library hides them or behaves
otherwise ``available`` is False and callers use python-isal. Source: igzip_lib.h.
"""

from __future__ import annotations

import ctypes
import zlib
from typing import TYPE_CHECKING, Any

from isal import isal_zlib

from harness.errors import FormatError
from harness.formats.gzip.inflate import behind

if TYPE_CHECKING:
    from collections.abc import Callable

_STATE_BYTES = 96 << 10
"""The struct has 87 KB in ISA-L 2.31, most of it two windows of 32 KB and the look-ahead; it must not outgrow this."""
_MAX_IDLE = 16
_MAX_BYTES = (1 << 32) - 1
"""Lengths in the struct have 32 bits."""
MAX_HEADER_BYTES = 1 << 20
"""A gzip header has at most so many bytes here; its name and comment have no limit of their own."""
_BUFFER_BYTES = 1 << 20
_TRAILER_BYTES = 8


class _State(ctypes.Structure):
    _fields_ = [
        ("next_out", ctypes.c_void_p),
        ("avail_out", ctypes.c_uint32),
        ("total_out", ctypes.c_uint32),
        ("next_in", ctypes.c_void_p),
        ("read_in", ctypes.c_uint64),
        ("avail_in", ctypes.c_uint32),
        ("read_in_length", ctypes.c_int32),
        ("rest", ctypes.c_char * (_STATE_BYTES - 40)),
    ]


def _function(owner: Any, name: str, result: Any, *arguments: Any) -> Callable[..., Any]:
    function = getattr(owner, name)
    function.restype = result
    function.argtypes = arguments
    found: Callable[..., Any] = function
    return found


_new_bytes = _function(
    ctypes.pythonapi, "PyBytes_FromStringAndSize", ctypes.py_object, ctypes.c_void_p, ctypes.c_ssize_t
)
_address = _function(ctypes.pythonapi, "PyBytes_AsString", ctypes.c_void_p, ctypes.py_object)


class RawInflater:
    """Inflates raw deflate data that is all there, from a checkpoint on. It is not for two threads at once."""

    __slots__ = ("_data", "_place", "_state")

    _idle: list[_State] = []  # noqa: RUF012 - shared on purpose
    _library: Any = None
    _reset: Callable[..., Any]
    _set_dictionary: Callable[..., Any]
    _inflate: Callable[..., Any]

    def __init__(self, data: bytes, bits: int, window: bytes) -> None:
        """Takes ``data``, which begins with the byte whose last ``bits`` bits belong to what follows (none: with a
        whole byte).

        Raises ValueError for 4 GiB or more, and for a beginning that is not there.
        """
        try:
            self._state = self._idle.pop()
        except IndexError:
            self._state = _State()
        if len(data) > _MAX_BYTES or len(window) > _MAX_BYTES or (bits and not data):
            raise ValueError(f"{len(data)} bytes cannot be inflated from bit {bits} on")
        self._data = data  # kept alive: the state points into it
        state, start = self._state, _address(data)
        self._place = ctypes.addressof(state)
        self._reset(self._place)
        if window:
            self._set_dictionary(self._place, window, len(window))
        if bits:
            state.read_in = data[0] >> (8 - bits)
            state.read_in_length = bits
            start += 1
        state.next_in = start
        state.avail_in = len(data) - (1 if bits else 0)

    def inflate(self, size: int) -> bytes | None:
        """Returns the next ``size`` bytes; None where the stream ends before or is damaged (use python-isal to say
        which).

        Raises ValueError for 4 GiB or more.
        """
        if not 0 <= size <= _MAX_BYTES:
            raise ValueError(f"{size} bytes cannot be inflated at once")
        out: bytes = _new_bytes(None, size)
        state = self._state
        state.next_out = _address(out)
        state.avail_out = size
        if self._inflate(self._place) != 0 or state.avail_out:
            return None
        return out

    def __del__(self) -> None:
        if len(self._idle) < _MAX_IDLE:
            self._idle.append(self._state)


class StreamInflater:
    """Inflates a gzip stream that comes in pieces, member after member, into one buffer that is used again and again.

    Checksums and sizes in the members' trailers are passed over: the caller hashes what it feeds. It needs
    ``available``.
    """

    def __init__(self, write: Callable[[memoryview], None], where: str) -> None:
        """Takes ``write``, which gets inflated bytes, to be used up before it returns."""
        self._write = write
        self._where = where
        self._buffer = bytearray(_BUFFER_BYTES)
        self._out = memoryview(self._buffer)
        self._target = ctypes.addressof((ctypes.c_char * _BUFFER_BYTES).from_buffer(self._buffer))
        self._state = _State()
        self._place = ctypes.addressof(self._state)
        self._inside = False
        self._head = b""
        """Holds a header that is not complete yet."""
        self._skip = 0
        """Counts bytes of a trailer that are still to come."""
        self._members = 0

    def feed(self, data: bytes) -> None:
        """Takes more of the stream; FormatError when it is damaged."""
        while data:
            if self._skip:
                passed = min(self._skip, len(data))
                self._skip -= passed
                data = data[passed:]
            elif self._inside:
                data = self._deflated(data)
            else:
                data = (self._head + data) if self._head else data.lstrip(b"\0")  # padding between or after members
                if self._members and not b"\x1f\x8b\x08".startswith(data[:3]):
                    raise behind(self._where)
                size = _header_size(data, self._where) if data else 0
                if not size:
                    if len(data) > MAX_HEADER_BYTES:
                        raise FormatError(self._where, f"a gzip header of more than {MAX_HEADER_BYTES} bytes")
                    self._head = data
                    return
                self._head = b""
                data = data[size:]
                RawInflater._reset(self._place)
                self._inside = True
                self._members += 1

    def _deflated(self, data: bytes) -> bytes:
        """Inflates ``data``; returns what of it lies behind the member's deflate data."""
        state = self._state
        state.next_in = _address(data)
        state.avail_in = len(data)
        while True:
            self._step()
            if not state.avail_out:
                continue  # the buffer was too small for what came of this input
            if not state.avail_in:
                return b""
            # Room and input are left: the member has ended. Up to 8 bytes of its trailer may be in the bit buffer.
            self._inside = False
            self._skip = _TRAILER_BYTES - state.read_in_length // 8
            return data[len(data) - state.avail_in :]

    def _step(self) -> None:
        state = self._state
        state.next_out = self._target
        state.avail_out = _BUFFER_BYTES
        if (code := RawInflater._inflate(self._place)) != 0:
            raise FormatError(self._where, f"damaged deflate data (ISA-L says {code})")
        if made := _BUFFER_BYTES - state.avail_out:
            self._write(self._out[:made])

    def finish(self) -> None:
        """Raises FormatError when the stream ended inside a member."""
        if self._inside and self._state.read_in_length // 8 == _TRAILER_BYTES:
            # All of the trailer may be in the bit buffer, and the end not be noticed: then no byte is taken any more.
            self._deflated(b"\0")
        if self._inside or self._head or self._skip:
            raise FormatError(self._where, "the gzip stream ends early")


def _header_size(data: bytes, where: str) -> int:
    """Counts the bytes of the gzip header that ``data`` begins with; 0 when it is not complete (RFC 1952)."""
    if not b"\x1f\x8b\x08".startswith(data[:3]):
        raise FormatError(where, "damaged compressed data (no gzip header)")
    if len(data) < 10:
        return 0
    flags, position = data[3], 10
    if flags & 4:
        position += 2 + int.from_bytes(data[10:12], "little") if len(data) >= 12 else len(data)
    for flag in (8, 16):
        if flags & flag:
            end = data.find(b"\0", position)
            if end < 0:
                return 0
            position = end + 1
    position += flags & 2
    return position if position <= len(data) else 0


def _bind() -> bool:
    try:
        library = RawInflater._library = ctypes.CDLL(isal_zlib.__file__)
        RawInflater._reset = _function(library, "isal_inflate_init", None, ctypes.c_void_p)
        RawInflater._set_dictionary = _function(
            library, "isal_inflate_set_dict", ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_uint32
        )
        RawInflater._inflate = _function(library, "isal_inflate", ctypes.c_int, ctypes.c_void_p)
    except (OSError, AttributeError):
        return False
    return _proves_right()


def _proves_right() -> bool:
    """Says whether a stream with a dictionary comes out right, in two steps and moved by three bits."""
    plain = bytes(range(256)) * 300
    window = plain[:32768]
    packer = zlib.compressobj(6, zlib.DEFLATED, -15, zdict=window)
    packed = packer.compress(plain) + packer.flush()
    moved = (int.from_bytes(packed, "little") << 5).to_bytes(len(packed) + 1, "little")
    for data, bits in ((packed, 0), (moved, 3)):
        inflater = RawInflater(data, bits, window)
        if [inflater.inflate(1000), inflater.inflate(len(plain) - 1000)] != [plain[:1000], plain[1000:]]:
            return False
    return True


available = _bind()
"""Says whether ``RawInflater`` can be used."""
