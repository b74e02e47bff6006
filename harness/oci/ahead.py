"""This module makes a store whose answers can be asked for before they are wanted, so that requests need not wait in
turn.

A start far from its registry pays for each request that waits for another one's answer. Whoever knows early what will
be wanted asks ahead (``expect_…``), in a thread beside; the reader then asks as ever and gets the answer that is on its
way. What an early request raised is raised when its answer is wanted, and forgotten where nobody wants it.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, NamedTuple

from harness.errors import ColdbenchError
from harness.oci.aside import Aside
from harness.oci.over import Over

if TYPE_CHECKING:
    from collections.abc import Callable

    from harness.oci.descriptor import Descriptor
    from harness.oci.store import BlobStore

MOST_BYTES = 64 << 20
"""Ranges beyond this are not asked for ahead: the names of what to expect are not verified yet."""
_PART_BYTES = 128 << 10
"""A range is asked for in parts of at least this size, over connections that are in slow start side by side."""


class _Range(NamedTuple):
    begin: int
    end: int
    parts: list[Aside[bytes]]

    def read(self) -> bytes:
        pieces = [part.result() for part in self.parts]
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)


class Ahead(Over):
    """This ``harness.oci.store.BlobStore`` stands over another one; it is safe from any number of threads where that
    is.
    """

    def __init__(self, store: BlobStore) -> None:
        super().__init__(store)
        self._lock = threading.Lock()
        self._manifests: dict[str, Aside[tuple[bytes, str]]] = {}
        self._referrers: dict[tuple[str, str | None], Aside[list[Descriptor]]] = {}
        self._ranges: dict[str, list[_Range]] = {}
        self._blobs: dict[str, Aside[bytes]] = {}

    # asking ahead

    def expect_manifest(self, reference: str) -> Aside[tuple[bytes, str]]:
        """Asks ahead for a manifest that will be wanted, once."""
        with self._lock:
            if reference not in self._manifests:
                self._manifests[reference] = Aside(lambda: self._store.manifest(reference))
            return self._manifests[reference]

    def expect_referrers(self, digest: str, artifact_type: str | None) -> Aside[list[Descriptor]]:
        """Asks ahead for the referrers of a manifest that will be wanted, once."""
        key = (digest, artifact_type)
        with self._lock:
            if key not in self._referrers:
                self._referrers[key] = Aside(lambda: self._store.referrers(*key))
            return self._referrers[key]

    def expect_range(self, digest: str, offset: int, size: int, parts: int = 1) -> None:
        """Asks ahead for bytes of a blob that will be wanted, at once or a part of them; ``parts`` requests at most
        bring them.
        """
        if not 0 < size <= MOST_BYTES or offset < 0:
            return
        parts = max(1, min(parts, size // _PART_BYTES))
        step = -(-size // parts)

        def read(begin: int, length: int) -> Callable[[], bytes]:
            return lambda: self._store.get_range(digest, begin, length)

        with self._lock:
            known = self._ranges.setdefault(digest, [])
            if any(r.begin <= offset and offset + size <= r.end for r in known):
                return
            ends = range(offset, offset + size, step)
            known.append(
                _Range(offset, offset + size, [Aside(read(b, min(step, offset + size - b))) for b in ends])
            )  # fmt: skip

    def expect_blob(self, digest: str, size: int) -> None:
        """Asks ahead for a whole blob that will be streamed, once."""
        with self._lock:
            if 0 < size <= MOST_BYTES and digest not in self._blobs:
                self._blobs[digest] = Aside(lambda: self._store.get_range(digest, 0, size))

    # reading

    def manifest(self, reference: str) -> tuple[bytes, str]:
        with self._lock:
            expected = self._manifests.pop(reference, None)
        return self._store.manifest(reference) if expected is None else expected.result()

    def referrers(self, digest: str, artifact_type: str | None = None) -> list[Descriptor]:
        with self._lock:
            expected = self._referrers.pop((digest, artifact_type), None)
        return self._store.referrers(digest, artifact_type) if expected is None else expected.result()

    def get_range(self, digest: str, offset: int, size: int) -> bytes:
        if self._ranges:
            expected = self._take(digest, offset, size)
            if expected is not None:
                return expected.read()[offset - expected.begin : offset - expected.begin + size]
        return self._store.get_range(digest, offset, size)

    def _take(self, digest: str, offset: int, size: int) -> _Range | None:
        with self._lock:
            known = self._ranges.get(digest, [])
            found = next((r for r in known if r.begin <= offset and offset + size <= r.end), None)
            if found is not None:
                known.remove(found)
                if not known:
                    del self._ranges[digest]
            return found

    def stream_blob(self, digest: str, sink: Callable[[bytes], object]) -> int:
        with self._lock:
            expected = self._blobs.pop(digest, None)
        if expected is None:
            return self._store.stream_blob(digest, sink)
        data = expected.result()
        sink(data)
        return len(data)

    # of a registry client

    @property
    def link(self) -> Any:
        """Returns what the requests so far say of the way to the registry; None for a store that has no such thing."""
        return getattr(self._store, "link", None)

    @property
    def counters(self) -> Any:
        """Returns requests and bytes so far; None for a store that does not count."""
        return getattr(self._store, "counters", None)

    @property
    def asked(self) -> list[tuple[int, int]]:
        """Returns when its first requests began and ended (``harness.oci.registry.rounds``)."""
        return list(getattr(self._store, "asked", ()))

    def connect(self, count: int) -> None:
        """Opens connections that the next requests will take, where the store has such."""
        connect = getattr(self._store, "connect", None)
        if connect is not None:
            connect(count)


def quietly(call: Callable[[], object]) -> Aside[None]:
    """Runs ``call`` beside; an error of ours is dropped, since whoever wants the answer gets it again."""

    def run() -> None:
        try:
            call()
        except ColdbenchError:
            return

    return Aside(run)
