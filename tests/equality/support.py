"""Shipped images as each mode shows them, and as GNU tar unpacks them: the same registry, forms and code as a run."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.engines.embedded.modes import Context, load, parts_of
from harness.lazyfs.control import DaemonClient, spawn
from harness.lazyfs.messages import GetUsage, MarkReady, StoreAddress
from harness.lazyfs.mounting.stack import stacked
from harness.oci.location import open_source

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from harness.session.preparation import Published

_WHITEOUT, _OPAQUE = ".wh.", ".wh..wh..opq"


@dataclass
class Shown:
    """An image mounted read-only at ``root``; ``client`` speaks to the daemon of a lazy mode."""

    root: Path
    client: DaemonClient | None

    def requests(self) -> dict[str, int]:
        """FUSE requests so far, by opcode."""
        assert self.client is not None
        return {name: opcode.count for name, opcode in self.client.call(GetUsage()).fuse.items()}


@contextmanager
def shown(
    host: str, published: Published, mode: str, place: Path, *, preset: str = "tuned", background: bool = True
) -> Iterator[Shown]:
    """The image in the form that ``mode`` pulls, provided by the engine's own code and stacked; gone at the end."""
    scratch, root = place / "scratch", place / "root"
    for directory in (scratch, root):
        directory.mkdir(parents=True)
    with ExitStack() as cleanups:
        cleanups.callback(shutil.rmtree, scratch, ignore_errors=True)
        source = cleanups.enter_context(open_source(f"docker://{host}/{published.repository}@{published.reference}"))
        image = source.resolve()
        client = None
        cleanups.callback(os.umask, os.umask(0))  # as the agent's
        if mode != "overlay2":
            process, client = spawn()
            cleanups.callback(process.wait, 60)
            cleanups.callback(client.close)
        context = Context(
            client=source.store,
            mode=mode,
            store=StoreAddress(registry=host, repository=published.repository, plain=True),
            reference=published.reference,
            scratch=str(scratch),
            report_span=lambda *_: None,
            daemon=client,
            index=published.index,
        )
        parts = parts_of(mode)
        rootfs = load(parts.provide)(context, image, preset, {} if mode == "overlay2" else {"background": background})
        cleanups.callback(rootfs.cleanup)
        cleanups.enter_context(stacked(rootfs.lowerdirs, str(root)))
        if client is not None:
            client.call(MarkReady())
        yield Shown(root, client)


@contextmanager
def untarred(layout: str, place: Path) -> Iterator[Path]:
    """The image unpacked by gzip and GNU tar, whiteouts put into OverlayFS's form, stacked; nothing of ours reads it.

    A directory that a layer leaves out (often the root) tar makes anew: it gets the time that docs/formats.md says.
    """
    with open_source(layout) as source:
        image = source.resolve()
        blobs = [source.store.blob_path(layer.digest) for layer in image.layers]
    directories = []
    for number, blob in enumerate(blobs):
        directory = place / f"layer{number}"
        directory.mkdir(parents=True)
        started = os.stat(directory).st_mtime_ns
        command = 'gzip -dc "$0" | tar -x --xattrs --xattrs-include="*" --numeric-owner --same-owner -p -C "$1"'
        subprocess.run(["sh", "-c", command, str(blob), str(directory)], check=True)
        _convert_whiteouts(directory)
        for path, _, _ in os.walk(directory):
            if os.stat(path).st_mtime_ns >= started:
                os.utime(path, ns=(0, 0))
        directories.append(str(directory))
    root = place / "root"
    root.mkdir()
    with stacked(directories[::-1], str(root)):
        yield root
    for unpacked in directories:
        shutil.rmtree(unpacked)


def _convert_whiteouts(layer: Path) -> None:
    for directory, _, files in os.walk(layer):
        markers = [name for name in files if name.startswith(_WHITEOUT)]
        if not markers:
            continue
        status = os.stat(directory)
        for marker in markers:
            os.unlink(os.path.join(directory, marker))
            if marker == _OPAQUE:
                os.setxattr(directory, "trusted.overlay.opaque", b"y")
            else:
                os.mknod(os.path.join(directory, marker.removeprefix(_WHITEOUT)), stat.S_IFCHR, os.makedev(0, 0))
        os.utime(directory, ns=(status.st_atime_ns, status.st_mtime_ns))


class KernelLog:
    """Complaints of the kernel's file systems since this was made."""

    _OURS = ("erofs", "overlayfs", "fuse", "I/O error", "BUG", "WARNING")
    _QUIET = ("mounted with root inode", "null uuid", "falling back to")

    def __init__(self) -> None:
        self._log = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
        os.lseek(self._log, 0, os.SEEK_END)

    def complaints(self) -> list[str]:
        lines = []
        while True:
            try:
                record = os.read(self._log, 8192)
            except BlockingIOError:
                break
            except BrokenPipeError:  # overwritten before it was read
                continue
            lines.append(record.decode("utf-8", "replace").partition(";")[2].partition("\n")[0])
        return [
            line for line in lines if any(w in line for w in self._OURS) and not any(q in line for q in self._QUIET)
        ]

    def close(self) -> None:
        os.close(self._log)
