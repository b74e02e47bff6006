"""This module reads names of a layer's entries: cleaned, kept below the layer's root, no longer than the kernel takes
them.

An entry's name means ``path.Clean("/" + name)`` without the leading slash, as in containerd, Docker and
stargz-snapshotter: names that begin with ``/`` are read from the layer's root (distroless, kaniko and Paketo images
have them). A name that climbs above the root is refused; no honest tool writes one.

Sources: containerd archive/tar.go; moby pkg/archive; stargz-snapshotter estargz/estargz.go; Linux limits.h.
"""

from __future__ import annotations

from harness.errors import FormatError, UnsafePath

NAME_MAX = 255
"""One component has at most so many bytes."""
PATH_MAX = 4095
"""A name or a symbolic link's target has at most so many bytes: the kernel's PATH_MAX counts a NUL as well."""


def entry_of(name: bytes) -> str:
    """Says how an error names an entry."""
    return f"entry {name[:200].decode('utf-8', 'backslashreplace')!r}"


def clean_name(name: bytes, where: str = "tar entry") -> bytes:
    """Returns the path below the layer's root, in the form of ``LayerTable.names``; the root itself is ``b""``.

    Slashes at the beginning and the end, doubled ones and ``.`` go away; ``..`` takes the component before it along.
    Raises UnsafePath for a name that climbs above the root or holds a NUL, FormatError for one that is too long.
    """
    if b"\0" in name:
        raise UnsafePath(where, f"name {name[:200]!r} holds a NUL")
    if name[:1] in (b".", b"", b"/") or name[-1:] == b"/" or b"//" in name or b"/." in name:
        parts: list[bytes] = []
        for part in name.split(b"/"):
            if part == b"..":
                if not parts:
                    raise UnsafePath(where, f"name {name[:200]!r} would leave the layer's root")
                parts.pop()
            elif part and part != b".":
                parts.append(part)
        name = b"/".join(parts)
    if len(name) > NAME_MAX:
        check_length(name)
    return name


def clean_target(target: bytes, where: str = "tar entry") -> bytes:
    """Returns a hard link's target, which is read like a name."""
    return clean_name(target, where)


def check_length(name: bytes) -> None:
    """Raises FormatError for a cleaned name that no system call takes."""
    if len(name) > PATH_MAX:
        raise FormatError(entry_of(name), f"a name of {len(name)} bytes; the kernel takes {PATH_MAX}")
    if any(len(part) > NAME_MAX for part in name.split(b"/")):
        raise FormatError(entry_of(name), f"a component of the name is longer than {NAME_MAX} bytes")
