"""Cleaning of a TOC's entry names, all at once: a machine with a quarter of a CPU does this before it can mount.

A name means ``path.Clean("/" + name)`` without the leading slash (stargz-snapshotter, estargz/estargz.go). A name
that is absolute or climbs above the root is refused instead of being cut short: no honest tool writes one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.errors import FormatError, UnsafePath
from harness.formats.tar.odd_names import any_odd

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_NAME_BYTES = 4096
"""PATH_MAX of Linux; a longer name could not be opened."""


def clean_names(names: Sequence[str]) -> list[bytes]:
    """Each name as a cleaned path in UTF-8: no ``.``, ``..`` or empty component; the root is ``b""``.

    Raises UnsafePath for a name that is absolute or leaves the root, FormatError for a NUL, a lone surrogate or a name
    too long.
    """
    if not names:
        return []
    joined = "\0" + "\0".join(names) + "\0"
    if joined.count("\0") != len(names) + 1:
        raise FormatError("eStargz TOC", "an entry's name holds a NUL byte")
    # Builders that archive "." write every name as "./name": common enough to be worth one pass in C.
    encoded = _encode(joined).replace(b"\0./", b"\0")
    slashed = b"\0/\0" in encoded  # a name that is "/" is not the root's; without its slash it would be
    encoded = encoded.replace(b"/\0", b"\0")
    cleaned = [clean_name(name) for name in names] if slashed or any_odd(encoded) else encoded[1:-1].split(b"\0")
    if len(max(cleaned, key=len)) > MAX_NAME_BYTES:
        raise FormatError("eStargz TOC", f"an entry's name is longer than {MAX_NAME_BYTES} bytes")
    return cleaned


def clean_name(name: str) -> bytes:
    """One name, as ``clean_names`` does it."""
    if name.startswith("/"):
        raise UnsafePath("eStargz TOC", f"{name[:200]!r} is an absolute name, which a layer must not hold")
    if "\0" in name:
        raise FormatError("eStargz TOC", f"the name {name[:80]!r} holds a NUL byte")
    components: list[str] = []
    for component in name.split("/"):
        if component in ("", "."):
            continue
        if component == "..":
            if not components:
                raise UnsafePath("eStargz TOC", f"the entry {name[:200]!r} would leave the layer's root")
            components.pop()
        else:
            components.append(component)
    return _encode("/".join(components))


def clean_target(target: str) -> bytes:
    """The target of a hard link, as ``clean_name``; one that begins with ``/`` is read from the layer's root."""
    return clean_name(target.lstrip("/"))


def _encode(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise FormatError("eStargz TOC", "a name holds half of a surrogate pair, which no file name can") from error
