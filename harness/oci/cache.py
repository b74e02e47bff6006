"""The user's cache directory: built layers, images as OCI layouts, the registry's storage; locks and atomic commits.

Place: ``COLDBENCH_CACHE``, else ``coldbench`` under ``XDG_CACHE_HOME``, else ``~/.cache/coldbench`` (XDG base directory
specification).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import DiskFull, HostUnfit, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@contextlib.contextmanager
def writing(place: Path) -> Iterator[None]:
    """Turn what the file system refuses while something is written below ``place`` into an error a user can mend."""
    try:
        yield
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise DiskFull(f"{place}: no space left; free some, or choose another place (COLDBENCH_CACHE)") from None
        if error.errno in {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR}:
            raise UsageError(f"{place}: cannot be written ({error.strerror})") from None
        raise


def cache_root() -> Path:
    """The cache directory's path (it may not exist yet)."""
    own = os.environ.get("COLDBENCH_CACHE")
    if own:
        return Path(own).absolute()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base and os.path.isabs(base) else Path.home() / ".cache") / "coldbench"


@dataclass(frozen=True, slots=True)
class Cache:
    """Rooms of the cache. Entries of ``layers`` and ``images`` appear complete, by rename."""

    root: Path

    @classmethod
    def default(cls) -> Cache:
        return cls(cache_root())

    @property
    def layers(self) -> Path:
        return self.root / "layers"

    @property
    def images(self) -> Path:
        return self.root / "images"

    @property
    def registry(self) -> Path:
        """Storage of the registry process."""
        return self.root / "registry"

    @contextlib.contextmanager
    def lock(self, name: str, waiting: Callable[[], object] | None = None) -> Iterator[None]:
        """Hold the lock of one entry; ``waiting`` is called once if another process has it."""
        directory = self.root / "locks"
        self._make(directory)
        descriptor = os.open(directory / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
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
        """A directory on the cache's file system that is gone afterwards; leftovers of dead processes go as well."""
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

    def commit(self, made: Path, place: Path) -> None:
        """Move a finished directory to its place; what is there already stays."""
        self._make(place.parent)
        try:
            os.rename(made, place)
        except OSError:
            if not place.is_dir():
                raise

    def _make(self, directory: Path) -> None:
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise HostUnfit(
                f"{directory}: cannot be created ({error.strerror}); set COLDBENCH_CACHE to another directory"
            ) from None

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
