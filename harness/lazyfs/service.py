"""This module answers mount requests: it opens layers, shows a presentation, and runs prefetch and background fetch."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import trio

from harness.errors import ColdbenchError, DiskFull, UsageError
from harness.formats.erofs.device import device_starts, head_with_devices
from harness.formats.erofs.index import index_pack
from harness.formats.erofs.spans import WHOLE
from harness.kernel.cpu_meter import CpuMeter
from harness.lazyfs.address import connect
from harness.lazyfs.counters import Counters, PackCounters
from harness.lazyfs.data import prefetch as fetching
from harness.lazyfs.data.blob_image import WINDOWS, BlobImage, Windows
from harness.lazyfs.data.disk_cache import DiskCache, DiskHealth, SparseFile
from harness.lazyfs.data.pack import StartPack, no_pack
from harness.lazyfs.data.pack_comparison import compare
from harness.lazyfs.data.regions import RegionSource
from harness.lazyfs.data.sources import OpenedLayer, open_layer
from harness.lazyfs.data.store import Store
from harness.lazyfs.data.stream import Stream
from harness.lazyfs.data.whole import fetch_whole
from harness.lazyfs.estate import Estate
from harness.lazyfs.fuse.blob import IMAGE, BlobPresentation
from harness.lazyfs.fuse.blob import NAME as BLOB_NAME
from harness.lazyfs.fuse.kernel_pages import KernelPages
from harness.lazyfs.fuse.namespace import Namespace
from harness.lazyfs.gathering import gather
from harness.lazyfs.independence import Independence, LocalImage
from harness.lazyfs.messages import (
    BackgroundState,
    BlobMounted,
    FileRange,
    MetadataFile,
    MountBlob,
    MountTree,
    Span,
    TreeMounted,
    UseDevices,
)
from harness.lazyfs.mounting.loop_device import read_ahead_as_lazy
from harness.lazyfs.mounting.mounts import set_read_ahead
from harness.lazyfs.succession import Succession
from harness.lazyfs.trace import BlockTrace, Trace
from harness.model.modes import lazy_policy
from harness.oci.ahead import Ahead

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from harness.formats.erofs.index import ErofsIndex
    from harness.formats.erofs.spans import IndexedLayer
    from harness.lazyfs.data.residency import Layer
    from harness.lazyfs.data.units import Units
    from harness.lazyfs.fuse.connection import AnySession
    from harness.lazyfs.messages import Expect, LazyLayer, ReadRange, Serving, Touch, Usage
    from harness.model.policy import LazyPolicy
    from harness.oci.store import BlobStore

log = logging.getLogger(__name__)

_FIRST_CONNECTIONS = 4
"""Counts connections opened while the image is resolved: the first requests of a mount are the parts of an index."""


class Service:
    """Serves one image, mounted once. Everything runs on the event loop unless said otherwise."""

    def __init__(
        self, mountpoint: str, session: AnySession, nursery: trio.Nursery, estate: Estate | None = None
    ) -> None:
        self.mountpoint = mountpoint
        self._estate = estate or Estate()
        self.counters = Counters()
        self._succession = Succession(self._estate, self.counters, self.usage, self._take_wire_counters)
        self._spans: list[Span] = []
        """Holds the spans that ended after the mount."""
        self._independence: Independence | None = None
        self._health = DiskHealth()
        self._session = session
        self._nursery = nursery
        self._ready = trio.Event()
        self._prefetched: trio.Event | None = None
        """Is set when the prefetch list was served; None where there is no list."""
        self._store: Store | None = None
        self._client: Ahead | None = None
        self._name_touches: Callable[[], list[Touch]] = list
        self.read_ranges: Callable[[], list[ReadRange]] = list
        """Returns the reads of a blob (``harness.lazyfs.trace``); empty without a trace of it."""
        self._pack: StartPack | None = None
        self._devices: tuple[str, ...] = ()
        """Holds the loop devices of the mount."""
        self._disks: list[DiskCache] = []
        self._files: list[SparseFile] = []
        self._windows: Windows | None = None
        self._windows_file: SparseFile | None = None
        self._image: SparseFile | None = None
        """Keeps the blob's bytes, each where the blob has it."""
        self._pages: KernelPages | None = None
        self._scratch = ""

    def expect(self, request: Expect) -> None:
        """Opens the connections of a mount that is to come, and asks for the first bytes it wants, in threads."""
        serving = request.serving
        client = self._open_client(serving, lazy_policy(serving.mode, serving.preset, serving.options))
        if not request.blobs:
            client.connect(_FIRST_CONNECTIONS)
        for wanted in request.blobs:
            client.expect_range(wanted.digest, wanted.offset, wanted.size, wanted.parts)

    def _open_client(self, serving: Serving, policy: LazyPolicy) -> Ahead:
        if self._client is None:
            self._client = Ahead(connect(serving.store, policy))
        return self._client

    @property
    def _asked(self) -> tuple[tuple[int, int], ...]:
        """Says when the requests to the registry so far began and ended."""
        return tuple(self._client.asked) if self._client is not None else ()

    async def resume(self) -> None:
        """Go on where an earlier daemon was: the same image from the same files. Raises ColdbenchError.

        Where none was mounted yet there is nothing to do: whoever asked for it asks again.
        """
        past = self._estate.past
        match past.request:
            case MountTree():
                await self.mount_tree(past.request)
            case MountBlob():
                await self.mount_blob(past.request)
            case _:
                return
        if past.before_ready is not None:
            self.counters.before_ready = past.before_ready
            self._ready.set()
        if past.devices is not None:
            assert self._independence is not None
            await self._independence.use_devices(past.devices.paths, past.devices.mounted)

    async def mount_tree(self, request: MountTree) -> TreeMounted:
        """Serve each layer as a directory. Raises ColdbenchError."""
        if isinstance(answer := self._succession.answered(request, self._store is not None), TreeMounted):
            return answer
        client, policy, store = self._begin(request.serving)
        spans: list[Span] = []
        layers = await self._open_layers(client, policy, request.layers, spans)
        self.counters.layers_lazy = len(layers)
        for layer in layers:
            store.add_layer(layer.units, layer.source, self._disk(policy, layer.number, layer.units))
        start = time.monotonic_ns()
        trace = Trace(request.serving.t0_ns or start) if request.serving.trace else None
        tree = Namespace(policy, self.counters, trace)
        tree.add_layers(store, [layer.table for layer in layers], [layer.number for layer in layers])
        if trace is not None:
            self._name_touches = partial(tree.name_touches, trace)
        self._session.show_tree(tree, self.counters)
        spans.append(_span("mount", start, detail="tree"))
        if policy.prefetch:
            files = listed(request.serving)
            extents = (
                tree.extents_of(files) if files else [e for i, la in enumerate(layers) for e in own_prefetch(i, la)]
            )
            await self._start_prefetch(store, extents, [] if files else layers)
        self._go_on(store)
        opaque = [tree.number for tree in tree.subtrees if tree.index.directory(tree.index.root).opaque]
        numbers = tuple(layer.number for layer in layers)
        answer = TreeMounted(numbers, tuple(opaque), tuple(spans), self._asked, self._estate.survives)
        self._succession.note_mounted(request, answer, self._nursery)
        return answer

    async def mount_blob(self, request: MountBlob) -> BlobMounted:
        """Serve all layers as one EROFS image file. Raises ColdbenchError."""
        if isinstance(answer := self._succession.answered(request, self._store is not None), BlobMounted):
            return answer
        client, policy, store = self._begin(request.serving)
        spans: list[Span] = []
        start = time.monotonic_ns()
        pack = self._start_pack(client, store, request)
        image = await trio.to_thread.run_sync(BlobImage.open, client, request.index)
        spans.append(_span("index", start, detail="erofs"))
        if pack is not None:
            pack.bind(image.head_digest, image.index)
        trace = BlockTrace(request.serving.t0_ns or start) if request.serving.trace else None
        whole = self._add_indexed(store, image, policy)
        self.counters.layers_lazy = len(image.index.layers) - len(whole)
        self.counters.layers_unpacked += len(whole)
        absent = [entry for entry in whole if store.residency.not_inflated(entry[0])]
        await gather([partial(self._fill_whole, client, *entry, spans) for entry in absent])
        start = time.monotonic_ns()
        blob = BlobPresentation(policy, self.counters, trace)
        blob.pack = pack
        blob.present(store, image.index.metadata, image.index.layer_starts, image.index.image_bytes)
        if blob.cached and self.counters.layers_lazy:
            self._pages = store.pages = KernelPages(partial(self._session.store_pages, IMAGE), image.index.layer_starts)
        self._windows = image.windows
        if image.index.windows is not None:
            self._succession.remember_all_of(image.index.windows.digest)
        if trace is not None:
            self._name_touches = partial(image.name_touches, trace)
            self.read_ranges = trace.read_ranges
        self._session.present(blob, self.counters)
        spans.append(_span("mount", start, detail="blob"))
        if policy.prefetch:
            files = listed(request.serving)
            await self._start_prefetch(store, image.extents_of(files) if files else list(image.index.prefetch))
        loop = policy.handover and self._image is not None
        metadata = None
        if loop and self._estate.past.answer is None:
            metadata = await trio.to_thread.run_sync(self._separate_metadata, image.index, policy.devices)
        local = None
        if loop and self._image is not None:
            local = LocalImage(self._image, memoryview(image.index.metadata), image.index.image_bytes)
        self._go_on(store, local)
        numbers = tuple(layer.number for _, layer in whole)
        asked, survives = self._asked, self._estate.survives
        exact = policy.exact_read_ahead_kib
        answer = BlobMounted(BLOB_NAME, loop, metadata, numbers, tuple(spans), exact, asked, survives)
        self._succession.note_mounted(request, answer, self._nursery)
        return answer

    def _start_pack(self, client: BlobStore, store: Store, request: MountBlob) -> StartPack | None:
        """Ask for the index's start pack where the policy follows one; a trace must see every read."""
        if not store.policy.pack or request.serving.trace or self._estate.past.answer is not None:
            return None
        counters = self.counters.pack = PackCounters()
        named = index_pack(request.index.manifest.encode())
        if named is None:
            no_pack(counters)
            return None
        push = partial(self._session.store_pages, IMAGE)
        self._pack = StartPack(client, named, counters, push, others_wait=lambda: store.waiting > 0)
        self._pack.start()
        return self._pack

    def _begin(self, serving: Serving) -> tuple[BlobStore, LazyPolicy, Store]:
        """Makes what both presentations begin with: the policy, the image's store and our own over it."""
        if self._store is not None:
            raise UsageError("this daemon serves an image already")
        policy = lazy_policy(serving.mode, serving.preset, serving.options)
        self._scratch = serving.scratch
        client: BlobStore = self._open_client(serving, policy)
        link = self._open_client(serving, policy).link
        if link is not None:
            link.hint(serving.latency_s)
        self._store = Store(policy, self.counters, self._nursery, link)
        self.counters.layers_unpacked = serving.layers_unpacked
        self.counters.t0_ns = serving.t0_ns
        if policy.restart and not serving.trace and self._succession.begin(self._session.survivor):
            self._nursery.start_soon(self._succession.look_after, self._store, self._ready)
            client = self._succession.remember(client, self._sparse("indexes") if policy.disk_cache else None)
        return client, policy, self._store

    def _go_on(self, store: Store, image: LocalImage | None = None) -> None:
        """Does what both presentations end with: sets read-ahead and begins background work."""
        if store.policy.read_ahead_kib:
            set_read_ahead(self.mountpoint, store.policy.read_ahead_kib)
        self._independence = Independence(
            store, image=image, fetch_besides=self._fetch_windows, inflated=self._compare_pack,
            handed_over=self._leave_fuse, turned=self._estate.past.turned,
        )  # fmt: skip
        if not self._estate.past.turned:
            first = self._pack.released if self._pack is not None else self._prefetched
            stream = Stream(store, CpuMeter(), first, self._fetch_windows)
            self._nursery.start_soon(stream.run, self._ready)
        self._nursery.start_soon(self._independence.run, self._ready)

    def _sparse(self, name: str) -> SparseFile | None:
        """Makes a cache file; returns None when the disk does not take one."""
        try:
            file = self._estate.open(self._scratch, name, self._health)
        except OSError as error:
            self._health.fail(error)
            return None
        self._files.append(file)
        return file

    def _disk(self, policy: LazyPolicy, number: int, units: Units, inflated: SparseFile | None = None) -> DiskCache:
        scratch = self._scratch if policy.disk_cache else None
        disk = DiskCache(scratch, number, units, inflated, health=self._health, files=self._estate)
        self._disks.append(disk)
        return disk

    async def _open_layers(
        self, client: BlobStore, policy: LazyPolicy, layers: Sequence[LazyLayer], spans: list[Span]
    ) -> list[OpenedLayer]:
        """Returns the layers with their indexes, fetched side by side, in the order given."""
        opened: list[OpenedLayer | None] = [None] * len(layers)

        async def open_one(position: int, layer: LazyLayer) -> None:
            start = time.monotonic_ns()
            regions = None
            if policy.region_bytes and policy.disk_cache:
                regions = self._sparse(f"layer-{layer.number}.regions")
            opened[position] = await trio.to_thread.run_sync(open_layer, client, layer, policy, regions)
            spans.append(_span("index", start, layer.number, layer.kind))

        await gather([partial(open_one, i, layer) for i, layer in enumerate(layers)])
        return [layer for layer in opened if layer is not None]

    def _add_indexed(self, store: Store, image: BlobImage, policy: LazyPolicy) -> list[tuple[Layer, IndexedLayer]]:
        """Adds the index's layers to the store; returns those that have to be fetched whole before the mount."""
        whole: list[tuple[Layer, IndexedLayer]] = []
        if policy.disk_cache:
            self._image = self._sparse("image")
        for layer, units, source in zip(image.index.layers, image.units, image.sources, strict=True):
            part = None if self._image is None else self._image.part(layer.start)
            added = store.add_layer(units, source, self._disk(policy, layer.number, units, part))
            if layer.kind == WHOLE or policy.eager:
                whole.append((added, layer))
        return whole

    def _separate_metadata(self, index: ErofsIndex, devices: int) -> MetadataFile | None:
        """Writes the metadata to a file of its own, if there are layers and room for it; blocks."""
        if not index.layers:
            return None
        path = os.path.join(self._scratch, "metadata")
        with contextlib.suppress(FileNotFoundError):  # of a daemon that was killed before it had answered
            os.unlink(path)
        starts = device_starts(index.layer_starts[0], index.image_bytes, devices)
        try:
            with open(path, "xb") as file:
                head = head_with_devices(index.metadata, starts, index.image_bytes)
                file.writelines([head, memoryview(index.metadata)[len(head) :]])
        except OSError as error:
            log.warning("the metadata stays in the lazy file: %s", error)
            return None
        return MetadataFile(path, starts)

    async def _fill_whole(self, client: BlobStore, layer: Layer, indexed: IndexedLayer, spans: list[Span]) -> None:
        """Brings all of a layer into the disk cache before anything is mounted."""
        start = time.monotonic_ns()
        store, sink = self._store, layer.disk.inflated
        assert store is not None
        if sink is None:
            why = self._health.failure.strerror if self._health.failure is not None else "switched off"
            raise DiskFull(f"layers that are fetched whole need the machine's disk, which takes nothing ({why})")
        fill = partial(fetch_whole, client, indexed.digest, indexed.kind, indexed.size, sink.file, layer=indexed)
        fetched = await trio.to_thread.run_sync(fill, abandon_on_cancel=True)
        for unit, sums in enumerate(fetched.sums):
            sink.note_written(unit, sums)
        store.residency.note_filled(layer)
        if fetched.refetched:
            self.counters.layers_refetched += 1
            log.warning("layer %d was fetched a second time: %s", indexed.number, fetched.refetched)
        self.counters.bytes_fetched += fetched.received_bytes
        self.counters.requests += fetched.requests
        self.counters.bytes_inflated += indexed.size
        self.counters.spans_fetched += len(layer)
        spans.append(_span("fetch", start, indexed.number, "whole"))

    async def _start_prefetch(
        self, store: Store, extents: list[fetching.Extent], own: Sequence[OpenedLayer] = ()
    ) -> None:
        """Begins the prefetch, and waits as long as the policy says; ``own`` are layers whose own prefetch this is."""
        if extents:
            done = self._prefetched = trio.Event()
            self._nursery.start_soon(self._run_prefetch, store, extents, own, done)
            if store.policy.prefetch_wait_s and self._estate.past.answer is None:
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
        self._spans.append(_span("prefetch", start))

    async def use_devices(self, devices: tuple[str, ...], mounted: str) -> None:
        """Takes the loop devices over our file; ``mounted`` is what EROFS is mounted from."""
        assert self._independence is not None
        self._estate.note_devices(UseDevices(devices, mounted))
        await self._independence.use_devices(devices, mounted)
        self._devices = tuple(dict.fromkeys((*devices, mounted)))

    async def background(self, wait_s: float) -> BackgroundState:
        """Waits until the background fetch has ended, ``wait_s`` at most, and says whether all is local."""
        independence = self._independence
        if independence is None:
            raise UsageError("this daemon serves no image yet")
        with trio.move_on_after(wait_s):
            await independence.done.wait()
        complete = independence.done.is_set() and independence.complete
        packed = self._pack.spans if self._pack is not None else ()
        return BackgroundState(complete, (*self._spans, *packed, *independence.spans))

    async def _compare_pack(self) -> None:
        """Compares what the start pack said with the layers, which are all inflated."""
        if self._pack is not None and self._image is not None:
            await compare(self._pack, self._image, self.counters)

    async def _leave_fuse(self) -> None:
        self._estate.note_turned()
        if self._pack is not None:
            self._pack.close()
        if self._pages is not None:
            await trio.to_thread.run_sync(self._forget_pages, self._pages)

    def _forget_pages(self, pages: KernelPages) -> None:
        """Drops what the kernel keeps of the FUSE file, which nobody reads any more; blocks."""
        pages.close()
        self._session.drop_pages(IMAGE)

    async def _fetch_windows(self) -> bool:
        """Fetches the blob's windows, for units that were fetched but not inflated; returns whether they are local.

        Raises ColdbenchError.
        """
        windows = self._windows
        if windows is None:
            return True
        if self._windows_file is None:
            self._windows_file = self._sparse(WINDOWS)
        file = self._windows_file
        if file is None or self._client is None:
            return False
        fetch = partial(windows.fetch_all, file, self._estate, self._client)
        return await trio.to_thread.run_sync(fetch, abandon_on_cancel=True)

    def mark_ready(self) -> None:
        """Notes that the container is ready: freezes the counters 'before ready', lets the background fetch begin."""
        self._take_wire_counters()
        if self.counters.before_ready is None:
            self._estate.note_ready(*self.counters.freeze())
        if self._pack is not None:
            for device in self._devices:
                read_ahead_as_lazy(device)
        self._ready.set()

    def usage(self) -> Usage:
        """Returns everything counted so far."""
        self._take_wire_counters()
        if self._pages is not None:
            self.counters.bytes_pushed = self._pages.bytes_stored
        usage = self.counters.usage()
        self._succession.save(usage)
        return usage

    def _take_wire_counters(self) -> None:
        """Takes what a registry client counts itself: all on the wire, with indexes, windows and tries that failed."""
        wire: Any = None if self._client is None else self._client.counters
        if wire is not None:
            self.counters.retries = wire.retries
            self.counters.requests = wire.requests
            self.counters.bytes_fetched = wire.received_bytes

    def first_touches(self) -> list[Touch]:
        """Returns the first touches (``harness.lazyfs.trace``); empty without a trace."""
        return self._name_touches()

    def close(self) -> None:
        """Let go of files and connections; the session is stopped by the caller."""
        if self._pack is not None:
            self._pack.close()
        for disk in self._disks:
            disk.close()
        for file in self._files:
            file.close()
        if self._client is not None:
            self._client.close()


def _span(name: str, start_ns: int, layer: int | None = None, detail: str = "") -> Span:
    """Returns a span that ends now."""
    return Span(name, start_ns, time.monotonic_ns(), layer, detail)


def listed(serving: Serving) -> list[FileRange]:
    """Returns the prefetch list of a mount request: recorded reads, else whole files."""
    return list(serving.reads) or [FileRange(path) for path in serving.prefetch]


def own_prefetch(position: int, layer: OpenedLayer) -> list[fetching.Extent]:
    """Returns the extents of what the layer itself wants fetched first."""
    return [(position, layer.units.starts[unit], layer.units.ends[unit]) for unit in layer.prefetch]
