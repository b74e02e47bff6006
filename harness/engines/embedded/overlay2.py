"""Mode overlay2 fetches every layer whole and unpacks it into a directory of its own.

Presets:

``sequential``
    It takes Docker's order: three downloads at a time, each to a file and verified; one layer is unpacked after the
    other, bottom first, while later ones still download; the decoder is zlib, which Docker uses through unpigz. It has
    Docker's policies, not its waste, and takes about a third of Docker's CPU seconds and half of containerd's
    (docs/performance.md). The engine ``docker`` runs Docker as it is.
``tuned``
    It is the best full pull we know: bytes go from the socket through one hash, the fastest decoder (ISA-L) and the
    unpacker straight into files, and nothing compressed touches the disk. Three layers go at once, largest first, since
    each has its own directory.

Every preset checks each layer's digest and its diff ID; a layer that fails either is never mounted.
"""

from __future__ import annotations

import os
import threading
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from hashlib import new as new_hash
from time import monotonic_ns
from typing import TYPE_CHECKING, Any

from harness.engines.embedded.lower_links import link_to_lower
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
    from harness.oci.descriptor import Platform
    from harness.oci.image import Image

PARALLEL = 3
"""So many layers are fetched at a time, as by Docker's and containerd's default."""

_PIECE_BYTES = 1 << 17
"""So many stored bytes are hashed and inflated at a time.

libcurl gives 16 KiB at most, and each hand-over between threads costs more than joining eight of those; a decompressed
piece still fits the second-level cache until it is written.
"""


@dataclass(slots=True)
class Unpacked:
    """Names one layer, unpacked. ``name`` is what errors call it; ``links`` (name, target) lead into lower layers."""

    name: str
    directory: str
    opaque_root: bool = False
    entries: int = 0
    payload_bytes: int = 0
    links: list[tuple[bytes, bytes]] = field(default_factory=list)


class _Stopped(Exception):
    """Another layer failed; this one's work is pointless."""


@dataclass(slots=True)
class Pull:
    """Holds the state of one pull. ``stop`` is set when any layer fails, so that the others end at their next piece."""

    context: Context
    image: Image
    decoder: str
    stop: threading.Event = field(default_factory=threading.Event)

    def layer_directory(self, number: int) -> str:
        return os.path.join(self.context.scratch, "layers", f"{number:x}")

    def name(self, number: int) -> str:
        return f"layer {number} ({self.image.layers[number].digest[:19]})"

    def fetch(self, number: int, sink: Callable[[bytes], object]) -> None:
        """Streams a layer's stored bytes into ``sink``, hashing them on the way; DigestMismatch at the end."""
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

    def unpack(self, number: int, chunks: Iterator[bytes]) -> Unpacked:
        """Unpacks a layer's stored bytes into its directory."""
        layer, where = self.image.layers[number], self.name(number)
        if layer.compression is None:
            raise UnsupportedMediaType(f"{where}: media type {layer.media_type} is not a layer this program unpacks")
        directory = self.layer_directory(number)
        os.makedirs(directory, 0o755)
        algorithm, _, expected = self.image.diff_ids[number].partition(":")
        digest = new_hash(algorithm)
        unpacker = LayerUnpacker(directory)
        start = monotonic_ns()
        try:
            for piece in inflate(chunks, where, self.decoder):
                if self.stop.is_set():
                    raise _Stopped
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
        if digest.hexdigest() != expected:
            raise DigestMismatch(
                f"{where} decompressed", self.image.diff_ids[number], f"{algorithm}:{digest.hexdigest()}"
            )
        return Unpacked(
            where, directory, unpacker.opaque_root, unpacker.entries, unpacker.payload_bytes, unpacker.unresolved_links
        )

    def wait_all(self, futures: Iterable[Future[Any]]) -> None:
        """Waits for the end of all; stops the rest at the first failure and raises the one that caused it."""
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


def _sequential(pull: Pull) -> list[Unpacked]:
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


def _tuned(pull: Pull) -> list[Unpacked]:
    layers = pull.image.layers

    def whole(number: int) -> Unpacked:
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


def look_ahead(context: Context, _platform: Platform, preset: str, options: Mapping[str, Option]) -> None:
    """Open the connections that layers will take beside the first request, as the lazy modes do."""
    policy = policy_of(context.mode, preset, options)
    if isinstance(policy, PullPolicy) and policy.overlapped:
        context.client.connect(PARALLEL - 1)


def provide(context: Context, image: Image, preset: str, options: Mapping[str, Option]) -> Rootfs:
    """Provides mode overlay2 (``harness.engines.embedded.modes``); ``options`` are those of ``PullPolicy``."""
    policy = policy_of(context.mode, preset, options)
    assert isinstance(policy, PullPolicy), "the mode that unpacks has policies of a full pull"
    return pull(context, image, policy)


def pull(context: Context, image: Image, policy: PullPolicy) -> Rootfs:
    """Fetch all layers, verify them, and unpack each into a directory. Raises ``harness.errors.ColdbenchError``."""
    layers = unpack(context, image, policy)
    for number, layer in enumerate(layers):
        link_to_lower([lower.directory for lower in layers[number::-1]], layer.links, layer.name)
    lowest = max((n for n, layer in enumerate(layers) if layer.opaque_root), default=0)
    return Rootfs(
        tuple(layer.directory for layer in layers[lowest:][::-1]),
        details=RootfsDetails(
            entries=sum(layer.entries for layer in layers),
            unpacked_bytes=sum(layer.payload_bytes for layer in layers),
        ),
    )


def unpack(context: Context, image: Image, policy: PullPolicy) -> list[Unpacked]:
    """Fetch layers and unpack each for itself; hard links into lower layers are left to the caller."""
    work = Pull(context, image, decoder=policy.decoder)
    os.makedirs(os.path.join(context.scratch, "layers"), exist_ok=True)
    try:
        return (_tuned if policy.overlapped else _sequential)(work)
    except _Stopped:  # only if a failure was lost on the way
        raise ColdbenchError("the pull was stopped") from None
