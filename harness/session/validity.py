"""This module says when a trial may not enter a comparison: its rules, stated before the run, look at counters alone
(pure).

An invalid trial is kept with its reasons. The rules:

``not-lazy``
    A mode that starts before the image is there did not: no layer was lazy, or its root was neither FUSE nor EROFS. Or
    (images below ``SMALL_IMAGE_BYTES`` are exempt: a handful of requests is all of them) at least ``NOT_LAZY_SHARE`` of
    the image's stored bytes had come before its root file system was there, as the machine's network interface
    counts them; or by readiness, without what it says to have streamed (a start whose work is to read a share of the
    image is exempt from that: the bytes that it moves are the finding).
``stream-unfounded``
    A lazy start says that it streamed layers while it waited for a far registry, and its policy has no such thing, the
    registry is near, or the machine has not received as much. A start whose stream is founded is lazy: its container
    began before its image was there. How much was streamed stands beside its figures.
``fuse-in-full-pull``
    FUSE served the root file system of a full pull, of a mode that needs none.
``cache-not-cold``
    A full pull received less than ``COLD_SHARE`` of the image's stored bytes before readiness, a lazy start
    received nothing, or a page cache could not be dropped before T0.
``host-stolen``
    The hypervisor took more than ``STEAL_SHARE`` of the host's CPU time during the trial.
``limits-not-as-asked``
    A limit read back from the kernel at the end of the trial was not the shape's, could not be set, or the machine used
    more CPU than the shape's ceiling allows (``CPU_TOLERANCE``, ``CPU_TOLERANCE_S``).
``below-bound``
    The trial was ready sooner than physics allows for this image, shape and host: something was measured wrongly.
``daemon-died``
    A daemon that serves the root file system ended before tear-down.
``reads-failed``
    A read of the root file system could not be answered and failed with an I/O error.
``not-independent``
    A lazy start promised to fetch the rest of the image in the background, and had not when the wait for it ended.
``pack-not-used``
    A preset follows a start pack, and not one frame of it came.
``pack-differs``
    The start pack has other bytes than the layers, so that the container ran on another image.
``out-of-memory``
    The kernel killed a process of the machine for want of memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.model.observation import Invalidity

if TYPE_CHECKING:
    from collections.abc import Iterator

    from harness.model.observation import PackUsage

NOT_LAZY_SHARE = 0.9
SMALL_IMAGE_BYTES = 16 << 20
#: A registry is far from this latency on (``harness.oci.registry.link.FAR_S``, which is what the daemon goes by).
FAR_S = 0.01
COLD_SHARE = 0.98
#: What may come in after T0 although the image is there: neighbours of the network, not its bytes.
THERE_SHARE, THERE_BYTES = 0.01, 64 << 10
STEAL_SHARE = 0.05
CPU_TOLERANCE = 0.01
#: One period's quota may be spent at once, and counters are read a moment after the instant they stand for.
CPU_TOLERANCE_S = 0.25

RULES = (
    "not-lazy", "stream-unfounded", "fuse-in-full-pull", "cache-not-cold", "not-there", "host-stolen",
    "limits-not-as-asked", "below-bound", "daemon-died", "reads-failed", "not-independent", "pack-not-used",
    "pack-differs", "out-of-memory",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Evidence:
    """Holds what the rules look at. Sizes are in bytes; None stands for what was not seen, and its rules are silent."""

    lazy: bool
    image_compressed_bytes: int
    received_before_ready_bytes: int | None
    received_before_root_bytes: int | None = None
    """Counts bytes received when the engine said that the root file system was there."""
    streamed_bytes: int = 0
    """Counts bytes that the lazy daemon says to have fetched before readiness without being asked for them."""
    may_stream: bool = False
    """Says whether the case's policy allows to fetch before readiness what nobody asked for."""
    latency_s: float | None = None
    """Holds the latency of a request to the registry as the case sets it; None where the registry is somebody else's.
    """
    ready: bool = True
    already_there: bool = False
    """Says whether the image is promised to be on the machine before T0."""
    reads_a_share: bool = False
    """Says whether the start's work is to read a given share of the image (``workload.reads``)."""
    fuse_allowed: bool = False
    """Says whether a full pull of this mode goes through FUSE by design."""
    layers_lazy: int | None = None
    root_file_systems: frozenset[str] = frozenset()
    """Holds the file system types below the container's root (the lower directories of OverlayFS), e.g. ``ext4``,
    ``fuse``.
    """
    cache_dropped: bool = True
    steal_share: float = 0.0
    limits_wrong: tuple[str, ...] = ()
    """Says what was found in force instead of what was asked for, one sentence each."""
    cpu_s: float = 0.0
    wall_s: float = 0.0
    ceiling_cores: float | None = None
    time_to_ready_s: float | None = None
    bound_s: float | None = None
    daemons_died: tuple[str, ...] = ()
    read_errors: int | None = None
    background_finished: bool | None = None
    """Says whether the background fetch ended; None where nothing was promised, or nobody waited for it."""
    pack: PackUsage | None = None
    """Says what the start pack did; None where the preset follows none."""
    oom_kills: int = 0


