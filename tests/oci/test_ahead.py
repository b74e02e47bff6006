"""Answers that are asked for before they are wanted."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

from harness.errors import ImageNotFound, RegistryError
from harness.oci.ahead import MOST_BYTES, Ahead, quietly
from harness.oci.descriptor import Descriptor

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

BLOB = bytes(range(256)) * 4096
"""A megabyte."""


class Store:
    """A store that notes what it is asked; manifests called ``gone`` are not there."""

    where = "here"

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.remarks: list[str] = []
        self.lock = threading.Lock()

    def note(self, what: str) -> None:
        with self.lock:
            self.asked.append(what)

    def manifest(self, reference: str) -> tuple[bytes, str]:
        self.note(f"manifest {reference}")
        if reference == "gone":
            raise ImageNotFound("gone")
        return reference.encode(), "type"

    def blob_size(self, digest: str) -> int | None:
        return len(BLOB)

    def get_range(self, digest: str, offset: int, size: int) -> bytes:
        self.note(f"{digest} {offset}+{size}")
        if digest == "gone":
            raise RegistryError("gone")
        return BLOB[offset : offset + size]

    def stream_blob(self, digest: str, sink: Callable[[bytes], object]) -> int:
        sink(BLOB)
        return len(BLOB)

    def blob_path(self, digest: str) -> Path | None:
        return None

    def referrers(self, digest: str, artifact_type: str | None = None) -> list[Descriptor]:
        self.note(f"referrers {digest}")
        return [Descriptor("m", "sha256:" + "0" * 64, 1)]

    def close(self) -> None:
        self.note("close")


def test_each_answer_is_asked_for_once() -> None:
    """What was expected is not asked for again when it is wanted, and what is wanted a second time is."""
    store = Store()
    ahead = Ahead(store)
    for _ in range(2):
        ahead.expect_manifest("a")
        ahead.expect_referrers("a", "t")
        ahead.expect_range("b", 0, 1000)
    assert ahead.manifest("a") == (b"a", "type")
    assert len(ahead.referrers("a", "t")) == 1
    assert ahead.get_range("b", 0, 1000) == BLOB[:1000]
    assert sorted(store.asked) == ["b 0+1000", "manifest a", "referrers a"]
    ahead.manifest("a")
    ahead.get_range("b", 0, 1000)
    assert len(store.asked) == 5


def test_a_part_of_what_was_expected_is_there_too() -> None:
    """A wider range serves a narrower wish; one that it does not cover is a request of its own."""
    store = Store()
    ahead = Ahead(store)
    ahead.expect_range("b", 1000, 9000)
    assert ahead.get_range("b", 5000, 5000) == BLOB[5000:10_000]
    ahead.expect_range("b", 1000, 9000)
    assert ahead.get_range("b", 900, 200) == BLOB[900:1100]
    assert store.asked[-1] == "b 900+200"


def test_a_large_range_comes_in_parts() -> None:
    """The parts are put together in order; a small range is one request however many may bring it."""
    store = Store()
    ahead = Ahead(store)
    ahead.expect_range("b", 10, 1_000_001, parts=4)
    assert ahead.get_range("b", 10, 1_000_001) == BLOB[10:1_000_011]
    assert len(store.asked) == 4
    ahead.expect_range("c", 0, 1000, parts=4)
    ahead.get_range("c", 0, 1000)
    assert len(store.asked) == 5


def test_a_blob_may_be_expected_whole() -> None:
    """Then it is handed on in one piece; a second time, and a huge one, it is streamed as ever."""
    store = Store()
    ahead = Ahead(store)
    ahead.expect_blob("b", len(BLOB))
    ahead.expect_blob("b", len(BLOB))
    ahead.expect_blob("huge", MOST_BYTES + 1)
    for _ in range(2):
        pieces: list[bytes] = []
        assert ahead.stream_blob("b", pieces.append) == len(BLOB)
        assert pieces == [BLOB]
    assert store.asked == [f"b 0+{len(BLOB)}"]


def test_errors_come_when_the_answer_is_wanted() -> None:
    """Not before, and not where nobody asks for it; a follower that meets one says nothing."""
    ahead = Ahead(Store())
    ahead.expect_manifest("gone")
    ahead.expect_range("gone", 0, 10)
    quietly(lambda: ahead.expect_manifest("gone").result()).result()
    with pytest.raises(ImageNotFound):
        ahead.manifest("gone")
    with pytest.raises(RegistryError):
        ahead.get_range("gone", 0, 10)


def test_what_nobody_vouches_for_is_not_fetched_without_bound() -> None:
    """Anybody may have written the lists that names come from: impossible and huge ranges are not asked for ahead."""
    store = Store()
    ahead = Ahead(store)
    ahead.expect_range("b", 0, MOST_BYTES + 1)
    ahead.expect_range("b", -1, 10)
    ahead.expect_range("b", 0, 0)
    ahead.connect(3)
    assert store.asked == []
    assert (ahead.link, ahead.counters) == (None, None)
