"""This module serves modes estargz, soci and erofs in the embedded engine: a provider in the agent, an observer in the
harness.

The daemon (``harness.lazyfs.daemon``) is up before T0. At T0 the agent finds the image's indexes, tells the daemon
which layers to serve, unpacks the others beside that, and hands the directories to whoever stacks them.
"""

from __future__ import annotations

import dataclasses
import errno
import os
import sys
import time
from typing import TYPE_CHECKING

from harness.engines.embedded import overlay2
from harness.engines.embedded.lower_links import link_to_lower
from harness.engines.embedded.messages import RootfsDetails
from harness.engines.embedded.modes import Context, Rootfs
from harness.errors import MachineError
from harness.lazyfs.control import DaemonClient
from harness.lazyfs.messages import (
    AwaitBackground,
    Expect,
    GetReadRanges,
    GetTouches,
    GetUsage,
    MarkReady,
    MountBlob,
    MountTree,
    Serving,
    UseDevices,
)
from harness.lazyfs.mounting.mounts import mount_erofs, unmount
from harness.lazyfs.plan import plan_blob, plan_layers
from harness.lazyfs.scout import Scout
from harness.model.modes import Presentation, find, lazy_policy
from harness.model.policy import PullPolicy
from harness.oci.ahead import Ahead
from harness.oci.aside import Aside
from harness.oci.registry.rounds import dependent_rounds
from harness.oci.store import ImageSource

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Mapping, Sequence

    from harness.lazyfs.messages import Option, ReadRange, Span, Touch, Wanted
    from harness.model.observation import LazyUsage
    from harness.model.timeline import Recorder
    from harness.oci.descriptor import Descriptor, Platform
    from harness.oci.image import Image

MOUNT_TIMEOUT_S = 1800.0
_FIRST_CONNECTIONS = 2
"""Opened beside the first request: its answer leads to three at once."""


class _Unpacker:
    """Pulls and unpacks some layers in a thread, while the daemon fetches the others' indexes."""

    def __init__(self, context: Context, image: Image, numbers: Sequence[int]) -> None:
        self._numbers = tuple(numbers)
        self._context = dataclasses.replace(context, daemon=None, report_span=self._report)
        self._outer = context
        self._image = dataclasses.replace(
            image,
            layers=tuple(image.layers[number] for number in numbers),
            diff_ids=tuple(image.diff_ids[number] for number in numbers),
        )
        self._unpacking = Aside(self._unpack) if numbers else None

    def _report(self, name: str, start_ns: int, end_ns: int, layer: int | None, detail: str) -> None:
        self._outer.report_span(name, start_ns, end_ns, None if layer is None else self._numbers[layer], detail)

    def _unpack(self) -> list[overlay2.Unpacked]:
        return overlay2.unpack(self._context, self._image, PullPolicy())

    def layers(self) -> dict[int, overlay2.Unpacked]:
        """Returns the layers by their numbers in the image, when all are unpacked; raises what went wrong."""
        return {} if self._unpacking is None else dict(zip(self._numbers, self._unpacking.result(), strict=True))


def look_ahead(
    context: Context, platform: Platform, preset: str, options: Mapping[str, Option]
) -> Callable[[Descriptor, bytes], object] | None:
    """Returns what is to see each manifest on the way to the image, so that what it names is asked for at once.

    Puts a store that asks ahead into ``context``. None for presets that ask as somebody else does.
    """
    if context.daemon is None or not lazy_policy(context.mode, preset, options).adaptive:
        return None
    daemon, client = context.daemon, Ahead(context.client)
    context.client = client

    def expect(blobs: Sequence[Wanted]) -> None:
        daemon.call(Expect(_serving(context, preset, options), tuple(blobs)))

    client.connect(_FIRST_CONNECTIONS)
    expect(())
    scout = Scout(client, find(context.mode).form, platform, expect, context.index)
    scout.begin(context.reference)
    return scout


def provide(context: Context, image: Image, preset: str, options: Mapping[str, Option]) -> Rootfs:
    """Provides the lazy modes (``harness.engines.embedded.modes``); ``options`` are those of ``LazyPolicy``."""
    if context.daemon is None:
        raise MachineError("the lazyfs daemon was not started")
    source = ImageSource(context.client, context.reference)
    serving = _serving(context, preset, options)
    present = _provide_blob if find(context.mode).presentation is Presentation.BLOB else _provide_tree
    return present(context, image, context.daemon, source, serving)


def _serving(context: Context, preset: str, options: Mapping[str, Option]) -> Serving:
    return Serving(
        mode=context.mode,
        preset=preset,
        store=context.store,
        scratch=context.scratch,
        options=dict(options),
        prefetch=context.prefetch,
        reads=context.reads,
        latency_s=link.latency_s if (link := getattr(context.client, "link", None)) is not None else 0.0,
        trace=context.trace,
        t0_ns=context.t0_ns or time.monotonic_ns(),
    )


def _rounds(context: Context, asked: Sequence[tuple[int, int]]) -> int:
    """Requests before the mount that waited for one another: ``asked`` are the daemon's."""
    return dependent_rounds([*getattr(context.client, "asked", ()), *asked])


