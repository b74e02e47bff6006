"""This module writes EROFS metadata for a merged tree whose file data stand, inflated and unchanged, in the layers
behind it.

The image is ``[metadata | address space of layer 0 | layer 1 | ...]``, every part padded to 4096 bytes. A file is "from
block N on" (FLAT_PLAIN), which a tar's payloads, being contiguous and at multiples of 512, are in blocks of 512 bytes.
Only the metadata is written here. A directory's full blocks come first, then its inode with the rest of its entries
behind it, then the inodes of its other children; so a lookup, a listing and the stat calls after it stay together.

An inode takes the compact form (32 bytes) where that loses nothing: ids and link count of 16 bits, size of 32, and a
modification time equal to the superblock's, which is the one that most inodes have.

Sparse files become chunk-based inodes with holes. Data at other than multiples of the block size cannot be referred to:
that is a FormatError which names the layer, and the image is then not presentable in this form.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import numpy as np

from harness.errors import FormatError
from harness.formats.erofs import xattr as erofs_xattr
from harness.formats.erofs.layout import (
    BLOCK_SIZES,
    CHUNK_BASED,
    CHUNKED_FILE,
    COMPACT,
    COMPAT_MTIME,
    COMPAT_SUPER_CHECKSUM,
    DIRENT,
    EXTENDED,
    FLAT_INLINE,
    FORMAT_BITS,
    MAX_BLOCKS,
    PART_ALIGN,
    SLOT_BYTES,
    SUPER_OFFSET,
    SUPER_SIZE,
    SYMLINK_MAX,
    Superblock,
    align,
    checksum_span,
    crc32c,
    encode_rdev,
)
from harness.formats.table import Kind

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from harness.formats.erofs.merge import Fragment, MergedTree

_FIRST_INODE: Final = SUPER_OFFSET + SUPER_SIZE
_MAX_CHUNK_MAP: Final = 64 << 20
"""It limits the bytes of block numbers for one sparse file; a file that needs more is refused."""


@dataclass(frozen=True, slots=True)
class ErofsMetadata:
    """Holds metadata (a multiple of 4096 bytes) and where each layer's address space begins behind it, in bytes."""

    data: bytes
    layer_starts: tuple[int, ...]
    image_bytes: int
    inodes: int
    entries: int


def write_metadata(tree: MergedTree, address_space_bytes: Sequence[int], *, block_size: int = 512) -> ErofsMetadata:
    """Writes metadata of ``tree`` over layers of the given sizes; the same input gives the same bytes. Raises
    FormatError.
    """
    if block_size not in BLOCK_SIZES:
        raise ValueError(f"block size {block_size} is not one of {BLOCK_SIZES}")
    return _Writer(tree, address_space_bytes, block_size).write()


