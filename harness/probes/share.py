"""This module makes a start that reads a share of the image's bytes: it chooses the bytes, and the command that reads
them.

The image's files are cut into units: whole files, and pieces of large ones. A seeded rank orders the units, and a share
takes the first of them, so that a smaller share is part of every larger one, in every mode and compression alike. By
``file`` each unit has a rank of its own, so that even a small share lies all over the image: the worst that a lazy mode
can meet. By ``directory`` all units of one have the rank of their directory: a start that reads some packages whole.
What was drawn is read directory after directory in a seeded order, names within one in theirs.

An interpreter of the image's own reads them (perl or python3; nothing is put into the image), told what to read in its
arguments. It fails unless it gets every byte that it asks for.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from harness.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from harness.probes.selection import ImageFile

By = Literal["file", "directory"]

PIECE_BYTES = 256 << 10
"""Files up to this size are read whole; a larger one is cut into pieces of it."""
#: Where other things are mounted in a container than the image's own.
_COVERED = ("/proc/", "/sys/", "/dev/")
_BOUND = frozenset({"/etc/hosts", "/etc/hostname", "/etc/resolv.conf"})

#: execve(2): one argument may have 128 KiB, all together and the environment a quarter of the stack's limit of 8 MiB.
_ARGUMENT_BYTES = 120_000
_ARGUMENTS_BYTES = 1_900_000

# Each line of an argument: bytes shared with the path before, offset, length, the rest of the path.
_PERL = r"""
my ($all, $n, $path) = (0, 0, "");
for (map { split /\n/ } @ARGV) {
  my ($same, $at, $left, $rest) = split / /, $_, 4;
  $path = substr($path, 0, $same) . $rest;
  open(my $file, "<:raw", $path) or die "$path: $!\n";
  sysseek($file, $at, 0) if $at;
  while ($left > 0) {
    my $got = sysread($file, my $data, $left < 131072 ? $left : 131072);
    die "$path: " . (defined $got ? "ended early" : $!) . "\n" unless $got;
    $left -= $got; $all += $got;
  }
  $n++;
}
print "read $all bytes in $n pieces\n";
"""
_PYTHON = r"""
import os, sys
total = count = 0
path = b""
for line in (line for argument in sys.argv[1:] for line in os.fsencode(argument).split(b"\n")):
    same, at, left, rest = line.split(b" ", 3)
    path = path[: int(same)] + rest
    left = int(left)
    file = os.open(path, os.O_RDONLY)
    if int(at):
        os.lseek(file, int(at), os.SEEK_SET)
    while left:
        got = len(os.read(file, min(left, 131072)))
        if not got:
            sys.exit(os.fsdecode(path) + ": ended early")
        left -= got
        total += got
    os.close(file)
    count += 1
