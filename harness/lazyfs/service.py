"""What the daemon does with a mount request: layers opened, a presentation put up, prefetch and background run."""

from __future__ import annotations

import logging
import os
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import trio

from harness.errors import ColdbenchError, ContentError, UsageError
from harness.formats.erofs.device import head_with_second_device
from harness.formats.erofs.spans import WHOLE
from harness.lazyfs.counters import Counters
from harness.lazyfs.data import prefetch as fetching
from harness.lazyfs.data.blob_image import BlobImage, Windows
from harness.lazyfs.data.disk_cache import DiskCache, SparseFile
from harness.lazyfs.data.regions import RegionSource
from harness.lazyfs.data.sources import OpenedLayer, open_layer
from harness.lazyfs.data.store import INFLATED, Layer, Store
from harness.lazyfs.data.whole import fetch_whole
from harness.lazyfs.fuse.blob import IMAGE, BlobPresentation
from harness.lazyfs.fuse.blob import NAME as BLOB_NAME
from harness.lazyfs.fuse.kernel_pages import KernelPages
from harness.lazyfs.fuse.tree import TreePresentation
from harness.lazyfs.mounting import handover
from harness.lazyfs.mounting.mounts import set_read_ahead
from harness.lazyfs.trace import BlockTrace, Trace
from harness.model.modes import Presentation, find, lazy_policy

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from harness.formats.erofs.index import ErofsIndex
    from harness.formats.erofs.spans import IndexedLayer
    from harness.lazyfs.fuse.connection import Session
    from harness.model.policy import LazyPolicy
    from harness.oci.store import BlobStore

    Report = Callable[[str, int, int, int | None, str], None]

log = logging.getLogger(__name__)