class _Writer:
    def __init__(self, tree: MergedTree, address_space_bytes: Sequence[int], block_size: int) -> None:
        self.tree = tree
        self.spaces = address_space_bytes
        self.block_size = block_size
        self.xattrs, self.shared = erofs_xattr.plan(tree.xattrs)
        self.count = len(tree)
        self.layouts = np.zeros(self.count, dtype=np.uint16)
        self.sizes = tree.sizes.astype(np.uint64)
        self.build_time_s, self.build_time_ns = _commonest_time(tree)
        self.bodies = np.full(self.count, 64, dtype=np.int64)
        """Counts the bytes of inode and inline xattrs."""
        self.compact = self._compact()
        self.bodies[self.compact] = 32
        self.icounts = np.zeros(self.count, dtype=np.uint16)
        for inode, raw in self.xattrs.items():
            self.bodies[inode] += len(raw)
            self.icounts[inode] = (len(raw) - erofs_xattr.HEADER_BYTES) // 4 + 1

    def _compact(self) -> npt.NDArray[np.bool_]:
        tree = self.tree
        small: npt.NDArray[np.bool_] = (
            (tree.uids < 1 << 16)
            & (tree.gids < 1 << 16)
            & (tree.nlinks < 1 << 16)
            & (tree.sizes < 1 << 32)
            & (tree.mtimes_s == self.build_time_s)
            & (tree.mtimes_ns == self.build_time_ns)
        )
        return small

    def write(self) -> ErofsMetadata:
        tree, block = self.tree, self.block_size
        blocks = self._split_directories()
        self._measure_chunk_maps()
        positions, data_starts, end = self._place(blocks)
        shared_start = align(end, block)
        size = align(max(shared_start + len(self.shared), SUPER_OFFSET + checksum_span(block)), PART_ALIGN)
        starts = []
        at = size
        for space in self.spaces:
            starts.append(at)
            at = align(at + space, PART_ALIGN)
        if at // block > MAX_BLOCKS:
            raise FormatError("EROFS image", f"{at} bytes are more than 2**32 blocks of {block}")
        buffer = np.zeros(size, dtype=np.uint8)
        memory = buffer.data
        memory[shared_start : shared_start + len(self.shared)] = self.shared
        self._put_directories(memory, blocks, positions, data_starts)
        for inode, target in tree.links.items():
            start = int(data_starts[inode])
            memory[start : start + len(target)] = target
        units = self._units(data_starts, np.array(starts, dtype=np.int64))
        self._put_chunk_maps(memory, data_starts, starts)
        self._put_inodes(buffer, positions, units)
        for inode, raw in self.xattrs.items():
            start = int(positions[inode]) + (32 if self.compact[inode] else 64)
            memory[start : start + len(raw)] = raw
        superblock = Superblock(
            block_size=block,
            root_nid=int(positions[0]) // SLOT_BYTES,
            inodes=self.count,
            build_time_s=self.build_time_s,
            build_time_ns=self.build_time_ns,
            blocks=at // block,
            meta_block=0,
            xattr_block=shared_start // block if self.shared else 0,
            uuid=hashlib.sha256(memory).digest()[:16],
            feature_compat=COMPAT_SUPER_CHECKSUM | COMPAT_MTIME,
            feature_incompat=CHUNKED_FILE if self.maps else 0,
            checksum=0,
        )
        if superblock.root_nid > 0xFFFF:
            raise FormatError("EROFS root directory", "its entries and attributes do not leave its number below 2**16")
        memory[SUPER_OFFSET:_FIRST_INODE] = superblock.pack()
        crc = crc32c(bytes(memory[SUPER_OFFSET : SUPER_OFFSET + checksum_span(block)]))
        memory[SUPER_OFFSET:_FIRST_INODE] = replace(superblock, checksum=crc).pack()
        return ErofsMetadata(buffer.tobytes(), tuple(starts), at, self.count, len(tree.entry_names))

    def _split_directories(self) -> _DirectoryBlocks:
        """Cuts each directory's sorted entries into blocks, as many entries in each as fit."""
        tree, block = self.tree, self.block_size
        lengths = np.fromiter(map(len, tree.entry_names), dtype=np.int64, count=len(tree.entry_names))
        names_end = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths)])
        cost = names_end + np.arange(len(names_end)) * DIRENT.itemsize
        starts = tree.starts
        total = cost[starts[1:]] - cost[starts[:-1]]
        counts = np.ones(len(total), dtype=np.int64)
        firsts: dict[int, list[int]] = {}
        for directory in np.flatnonzero(total > block).tolist():
            at, stop = int(starts[directory]), int(starts[directory + 1])
            cuts = []
            while at < stop:
                cuts.append(at)
                at = int(np.searchsorted(cost[at : stop + 1], cost[at] + block, side="right")) - 1 + at
            firsts[directory] = cuts
            counts[directory] = len(cuts)
        first = np.repeat(starts[:-1], counts)
        group = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(counts)])
        for directory, cuts in firsts.items():
            first[group[directory] : group[directory + 1]] = cuts
        bounds = np.append(first, len(tree.entry_names))
        used = cost[bounds[1:]] - cost[bounds[:-1]]
        return _DirectoryBlocks(lengths, names_end, group, bounds, used)

    def _measure_chunk_maps(self) -> None:
        self.maps: dict[int, tuple[int, Sequence[Fragment]]] = {}
        for inode, fragments in self.tree.fragments.items():
            size = int(self.tree.sizes[inode])
            if size:
                self.maps[inode] = (_chunk_bits(fragments, size, self.block_size, inode), fragments)
                self.layouts[inode] = CHUNK_BASED

    def _place(self, blocks: _DirectoryBlocks) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], int]:
        """Returns the byte positions of all inodes and of the data of directories, symlinks and chunk maps; the end of
        it all.
        """
        tree, block = self.tree, self.block_size
        special = tree.kinds == Kind.SYMLINK
        special[tree.directories] = True
        tails = np.zeros(self.count, dtype=np.int64)
        whole = np.zeros(self.count, dtype=np.int64)
        whole[tree.directories] = np.diff(blocks.group) - 1
        tails[tree.directories] = blocks.used[blocks.group[1:] - 1]
        self.sizes[tree.directories] = (whole * block + tails)[tree.directories]
        for inode, target in tree.links.items():
            if not 0 < len(target) <= SYMLINK_MAX or b"\0" in target:
                raise FormatError(f"symlink to {target[:80]!r}", f"a target has 1 to {SYMLINK_MAX} bytes and no NUL")
            whole[inode], tails[inode] = divmod(len(target), block)
            self.sizes[inode] = len(target)
        # What stands behind an inode must not cross a block's end; what does not fit at any place gets its own block.
        odd = special & ((tails > block - self.bodies % SLOT_BYTES) | (tails == block) | (tails == 0))
        odd |= special & (tree.kinds == Kind.SYMLINK) & (whole > 0)
        whole[odd] += tails[odd] > 0
        tails[odd] = 0
        self.layouts[special & ~odd] = FLAT_INLINE
        for inode, (bits, _) in self.maps.items():
            special[inode] = True
            tails[inode] = -4 * -(-int(tree.sizes[inode]) >> bits)  # negative: may cross blocks
        slots = -(-self.bodies // SLOT_BYTES) * SLOT_BYTES
        before = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(np.where(special, 0, slots))])
        rows = np.flatnonzero(special)
        run = before.take(np.append(rows, self.count))
        inode_at = np.empty(len(rows), dtype=np.int64)
        data_at = np.empty(len(rows), dtype=np.int64)
        shifts = np.empty(len(rows), dtype=np.int64)
        at = _FIRST_INODE
        if len(rows) == 0 or rows[0] != 0:
            raise ValueError("inode 0 is not a directory")
        for index, (body, tail, full, passed, following) in enumerate(
            zip(
                self.bodies[rows].tolist(), tails[rows].tolist(), whole[rows].tolist(), run.tolist(), run[1:].tolist(),
                strict=False,
            )
        ):  # fmt: skip
            start = -1
            root_blocks = full if index == 0 else 0  # its inode must come first: its number has 16 bits
            if full and not root_blocks:
                start = -(-at // block) * block
                at = start + full * block
            behind = at + body
            if tail > 0:
                if behind % block + tail > block:
                    at = -(-(-(-behind // block) * block - body) // SLOT_BYTES) * SLOT_BYTES
                    behind = at + body
                if not full:
                    start = behind
                data_at[index] = start
                inode_at[index] = at
                at = behind + tail
            else:
                data_at[index] = behind if tail < 0 else start
                inode_at[index] = at
                at = behind - tail
            if root_blocks:
                data_at[0] = -(-at // block) * block
                at = int(data_at[0]) + root_blocks * block
            at = -(-at // SLOT_BYTES) * SLOT_BYTES
            shifts[index] = at - passed
            at += following - passed
        positions = before[:-1] + np.repeat(shifts, np.diff(np.append(rows, self.count)))
        positions[rows] = inode_at
        data_starts = np.full(self.count, -1, dtype=np.int64)
        data_starts[rows] = data_at
        self.tails = tails
        self.whole = whole
        return positions, data_starts, at

    def _put_directories(
        self,
        memory: memoryview,
        blocks: _DirectoryBlocks,
        positions: npt.NDArray[np.int64],
        data_starts: npt.NDArray[np.int64],
    ) -> None:
        tree, block = self.tree, self.block_size
        counts = np.diff(blocks.bounds)
        dirents = np.zeros(len(tree.entry_names), dtype=DIRENT)
        dirents["nid"] = positions[tree.entry_inodes] // SLOT_BYTES
        dirents["type"] = tree.kinds[tree.entry_inodes]
        block_names = blocks.names_end[blocks.bounds[:-1]]
        dirents["nameoff"] = blocks.names_end[:-1] + np.repeat(DIRENT.itemsize * counts - block_names, counts)
        fixed = dirents.view(np.uint8).data
        names = memoryview(b"".join(tree.entry_names))
        # Where each block goes: the whole ones in a row, the last one behind the inode where it is inline.
        group = blocks.group
        number = np.arange(int(group[-1])) - np.repeat(group[:-1], np.diff(group))
        owner = np.repeat(tree.directories, np.diff(group))
        target = data_starts[owner] + number * block
        last = group[1:] - 1
        inline = self.tails[tree.directories] > 0
        target[last[inline]] = (positions + self.bodies)[tree.directories[inline]]
        ends = blocks.names_end[blocks.bounds[1:]].tolist()
        for to, entry, count, name, end in zip(
            target.tolist(), blocks.bounds.tolist(), counts.tolist(), block_names.tolist(), ends, strict=False
        ):
            middle = to + 12 * count
            memory[to:middle] = fixed[12 * entry : 12 * (entry + count)]
            memory[middle : middle + end - name] = names[name:end]

    def _units(self, data_starts: npt.NDArray[np.int64], layer_starts: npt.NDArray[np.int64]) -> npt.NDArray[np.uint32]:
        """Returns the inodes' ``i_u``: start block, device number, or chunk format."""
        tree, block = self.tree, self.block_size
        units = np.zeros(self.count, dtype=np.int64)
        with_data = (tree.layers >= 0) & (self.layouts != CHUNK_BASED)
        offsets = tree.offsets[with_data]
        bad = (offsets % block != 0) | (offsets < 0)
        if bad.any():
            inode = int(np.flatnonzero(with_data)[np.flatnonzero(bad)[0]])
            what = (
                f"starts at byte {int(tree.offsets[inode])} of its layer, not at a multiple of {block}"
                if tree.offsets[inode] >= 0
                else "is stored in pieces that the table does not name"
            )
            raise FormatError(
                f"layer {int(tree.layers[inode])}", f"not presentable as EROFS: the file {self._name(inode)!r} {what}"
            )
        units[with_data] = (layer_starts[tree.layers[with_data]] + offsets) // block if with_data.any() else 0
        placed = (self.whole > 0) & (self.layouts != CHUNK_BASED)
        units[placed] = data_starts[placed] // block
        for inode, (major, minor) in tree.rdevs.items():
            units[inode] = encode_rdev(major, minor)
        for inode, (bits, _) in self.maps.items():
            units[inode] = bits - block.bit_length() + 1
        return units.astype(np.uint32)

    def _put_chunk_maps(
        self, memory: memoryview, data_starts: npt.NDArray[np.int64], layer_starts: Sequence[int]
    ) -> None:
        for inode, (bits, fragments) in self.maps.items():
            chunks = -(-int(self.tree.sizes[inode]) >> bits)
            table = np.full(chunks, 0xFFFFFFFF, dtype="<u4")
            base = layer_starts[int(self.tree.layers[inode])]
            for offset, length, stored in fragments:
                if length:
                    first, last = offset >> bits, (offset + length - 1) >> bits
                    step = (1 << bits) // self.block_size
                    start = (base + stored) // self.block_size
                    table[first : last + 1] = start + np.arange(last - first + 1, dtype=np.int64) * step
            start_byte = int(data_starts[inode])
            memory[start_byte : start_byte + 4 * chunks] = table.tobytes()

    def _put_inodes(
        self, buffer: npt.NDArray[np.uint8], positions: npt.NDArray[np.int64], units: npt.NDArray[np.uint32]
    ) -> None:
        tree = self.tree
        type_bits = np.zeros(256, dtype=np.uint16)
        for kind, bits in FORMAT_BITS.items():
            type_bits[kind] = bits
        modes = tree.modes | type_bits[tree.kinds]
        for chosen, dtype, width in ((self.compact, COMPACT, 1), (~self.compact, EXTENDED, 2)):
            rows = np.flatnonzero(chosen)
            raw = np.zeros(len(rows), dtype=dtype)
            raw["format"] = (self.layouts[rows] << 1) | (width - 1)
            raw["icount"] = self.icounts[rows]
            raw["mode"] = modes[rows]
            raw["size"] = self.sizes[rows]
            raw["u"] = units[rows]
            raw["uid"] = tree.uids[rows]
            raw["gid"] = tree.gids[rows]
            raw["nlink"] = tree.nlinks[rows]
            if width == 2:
                raw["mtime"] = tree.mtimes_s[rows]
                raw["mtime_ns"] = tree.mtimes_ns[rows]
            slots = buffer.reshape(-1, SLOT_BYTES)
            halves = raw.view(np.uint8).reshape(-1, width, SLOT_BYTES)
            for half in range(width):
                slots[positions[rows] // SLOT_BYTES + half] = halves[:, half]

    def _name(self, inode: int) -> bytes:
        index = int(np.flatnonzero(self.tree.entry_inodes == inode)[0])
        return self.tree.entry_names[index]


@dataclass(frozen=True, slots=True)
class _DirectoryBlocks:
    """Holds the blocks of all directories in a row: those of directory k are [group[k], group[k + 1]).

    Block b holds the entries [bounds[b], bounds[b + 1]) and ``used[b]`` bytes; ``lengths`` and ``names_end`` are of the
    entries' names.
    """

    lengths: npt.NDArray[np.int64]
    names_end: npt.NDArray[np.int64]
    group: npt.NDArray[np.int64]
    bounds: npt.NDArray[np.int64]
    used: npt.NDArray[np.int64]


def _commonest_time(tree: MergedTree) -> tuple[int, int]:
    """Returns the modification time that most inodes have, to the nanosecond where those of one second agree."""
    seconds, counts = np.unique(tree.mtimes_s, return_counts=True)
    best = int(seconds[int(np.argmax(counts))])
    nanoseconds, counts = np.unique(tree.mtimes_ns[tree.mtimes_s == best], return_counts=True)
    return best, int(nanoseconds[int(np.argmax(counts))])


def _chunk_bits(fragments: Sequence[Fragment], size: int, block: int, inode: int) -> int:
    """Returns the binary logarithm of the largest chunk that every stored piece begins and ends at, the file's end
    aside.
    """
    where = f"sparse file of inode {inode}"
    mask = 1 << 31
    end = 0
    for offset, length, stored in fragments:
        if offset < end or length < 0 or offset + length > size:
            raise FormatError(where, "pieces overlap or leave the file")
        end = offset + length
        if not length:
            continue
        mask |= offset | (end if end != size else 0)
        if stored % block:
            raise FormatError(
                where, f"not presentable as EROFS: a piece is stored at {stored}, not at a multiple of {block}"
            )
    bits = (mask & -mask).bit_length() - 1
    if 1 << bits < block:
        raise FormatError(where, f"not presentable as EROFS: a piece does not begin or end at a multiple of {block}")
    if 4 * (-(-size >> bits)) > _MAX_CHUNK_MAP:
        raise FormatError(where, f"{size} bytes in chunks of {1 << bits} need too large a map")
    return bits
