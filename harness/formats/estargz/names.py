"""This module cleans a TOC's entry names, all at once: a machine with a quarter of a CPU does this before it can mount.

What a name means is said in ``harness.formats.tar.names``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.errors import FormatError
from harness.formats.tar import names
from harness.formats.tar.odd_names import any_odd

if TYPE_CHECKING:
    from collections.abc import Sequence


def clean_names(given: Sequence[str]) -> list[bytes]:
    """Returns each name as a cleaned path in UTF-8: no ``.``, ``..`` or empty component; the root is ``b""``.

    Raises UnsafePath for a name that leaves the root, FormatError for a NUL, or a lone surrogate.
    """
    if not given:
        return []
    joined = "\0" + "\0".join(given) + "\0"
    if joined.count("\0") != len(given) + 1:
        raise FormatError("eStargz TOC", "an entry's name holds a NUL byte")
    # Builders that archive "." write every name as "./name": common enough to be worth one pass in C.
    encoded = _encode(joined).replace(b"\0./", b"\0").replace(b"/\0", b"\0")
    return [clean_name(name) for name in given] if any_odd(encoded) else encoded[1:-1].split(b"\0")


def clean_name(name: str) -> bytes:
    """Cleans one name, as ``clean_names`` does it."""
    if "\0" in name:
        raise FormatError("eStargz TOC", f"the name {name[:80]!r} holds a NUL byte")
    return names.clean_name(_encode(name), "eStargz TOC")


def clean_target(target: str) -> bytes:
    """Cleans the target of a hard link, as ``clean_name``."""
    return clean_name(target)


def _encode(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise FormatError("eStargz TOC", "a name holds half of a surrogate pair, which no file name can") from error
