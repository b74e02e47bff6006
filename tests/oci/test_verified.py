"""Files that were compared with their digests."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from harness.errors import ContentError, DigestMismatch
from harness.oci import verified
from harness.oci.descriptor import Descriptor
from harness.oci.layout import LayoutStore

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.files

DATA = bytes(range(256)) * 64
BLOB = Descriptor.of(DATA, "application/octet-stream")


class Unread:
    """Stands for the work that is not done again."""

    def __init__(self, *_arguments: object) -> None:
        raise AssertionError("the file was read again")


def test_a_file_is_compared_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hard link to it needs no second look, under whatever name."""
    file, link = tmp_path / "blob", tmp_path / "link"
    file.write_bytes(DATA)
    verified.verify_file(file, BLOB)
    os.link(file, link)
    monkeypatch.setattr(verified, "Verifier", Unread)
    verified.verify_file(link, BLOB)


def test_what_was_written_since_is_compared_again(tmp_path: Path) -> None:
    """The same file with other bytes, a copy of it, and the same bytes under another digest are not taken on trust."""
    file = tmp_path / "blob"
    file.write_bytes(DATA)
    verified.verify_file(file, BLOB)
    os.utime(file, ns=(0, 0))
    with open(file, "r+b") as changed:
        changed.write(b"x")
    with pytest.raises(DigestMismatch):
        verified.verify_file(file, BLOB)
    copy = tmp_path / "copy"
    copy.write_bytes(DATA[:-1])
    with pytest.raises(ContentError, match="is cut"):
        verified.verify_file(copy, BLOB)
    other = tmp_path / "other"
    other.write_bytes(DATA)
    verified.verify_file(other, BLOB)
    with pytest.raises(DigestMismatch):
        verified.verify_file(other, Descriptor(BLOB.media_type, Descriptor.of(b"", "x").digest, BLOB.size))


def test_a_layout_knows_what_it_wrote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A blob that came as bytes was hashed on the way; linking it into another layout reads nothing."""
    first = LayoutStore(tmp_path / "first", "latest", create=True)
    first.put_blob(BLOB, DATA)
    second = LayoutStore(tmp_path / "second", "latest", create=True)
    monkeypatch.setattr(verified, "Verifier", Unread)
    assert second.mount_blob(BLOB, first)
    assert second.get_range(BLOB.digest, 0, BLOB.size) == DATA
