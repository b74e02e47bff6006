"""Small real images in all lazy forms, unpacked twins to compare with, and a daemon that serves them."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import select
import signal
import tarfile
import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from harness.engines.embedded.unpack import LayerUnpacker
from harness.formats.erofs import image as erofs_image
from harness.formats.estargz import image as estargz_image
from harness.formats.estargz.writer import EstargzOptions
from harness.formats.soci import image as soci_image
from harness.kernel.overlay import mount, unmount
from harness.lazyfs.control import DaemonClient, serving, spawn
from harness.lazyfs.messages import (
    AwaitBackground,
    GetTouches,
    GetUsage,
    MarkReady,
    MountBlob,
    MountTree,
    Serving,
    StoreAddress,
    UseDevices,
)
from harness.lazyfs.mounting.mounts import mount_erofs
from harness.lazyfs.mounting.mounts import unmount as detach
from harness.lazyfs.plan import plan_blob, plan_layers
from harness.model.modes import lazy_policy
from harness.oci.descriptor import OCI_LAYER_GZIP, digest_bytes
from harness.oci.layout import LayoutStore
from harness.oci.store import ImageSource
from tests.oci.registry.fault_server import Answer, FaultServer, Request, serve_range
from tests.support.images import Layer, put_image

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterator, Sequence

    from harness.lazyfs.messages import BackgroundState, Touch, Usage

GOLDEN = Path(__file__).parents[1] / "formats" / "golden" / "layers"
MODES = ("soci", "estargz", "erofs")
QUIET = {"background": False, "prefetch": False}
"""Options for a daemon that fetches nothing but what is read."""


def need_root() -> None:
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")


@dataclass
class File:
    """A member of a test layer; ``target`` makes a symbolic link, ``link`` a hard link, neither nor ``data`` a dir."""

    name: str
    data: bytes | None = None
    target: str = ""
    link: str = ""
    mode: int = 0o644
    xattrs: dict[str, str] | None = None


def tar_of(*files: File) -> bytes:
    """A PAX tar of these members."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for file in files:
            info = tarfile.TarInfo(file.name)
            info.mtime, info.mode = 1_600_000_000, file.mode
            info.pax_headers = {f"SCHILY.xattr.{key}": value for key, value in (file.xattrs or {}).items()}
            if file.target:
                info.type, info.linkname = tarfile.SYMTYPE, file.target
            elif file.link:
                info.type, info.linkname = tarfile.LNKTYPE, file.link
            elif file.data is None:
                info.type = tarfile.DIRTYPE
            else:
                info.size = len(file.data)
            archive.addfile(info, io.BytesIO(file.data) if file.data is not None else None)
    return out.getvalue()


def noise(size: int, seed: str = "x") -> bytes:
    """Bytes that do not compress, always the same for a seed."""
    return hashlib.shake_128(seed.encode()).digest(size)