print("read", total, "bytes in", count, "pieces")
"""
_READERS = (("perl", ("-e", _PERL)), ("python3", ("-I", "-S", "-c", _PYTHON)))
_PLACES = ("/usr/bin", "/usr/local/bin", "/bin")


@dataclass(frozen=True, slots=True)
class Piece:
    """Names so many bytes of a file, from an offset."""

    path: str
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class ShareStart:
    """Holds the command, and what it reads: bytes, pieces, and the bytes of all files that it chose from."""

    command: tuple[str, ...]
    bytes: int
    pieces: int
    of_bytes: int


def choose(files: Iterable[ImageFile], percent: int, seed: int = 0, by: By = "file") -> list[Piece]:
    """Chooses the pieces that make up a share of the files' bytes (a last one too many), in the order they are read.

    A file whose name is no printable UTF-8, or holds a line break, is none of them: it cannot stand in an argument.
    """
    usable = [f for f in files if _usable(f)]
    units = [unit for file in usable for unit in _units(file)]
    wanted = sum(file.size for file in usable) * percent / 100
    places = {directory: _rank(directory, seed) for directory in {os.path.dirname(unit.path) for unit in units}}
    if by == "file":
        units.sort(key=lambda unit: _rank(f"{unit.path}:{unit.offset}", seed))
    else:
        units.sort(key=lambda unit: (places[os.path.dirname(unit.path)], unit.path, unit.offset))
    taken: list[Piece] = []
    size = 0
    for unit in units:
        if size >= wanted:
            break
        taken.append(unit)
        size += unit.length
    taken.sort(key=lambda unit: (places[os.path.dirname(unit.path)], unit.path, unit.offset))
    return _joined(taken)


def start(files: Sequence[ImageFile], percent: int, seed: int = 0, by: By = "file") -> ShareStart:
    """Says what the container of such a start runs.

    Raises:
        UsageError: the image has nothing that can read, or more files than arguments can name.
    """
    reader = _reader(files)
    pieces = choose(files, percent, seed, by)
    arguments = _encoded(pieces)
    if sum(len(os.fsencode(a)) for a in arguments) > _ARGUMENTS_BYTES:
        raise UsageError(
            f"workload.reads: {percent} % of this image are {len(pieces)} pieces, more than the arguments of a program "
            "can name; take a smaller percent, or an image of fewer files"
        )
    size = sum(piece.length for piece in pieces)
    return ShareStart((*reader, *arguments), size, len(pieces), sum(f.size for f in files if _usable(f)))


def _reader(files: Iterable[ImageFile]) -> tuple[str, ...]:
    there = {file.path for file in files}
    for name, arguments in _READERS:
        for place in _PLACES:
            if f"{place}/{name}" in there:
                return (f"{place}/{name}", *arguments)
    raise UsageError("workload.reads: expected perl or python3 in the image, to read with; it has neither")


def _usable(file: ImageFile) -> bool:
    path = file.path
    return (
        file.kind == "file"
        and file.size > 0
        and path.isprintable()
        and path not in _BOUND
        and not path.startswith(_COVERED)
    )


def _units(file: ImageFile) -> Iterable[Piece]:
    for offset in range(0, file.size, PIECE_BYTES):
        yield Piece(file.path, offset, min(PIECE_BYTES, file.size - offset))


def _joined(pieces: Iterable[Piece]) -> list[Piece]:
    """Returns the pieces, those that follow each other in one file as one."""
    out: list[Piece] = []
    for piece in pieces:
        last = out[-1] if out else None
        if last is not None and last.path == piece.path and last.offset + last.length == piece.offset:
            out[-1] = Piece(last.path, last.offset, last.length + piece.length)
        else:
            out.append(piece)
    return out


def _encoded(pieces: Iterable[Piece]) -> list[str]:
    """Returns the pieces as lines, in as few arguments as they fit in; each line names what its path shares with the
    last.
    """
    arguments: list[str] = []
    lines: list[str] = []
    size, before = 0, b""
    for piece in pieces:
        path = os.fsencode(piece.path)
        same = _shared(before, path)
        line = f"{same} {piece.offset} {piece.length} {path[same:].decode()}"
        length = len(line.encode()) + 1
        if lines and size + length > _ARGUMENT_BYTES:
            arguments.append("\n".join(lines))
            lines, size = [], 0
        lines.append(line)
        size += length
        before = path
    return [*arguments, "\n".join(lines)] if lines else arguments


def _shared(before: bytes, path: bytes) -> int:
    """Counts the bytes at the beginning of both, no part of a character: an argument is text."""
    same = next((k for k, (a, b) in enumerate(zip(before, path, strict=False)) if a != b), min(len(before), len(path)))
    while same and path[same : same + 1] and path[same] & 0xC0 == 0x80:
        same -= 1
    return same


def _rank(text: str, seed: int) -> bytes:
    return hashlib.blake2b(f"{seed}:{text}".encode("utf-8", "surrogateescape"), digest_size=8).digest()
