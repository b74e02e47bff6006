"""Policies: what a preset has its mode do, as frozen values; each field that a scenario may change is an option.

A full pull's policy says how layers are fetched and unpacked. A lazy mode's policy says what the daemon promises the
kernel, fetches, keeps and prefetches. Which preset has which values is in ``harness.model.modes``. The agent and the
daemon inside the machine import this module, so it uses the standard library alone.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from harness.errors import UsageError
from harness.model.near_miss import near_miss

if TYPE_CHECKING:
    from collections.abc import Mapping

FOREVER_S = float(1 << 31)
"""A timeout the kernel turns into "until evicted" (68 years; it saturates far above this)."""

KIB = 1 << 10
MIB = 1 << 20


T = TypeVar("T")
P = TypeVar("P", "PullPolicy", "LazyPolicy")


def fixed(default: T) -> T:
    """A field of a policy that makes a preset what it is: no scenario may change it."""
    return field(default=default, metadata={"fixed": True})


def one_of(default: str, *choices: str) -> str:
    """A field of a policy that takes one of a few words."""
    return field(default=default, metadata={"choices": choices})


@dataclass(frozen=True, slots=True)
class PullPolicy:
    """Policies of a full pull, with the values of ``tuned``."""

    overlapped: bool = fixed(True)
    """Decode a layer while it is fetched, and unpack all layers at once; else one step and one layer after the other,
    as Docker does."""
    decoder: str = one_of("isal", "isal", "zlib")
    """What inflates gzip."""
    verify_diff_ids: bool = False
    """Hash what was inflated and compare it with the image's diff IDs, beside the digest of what was fetched."""


@dataclass(frozen=True, slots=True)
class LazyPolicy:
    """Every option of the lazy modes by name, with the value of ``tuned``. Times in seconds, sizes in bytes."""

    entry_timeout_s: float = FOREVER_S
    attr_timeout_s: float = FOREVER_S
    negative_timeout_s: float = FOREVER_S
    """0: failed lookups are asked again every time."""
    skip_xattrs: bool = True
    """Answer xattr calls with ENOSYS where no file of any layer has one, so that the kernel stops asking."""
    skip_open: bool = True
    """Leave opening files and directories to the kernel, which then keeps what a directory lists, too."""
    partial_inflate: bool = True
    """Inflate a unit only as far as it is read, where its digest allows that; else always to its end."""
    inflate_step: int = 256 * KIB
    """What is read ahead inside a unit: inflated at the least per step."""
    block_bytes: int = 128 * KIB
    """Small units that lie in the same aligned block of the blob as a missing one come along with it, as stored bytes:
    neighbours in a tar are read together. python-data, ``import pandas``, eStargz: 637 requests and 34 MB without,
    286 and 38 MB with 64 KiB, 209 and 41 MB with 128 KiB, 149 and 45 MB with 256 KiB."""
    region_bytes: int = 0
    """eStargz: the blob is fetched in aligned regions of this size, each once (0: just the ranges that are wanted)."""
    region_step: int = 0
    """With regions, a longer range is read in steps of this size (0: at once)."""
    probe_layers: bool = False
    """Ask what the reference daemons ask of each layer before its index: see ``sources.probe_layer``."""
    merge_gap: int = 64 * KIB
    """Missing units of one request that lie at most this far apart in the blob share one range request."""
    merge_bytes: int = 4 * MIB
    """A merged range request stays below this unless one unit alone is larger."""
    adaptive: bool = True
    """Where the registry is far, merge over larger gaps, fetch more around a miss and more at a time
    (``harness.lazyfs.data.pace``); near, the numbers hold as they are."""
    far_in_flight: int = 24
    """Prefetch requests at a time when the registry is as far as it gets."""
    readahead_units: int = 2
    """Units fetched ahead of a reader that has walked from one unit into the next, together, whenever half of them are
    not there yet; 0 switches it off."""
    in_flight: int = 4
    """Range requests at a time for reads that wait."""
    attempts: int = 5
    """Tries of a request in all, on resets, timeouts, 429 and 5xx."""
    retry_first_s: float = 0.1
    """Pause before the second try; it doubles from there."""
    memory_bytes: int = 64 * MIB
    """Inflated and compressed bytes kept in memory; the coldest go to the disk cache."""
    disk_cache: bool = True
    cache_inflated: bool = False
    """Write every inflated unit to the disk cache at once (the reference daemons do), not only what memory loses."""
    prefetch: bool = True
    """Follow the prefetch list of the request, or the image's own (landmark, prefetch artefact)."""
    prefetch_in_flight: int = 3
    prefetch_wait_s: float = 0.0
    """The mount answers only when the prefetch is done, or after this long."""
    background: bool = True
    background_after_s: float = 1.0
    """After readiness (``reference``: after the mount)."""
    background_quiet_s: float = 0.05
    """No background request begins sooner after a foreground fetch."""
    background_interval_s: float = 0.05
    """Pause between two background requests."""
    background_units: int = 0
    """Units per background request; 0: as many as ``merge_bytes`` holds."""
    background_in_flight: int = 1
    background_from_mount: bool = False
    """Count ``background_after_s`` from the mount, whether the container is ready or not."""
    read_ahead_kib: int = 256
    """Kernel read-ahead of the mount, and so the largest request of a cached read (up to 1 MiB), set through sysfs
    where that is writable; 0 leaves the kernel's 128. python-data, ``import pandas``, tree: 1 386 reads with 64,
    1 115 with 128, 934 with 256, 830 with 512, which begins to fetch spans that nobody needs."""
    eager: bool = fixed(False)
    """Blob presentation: fetch all layers whole and inflate them into the disk cache before the mount. Streams need no
    windows, one digest, and no seeking: cheaper than fetching everything span by span."""
    handover: bool = True
    """Blob presentation: mount through a loop device where there is one; when all bytes are local, inflate them into
    the cache file and let the kernel read that (docs/how-it-works.md)."""
    inflate_share: float = 0.5
    """Of that inflating: the share of time spent in it, at most."""
    direct_io: bool = False
    """Blob presentation: the FUSE file's bytes are not cached below EROFS, and so not handed to the kernel before it
    asks (``harness.lazyfs.fuse.kernel_pages``). A trace always does so: it must see what is read."""


