"""This module keeps recordings: which bytes of an image's layers a start asked for, in first-touch order.

Ranges are named by the layer's digest and by bytes of its decompressed address space, so that a recording holds for
every index of the image, and for what is left of its layers in another version of it. The file is JSON: ``{"recording":
1, "ranges": [[digest, begin, end], ...]}``.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, Final

from harness.errors import FormatError
from harness.oci.descriptor import is_digest

if TYPE_CHECKING:
    from collections.abc import Iterable

VERSION: Final = 1
MAX_RANGES: Final = 1 << 20
MAX_RECORDING_BYTES: Final = 256 << 20
_WHERE: Final = "recording"

Range = tuple[str, int, int]
"""This is (layer's digest, first byte, byte after the last)."""


@dataclass(frozen=True, slots=True)
class Recording:
    """Holds what one start asked for, or several (``unite``), the first request first; ranges may overlap."""

    ranges: tuple[Range, ...]

    def encode(self) -> bytes:
        """Writes the recording's file."""
        rows = ",\n".join(json.dumps(list(part), separators=(",", ":")) for part in self.ranges)
        return f'{{"recording":{VERSION},"ranges":[\n{rows}\n]}}\n'.encode()

    @classmethod
    def decode(cls, data: bytes) -> Recording:
        """Reads a recording from a file's bytes; FormatError when they are no recording."""
        if len(data) > MAX_RECORDING_BYTES:
            raise FormatError(_WHERE, f"{len(data)} bytes (at most {MAX_RECORDING_BYTES})")
        try:
            document = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise FormatError(_WHERE, f"is no JSON ({error})") from None
        if not isinstance(document, dict) or document.get("recording") != VERSION:
            raise FormatError(_WHERE, f'is none of version {VERSION}: {{"recording":{VERSION},"ranges":[...]}} is one')
        rows = document.get("ranges")
        if not isinstance(rows, list) or len(rows) > MAX_RANGES:
            raise FormatError(_WHERE, f"has no list of at most {MAX_RANGES} ranges")
        return cls(tuple(map(_range, rows)))


def _range(row: Any) -> Range:
    match row:
        case [str(digest), int(begin), int(end)] if is_digest(digest) and 0 <= begin < end < 1 << 62:
            return digest, int(begin), int(end)
    raise FormatError(_WHERE, f"{str(row)[:100]!r} is no [layer's digest, begin, end]")


def unite(recordings: Iterable[Recording]) -> Recording:
    """Makes several starts one: what each asked for first, then what each asked for second, and so on."""
    turns = zip_longest(*(recording.ranges for recording in recordings))
    return Recording(tuple(dict.fromkeys(part for turn in turns for part in turn if part is not None)))
