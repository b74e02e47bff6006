"""The yardstick: a read-only tree on pyfuse3 with all bytes in memory and timeouts without end, as fast as it allows.

``python -m tests.microbench.pyfuse3_tree MOUNTPOINT``; the tree is that of ``tree_of``. Ends when it is unmounted.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

DIRECTORIES, FILES = 40, 50
FOREVER_S = 1 << 31


def tree_of() -> Iterator[tuple[str, bytes]]:
    """(path, content) of every file."""
    for directory in range(DIRECTORIES):
        for file in range(FILES):
            yield f"d{directory}/f{file}", f"{directory}/{file} ".encode() * 200


def main() -> None:
    import pyfuse3
    import trio

    names: dict[int, dict[bytes, int]] = {pyfuse3.ROOT_INODE: {}}
    contents: dict[int, bytes] = {}
    following = pyfuse3.ROOT_INODE
    for path, data in tree_of():
        directory, name = path.encode().split(b"/")
        parent = names[pyfuse3.ROOT_INODE].get(directory)
        if parent is None:
            following += 1
            parent = names[pyfuse3.ROOT_INODE][directory] = following
            names[parent] = {}
        following += 1
        names[parent][name] = following
        contents[following] = data

    class Tree(pyfuse3.Operations):
        async def getattr(self, inode: int, ctx: Any = None) -> Any:
            entry: Any = pyfuse3.EntryAttributes()
            entry.st_ino = inode
            entry.entry_timeout = entry.attr_timeout = FOREVER_S
            directory = inode in names
            entry.st_mode = stat.S_IFDIR | 0o755 if directory else stat.S_IFREG | 0o644
            entry.st_nlink, entry.st_size = (2, 4096) if directory else (1, len(contents[inode]))
            return entry

        async def lookup(self, parent: int, name: bytes, ctx: Any = None) -> Any:
            inode = names[parent].get(name)
            if inode is None:
                raise pyfuse3.FUSEError(errno.ENOENT)
            return await self.getattr(inode)

        async def open(self, inode: int, flags: int, ctx: Any) -> Any:
            return pyfuse3.FileInfo(fh=inode, keep_cache=True)

        async def read(self, handle: int, offset: int, size: int) -> bytes:
            return contents[handle][offset : offset + size]

        async def opendir(self, inode: int, ctx: Any) -> int:
            return inode

        async def readdir(self, handle: int, start: int, token: Any) -> None:
            for position, (name, inode) in enumerate(list(names[handle].items())[start:], start + 1):
                if not pyfuse3.readdir_reply(token, name, await self.getattr(inode), position):
                    return

    pyfuse3.init(Tree(), sys.argv[1], {"fsname=yardstick", "ro", "default_permissions"})
    try:
        print("up", flush=True)
        trio.run(pyfuse3.main)
    finally:
        pyfuse3.close(unmount=False)
        os._exit(0)


if __name__ == "__main__":
    main()