class Service:
    """One image, mounted once. Everything runs on the event loop unless said otherwise."""

    def __init__(self, mountpoint: str, session: Session, nursery: trio.Nursery) -> None:
        self.mountpoint = mountpoint
        self.counters = Counters()
        self.background_done = trio.Event()
        self.background_complete = False
        self.spans: list[tuple[str, int, int]] = []
        """Spans that end after the mount: (name, start_ns, end_ns), for whoever asks."""
        self._session = session
        self._nursery = nursery
        self._ready = trio.Event()
        self._store: Store | None = None
        self._client: BlobStore | None = None
        self._name_touches: Callable[[], list[dict[str, Any]]] = list
        self._disks: list[DiskCache] = []
        self._files: list[SparseFile] = []
        self._windows: Windows | None = None
        self._image: SparseFile | None = None
        """Where the blob's bytes are kept, each where the blob has it."""
        self._blob: BlobPresentation | None = None
        self._pages: KernelPages | None = None
        self._devices = ("", "")
        self._scratch = ""

    async def mount(self, request: dict[str, Any], report: Report) -> dict[str, Any]:
        """Serve the image of ``request``; what to tell the caller. Raises ColdbenchError.

        ``request``: ``mode``, ``preset``, ``options``, ``store`` (see ``connect``), ``scratch``, ``prefetch``,
        ``trace``, ``t0_ns``, ``layers_unpacked``; for the tree ``layers`` (see ``open_layer``), for the blob ``index``
        (see ``BlobImage.open``). The answer's ``root`` is where the FUSE session is mounted.
        """
        if self._store is not None:
            raise UsageError("this daemon serves an image already")
        policy = lazy_policy(str(request["mode"]), str(request["preset"]), request.get("options"))
        self._scratch = str(request["scratch"])
        client = self._client = connect(request["store"], policy)
        link = getattr(client, "link", None)
        if link is not None:
            link.hint(float(request.get("latency_s", 0.0)))
        self._store = Store(policy, self.counters, self._nursery, link)
        self.counters.layers_unpacked = int(request.get("layers_unpacked", 0))
        blob = find(str(request["mode"])).presentation is Presentation.BLOB
        present = self._present_blob if blob else self._present_tree
        answer = await present(client, policy, request, report)
        if policy.read_ahead_kib:
            set_read_ahead(self.mountpoint, policy.read_ahead_kib)
        self._nursery.start_soon(self._run_background, self._store, policy)
        return {"root": self.mountpoint, **answer}

    def _disk(self, policy: LazyPolicy, number: int, inflated: SparseFile | None = None) -> DiskCache:
        disk = DiskCache(self._scratch if policy.disk_cache else None, number, inflated)
        self._disks.append(disk)
        return disk

    async def _present_tree(
        self, client: BlobStore, policy: LazyPolicy, request: dict[str, Any], report: Report
    ) -> dict[str, Any]:
        store = self._store
        assert store is not None
        opened: list[OpenedLayer | None] = [None] * len(request["layers"])

        async def open_one(position: int, message: dict[str, Any]) -> None:
            start = time.monotonic_ns()
            regions = None
            if policy.region_bytes and policy.disk_cache:
                regions = SparseFile(self._scratch, f"layer-{message['number']}.regions")
                self._files.append(regions)
            opened[position] = await trio.to_thread.run_sync(open_layer, client, message, policy, regions)
            report("index", start, time.monotonic_ns(), int(message["number"]), str(message["kind"]))

        await gather([partial(open_one, i, message) for i, message in enumerate(request["layers"])])
        layers = [layer for layer in opened if layer is not None]
        self.counters.layers_lazy = len(layers)
        for layer in layers:
            store.add_layer(layer.units, layer.source, self._disk(policy, layer.number))
        start = time.monotonic_ns()
        trace = Trace(int(request.get("t0_ns") or start)) if request.get("trace") else None
        tree = TreePresentation(policy, self.counters, trace)
        tree.add_layers(store, [layer.table for layer in layers], [layer.number for layer in layers])
        if trace is not None:
            self._name_touches = partial(tree.name_touches, trace)
        self._session.present(tree, self.counters)
        report("mount", start, time.monotonic_ns(), None, "tree")
        if policy.prefetch:
            paths = request.get("prefetch") or ()
            extents = (
                tree.extents_of(paths) if paths else [e for i, la in enumerate(layers) for e in own_prefetch(i, la)]
            )
            await self._start_prefetch(store, extents, [] if paths else layers)
        return {
            "layers": [layer.number for layer in layers],
            "opaque_roots": [tree.number for tree in tree.subtrees if tree.index.directory(tree.index.root).opaque],
        }

    async def _present_blob(
        self, client: BlobStore, policy: LazyPolicy, request: dict[str, Any], report: Report
    ) -> dict[str, Any]:
        store = self._store
        assert store is not None
        start = time.monotonic_ns()
        image = await trio.to_thread.run_sync(BlobImage.open, client, request["index"])
        report("index", start, time.monotonic_ns(), None, "erofs")
        trace = BlockTrace(int(request.get("t0_ns") or start)) if request.get("trace") else None
        whole: list[tuple[Layer, IndexedLayer]] = []
        if policy.disk_cache:
            self._image = SparseFile(self._scratch, "image")
            self._files.append(self._image)
        for layer, units, source in zip(image.index.layers, image.units, image.sources, strict=True):
            part = None if self._image is None else self._image.part(layer.start)
            added = store.add_layer(units, source, self._disk(policy, layer.number, part))
            if layer.kind == WHOLE or policy.eager:
                whole.append((added, layer))
        self.counters.layers_lazy = len(image.index.layers) - len(whole)
        self.counters.layers_unpacked += len(whole)
        await gather([partial(self._fill_whole, client, *entry, report) for entry in whole])
        start = time.monotonic_ns()
        blob = BlobPresentation(policy, self.counters, trace)
        blob.present(store, image.index.metadata, image.index.layer_starts, image.index.image_bytes)
        if blob.cached and self.counters.layers_lazy:
            self._pages = store.pages = KernelPages(partial(self._session.store_pages, IMAGE), image.index.layer_starts)
        self._windows = image.windows
        self._blob = blob
        if trace is not None:
            self._name_touches = partial(image.name_touches, trace)
        self._session.present(blob, self.counters)
        report("mount", start, time.monotonic_ns(), None, "blob")
        if policy.prefetch:
            paths = request.get("prefetch") or ()
            await self._start_prefetch(store, image.extents_of(paths) if paths else list(image.index.prefetch))
        loop = policy.handover and policy.disk_cache
        return {
            "file": BLOB_NAME,
            "loop": loop,
            "parts": await trio.to_thread.run_sync(self._separate_metadata, image.index) if loop else None,
            "layers_whole": [layer.number for _, layer in whole],
        }

    def _separate_metadata(self, index: ErofsIndex) -> dict[str, Any] | None:
        """The metadata as a file of its own, if there are layers and room for it; blocks."""
        if not index.layers:
            return None
        path, start = os.path.join(self._scratch, "metadata"), index.layer_starts[0]
        try:
            with open(path, "xb") as file:
                head = head_with_second_device(index.metadata, start, index.image_bytes)
                file.writelines([head, memoryview(index.metadata)[len(head) :]])
        except OSError as error:
            log.warning("the metadata stays in the lazy file: %s", error)
            return None
        return {"metadata": path, "start": start}

    async def _fill_whole(self, client: BlobStore, layer: Layer, indexed: IndexedLayer, report: Report) -> None:
        """All of a layer into the disk cache before anything is mounted."""
        start = time.monotonic_ns()
        sink = layer.disk.inflated
        if sink is None:
            raise ContentError("a layer that is fetched whole needs the disk cache: leave option disk_cache on")
        fill = partial(fetch_whole, client, indexed.digest, indexed.kind, indexed.size, sink, layer=indexed)
        received = await trio.to_thread.run_sync(fill, abandon_on_cancel=True)
        layer.state[:] = bytes([INFLATED]) * len(layer.state)
        self.counters.bytes_fetched += received
        self.counters.requests += 1
        self.counters.bytes_inflated += indexed.size
        self.counters.spans_fetched += len(layer.state)
        report("fetch", start, time.monotonic_ns(), indexed.number, "whole")

    async def _start_prefetch(
        self, store: Store, extents: list[fetching.Extent], own: Sequence[OpenedLayer] = ()
    ) -> None:
        """Begin, and wait as long as the policy says; ``own`` are layers whose own prefetch this is."""
        if extents:
            done = trio.Event()
            self._nursery.start_soon(self._run_prefetch, store, extents, own, done)
            if store.policy.prefetch_wait_s:
                with trio.move_on_after(store.policy.prefetch_wait_s):
                    await done.wait()

    async def _run_prefetch(
        self, store: Store, extents: list[fetching.Extent], own: Sequence[OpenedLayer], done: trio.Event
    ) -> None:
        start = time.monotonic_ns()
        try:
            for layer in own:
                if layer.prefetch and isinstance(layer.source, RegionSource):
                    # The reference fetches everything before the landmark in one request.
                    end = max(sum(layer.units.extent(unit)) for unit in layer.prefetch)
                    await trio.to_thread.run_sync(layer.source.bring, 0, end, abandon_on_cancel=True)
            await fetching.prefetch(store, extents)
        except ColdbenchError as error:
            log.warning("prefetch: %s", error)
        finally:
            done.set()
        self.spans.append(("prefetch", start, time.monotonic_ns()))

    async def _run_background(self, store: Store, policy: LazyPolicy) -> None:
        try:
            if not policy.background:
                self.background_complete = policy.eager
                return
            if not policy.background_from_mount:
                await self._ready.wait()
            start = time.monotonic_ns()
            self.background_complete = await fetching.background(store) and await self._fetch_windows()
            self.spans.append(("background", start, time.monotonic_ns()))
            if self.background_complete and self._devices[0]:
                start = time.monotonic_ns()
                await handover.inflate_all(store)
                await self._hand_over()
                self.spans.append(("inflate", start, time.monotonic_ns()))
        finally:
            self.background_done.set()

    async def use_device(self, device: str, mounted: str) -> None:
        """This loop device is over our file: turn it to the cache file once that is whole.

        ``mounted`` is the device that EROFS is mounted from: the same, or one with the metadata.
        """
        self._devices = (device, mounted)
        await self._hand_over()

    async def _hand_over(self) -> None:
        store, image, blob = self._store, self._image, self._blob
        if store is None or image is None or blob is None or not handover.is_whole(store):
            return
        change = partial(handover.hand_over, *self._devices, image, blob.metadata, blob.size)
        self.counters.handed_over = await trio.to_thread.run_sync(change)
        if self.counters.handed_over:
            store.memory.clear()
            store.pages = None
            if self._pages is not None:
                await trio.to_thread.run_sync(self._forget_pages, self._pages)

    def _forget_pages(self, pages: KernelPages) -> None:
        """Nobody reads the FUSE file any more: what the kernel keeps of it is of no use; blocks."""
        pages.close()
        self._session.drop_pages(IMAGE)

    async def _fetch_windows(self) -> bool:
        """The blob's windows are wanted for units that were fetched but not inflated; whether they are local now."""
        windows = self._windows
        if windows is None:
            return True
        file = SparseFile(self._scratch, "windows")
        self._files.append(file)
        try:
            return await trio.to_thread.run_sync(windows.fetch_all, file, abandon_on_cancel=True)
        except ColdbenchError as error:
            log.warning("background fetch of the windows: %s", error)
            return False

    def mark_ready(self) -> None:
        """The container is ready: freeze the counters 'before ready', let the background fetch begin."""
        self._take_wire_counters()
        self.counters.freeze()
        self._ready.set()

    def stats(self) -> dict[str, Any]:
        """Counters in the stored form (``harness.model.observation.LazyUsage``)."""
        self._take_wire_counters()
        if self._pages is not None:
            self.counters.bytes_pushed = self._pages.bytes_stored
        return self.counters.as_dict()

    def _take_wire_counters(self) -> None:
        """A registry client counts what crosses the wire itself: indexes, windows and tries that failed included."""
        wire: Any = getattr(self._client, "counters", None)
        if wire is not None:
            self.counters.retries = wire.retries
            self.counters.requests = wire.requests
            self.counters.bytes_fetched = wire.received_bytes

    def first_touches(self) -> list[dict[str, Any]]:
        """See ``harness.lazyfs.trace``; empty without a trace."""
        return self._name_touches()

    def close(self) -> None:
        """Let go of files and connections; the session is stopped by the caller."""
        for disk in self._disks:
            disk.close()
        for file in self._files:
            file.close()
        if self._client is not None:
            self._client.close()