def check(evidence: Evidence) -> tuple[Invalidity, ...]:
    """Returns all rules that the trial broke, in the order of ``RULES``."""
    found = [Invalidity(rule=rule, reason=reason) for rule, reason in _broken(evidence)]
    return tuple(sorted(found, key=lambda i: RULES.index(i.rule)))


def _percent(part: float, whole: float) -> str:
    return f"{100 * part / whole:.0f} %"


def _broken(e: Evidence) -> Iterator[tuple[str, str]]:
    if e.ready:
        yield from _root(e)
        yield from _bytes(e)
    if not e.cache_dropped:
        yield "cache-not-cold", "the page cache could not be dropped before T0"
    if e.steal_share > STEAL_SHARE:
        yield (
            "host-stolen",
            f"{100 * e.steal_share:.1f} % of the host's CPU time was stolen, at most {STEAL_SHARE:.0%} may be",
        )
    yield from _limits(e)
    if e.time_to_ready_s is not None and e.bound_s is not None and e.time_to_ready_s < e.bound_s:
        yield "below-bound", f"ready after {e.time_to_ready_s:.2f} s, the lower bound is {e.bound_s:.2f} s"
    for daemon in e.daemons_died:
        yield "daemon-died", f"{daemon} ended before tear-down"
    if e.read_errors:
        yield "reads-failed", f"{e.read_errors} read(s) of the root file system failed with an I/O error"
    if e.background_finished is False:
        yield "not-independent", "the background fetch was promised and had not finished when the wait for it ended"
    if e.pack is not None and not e.pack.frames:
        yield "pack-not-used", f"no frame of the start pack came: {e.pack.failure or 'it was too late'}"
    if e.pack is not None and e.pack.differs:
        yield "pack-differs", f"the start pack does not match the layers: {e.pack.differs}"
    if e.oom_kills:
        yield "out-of-memory", f"the kernel killed {e.oom_kills} process(es) of the machine for want of memory"


def _served_by_fuse(types: frozenset[str]) -> bool:
    return any(name == "fuse" or name.startswith("fuse.") for name in types)


def _root(e: Evidence) -> Iterator[tuple[str, str]]:
    if not e.lazy:
        if _served_by_fuse(e.root_file_systems) and not e.fuse_allowed:
            yield "fuse-in-full-pull", "the root file system of a full pull was served by FUSE"
        return
    if e.layers_lazy == 0:
        yield "not-lazy", "no layer was served lazily"
    elif e.root_file_systems and not _served_by_fuse(e.root_file_systems) and "erofs" not in e.root_file_systems:
        yield (
            "not-lazy",
            f"the root file system was neither FUSE nor EROFS but {', '.join(sorted(e.root_file_systems))}",
        )


def _bytes(e: Evidence) -> Iterator[tuple[str, str]]:
    size, received = e.image_compressed_bytes, e.received_before_ready_bytes
    if size <= 0 or received is None:
        return
    if e.already_there:
        if received > max(THERE_SHARE * size, THERE_BYTES):
            yield "not-there", f"{_percent(received, size)} of the image's bytes were received after T0"
    elif e.lazy:
        if received == 0:
            yield "cache-not-cold", "nothing was received before readiness, so the image was there already"
        yield from _lazily(e, received)
    elif received < COLD_SHARE * size:
        yield "cache-not-cold", f"only {_percent(received, size)} of the image's bytes were received before readiness"


def _lazily(e: Evidence, received: int) -> Iterator[tuple[str, str]]:
    """Names rules broken by what a lazy start brought before it was ready, or by its claim to have streamed part of
    it.
    """
    size, streamed = e.image_compressed_bytes, e.streamed_bytes
    early = e.received_before_root_bytes or 0
    if size >= SMALL_IMAGE_BYTES:
        if early >= NOT_LAZY_SHARE * size:
            yield (
                "not-lazy",
                f"{_percent(early, size)} of the image's bytes were received before its root file system was there",
            )
        elif not e.reads_a_share and received - streamed >= NOT_LAZY_SHARE * size:
            more = ", streamed ones left aside" if streamed else ""
            share = _percent(received - streamed, size)
            yield "not-lazy", f"{share} of the image's bytes were received before readiness{more}"
    if not streamed:
        return
    if not e.may_stream:
        yield "stream-unfounded", "layers were streamed before readiness, which the preset's policy does not do"
    elif e.latency_s is not None and e.latency_s < FAR_S:
        yield "stream-unfounded", f"layers were streamed, and the registry is only {1e3 * e.latency_s:g} ms away"
    elif streamed > received:
        yield (
            "stream-unfounded",
            f"{streamed} bytes are said to have been streamed before readiness, and the machine received {received}",
        )


def _limits(e: Evidence) -> Iterator[tuple[str, str]]:
    for reason in e.limits_wrong:
        yield "limits-not-as-asked", reason
    if e.ceiling_cores is not None:
        allowed = e.ceiling_cores * e.wall_s * (1 + CPU_TOLERANCE) + CPU_TOLERANCE_S
        if e.cpu_s > allowed:
            yield (
                "limits-not-as-asked",
                f"{e.cpu_s:.2f} CPU seconds in {e.wall_s:.2f} s, more than {e.ceiling_cores:g} cores give",
            )
