"""This module compares files with their digests, and remembers which ones this process has compared already.

A session puts one image into several forms, whose layers are hard links to the same files: a gigabyte takes two seconds
to hash each time, and says the same.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from harness.oci.store import CHUNK_BYTES, Verifier

if TYPE_CHECKING:
    from collections.abc import Iterator
    from io import FileIO
    from pathlib import Path

    from harness.oci.descriptor import Descriptor

_verified: set[tuple[int, int, int, int, str]] = set()


def verify_file(path: Path, descriptor: Descriptor) -> None:
    """Compares a file with its descriptor, unless this process has done so since the file was last written.

    Raises:
        ContentError: digest or size differ.
        OSError: the file cannot be read.
    """
    if _key(os.stat(path), descriptor) in _verified:
        return
    verifier = Verifier(descriptor, str(path))
    with open(path, "rb", buffering=0) as file:
        before = os.fstat(file.fileno())
        for piece in _pieces(file):
            verifier.update(piece)
    verifier.finish()
    _verified.add(_key(before, descriptor))


def note_verified(file: int, descriptor: Descriptor) -> None:
    """Takes the word of who wrote exactly the described bytes into the open ``file``."""
    _verified.add(_key(os.fstat(file), descriptor))


def read_pieces(path: Path) -> Iterator[bytes]:
    """Reads a file in pieces of CHUNK_BYTES."""
    with open(path, "rb", buffering=0) as file:
        yield from _pieces(file)


def _pieces(file: FileIO) -> Iterator[bytes]:
    while piece := file.read(CHUNK_BYTES):
        yield piece


def _key(status: os.stat_result, descriptor: Descriptor) -> tuple[int, int, int, int, str]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, descriptor.digest