def connect(message: dict[str, Any], policy: LazyPolicy) -> BlobStore:
    """The store that holds the image: ``{"registry", "repository", "plain", "credentials", "routes"}`` or
    ``{"layout"}``."""
    if "layout" in message:
        from harness.oci.layout import LayoutStore

        return LayoutStore(str(message["layout"]))
    from harness.oci.registry.client import RegistryClient, Retries
    from harness.oci.registry.logins import Credentials

    given = message.get("credentials") or {}
    credentials = (
        Credentials(given.get("user", ""), given.get("secret", ""), bool(given.get("identity"))) if given else None
    )
    return RegistryClient(
        message["registry"], message["repository"], plain=message.get("plain"), credentials=credentials,
        routes=tuple(message.get("routes") or ()),
        retries=Retries(attempts=max(1, policy.attempts), first_s=policy.retry_first_s),
    )  # fmt: skip


def own_prefetch(position: int, layer: OpenedLayer) -> list[fetching.Extent]:
    """Extents of what the layer itself wants fetched first."""
    return [(position, layer.units.starts[unit], layer.units.ends[unit]) for unit in layer.prefetch]


async def gather(tasks: list[Callable[[], Any]]) -> None:
    """Run all; the first ColdbenchError cancels the others and is raised alone."""
    try:
        async with trio.open_nursery() as nursery:
            for task in tasks:
                nursery.start_soon(task)
    except BaseExceptionGroup as group:
        own = group.subgroup(ColdbenchError)
        while own is not None and isinstance(own, BaseExceptionGroup):
            first = own.exceptions[0]
            if not isinstance(first, BaseExceptionGroup):
                raise first from None
            own = first
        raise