STARGZ = LazyPolicy(
    entry_timeout_s=1.0, attr_timeout_s=1.0, negative_timeout_s=0.0, skip_xattrs=False, skip_open=False,
    partial_inflate=False,
    block_bytes=0, region_bytes=50_000, region_step=2 * MIB, probe_layers=True, merge_gap=0, merge_bytes=2 * MIB,
    readahead_units=0, in_flight=16, cache_inflated=True, prefetch_in_flight=1, prefetch_wait_s=10.0,
    background_after_s=5.0, background_quiet_s=5.0, background_interval_s=0.0, background_units=1,
    background_in_flight=2, background_from_mount=True, read_ahead_kib=0, attempts=6, retry_first_s=0.03,
    adaptive=False,
)  # fmt: skip
"""The published defaults of stargz-snapshotter 0.19 (its configuration structures)."""
SOCI = LazyPolicy(
    entry_timeout_s=1.0, attr_timeout_s=1.0, negative_timeout_s=1.0, skip_xattrs=False, skip_open=False,
    partial_inflate=False,
    block_bytes=0, probe_layers=True, merge_gap=0, merge_bytes=0, readahead_units=0, in_flight=16, cache_inflated=True,
    background_after_s=30.0, background_quiet_s=0.0, background_interval_s=0.5, background_units=1,
    background_from_mount=True, attempts=9, retry_first_s=0.03, read_ahead_kib=0, adaptive=False,
)  # fmt: skip
"""The published defaults of soci-snapshotter 0.16 (its configuration structures)."""


def options_of(policy: type[PullPolicy] | type[LazyPolicy]) -> tuple[str, ...]:
    """Names of the fields of a policy that a scenario may change."""
    return tuple(item.name for item in dataclasses.fields(policy) if "fixed" not in item.metadata)


def changed(policy: P, options: Mapping[str, object], whose: str) -> P:
    """A policy with single options replaced; ``whose`` names the mode and preset in messages.

    Raises:
        UsageError: an unknown option, a value of the wrong type, or one out of range.
    """
    fields = {item.name: item for item in dataclasses.fields(policy)}
    known = options_of(type(policy))
    changes: dict[str, object] = {}
    for name, value in options.items():
        if name not in known:
            hint = near_miss(name, known) or f"; expected one of {', '.join(known)}"
            raise UsageError(f"option {name!r}: {whose} has none of that name{hint}")
        changes[name] = _value(fields[name], value, f"option {name} of {whose}")
    return dataclasses.replace(policy, **changes)  # type: ignore[arg-type]


def _value(item: dataclasses.Field[object], value: object, where: str) -> object:
    """``value`` as the field's own type."""
    kind = str(item.type)
    if kind == "str":
        choices = item.metadata["choices"]
        if value not in choices:
            raise UsageError(f"{where}: expected one of {', '.join(choices)}, got {value!r}")
        return value
    if isinstance(value, bool) != (kind == "bool") or not isinstance(value, (bool, int, float)):
        raise UsageError(f"{where}: expected a value of type {kind}, got {value!r}")
    if kind == "int" and value != int(value):
        raise UsageError(f"{where}: expected a whole number, got {value!r}")
    if value < 0:
        raise UsageError(f"{where}: {value} is below 0")
    return {"bool": bool, "int": int, "float": float}[kind](value)