def text(size: int, seed: int = 0) -> bytes:
    """Bytes that compress about three to one."""
    words = [hashlib.sha256(f"{seed}-{i}".encode()).hexdigest()[:8].encode() for i in range(256)]
    lines = b" ".join(words[i * 7919 % 256] + str(i).encode() for i in range(size // 12 + 1))
    return lines[:size]


def write_image(
    directory: Path, tars: Sequence[bytes], blobs: Sequence[bytes] | None = None, media_type: str = OCI_LAYER_GZIP
) -> ImageSource:
    """An OCI layout with one image of these layers; ``blobs`` are their compressed forms (gzip by default)."""
    layout = LayoutStore(directory, "image", create=True)
    blobs = blobs or [gzip.compress(tar, 6, mtime=0) for tar in tars]
    layers = [Layer(blob, media_type, digest_bytes(tar)) for blob, tar in zip(blobs, tars, strict=True)]
    put_image(layout, "image", layers)
    return ImageSource(LayoutStore(directory, "image"))


def convert(source: ImageSource, directory: Path, mode: str, **options: Any) -> ImageSource:
    """The image in the form that ``mode`` serves, in a layout of its own."""
    target = LayoutStore(directory, "image", create=True)
    if mode == "estargz":
        estargz_image.convert_image(source, source.resolve(), target, EstargzOptions(**options))
    elif mode == "soci":
        settings = {"span_size": 64 << 10, "min_layer_bytes": 0, **options}
        soci_image.index_image(source, target, soci_image.Options(**settings))
    else:
        erofs_image.index_image(source, target, erofs_image.Options(**{"span_bytes": 64 << 10, **options}))
    return ImageSource(LayoutStore(directory, "image"))


def unpack(tar: bytes, directory: Path) -> Path:
    """The layer unpacked as mode overlay2 does."""
    directory.mkdir(parents=True)
    mask = os.umask(0)  # as the agent's
    try:
        unpacker = LayerUnpacker(str(directory))
        unpacker.feed(tar)
        unpacker.finish()
        unpacker.close()
    finally:
        os.umask(mask)
    return directory


@contextmanager
def overlay(lowerdirs: Sequence[str | Path], target: Path) -> Iterator[Path]:
    """OverlayFS, read-only, topmost layer first."""
    target.mkdir(parents=True)
    stack = [str(path) for path in lowerdirs]
    if len(stack) == 1:
        (target.parent / "nothing").mkdir(exist_ok=True)
        stack.append(str(target.parent / "nothing"))
    mount("overlay", str(target), "overlay", f"lowerdir={':'.join(stack)}", 1)
    try:
        yield target
    finally:
        unmount(str(target))


@dataclass
class Served:
    """A mounted image: ``root`` is the FUSE mount (tree) or the EROFS over it (blob)."""

    client: DaemonClient
    process: subprocess.Popen[bytes]
    mountpoint: str
    root: Path
    layers: list[int]

    @property
    def daemon(self) -> int:
        """The daemon's pid, as soon as there is one."""
        while True:
            (pid,) = serving(self.process.pid) or (0,)
            if pid not in {0, self.process.pid}:
                return pid
            time.sleep(0.01)

    def kill(self) -> None:
        """The daemon and who would start another one are killed."""
        daemon = os.pidfd_open(self.daemon)
        self.process.kill()
        signal.pidfd_send_signal(daemon, signal.SIGKILL)
        select.select([daemon], [], [], 20)
        os.close(daemon)
        self.process.wait(20)

    def usage(self) -> Usage:
        return self.client.call(GetUsage())

    def count(self, *names: str) -> int:
        """How many FUSE requests of these kinds there were."""
        fuse = self.usage().fuse
        return sum(fuse[name].count for name in names if name in fuse)

    def touches(self) -> tuple[Touch, ...]:
        return self.client.call(GetTouches()).touches

    def ready(self) -> None:
        self.client.call(MarkReady())

    def background(self, wait_s: float) -> BackgroundState:
        """What the background fetch has come to within ``wait_s``."""
        return self.client.call(AwaitBackground(wait_s))


def registry(server: FaultServer) -> StoreAddress:
    """A server in place of a registry, as a mount request names it."""
    return StoreAddress(registry=server.host, repository="test", plain=True)


def blob_server(source: ImageSource, fault: Callable[[Request, bytes], Answer | None]) -> FaultServer:
    """Serves an image's blobs by range; ``fault(request, blob)`` may answer in its place."""
    store = source.store

    def handle(request: Request) -> Answer:
        digest = request.path.rpartition("/")[2]
        path = store.blob_path(digest)
        if path is None:
            return Answer(404)
        data = path.read_bytes()
        return fault(request, data) or serve_range(request, data)

    return FaultServer(handle)


@contextmanager
def serve(source: ImageSource, mode: str, place: Path, **request: Any) -> Iterator[Served]:
    """A daemon with the image mounted; everything is gone at the end, and the daemon has ended by itself.

    ``request`` replaces fields of the mount request (``harness.lazyfs.messages.Serving``).
    """
    need_root()
    scratch, mountpoint = place / "scratch", place / "fuse"
    for directory in (scratch, mountpoint):
        directory.mkdir(parents=True)
    image = source.resolve()
    store = StoreAddress(layout=source.store.where.removeprefix("oci:"))
    serving = replace(Serving(mode=mode, preset="tuned", scratch=str(scratch), store=store), **request)
    process, client = spawn(str(mountpoint), lazy_policy(mode, serving.preset).library)
    target = place / "erofs"
    try:
        if mode == "erofs":
            blob = client.call(MountBlob(serving, plan_blob(source, image)))
            target.mkdir()
            mounted = mount_erofs(
                str(mountpoint / blob.file), str(target), loop=blob.loop, parts=blob.metadata,
                exact_kib=blob.exact_read_ahead_kib,
            )  # fmt: skip
            if mounted.devices:
                client.call(UseDevices(mounted.devices, mounted.mounted))
            yield Served(client, process, str(mountpoint), target, [])
        else:
            plan = plan_layers(source, image, mode)
            tree = client.call(MountTree(replace(serving, layers_unpacked=len(plan.unpack)), plan.lazy))
            yield Served(client, process, str(mountpoint), mountpoint, list(tree.layers))
    finally:
        detach(str(target))
        client.close()
        process.wait(20)
        detach(str(mountpoint))
        assert process.returncode in {0, -signal.SIGKILL, -signal.SIGSEGV}
