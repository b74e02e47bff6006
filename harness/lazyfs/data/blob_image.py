"""This module opens the EROFS index behind the blob presentation, and reads its metadata for the paths of files."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from functools import partial
from typing import TYPE_CHECKING

from harness.errors import DigestMismatch, FormatError
from harness.formats.erofs.index import index_parts, load_erofs_index
from harness.formats.table import Kind
from harness.lazyfs.data.indexed_units import IndexedUnits
from harness.lazyfs.data.sources import BlobRanges, fetch_verified
from harness.lazyfs.data.unit_file import UnitFile
from harness.lazyfs.trace import touch_of
from harness.oci.descriptor import Descriptor

if TYPE_CHECKING:
    from collections.abc import Iterable

    from harness.formats.erofs.index import ErofsIndex
    from harness.formats.erofs.reader import ErofsImage
    from harness.lazyfs.data.disk_cache import CacheFiles, SparseFile
    from harness.lazyfs.messages import ErofsIndexName, FileRange, Touch
    from harness.lazyfs.trace import BlockTrace
    from harness.oci.store import BlobStore


WINDOWS = "windows"
"""Names the cache file that the windows blob is brought to."""
_PIECE_BYTES = 4 << 20


class Windows:
    """Reads the windows blob as a RangeSource: from the registry, until ``fetch_all`` has brought it to the disk."""

    def __init__(self, remote: BlobRanges, digest: str) -> None:
        self._remote = remote
        self._digest = digest
        self._local: UnitFile | None = None

    def read_range(self, offset: int, size: int) -> bytes:
        """Returns exactly ``size`` bytes at ``offset``, unverified: each window has a digest of its own."""
        if self._local is not None:
            parts = []
            for piece in range(offset // _PIECE_BYTES, -(-(offset + size) // _PIECE_BYTES)):
                begin, length = self._extent(piece)
                low, high = max(offset, begin), min(offset + size, begin + length)
                parts.append(self._local.read(piece, low - begin, high - low))
            known = [part for part in parts if part is not None]
            if len(known) == len(parts):
                return b"".join(known)
        return self._remote.read_range(offset, size)

    def _extent(self, piece: int) -> tuple[int, int]:
        begin = piece * _PIECE_BYTES
        return begin, min(_PIECE_BYTES, self._remote.size - begin)

    def fetch_all(self, file: SparseFile, files: CacheFiles, store: BlobStore) -> bool:
        """Brings the whole blob from ``store`` to ``file``; returns False when the disk is full. Blocks.

        What an earlier daemon has brought there is not fetched again. Raises DigestMismatch or RegistryError.
        """
        if self._local is not None:
            return True
        remote = BlobRanges(store, self._digest, self._remote.size)
        local = UnitFile(file, self._extent, files.written(WINDOWS), partial(files.note_unit, WINDOWS))
        hasher = hashlib.sha256()
        for piece in range(-(-remote.size // _PIECE_BYTES)):
            begin, length = self._extent(piece)
            data: bytes | memoryview | None = local.read(piece, 0, length)
            if data is None:
                data = remote.read_range(begin, length)
                if not local.write(piece, [data]):
                    return False
            hasher.update(data)
        actual = f"sha256:{hasher.hexdigest()}"
        if actual != self._digest:
            raise DigestMismatch("EROFS index: windows", self._digest, actual)
        self._local = local
        return True


class BlobImage:
    """Holds a loaded index with its layers' units; ``index`` has the metadata and says where each layer stands."""

    def __init__(self, store: BlobStore, index: ErofsIndex, head_digest: str) -> None:
        self.index = index
        self.head_digest = head_digest
        self.windows: Windows | None = None
        if index.windows is not None:
            ranges = BlobRanges(store, index.windows.digest, index.windows.size)
            self.windows = Windows(ranges, index.windows.digest)
        self.units = [IndexedUnits(layer, self.windows) for layer in index.layers]
        self.sources = [BlobRanges(store, layer.digest, layer.compressed_bytes) for layer in index.layers]
        self._reader: ErofsImage | None = None

    @classmethod
    def open(cls, store: BlobStore, name: ErofsIndexName) -> BlobImage:
        """Fetch and load the index; blocks.

        Raises FormatError, DigestMismatch or RegistryError.
        """
        manifest = name.manifest.encode()
        image, *layers = [Descriptor(blob.media_type, blob.digest, blob.size) for blob in (name.image, *name.layers)]
        head, _ = index_parts(manifest, image.digest)
        data = fetch_verified(store, head.digest, head.size, "EROFS index: head")
        return cls(store, load_erofs_index(manifest, data, image, layers), head.digest)

    def _metadata(self) -> ErofsImage:
        if self._reader is None:
            from harness.formats.erofs.reader import ErofsImage, over_bytes

            self._reader = ErofsImage(over_bytes(self.index.metadata))
        return self._reader

    def _layer_extent(self, image_offset: int, size: int) -> tuple[int, int, int]:
        """Returns (layer, begin, end) of bytes of the image file, cut to the layer."""
        number = bisect_right(self.index.layer_starts, image_offset) - 1
        layer = self.index.layers[number]
        begin = image_offset - layer.start
        return number, begin, min(begin + size, layer.size)

    def extents_of(self, files: Iterable[FileRange]) -> list[tuple[int, int, int]]:
        """Returns (layer, begin, end) of these parts of files in the given order, and leaves out what is no file."""
        image = self._metadata()
        extents = []
        for file in files:
            try:
                inode = image.resolve(file.path.encode("utf-8", "surrogateescape"))
            except FormatError:
                continue
            if inode is None or inode.kind != Kind.REG:
                continue
            for extent in image.extents(inode):
                begin = max(extent.file_offset, file.offset)
                end = extent.file_offset + extent.size
                if file.size is not None:
                    end = min(end, file.offset + file.size)
                if extent.image_offset >= 0 and begin < end:
                    extents.append(self._layer_extent(extent.image_offset + begin - extent.file_offset, end - begin))
        return extents

    def name_touches(self, trace: BlockTrace) -> list[Touch]:
        """Returns the first touches by file, in their order: the read blocks are mapped back through the metadata.

        A block may hold several small files: all of them count as touched, since fetching the block brought them all.
        """
        files = sorted(
            (extent.image_offset, extent.size, extent.file_offset, path)
            for path, extent in self._metadata().file_extents()
        )
        starts = [start for start, _, _, _ in files]
        seen: dict[bytes, list[tuple[int, int, float]]] = {}
        layers: dict[bytes, int] = {}
        for number, begin, end, at_s in trace.touched():
            base = self.index.layers[number].start
            first = max(0, bisect_right(starts, base + begin) - 1)
            for start, size, file_offset, path in files[first:]:
                if start >= base + end:
                    break
                low, high = max(start, base + begin), min(start + size, base + end)
                if low >= high:
                    continue
                layers.setdefault(path, number)
                seen.setdefault(path, []).append((low - start + file_offset, high - low, at_s))
        return [
            touch_of("/" + path.decode("utf-8", "surrogateescape"), layers[path], reads) for path, reads in seen.items()
        ]
