"""What the daemon does with a mount request: layers opened, a presentation put up, prefetch and background run."""

from __future__ import annotations

import logging
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import pyfuse3
import trio

from harness.errors import ColdbenchError, UsageError
from harness.lazyfs import prefetch as fetching
from harness.lazyfs.counters import Counters
from harness.lazyfs.disk_cache import DiskCache
from harness.lazyfs.mounts import set_read_ahead
from harness.lazyfs.policy import Policy, policy_of
from harness.lazyfs.sources import OpenedLayer, open_layer
from harness.lazyfs.store import Store
from harness.lazyfs.trace import Trace
from harness.lazyfs.tree import TreeOperations

if TYPE_CHECKING:
    from collections.abc import Callable

    from harness.lazyfs.session import Reader
    from harness.oci.store import BlobStore

    Report = Callable[[str, int, int, int | None, str], None]

log = logging.getLogger(__name__)


class Switch(pyfuse3.Operations):
    """What pyfuse3 is given at start, when nobody knows yet which presentation it will be.

    pyfuse3 looks a handler up by name for each request, so the chosen presentation's bound methods are simply put here.
    """

    supports_dot_lookup = True
    enable_writeback_cache = False
    enable_acl = False

    _HANDLERS = ("lookup", "forget", "getattr", "readlink", "open", "read", "release", "opendir", "readdir",
                 "releasedir", "getxattr", "listxattr", "statfs", "access")  # fmt: skip

    def turn_to(self, operations: pyfuse3.Operations) -> None:
        """From now on ``operations`` answers."""
        for name in self._HANDLERS:
            self.__dict__[name] = getattr(operations, name)


class Service:
    """One image, mounted once. Everything runs on the event loop unless said otherwise."""

    def __init__(self, mountpoint: str, switch: Switch, reader: Reader, nursery: trio.Nursery) -> None:
        self.mountpoint = mountpoint
        self.counters = Counters()
        self.background_done = trio.Event()
        self.background_complete = False
        self.spans: list[tuple[str, int, int]] = []
        """Spans that end after the mount: (name, start_ns, end_ns), for whoever asks."""
        self._switch = switch
        self._reader = reader
        self._nursery = nursery
        self._ready = trio.Event()
        self._store: Store | None = None
        self._client: BlobStore | None = None
        self._tree: TreeOperations | None = None
        self._trace: Trace | None = None
        self._presentation: Any = None
        self._disks: list[DiskCache] = []

    async def mount(self, request: dict[str, Any], report: Report) -> dict[str, Any]:
        """Serve the image of ``request``; what to tell the caller. Raises ColdbenchError.

        ``request``: ``mode``, ``preset``, ``options``, ``layers`` (see ``open_layer``), ``store`` (see
        ``connect``), ``scratch``, ``prefetch``, ``trace``, ``t0_ns``, ``layers_unpacked``.
        """
        if self._store is not None:
            raise UsageError("this daemon serves an image already")
        policy = policy_of(str(request["mode"]), str(request["preset"]), request.get("options"))
        client = self._client = connect(request["store"])
        store = self._store = Store(policy, self.counters, self._nursery)
        self.counters.layers_unpacked = int(request.get("layers_unpacked", 0))
        self.counters.layers_lazy = len(request["layers"])
        opened: list[OpenedLayer | None] = [None] * len(request["layers"])

        async def open_one(position: int, message: dict[str, Any]) -> None:
            start = time.monotonic_ns()
            opened[position] = await trio.to_thread.run_sync(open_layer, client, message)
            report("index", start, time.monotonic_ns(), int(message["number"]), str(message["kind"]))

        await gather([partial(open_one, i, message) for i, message in enumerate(request["layers"])])
        layers = [layer for layer in opened if layer is not None]
        scratch = str(request["scratch"])
        for layer in layers:
            disk = DiskCache(scratch if policy.disk_cache else None, layer.number)
            self._disks.append(disk)
            store.add_layer(layer.units, layer.source, disk, layer.size)
        start = time.monotonic_ns()
        if request.get("trace"):
            self._trace = Trace(int(request.get("t0_ns") or start))
        tree = self._tree = TreeOperations(policy, self.counters, self._trace)
        tree.reader = self._reader
        tree.add_layers(store, [layer.table for layer in layers], [layer.number for layer in layers])
        self._switch.turn_to(tree)
        report("mount", start, time.monotonic_ns(), None, "tree")
        if policy.read_ahead_kib:
            set_read_ahead(self.mountpoint, policy.read_ahead_kib)
        self._start_fetching(policy, layers, request)
        return {
            "root": self.mountpoint,
            "layers": [layer.number for layer in layers],
            "opaque_roots": [tree.number for tree in tree.subtrees if tree.index.directory(tree.index.root).opaque],
        }

    def _start_fetching(self, policy: Policy, layers: list[OpenedLayer], request: dict[str, Any]) -> None:
        store = self._store
        assert store is not None
        if policy.prefetch:
            extents = [
                (position, store.layers[position].starts[unit], store.layers[position].ends[unit])
                for position, layer in enumerate(layers)
                if layer.prefetch_bytes
                for unit in range(len(store.layers[position].starts))
                if sum(layer.units.extent(unit)) <= layer.prefetch_bytes
            ]
            paths = request.get("prefetch") or ()
            if paths and self._tree is not None:
                extents = self._tree.extents_of(paths)
            if extents:
                self._nursery.start_soon(self._run_prefetch, store, extents)
        self._nursery.start_soon(self._run_background, store, policy)

    async def _run_prefetch(self, store: Store, extents: list[fetching.Extent]) -> None:
        start = time.monotonic_ns()
        await fetching.prefetch(store, extents)
        self.spans.append(("prefetch", start, time.monotonic_ns()))

    async def _run_background(self, store: Store, policy: Policy) -> None:
        try:
            if not policy.background:
                self.background_complete = policy.eager
                return
            if not policy.background_from_mount:
                await self._ready.wait()
            start = time.monotonic_ns()
            self.background_complete = await fetching.background(store)
            self.spans.append(("background", start, time.monotonic_ns()))
        finally:
            self.background_done.set()

    def mark_ready(self) -> None:
        """The container is ready: freeze the counters 'before ready', let the background fetch begin."""
        self.counters.freeze()
        self._ready.set()

    def stats(self) -> dict[str, Any]:
        """Counters in the stored form (``harness.model.observation.LazyUsage``)."""
        counters: Any = getattr(self._client, "counters", None)
        if counters is not None:
            self.counters.retries = counters.retries
        return self.counters.as_dict()

    def first_touches(self) -> list[dict[str, Any]]:
        """See ``harness.lazyfs.trace``; empty without a trace."""
        if self._trace is None or self._tree is None:
            return []
        return self._tree.name_touches(self._trace)

    def close(self) -> None:
        """Let go of files and connections; the session is stopped by the caller."""
        for disk in self._disks:
            disk.close()
        if self._client is not None:
            self._client.close()


def connect(message: dict[str, Any]) -> BlobStore:
    """The store that holds the image: ``{"registry", "repository", "plain", "credentials"}`` or ``{"layout"}``."""
    if "layout" in message:
        from harness.oci.layout import LayoutStore

        return LayoutStore(str(message["layout"]))
    from harness.oci.registry_auth import Credentials
    from harness.oci.registry_client import RegistryClient

    given = message.get("credentials") or {}
    credentials = (
        Credentials(given.get("user", ""), given.get("secret", ""), bool(given.get("identity"))) if given else None
    )
    return RegistryClient(
        message["registry"], message["repository"], plain=message.get("plain"), credentials=credentials
    )


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
