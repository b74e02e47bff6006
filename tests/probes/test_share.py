"""Starts that read a share of the image: which bytes, in what order, and that the readers read just those."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from harness.errors import UsageError
from harness.probes.selection import ImageFile
from harness.probes.share import PIECE_BYTES, Piece, choose, start

if TYPE_CHECKING:
    from pathlib import Path

PERL = ImageFile("/usr/bin/perl", "file", 4 << 20)
FILES = [
    PERL,
    *(ImageFile(f"/usr/lib/{d}/m{n}.py", "file", 900 + 37 * n) for d in "abcd" for n in range(40)),
    ImageFile("/opt/blob", "file", 10 * PIECE_BYTES + 5),
    ImageFile("/opt", "dir"),
    ImageFile("/opt/empty", "file", 0),
    ImageFile("/proc/version", "file", 100),
    ImageFile("/etc/hosts", "file", 100),
    ImageFile("/opt/line\nbreak", "file", 100),
    ImageFile("/opt/\udcff", "file", 100),
]
ALL = PERL.size + sum(900 + 37 * n for n in range(40)) * 4 + 10 * PIECE_BYTES + 5


def total(pieces: list[Piece]) -> int:
    return sum(piece.length for piece in pieces)


@pytest.mark.parametrize("percent", [1, 20, 50, 99])
def test_a_share_is_the_bytes_asked_for(percent: int) -> None:
    """At least the share, and not a whole piece more; each byte once, none outside its file."""
    pieces = choose(FILES, percent)
    assert ALL * percent / 100 <= total(pieces) < ALL * percent / 100 + PIECE_BYTES
    sizes = {file.path: file.size for file in FILES}
    covered: set[tuple[str, int]] = set()
    for piece in pieces:
        assert 0 <= piece.offset < piece.offset + piece.length <= sizes[piece.path]
        ranges = {(piece.path, at) for at in range(piece.offset, piece.offset + piece.length, 100)}
        assert not ranges & covered
        covered |= ranges


def test_all_of_it_is_whole_files() -> None:
    """At 100 % each file that can be read is one piece; what is empty, mounted over or cannot be named is none."""
    pieces = choose(FILES, 100)
    assert total(pieces) == ALL
    assert len(pieces) == 4 * 40 + 2
    assert {p.path for p in pieces}.isdisjoint({"/proc/version", "/etc/hosts", "/opt/line\nbreak", "/opt/\udcff"})


def test_a_smaller_share_is_part_of_a_larger_one() -> None:
    """So a curve over the shares shows what more bytes cost, and no other choice of files."""

    def blocks(percent: int) -> set[tuple[str, int]]:
        found = choose(FILES, percent, seed=3)
        return {(p.path, at) for p in found for at in range(p.offset, p.offset + p.length, PIECE_BYTES)}

    assert blocks(5) < blocks(20) < blocks(60) < blocks(100)


def test_by_directory_a_share_is_some_packages_whole() -> None:
    """All but the last directory are read whole: what a start that loads packages does."""
    pieces = choose(FILES, 60, seed=2, by="directory")
    assert ALL * 0.6 <= total(pieces) < ALL * 0.6 + PIECE_BYTES
    sizes: dict[str, int] = {}
    for file in FILES:
        sizes[os.path.dirname(file.path)] = sizes.get(os.path.dirname(file.path), 0) + file.size
    read: dict[str, int] = {}
    for piece in pieces:
        read[os.path.dirname(piece.path)] = read.get(os.path.dirname(piece.path), 0) + piece.length
    whole = [directory for directory, size in read.items() if directory != "/opt" and size == sizes[directory]]
    assert len(read) - len([d for d in read if d == "/opt"]) - len(whole) <= 1
    assert choose(FILES, 20, seed=2, by="directory") != choose(FILES, 20, seed=2)


def test_the_seed_draws_it() -> None:
    """Same seed, same pieces in the same order, also when the files are listed otherwise; another seed, others."""
    assert choose(FILES, 10, seed=1) == choose(list(reversed(FILES)), 10, seed=1)
    assert choose(FILES, 10, seed=1) != choose(FILES, 10, seed=2)


def test_read_as_programs_read_packages() -> None:
    """A directory's files come together, by name."""
    paths = [piece.path for piece in choose(FILES, 100)]
    directories = [os.path.dirname(path) for path in paths]
    assert len([d for d, before in zip(directories, ["", *directories], strict=False) if d != before]) == 6
    inside = [path for path in paths if path.startswith("/usr/lib/a/")]
    assert inside == sorted(inside)


def test_an_image_without_a_reader_is_refused() -> None:
    """Nothing is put into an image: where it has neither perl nor python3, the words say so."""
    with pytest.raises(UsageError, match="expected perl or python3 in the image"):
        start([file for file in FILES if file is not PERL], 10)


def test_more_pieces_than_arguments_hold_are_refused() -> None:
    """A program takes 2 MB of arguments: the words say what to change."""
    many = [ImageFile(f"/data/{n:06}-{os.urandom(30).hex()}", "file", 10) for n in range(40_000)]
    with pytest.raises(UsageError, match="take a smaller percent"):
        start([PERL, *many], 100)


@pytest.mark.files
@pytest.mark.parametrize("reader", ["perl", "python3"])
def test_the_readers_read_just_that(reader: str, tmp_path: Path) -> None:
    """Perl and Python take the same arguments, read every byte of every piece, and fail where one is missing."""
    program = shutil.which(reader)
    assert program is not None, f"{reader} comes with the system"
    tree = {f"d{n % 3}/ümlaut {n} é": os.urandom(500 + n) for n in range(60)} | {"large": os.urandom(3 * PIECE_BYTES)}
    for name, content in tree.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    files = [ImageFile(str(tmp_path / name), "file", len(content)) for name, content in tree.items()]
    made = start([*files, ImageFile(f"/usr/bin/{reader}", "file", 0)], 60)
    command = [program, *made.command[1:]]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == f"read {made.bytes} bytes in {made.pieces} pieces\n"
    gone = next(piece for piece in choose(files, 60) if piece.length < PIECE_BYTES)
    path = tmp_path / gone.path
    path.write_bytes(path.read_bytes()[:-1])
    short = subprocess.run(command, capture_output=True, text=True, check=False)
    assert short.returncode != 0
    assert "ended early" in short.stderr
    path.unlink()
    missing = subprocess.run(command, capture_output=True, text=True, check=False)
    assert missing.returncode != 0
    assert "No such file" in missing.stderr
