"""Modes estargz, soci and erofs in the embedded engine: the provider in the agent, the observer in the harness.

The daemon (``harness.lazyfs.daemon``) is up before T0. At T0 the agent finds the image's indexes, tells the daemon
which layers to serve, unpacks the others beside that, and hands the directories to whoever stacks them.
"""

from __future__ import annotations

import dataclasses
import os
import time
from typing import TYPE_CHECKING, Any

from harness.engines.embedded import overlay2
from harness.engines.embedded.modes import Context, Rootfs
from harness.errors import ColdbenchError, MachineError
from harness.lazyfs.control import DaemonClient
from harness.lazyfs.mounting.mounts import Parts, mount_erofs, unmount
from harness.lazyfs.plan import plan_blob, plan_layers
from harness.model.modes import Presentation, find
from harness.model.policy import PullPolicy
from harness.oci.aside import Aside
from harness.oci.store import ImageSource

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from harness.model.observation import LazyUsage
    from harness.model.timeline import Recorder
    from harness.oci.image import Image

MOUNT_TIMEOUT_S = 1800.0


class _Unpacker:
    """Pulls and unpacks some layers in a thread, while the daemon fetches the others' indexes."""

    def __init__(self, context: Context, image: Image, numbers: list[int]) -> None:
        self._numbers = numbers
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

    def _unpack(self) -> tuple[str, ...]:
        return overlay2.pull(self._context, self._image, PullPolicy()).lowerdirs

    def directories(self) -> tuple[dict[int, str], int]:
        """Layer number -> directory, and the lowest layer that shows (one may hide all below it); raises its error."""
        if self._unpacking is None:
            return {}, 0
        directories = self._unpacking.result()
        shown = self._numbers[len(self._numbers) - len(directories) :]
        lowest = shown[0] if len(shown) < len(self._numbers) else 0
        return dict(zip(shown, reversed(directories), strict=True)), lowest


def store_message(request: dict[str, Any]) -> dict[str, Any]:
    """Where the daemon finds the image: the deploy request's registry, or what it says itself (``coldbench mount``)."""
    return request.get("store") or {
        "registry": request["registry"],
        "repository": request["repository"],
        "plain": request.get("scheme") == "http",
        "credentials": request.get("credentials") or {},
        "routes": list(request.get("routes") or ()),
    }


def provide(context: Context, image: Image, preset: str, options: dict[str, Any]) -> Rootfs:
    """Provider of the lazy modes (``harness.engines.embedded.modes``); ``options`` are those of ``LazyPolicy``."""
    if context.daemon is None:
        raise MachineError("the lazyfs daemon was not started")
    mode = str(context.request["mode"])
    daemon = context.daemon if isinstance(context.daemon, DaemonClient) else DaemonClient(context.daemon)
    source = ImageSource(context.client, str(context.request.get("reference") or ""))
    message: dict[str, Any] = {
        "mode": mode,
        "preset": preset,
        "options": options,
        "store": store_message(context.request),
        "scratch": context.scratch,
        "prefetch": list(context.prefetch),
        "latency_s": link.latency_s if (link := getattr(context.client, "link", None)) is not None else 0.0,
        "trace": context.trace,
        "t0_ns": context.request.get("t0_ns") or time.monotonic_ns(),
    }
    present = _provide_blob if find(mode).presentation is Presentation.BLOB else _provide_tree
    return present(context, image, daemon, source, message)


def _mount(context: Context, daemon: DaemonClient, message: dict[str, Any]) -> dict[str, Any]:
    answer = daemon.call("mount", timeout_s=MOUNT_TIMEOUT_S, **message)
    for span in answer["spans"]:
        context.report_span(span["name"], span["start_ns"], span["end_ns"], span.get("layer"), span.get("detail", ""))
    return answer


def _provide_tree(
    context: Context, image: Image, daemon: DaemonClient, source: ImageSource, message: dict[str, Any]
) -> Rootfs:
    """One directory per layer: subtrees of the FUSE mount, and unpacked ones for the layers that have no index."""
    with context.span("index", detail="manifests"):
        plan = plan_layers(source, image, message["mode"])
    unpacker = _Unpacker(context, image, plan.unpack)
    mountpoint = str(daemon.wait_up()["root"])
    try:
        answer = _mount(context, daemon, {**message, "layers": plan.lazy, "layers_unpacked": len(plan.unpack)})
        directories, lowest = unpacker.directories()
    except BaseException:
        unmount(mountpoint)
        raise
    for number in answer["layers"]:
        directories[number] = os.path.join(mountpoint, str(number))
    lowest = max([lowest, *answer["opaque_roots"]])
    stack = [directories[number] for number in sorted(directories, reverse=True) if number >= lowest]
    details = {**plan.details, "lazy_layers": answer["layers"], "unpacked_layers": plan.unpack}

    def cleanup() -> None:
        _discard(unmount, mountpoint)
        _discard(os.rmdir, mountpoint)

    return Rootfs(tuple(stack), cleanup, details)


def _provide_blob(
    context: Context, image: Image, daemon: DaemonClient, source: ImageSource, message: dict[str, Any]
) -> Rootfs:
    """One directory for all layers: EROFS over the daemon's single file."""
    with context.span("index", detail="manifests"):
        index = plan_blob(source, image)
    mountpoint = str(daemon.wait_up()["root"])
    target = os.path.join(context.scratch, "erofs")

    def cleanup() -> None:
        # EROFS first: it holds the FUSE file open. Each is tried whatever becomes of the other.
        _discard(unmount, target)
        _discard(unmount, mountpoint)
        _discard(os.rmdir, mountpoint)

    try:
        answer = _mount(context, daemon, {**message, "index": index})
        os.makedirs(target, exist_ok=True)
        with context.span("mount", detail="EROFS"):
            parts = Parts(**answer["parts"]) if answer["parts"] else None
            mounted = mount_erofs(os.path.join(mountpoint, answer["file"]), target, loop=answer["loop"], parts=parts)
        if mounted.device:
            daemon.call("device", path=mounted.device, mounted=mounted.mounted)
    except BaseException:
        cleanup()
        raise
    return Rootfs((target,), cleanup, {"erofs": mounted.way, "whole_layers": answer["layers_whole"]})


def _discard(unmount_one: Callable[[str], object], path: str) -> None:
    try:
        unmount_one(path)
    except OSError:
        pass


class Observer:
    """Harness side of the daemon (``harness.engines.embedded.modes.Observer``)."""

    def __init__(self, end: socket.socket) -> None:
        self._daemon = DaemonClient(end)

    def wait_up(self, timeout_s: float) -> None:
        self._daemon.wait_up(timeout_s)

    def mark_ready(self) -> None:
        self._daemon.call("ready", timeout_s=60.0)

    def finish_background(self, timeout_s: float, timeline: Recorder) -> bool:
        answer = self._daemon.call("background", timeout_s=timeout_s + 30.0, wait_s=timeout_s)
        for span in answer["spans"]:
            timeline.add_message(span)
        return bool(answer["complete"])

    def lazy_usage(self) -> LazyUsage | None:
        from harness.model.observation import LazyUsage

        return LazyUsage.model_validate(self._daemon.call("stats", timeout_s=60.0)["stats"])

    def first_touches(self) -> list[dict[str, Any]]:
        touches: list[dict[str, Any]] = self._daemon.call("trace", timeout_s=60.0)["touches"]
        return touches

    def close(self) -> None:
        try:
            self._daemon.close()
        except ColdbenchError:
            pass
