"""This module tells what a layer is compressed with by its first bytes: media types lie, and every engine looks.

Sources: containerd pkg/archive/compression (DetectCompression); RFC 1952; RFC 8878 (zstd and skippable frames); bzip2
and xz as ``file`` knows them.
"""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Final

from harness.errors import UnsupportedMediaType

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

GZIP: Final = "gzip"
ZSTD: Final = "zstd"
NONE: Final = "none"
SNIFFED_BYTES: Final = 6
ZSTD_MAGIC: Final = b"\x28\xb5\x2f\xfd"
SKIPPABLE_MAGIC: Final = b"\x2a\x4d\x18"
"""This follows the byte of 0x50 to 0x5f that a skippable frame begins with."""
_FOREIGN: Final = {b"BZh": "bzip2", b"\xfd7zXZ\0": "xz"}


def compression_of(first: bytes, where: str) -> str:
    """Says ``gzip``, ``zstd`` or ``none`` of a layer that begins with ``first`` (SNIFFED_BYTES, or all of a shorter
    one).

    Raises UnsupportedMediaType for what a layer cannot be compressed with.
    """
    if first[:2] == b"\x1f\x8b":
        return GZIP
    if first[:4] == ZSTD_MAGIC or (first[1:4] == SKIPPABLE_MAGIC and 0x50 <= first[0] <= 0x5F):
        return ZSTD
    for magic, name in _FOREIGN.items():
        if first.startswith(magic):
            raise UnsupportedMediaType(f"{where}: is compressed with {name}; layers are gzip, zstd or plain tar")
    return NONE


def sniffed(pieces: Iterable[bytes], where: str) -> tuple[str, Iterator[bytes]]:
    """Returns the compression of a layer that comes in pieces, and the same pieces."""
    iterator = iter(pieces)
    head: list[bytes] = []
    for piece in iterator:
        head.append(piece)
        if sum(map(len, head)) >= SNIFFED_BYTES:
            break
    return compression_of(b"".join(head)[:SNIFFED_BYTES], where), chain(head, iterator)
