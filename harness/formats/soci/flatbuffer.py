"""This module writes FlatBuffers laid out as the reference builders do, and reads them with every access checked.

A FlatBuffers buffer is built from its end towards its start; all offsets here count *from the end* while writing.
Identical vtables are shared; strings are not. Source: the FlatBuffers internals page ("FlatBuffer Internals").
"""

from __future__ import annotations

from struct import Struct, error, pack
from typing import TYPE_CHECKING

from harness.errors import FormatError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_U16, _I32, _U32, _I64 = Struct("<H"), Struct("<i"), Struct("<I"), Struct("<q")
PADDING = [bytes(count) for count in range(16)]


class Writer:
    """Keeps pieces in the order they are made (last bytes of the buffer first)."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.size = 0
        self._vtables: dict[bytes, int] = {}

    def place(self, piece: bytes) -> int:
        """Puts bytes in front of what is there; returns the offset of their first byte."""
        self.pieces.append(piece)
        self.size += len(piece)
        return self.size

    def string(self, value: bytes) -> int:
        length = len(value)
        self.pieces.append(pack("<I", length) + value + PADDING[1 + (-(self.size + length + 1) & 3)])
        self.size += len(self.pieces[-1])
        return self.size

    def offsets(self, targets: Sequence[int]) -> int:
        """Writes a vector of references, in the given order."""
        count = len(targets)
        self.place(PADDING[-self.size & 3])
        last = self.size + 4 * count
        body = pack(f"<{count}I", *[last - 4 * i - target for i, target in enumerate(targets)])
        return self.place(pack("<I", count) + body)

    def blob_start(self, size: int) -> int:
        """Accounts for a byte vector of ``size`` bytes whose content is kept elsewhere; returns the padding behind it.

        The caller writes length prefix, content and padding in the right place itself.
        """
        padding = -(self.size + size) & 3
        self.size += padding + size + 4
        return padding

    def table(self, fields: Sequence[tuple[int, str, int]]) -> int:
        """Writes a table from (slot, struct code, value), in the order they are to be stored; code ``o`` is a
        reference.
        """
        shape = tuple((slot, code) for slot, code, _ in fields)
        layout = _layout(self.size & 7, shape)
        values = []
        for (_, code, value), position in zip(fields, layout.positions, strict=True):
            values.append(self.size + position - value if code == "o" else value)
        return self.table_packed(layout, values[::-1])

    def table_packed(self, layout: Layout, values: Sequence[int]) -> int:
        """Writes a table from a known layout and the values of its fields, last stored first."""
        at = self.size + layout.size
        shared = self._vtables.get(layout.vtable)
        if shared is None:
            self.pieces.append(layout.vtable + layout.pack(len(layout.vtable), *values))
            self.size = at + len(layout.vtable)
            self._vtables[layout.vtable] = self.size
        else:
            self.pieces.append(layout.pack(shared - at, *values))
            self.size = at
        return at

    def finish(self, root: int) -> None:
        """Writes the root reference; everything in the buffer is aligned to 8."""
        self.place(PADDING[-(self.size + 4) & 7])
        self.place(pack("<I", self.size + 4 - root))


class Layout:
    """Says how one shape of table is stored at one alignment: struct, vtable, and each field's
    distance from the start.
    """

    __slots__ = ("pack", "positions", "size", "vtable")
    pack: Callable[..., bytes]

    def __init__(self, alignment: int, shape: tuple[tuple[int, str], ...]) -> None:
        position = 0
        parts: list[str] = []
        self.positions: list[int] = []
        for _, code in shape:
            width = {"o": 4, "i": 4, "I": 4, "q": 8, "b": 1}[code]
            padding = -(alignment + position + width) % width
            position += padding + width
            parts.append(("I" if code == "o" else code) + ("" if not padding else f"{padding}x"))
            self.positions.append(position)
        padding = -(alignment + position + 4) % 4
        self.size = position + padding + 4
        self.pack = Struct("<i" + (f"{padding}x" if padding else "") + "".join(reversed(parts))).pack
        slots = [0] * (max((slot for slot, _ in shape), default=-1) + 1)
        for (slot, _), where in zip(shape, self.positions, strict=True):
            slots[slot] = self.size - where
        self.vtable = pack(f"<{2 + len(slots)}H", 4 + 2 * len(slots), self.size, *slots)


_layouts: dict[tuple[int, tuple[tuple[int, str], ...]], Layout] = {}


def _layout(alignment: int, shape: tuple[tuple[int, str], ...]) -> Layout:
    layout = _layouts.get((alignment, shape))
    if layout is None:
        layout = _layouts[alignment, shape] = Layout(alignment, shape)
    return layout


class Table:
    """Reads a table inside a buffer; every access is checked against the buffer's bounds and raises FormatError."""

    __slots__ = ("_buffer", "_name", "_slots", "position")

    def __init__(self, buffer: bytes | memoryview, position: int, name: str) -> None:
        self._buffer, self.position, self._name = buffer, position, name
        vtable = position - self._number(_I32, position)
        size = self._number(_U16, vtable)
        if size < 4 or size % 2 or vtable + size > len(buffer):
            raise FormatError(f"FlatBuffers table {name} at {position}", "vtable outside the buffer")
        self._slots = Struct(f"<{size // 2 - 2}H").unpack_from(buffer, vtable + 4)

    @classmethod
    def root(cls, buffer: bytes | memoryview, name: str) -> Table:
        if len(buffer) < 8:
            raise FormatError(f"FlatBuffers table {name}", f"{len(buffer)} bytes are no buffer")
        return cls(buffer, _U32.unpack_from(buffer, 0)[0], name)

    def _number(self, code: Struct, position: int) -> int:
        if position < 0:
            raise FormatError(f"FlatBuffers table {self._name}", f"reference to {position}")
        try:
            return int(code.unpack_from(self._buffer, position)[0])
        except error:
            raise FormatError(f"FlatBuffers table {self._name}", f"reference to {position}, past the end") from None

    def _field(self, slot: int) -> int:
        offset = self._slots[slot] if slot < len(self._slots) else 0
        return self.position + offset if offset else 0

    def int64(self, slot: int, default: int = 0) -> int:
        at = self._field(slot)
        return self._number(_I64, at) if at else default

    def int32(self, slot: int, default: int = 0) -> int:
        at = self._field(slot)
        return self._number(_I32, at) if at else default

    def int8(self, slot: int, default: int = 0) -> int:
        at = self._field(slot)
        return self._number(Struct("<b"), at) if at else default

    def vector(self, slot: int, width: int) -> tuple[int, int]:
        """Returns (position of the first element, count) of a vector whose elements have ``width`` bytes; (0, 0) if
        absent.
        """
        at = self._field(slot)
        if not at:
            return 0, 0
        at += self._number(_U32, at)
        count = self._number(_U32, at)
        if at + 4 + count * width > len(self._buffer):
            raise FormatError(f"FlatBuffers table {self._name}", f"vector of {count} elements leaves the buffer")
        return at + 4, count

    def string(self, slot: int) -> bytes:
        start, count = self.vector(slot, 1)
        return bytes(self._buffer[start : start + count])

    def strings(self, slot: int, longest: int, most: int) -> list[bytes]:
        """Returns a vector of at most ``most`` strings of at most ``longest`` bytes (references may
        share one string).
        """
        start, count = self.vector(slot, 4)
        if count > most:
            raise FormatError(f"FlatBuffers table {self._name}", f"{count} strings (at most {most})")
        result = []
        for at in range(start, start + 4 * count, 4):
            target = at + self._number(_U32, at)
            size = self._number(_U32, target)
            if size > longest or target + 4 + size > len(self._buffer):
                raise FormatError(f"FlatBuffers table {self._name}", f"string of {size} bytes leaves its bounds")
            result.append(bytes(self._buffer[target + 4 : target + 4 + size]))
        return result

    def table(self, slot: int, name: str) -> Table | None:
        at = self._field(slot)
        return Table(self._buffer, at + self._number(_U32, at), name) if at else None
