"""This module keeps the user's cache directory: built layers, images as OCI layouts, the registry's storage; locks,
atomic commits.

It lies at ``COLDBENCH_CACHE``, else ``coldbench`` under ``XDG_CACHE_HOME``, else ``~/.cache/coldbench`` (XDG base
directory specification). What lies there is unpacked and run as root, so a cache that another user owns, or could write
to, is refused.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import DiskFull, HostUnfit, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@contextlib.contextmanager
def writing(place: Path) -> Iterator[None]:
    """Turns what the file system refuses while something is written below ``place`` into an error a user can mend."""
    try:
        yield
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise DiskFull(f"{place}: no space left; free some, or choose another place (COLDBENCH_CACHE)") from None
        if error.errno in {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR}:
            raise UsageError(f"{place}: cannot be written ({error.strerror})") from None
        raise


def cache_root() -> Path:
    """Returns the cache directory's path (it may not exist yet)."""
    own = os.environ.get("COLDBENCH_CACHE")
    if own:
        return Path(own).absolute()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base and os.path.isabs(base) else Path.home() / ".cache") / "coldbench"


@dataclass(frozen=True, slots=True)
class Cache:
    """Knows the rooms of the cache. Entries of ``layers`` and ``images`` appear complete, by rename."""

    root: Path

    @classmethod
    def default(cls) -> Cache:
        """Opens the user's cache; UsageError when another user could have put something there."""
        cache = cls(cache_root())
        if os.path.lexists(cache.root):
            _check_owner(cache.root)
        return cache

    @property
    def layers(self) -> Path:
        return self.root / "layers"

    @property
    def images(self) -> Path:
        return self.root / "images"

    @property
    def registry(self) -> Path:
        """Returns the storage of the registry process."""
        return self.root / "registry"

    @contextlib.contextmanager
    def lock(self, name: str, waiting: Callable[[], object] | None = None) -> Iterator[None]:
        """Holds the lock of one entry; ``waiting`` is called once if another process has it."""
        directory = self.root / "locks"
        self._make(directory)
        descriptor = _open_lock(directory / name)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if waiting is not None:
                    waiting()
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    @contextlib.contextmanager
    def scratch(self, prefix: str) -> Iterator[Path]:
        """Makes a directory on the cache's file system that is gone afterwards; leftovers of dead
        processes go as well.
        """
        directory = self.root / "build"
        self._make(directory)
        with self.lock("scratch"):  # between mkdtemp and flock, another process's sweep would take ours for a leftover
            self._sweep(directory)
            path = Path(tempfile.mkdtemp(prefix=f"{prefix}-", dir=directory))
            held = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(held, fcntl.LOCK_EX)
        try:
            with writing(self.root):
                yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)
            os.close(held)

    def has(self, place: Path) -> bool:
        """Says whether a finished entry is there, made by this user; UsageError when it is another's."""
        if not os.path.lexists(place):
            return False
        _check_owner(self.root)
        _check_owner(place, follow=False)
        return True

    def write(self, path: Path, data: bytes) -> None:
        """Writes a small file so that a reader sees the old one or the new one."""
        self._make(path.parent)
        with writing(self.root), tempfile.NamedTemporaryFile(dir=path.parent, prefix=".part-", delete=False) as file:
            file.write(data)
        os.replace(file.name, path)

    def commit(self, made: Path, place: Path) -> None:
        """Moves a finished directory to its place; what is there already stays."""
        self._make(place.parent)
        made.chmod(stat.S_IMODE(made.stat().st_mode) & ~0o022)
        try:
            os.rename(made, place)
        except OSError:
            if not place.is_dir():
                raise

    def _make(self, directory: Path) -> None:
        try:
            self.root.parent.mkdir(parents=True, exist_ok=True)
            self.root.mkdir(mode=0o700, exist_ok=True)
            for room in (*reversed(directory.relative_to(self.root).parents), directory.relative_to(self.root)):
                (self.root / room).mkdir(mode=0o755, exist_ok=True)
        except OSError as error:
            raise HostUnfit(
                f"{directory}: cannot be created ({error.strerror}); set COLDBENCH_CACHE to another directory"
            ) from None
        _check_owner(self.root)
        _check_owner(directory, follow=False)

    @staticmethod
    def _sweep(directory: Path) -> None:
        for path in directory.iterdir():
            try:
                held = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            except OSError:
                continue
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            else:
                shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(held)


def _check_owner(directory: Path, *, follow: bool = True) -> None:
    """Raises UsageError unless ``directory`` is one that only this user could have filled.

    The cache's own root may be a symbolic link of the user's (``follow``); what is inside it may not.
    """
    status = os.stat(directory) if follow else os.lstat(directory)
    if not stat.S_ISDIR(status.st_mode):
        raise UsageError(f"{directory}: is not a directory; remove it, or set COLDBENCH_CACHE to another place")
    if status.st_uid != os.geteuid():
        raise UsageError(
            f"{directory}: belongs to user {status.st_uid}, not to user {os.geteuid()} who runs this; set "
            "COLDBENCH_CACHE to a directory of your own"
        )
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise UsageError(
            f"{directory}: others can write there, and what lies there is run as root; if you trust its content: "
            f"chmod -R go-w {directory}"
        )


def _open_lock(path: Path) -> int:
    """Opens a lock file of this user's, made unless it is there; never through a link to another file."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise UsageError(f"{path}: cannot be opened as a lock ({error.strerror}); remove it") from None
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
        os.close(descriptor)
        raise UsageError(f"{path}: is not a lock file of this user; remove it")
    return descriptor
