"""This module makes hard links into lower layers, once all layers stand as directories: another name of the very file
there.

The lookup is that of ``harness.formats.tar.stack``, over directories in OverlayFS's form, since some of them may be
served lazily. A file there cannot get a name on another file system: it is copied, and is then a file of its own, with
its own inode and link count. (That happens only to images of which some layers have no index.)
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from harness.engines.embedded.directories import DirectoryTree
from harness.errors import FormatError
from harness.formats.tar.limits import OPAQUE_XATTR
from harness.formats.tar.names import entry_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


def link_to_lower(layers: Sequence[str], links: Sequence[tuple[bytes, bytes]], where: str) -> None:
    """Make ``links`` (name, target) in the directory ``layers[0]``; the others lie below it, the nearest first.

    ``where`` names the layer in errors. Raises FormatError for a link to nothing or to a directory.
    """
    if not links:
        return
    with ExitStack() as stack:
        trees = []
        for layer in layers:
            trees.append(DirectoryTree(layer))
            stack.callback(trees[-1].close)
        for name, target in links:
            shown = target[:200].decode("utf-8", "backslashreplace")
            found = _find_below(trees, target)
            if found is None:
                what = f"a hard link to {shown!r}, which neither this layer nor one below it has"
                raise FormatError(f"{where}, {entry_of(name)}", what)
            with _time_kept(trees[0], name):
                if not _link(trees[0], name, found, target):
                    raise FormatError(f"{where}, {entry_of(name)}", f"a hard link to {shown!r}, which is a directory")


def _find_below(trees: Sequence[DirectoryTree], target: bytes) -> DirectoryTree | None:
    """The layer whose file the stack shows at ``target``; None when it shows nothing there."""
    parts = target.split(b"/")
    for tree in trees:
        last = False
        for depth, base in enumerate(parts):
            above = b"/".join(parts[:depth])
            directory = tree.descriptor(above, make=False)
            last = last or _is_opaque(directory)
            try:
                status = os.stat(base, dir_fd=directory, follow_symlinks=False)
            except FileNotFoundError:
                break
            if stat.S_ISCHR(status.st_mode) and status.st_rdev == 0:
                return None
            if depth == len(parts) - 1:
                return tree if tree is not trees[0] else None
            if not stat.S_ISDIR(status.st_mode):
                return None
        if last:
            return None
    return None


def _is_opaque(directory: int) -> bool:
    try:
        return os.getxattr(directory, OPAQUE_XATTR) == b"y"
    except OSError:
        return False


@contextmanager
def _time_kept(tree: DirectoryTree, name: bytes) -> Iterator[None]:
    """Leave the time of the directory in which ``name`` is made as the layer has it."""
    directory = os.dup(tree.descriptor(name.rpartition(b"/")[0]))
    try:
        status = os.stat(directory)
        yield
        os.utime(directory, ns=(status.st_atime_ns, status.st_mtime_ns))
    finally:
        os.close(directory)


def _link(tree: DirectoryTree, name: bytes, lower: DirectoryTree, target: bytes) -> bool:
    """Give the file ``target`` of ``lower`` the name ``name`` in ``tree``; false for a directory."""
    source_dir, _, source = target.rpartition(b"/")
    parent_path, _, base = name.rpartition(b"/")
    directory = lower.descriptor(source_dir, make=False)
    status = os.stat(source, dir_fd=directory, follow_symlinks=False)
    if stat.S_ISDIR(status.st_mode):
        return False
    parent = tree.descriptor(parent_path)
    try:
        os.link(source, base, src_dir_fd=directory, dst_dir_fd=parent, follow_symlinks=False)
        return True
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EMLINK, errno.EPERM):
            raise
    if stat.S_ISREG(status.st_mode):
        _copy(source, directory, base, parent, status)
        return True
    if stat.S_ISLNK(status.st_mode):
        os.symlink(os.readlink(source, dir_fd=directory), base, dir_fd=parent)
    else:
        os.mknod(base, status.st_mode, status.st_rdev, dir_fd=parent)
    os.chown(base, status.st_uid, status.st_gid, dir_fd=parent, follow_symlinks=False)
    os.utime(base, ns=(status.st_atime_ns, status.st_mtime_ns), dir_fd=parent, follow_symlinks=False)
    return True


def _copy(source: bytes, directory: int, base: bytes, parent: int, status: os.stat_result) -> None:
    with open(os.open(source, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=directory), "rb") as reader:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        with open(os.open(base, flags, status.st_mode & 0o777, dir_fd=parent), "wb") as writer:
            shutil.copyfileobj(reader, writer)
            writer.flush()
            os.fchown(writer.fileno(), status.st_uid, status.st_gid)
            os.fchmod(writer.fileno(), status.st_mode & 0o7777)
            for attribute in os.listxattr(reader.fileno()):
                os.setxattr(writer.fileno(), attribute, os.getxattr(reader.fileno(), attribute))
            os.utime(writer.fileno(), ns=(status.st_atime_ns, status.st_mtime_ns))