def _report(context: Context, spans: Sequence[Span]) -> None:
    for span in spans:
        context.report_span(span.name, span.start_ns, span.end_ns, span.layer, span.detail)


def _provide_tree(
    context: Context, image: Image, daemon: DaemonClient, source: ImageSource, serving: Serving
) -> Rootfs:
    """One directory per layer: subtrees of the FUSE mount, and unpacked ones for the layers that have no index."""
    with context.span("index", detail="manifests"):
        plan = plan_layers(source, image, serving.mode)
    unpacker = _Unpacker(context, image, plan.unpack)
    mountpoint = daemon.wait_up().root
    try:
        counted = dataclasses.replace(serving, layers_unpacked=len(plan.unpack))
        answer = daemon.call(MountTree(counted, plan.lazy), timeout_s=MOUNT_TIMEOUT_S)
        rounds = _rounds(context, answer.asked)
        _report(context, answer.spans)
        unpacked = unpacker.layers()
        directories = {number: os.path.join(mountpoint, str(number)) for number in answer.layers}
        directories |= {number: layer.directory for number, layer in unpacked.items()}
        for number, layer in unpacked.items():
            lower = [directories[below] for below in range(number, -1, -1)]
            link_to_lower(lower, layer.links, layer.name)
    except BaseException:
        _discard(unmount, mountpoint)
        raise
    opaque = [number for number, layer in unpacked.items() if layer.opaque_root]
    lowest = max([0, *opaque, *answer.opaque_roots])
    stack = [directories[number] for number in sorted(directories, reverse=True) if number >= lowest]
    details = RootfsDetails(
        soci_index=plan.soci_index, lazy_layers=answer.layers, unpacked_layers=tuple(plan.unpack),
        rounds_before_mount=rounds,
        survives_daemon=answer.survives,
    )  # fmt: skip

    def cleanup() -> None:
        _discard(unmount, mountpoint)
        _discard(os.rmdir, mountpoint)

    return Rootfs(tuple(stack), cleanup, details)


def _provide_blob(
    context: Context, image: Image, daemon: DaemonClient, source: ImageSource, serving: Serving
) -> Rootfs:
    """One directory for all layers: EROFS over the daemon's single file."""
    with context.span("index", detail="manifests"):
        index = plan_blob(source, image, context.index)
    mountpoint = daemon.wait_up().root
    target = os.path.join(context.scratch, "erofs")

    def cleanup() -> None:
        # EROFS first: it holds the FUSE file open. Each is tried whatever becomes of the other.
        _discard(unmount, target)
        _discard(unmount, mountpoint)
        _discard(os.rmdir, mountpoint)

    try:
        answer = daemon.call(MountBlob(serving, index), timeout_s=MOUNT_TIMEOUT_S)
        _report(context, answer.spans)
        os.makedirs(target, exist_ok=True)
        with context.span("mount", detail="EROFS"):
            image_file = os.path.join(mountpoint, answer.file)
            mounted = mount_erofs(
                image_file, target, loop=answer.loop, parts=answer.metadata, exact_kib=answer.exact_read_ahead_kib
            )
        if mounted.devices:
            daemon.call(UseDevices(mounted.devices, mounted.mounted))
    except BaseException:
        cleanup()
        raise
    details = RootfsDetails(
        erofs=mounted.way, erofs_refused=mounted.refused or None, whole_layers=answer.layers_whole,
        rounds_before_mount=_rounds(context, answer.asked),
        survives_daemon=answer.survives,
    )  # fmt: skip
    return Rootfs((target,), cleanup, details)


def _discard(take_away: Callable[[str], object], path: str) -> None:
    """Take a mount or a directory away; the agent's log says it when that fails for another reason than "gone"."""
    try:
        take_away(path)
    except OSError as error:
        if error.errno not in {errno.ENOENT, errno.EINVAL}:
            print(f"lazyfs: {path} stays: {error.strerror}", file=sys.stderr, flush=True)  # noqa: T201


class Observer:
    """Speaks to the daemon, in the harness (``harness.engines.embedded.modes.Observer``)."""

    def __init__(self, end: socket.socket) -> None:
        self._daemon = DaemonClient(end)

    def wait_up(self, timeout_s: float) -> None:
        self._daemon.wait_up(timeout_s)

    def mark_ready(self) -> None:
        self._daemon.call(MarkReady(), timeout_s=60.0)

    def finish_background(self, timeout_s: float, timeline: Recorder) -> bool:
        answer = self._daemon.call(AwaitBackground(timeout_s), timeout_s=timeout_s + 30.0)
        for span in answer.spans:
            timeline.add(span.name, span.start_ns, span.end_ns, span.layer, span.detail)
        return answer.complete

    def lazy_usage(self) -> LazyUsage | None:
        from harness.model.observation import LazyUsage

        return LazyUsage.model_validate(dataclasses.asdict(self._daemon.call(GetUsage(), timeout_s=60.0)))

    def first_touches(self) -> list[Touch]:
        return list(self._daemon.call(GetTouches(), timeout_s=60.0).touches)

    def read_ranges(self) -> list[ReadRange]:
        return list(self._daemon.call(GetReadRanges(), timeout_s=60.0).ranges)

    def close(self) -> None:
        self._daemon.close()
