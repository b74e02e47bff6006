"""Mode overlay2: fetch every layer whole, unpack it into a directory of its own.

Presets:

``sequential``
    Docker's order of things: three downloads at a time, each to a file and verified; layers unpacked one after the
    other, bottom first, while later ones still download; the decompressed bytes hashed as well (diff ID); zlib, the
    decoder that Docker uses through unpigz. It has Docker's policies, not its waste: about a third of Docker's CPU
    seconds and half of containerd's (docs/performance.md). Docker as it is: the ``docker`` engine.
``tuned``
    The best full pull we know: bytes go from the socket through one hash, the fastest decoder (ISA-L) and the
    unpacker straight into files, nothing compressed touches the disk; three layers at once, largest first, since
    each has its own directory. The compressed digest, named by the manifest, vouches for everything; a layer that
    fails it is never mounted.
"""

from __future__ import annotations

import os
import shutil
import stat
import threading
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from hashlib import new as new_hash
from time import monotonic_ns
from typing import TYPE_CHECKING, Any

from harness.engines.embedded.directories import DirectoryTree
from harness.engines.embedded.messages import RootfsDetails
from harness.engines.embedded.modes import Context, Rootfs
from harness.engines.embedded.pipe import BytePipe
from harness.engines.embedded.unpack import LayerUnpacker
from harness.errors import ColdbenchError, DigestMismatch, FormatError, UnsupportedMediaType
from harness.formats.gzip.inflate import inflate
from harness.model.modes import policy_of
from harness.model.policy import PullPolicy
from harness.oci.batches import Batches

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from io import RawIOBase

    from harness.lazyfs.messages import Option
    from harness.oci.image import Image

PARALLEL = 3
"""Layers fetched at a time: Docker's and containerd's default."""

_PIECE_BYTES = 1 << 17
"""Compressed bytes hashed and inflated at a time. libcurl gives 16 KiB at most, and each hand-over between threads
costs more than joining eight of those; a decompressed piece still fits the second-level cache until it is written."""


@dataclass(slots=True)
class _Unpacked:
    opaque_root: bool = False
    entries: int = 0
    payload_bytes: int = 0
    links: list[tuple[bytes, bytes]] = field(default_factory=list)


class _Stopped(Exception):
    """Another layer failed; this one's work is pointless."""


@dataclass(slots=True)
class Pull:
    """State of one pull. ``stop`` is set when any layer fails, so that the others end at their next piece."""

    context: Context
    image: Image
    verify_diff_ids: bool
    decoder: str
    stop: threading.Event = field(default_factory=threading.Event)

    def layer_directory(self, number: int) -> str:
        return os.path.join(self.context.scratch, "layers", f"{number:x}")

    def name(self, number: int) -> str:
        return f"layer {number} ({self.image.layers[number].digest[:19]})"

    def fetch(self, number: int, sink: Callable[[bytes], object]) -> None:
        """Stream a layer's stored bytes into ``sink``, hashing them on the way; DigestMismatch at the end."""
        layer = self.image.layers[number]
        algorithm, _, expected = layer.digest.partition(":")
        digest = new_hash(algorithm)
        received = 0

        def hashed(data: bytes) -> None:
            digest.update(data)
            sink(data)

        batches = Batches(_PIECE_BYTES, hashed)

        def take(piece: bytes) -> None:
            nonlocal received
            if self.stop.is_set():
                raise _Stopped
            received += len(piece)
            if received > layer.size:
                raise DigestMismatch(self.name(number), f"{layer.size} bytes", f"of more than {layer.size} bytes")
            batches.take(piece)

        with self.context.span("fetch", number, f"{layer.size} bytes"):
            self.context.client.stream_blob(layer.digest, take)
            batches.flush()
        if digest.hexdigest() != expected:
            raise DigestMismatch(
                f"{self.name(number)}, {received} of {layer.size} bytes",
                layer.digest,
                f"{algorithm}:{digest.hexdigest()}",
            )

    def unpack(self, number: int, chunks: Iterator[bytes]) -> _Unpacked:
        """Unpack a layer's stored bytes into its directory."""
        layer, where = self.image.layers[number], self.name(number)
        compression = layer.compression
        if compression is None:
            raise UnsupportedMediaType(f"{where}: media type {layer.media_type} is not a layer this program unpacks")
        directory = self.layer_directory(number)
        os.makedirs(directory, 0o755)
        algorithm, _, expected = self.image.diff_ids[number].partition(":")
        digest = new_hash(algorithm) if self.verify_diff_ids else None
        unpacker = LayerUnpacker(directory)
        start = monotonic_ns()
        try:
            for piece in inflate(compression, chunks, where, self.decoder):
                if self.stop.is_set():
                    raise _Stopped
                if digest is not None:
                    digest.update(piece)
                unpacker.feed(piece)
            unpacker.finish()
        except FormatError as error:
            if not error.where.startswith(where):
                raise type(error)(f"{where}, {error.where}", error.what) from None
            raise
        finally:
            unpacker.close()
            self.context.report_span("unpack", start, monotonic_ns(), number, f"{unpacker.entries} entries")
        if digest is not None and digest.hexdigest() != expected:
            raise DigestMismatch(
                f"{where} decompressed", self.image.diff_ids[number], f"{algorithm}:{digest.hexdigest()}"
            )
        return _Unpacked(unpacker.opaque_root, unpacker.entries, unpacker.payload_bytes, unpacker.unresolved_links)

    def wait_all(self, futures: Iterable[Future[Any]]) -> None:
        """Wait for the end of all; stop the rest at the first failure and raise the one that caused it."""
        pending = list(futures)
        wait(pending, return_when=FIRST_EXCEPTION)
        failures = [e for f in pending if f.done() and not f.cancelled() and (e := f.exception()) is not None]
        if failures:
            self.stop.set()
            for future in pending:
                future.cancel()
            wait(pending)
            raise next((e for e in failures if not isinstance(e, _Stopped)), failures[0])


