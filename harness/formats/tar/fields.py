"""This module reads fields of a tar header and of PAX records: numbers, strings, times.

Sources: POSIX.1-2017 pax; GNU tar manual, "Tar Internals"; the limits and checks are those of Go's archive/tar.
"""

from __future__ import annotations

from harness.errors import FormatError

_MAX_INT = (1 << 63) - 1


def where_of(offset: int) -> str:
    return f"tar header at offset {offset}"


def text(field: bytes) -> bytes:
    """Returns the bytes before the first NUL."""
    end = field.find(0)
    return field if end < 0 else field[:end]


def number(field: bytes, offset: int) -> int:
    """Reads an octal field (blanks and NULs around it) or a GNU base-256 one; ``offset`` only serves the message."""
    if field[0] & 0x80:
        value = int.from_bytes(field, "big", signed=False)
        bits = 8 * len(field) - 1
        value &= (1 << bits) - 1
        if field[0] & 0x40:
            value -= 1 << bits
        if not -_MAX_INT - 1 <= value <= _MAX_INT:
            raise FormatError(where_of(offset), "a base-256 number does not fit 64 bits")
        return value
    digits = text(field.strip(b" \0"))
    if not digits:
        return 0
    if digits.isdigit():
        try:
            return int(digits, 8)
        except ValueError:
            pass
    raise FormatError(where_of(offset), f"{field!r} is not an octal number")


def decimal(value: bytes, offset: int) -> int:
    """Reads a signed 64-bit decimal of a PAX record."""
    digits = value[1:] if value[:1] in (b"-", b"+") else value
    if digits.isdigit() and len(digits) < 40 and -_MAX_INT - 1 <= (result := int(value)) <= _MAX_INT:
        return result
    raise FormatError(where_of(offset), f"{value[:40]!r} is not a 64-bit decimal")


def pax_time(value: bytes, offset: int) -> tuple[int, int]:
    """Returns seconds and nanoseconds (0..999 999 999) of a PAX time; digits beyond nanoseconds are cut off."""
    whole, _, fraction = value.partition(b".")
    seconds = decimal(whole, offset)
    if not fraction:
        return seconds, 0
    if not fraction.isdigit():
        raise FormatError(where_of(offset), f"{value[:40]!r} is not a time")
    nanoseconds = int(fraction[:9].ljust(9, b"0"))
    if nanoseconds and whole[:1] == b"-":
        return seconds - 1, 1_000_000_000 - nanoseconds
    return seconds, nanoseconds


def pax_records(data: bytes, offset: int) -> dict[bytes, bytes]:
    """Reads records of an extended header, last one of a key winning, sparse 0.0 pairs joined to a 0.1 map."""
    records: dict[bytes, bytes] = {}
    pairs: list[bytes] = []
    position, size = 0, len(data)
    while position < size:
        space = data.find(b" ", position, position + 20)
        digits = data[position:space] if space > 0 else b""
        end = position + int(digits) if digits.isdigit() else 0
        if end - position < 5 or end > size or end <= space + 1 or data[end - 1] != 0x0A:
            raise FormatError(where_of(offset), f"malformed PAX record at byte {position}")
        key, equals, value = data[space + 1 : end - 1].partition(b"=")
        nul_in = value if key in (b"path", b"linkpath", b"uname", b"gname") else key
        if not equals or not key or b"\0" in nul_in:
            raise FormatError(where_of(offset), f"malformed PAX record at byte {position}")
        if key in (b"GNU.sparse.offset", b"GNU.sparse.numbytes"):
            if (len(pairs) % 2 == 1) == (key == b"GNU.sparse.offset") or b"," in value:
                raise FormatError(where_of(offset), "sparse offsets and lengths do not alternate")
            pairs.append(value)
        else:
            records[key] = value
        position = end
    if pairs:
        records[b"GNU.sparse.map"] = b",".join(pairs)
    return records
