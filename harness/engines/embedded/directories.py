"""This module reaches directories below one root by descriptors only, so that no name can lead out of it.

Every component is opened with O_NOFOLLOW relative to its parent's descriptor; descriptors are cached, because a
layer's entries come directory by directory. A symlink in the way is refused (``UnsafePath``), whoever planted it.
"""

from __future__ import annotations

import errno
import os
import stat

from harness.errors import FormatError, UnsafePath
from harness.formats.tar.names import entry_of

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
MAX_OPEN = 200
"""A tree caches so many descriptors: three layers at once stay below the usual limit of 1024 files."""


class DirectoryTree:
    """Keeps descriptors of the directories below ``root``, by cleaned path (``b""`` is the root itself)."""

    def __init__(self, root: str) -> None:
        self.root = os.open(root, _DIRECTORY)
        self._open: dict[bytes, int] = {b"": self.root}
        self.cached = self._open.get
        """Descriptor of a directory if it is open."""

    def close(self) -> None:
        """Close all descriptors; idempotent."""
        for descriptor in self._open.values():
            os.close(descriptor)
        self._open.clear()

    def descriptor(self, path: bytes, make: bool = True) -> int:
        """Returns the descriptor of directory ``path``, made (0755) with its missing parents when ``make``.

        Raises UnsafePath when a component is a symlink, FormatError when it is another non-directory, and
        FileNotFoundError when it is missing and not to be made. Valid until the next call on this object.
        """
        known = self._open.get(path)
        if known is not None:
            return known
        walked, rest = path, []
        while (found := self._open.get(walked)) is None:
            walked, _, name = walked.rpartition(b"/")
            rest.append(name)
        for name in reversed(rest):
            parent, parent_path = found, walked
            walked = walked + b"/" + name if walked else name
            found = self._step(walked, name, parent, make)
            if len(self._open) >= MAX_OPEN:
                self._trim(keep=parent_path)
            self._open[walked] = found
        return found

    def _step(self, path: bytes, name: bytes, parent: int, make: bool) -> int:
        try:
            return os.open(name, _DIRECTORY, dir_fd=parent)
        except FileNotFoundError:
            if not make:
                raise
        except OSError as error:
            if error.errno not in (errno.ENOTDIR, errno.ELOOP):
                raise
            raise self._not_a_directory(path, name, parent) from None
        os.mkdir(name, 0o755, dir_fd=parent)
        return os.open(name, _DIRECTORY, dir_fd=parent)

    @staticmethod
    def _not_a_directory(path: bytes, name: bytes, parent: int) -> FormatError:
        if stat.S_ISLNK(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
            return UnsafePath(entry_of(path), "an entry goes through this symlink, which could lead out of the root")
        return FormatError(entry_of(path), "an entry stands below it, but it is not a directory")

    def _trim(self, keep: bytes) -> None:
        for path in [p for p in self._open if p not in (b"", keep)]:
            os.close(self._open.pop(path))

    def forget(self, path: bytes) -> None:
        """Close what is cached at and below ``path``, which is about to be removed."""
        below = path + b"/"
        for known in [p for p in self._open if p == path or p.startswith(below)]:
            os.close(self._open.pop(known))

    def remove(self, path: bytes, name: bytes, parent: int) -> None:
        """Remove entry ``name`` of directory ``parent``, whatever it is; ``path`` is its full path."""
        status = os.stat(name, dir_fd=parent, follow_symlinks=False)
        if not stat.S_ISDIR(status.st_mode):
            os.unlink(name, dir_fd=parent)
            return
        self.forget(path)
        _remove_tree(name, parent)


def _remove_tree(name: bytes, parent: int) -> None:
    """Remove a directory with all that it holds, however deep, by two descriptors: nobody else moves what is here."""
    at = os.open(name, _DIRECTORY, dir_fd=parent)
    try:
        path = [name]
        pending = [_empty_of_files(at)]
        while pending:
            if pending[-1]:
                below = pending[-1].pop()
                at = _moved(at, below)
                path.append(below)
                pending.append(_empty_of_files(at))
                continue
            pending.pop()
            emptied = path.pop()
            if pending:
                at = _moved(at, b"..")
                os.rmdir(emptied, dir_fd=at)
    finally:
        os.close(at)
    os.rmdir(name, dir_fd=parent)


def _moved(descriptor: int, name: bytes) -> int:
    """The directory ``name`` of ``descriptor``, which is closed."""
    found = os.open(name, _DIRECTORY, dir_fd=descriptor)
    os.close(descriptor)
    return found


def _empty_of_files(descriptor: int) -> list[bytes]:
    """Remove what is no directory; the names of those that are."""
    directories = []
    for entry in os.listdir(descriptor):
        raw = os.fsencode(entry)
        if stat.S_ISDIR(os.stat(raw, dir_fd=descriptor, follow_symlinks=False).st_mode):
            directories.append(raw)
        else:
            os.unlink(raw, dir_fd=descriptor)
    return directories