def _chunks(file: RawIOBase) -> Iterator[bytes]:
    while data := file.read(_PIECE_BYTES):
        yield data


def _sequential(pull: Pull) -> list[_Unpacked]:
    context, layers = pull.context, pull.image.layers
    blobs = os.path.join(context.scratch, "blobs")
    os.makedirs(blobs, exist_ok=True)

    def download(number: int) -> str:
        path = os.path.join(blobs, str(number))
        with open(path, "wb", buffering=0) as file:
            pull.fetch(number, file.write)
        return path

    unpacked = []
    with ThreadPoolExecutor(PARALLEL, "fetch") as pool:
        downloads = [pool.submit(download, number) for number in range(len(layers))]
        try:
            for number, future in enumerate(downloads):
                path = future.result()
                with open(path, "rb", buffering=0) as file:
                    unpacked.append(pull.unpack(number, _chunks(file)))
                os.unlink(path)
        except BaseException:
            pull.stop.set()
            for future in downloads:
                future.cancel()
            wait(downloads)
            raise
    return unpacked


def _tuned(pull: Pull) -> list[_Unpacked]:
    layers = pull.image.layers

    def whole(number: int) -> _Unpacked:
        pipe = BytePipe()

        def feed() -> None:
            try:
                pull.fetch(number, pipe.write)
            except BaseException as error:
                pipe.fail(error)
            else:
                pipe.end()

        fetcher = threading.Thread(target=feed, name=f"fetch-{number}", daemon=True)
        fetcher.start()
        try:
            result = pull.unpack(number, iter(pipe))
            pipe.drain()  # the digest is known only after the last byte, which may stand behind the tar's end
        except FormatError:
            # Damaged bytes unpack to nonsense before their digest is known: say what is wrong, not what followed.
            pipe.drain()
            raise
        finally:
            pipe.abandon()
            fetcher.join()
        return result

    order = sorted(range(len(layers)), key=lambda number: -layers[number].size)
    with ThreadPoolExecutor(PARALLEL, "unpack") as pool:
        futures = {number: pool.submit(whole, number) for number in order}
        pull.wait_all(futures.values())
    return [futures[number].result() for number in range(len(layers))]


def _resolve_links(pull: Pull, number: int, links: list[tuple[bytes, bytes]]) -> None:
    """Hard links to files of lower layers: copied up, as OverlayFS would have done for a link made in place."""
    tree = DirectoryTree(pull.layer_directory(number))
    try:
        for name, target in links:
            if not any(
                _copy_up(pull.layer_directory(lower), target, tree, name) for lower in range(number - 1, -1, -1)
            ):
                raise FormatError(
                    f"{pull.name(number)}, {os.fsdecode(name)}",
                    f"hard link to {os.fsdecode(target)}, which does not exist",
                )
    finally:
        tree.close()


def _copy_up(lower_root: str, target: bytes, tree: DirectoryTree, name: bytes) -> bool:
    source_dir, _, source = target.rpartition(b"/")
    parent_path, _, base = name.rpartition(b"/")
    lower = DirectoryTree(lower_root)
    try:
        try:
            directory = lower.descriptor(source_dir, make=False)
            status = os.stat(source, dir_fd=directory, follow_symlinks=False)
        except (FileNotFoundError, FormatError):
            return False
        if not stat.S_ISREG(status.st_mode):
            return False
        parent = tree.descriptor(parent_path)
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
        return True
    finally:
        lower.close()


def provide(context: Context, image: Image, preset: str, options: Mapping[str, Option]) -> Rootfs:
    """Provider of mode overlay2 (``harness.engines.embedded.modes``); ``options`` are those of ``PullPolicy``."""
    policy = policy_of(context.mode, preset, options)
    assert isinstance(policy, PullPolicy), "the mode that unpacks has policies of a full pull"
    return pull(context, image, policy)


def pull(context: Context, image: Image, policy: PullPolicy) -> Rootfs:
    """Fetch all layers, verify them, and unpack each into a directory. Raises ``harness.errors.ColdbenchError``."""
    work = Pull(context, image, verify_diff_ids=policy.verify_diff_ids, decoder=policy.decoder)
    os.makedirs(os.path.join(context.scratch, "layers"), exist_ok=True)
    try:
        unpacked = (_tuned if policy.overlapped else _sequential)(work)
    except _Stopped:  # only if a failure was lost on the way
        raise ColdbenchError("the pull was stopped") from None
    for number, layer in enumerate(unpacked):
        if layer.links:
            _resolve_links(work, number, layer.links)
    lowest = max((n for n, layer in enumerate(unpacked) if layer.opaque_root), default=0)
    directories = [work.layer_directory(number) for number in range(len(unpacked) - 1, lowest - 1, -1)]
    return Rootfs(
        tuple(directories),
        details=RootfsDetails(
            entries=sum(layer.entries for layer in unpacked),
            unpacked_bytes=sum(layer.payload_bytes for layer in unpacked),
        ),
    )
