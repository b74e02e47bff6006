"""This module holds policies, which say what a preset has its mode do; a field that a scenario may change is an option.

A full pull's policy says how layers are fetched and unpacked. A lazy mode's policy says what the daemon promises the
kernel, fetches, keeps and prefetches. Which preset has which values is in ``harness.model.modes``. The agent and the
daemon inside the machine import this module, so it uses the standard library alone.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypeVar

from harness.errors import UsageError
from harness.model.forms import Form, Presentation

FOREVER_S = float(1 << 31)
"""The kernel turns this timeout into "until evicted" (68 years; it saturates far above this)."""

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30

PYFUSE3 = "pyfuse3"
"""It names the library, and the presets that serve through it."""


T = TypeVar("T")
P = TypeVar("P", "PullPolicy", "LazyPolicy")


@dataclass(frozen=True, slots=True)
class Limits:
    """Says what values an option takes, and in which modes it does anything."""

    least: float = 0.0
    most: float = FOREVER_S
    choices: tuple[str, ...] = ()
    only: tuple[Form | Presentation, ...] = ()
    """Lists forms or presentations: only their modes take the option; empty: every mode that has this kind of
    policy.
    """


def option(
    default: T,
    least: float = 0.0,
    most: float = FOREVER_S,
    *,
    choices: tuple[str, ...] = (),
    only: tuple[Form | Presentation, ...] = (),
) -> T:
    """Makes a field of a policy that a scenario may change, within limits."""
    return field(default=default, metadata={"limits": Limits(least, most, choices, only)})


def fixed(default: T) -> T:
    """Makes a field of a policy that no scenario may change: it makes a preset what it is."""
    return field(default=default, metadata={"fixed": True})


def key(default: T) -> T:
    """Makes a field of a policy that a scenario changes by a key of its own, and not among ``options``."""
    return field(default=default, metadata={"key": True})


@dataclass(frozen=True, slots=True)
class PullPolicy:
    """Holds the policies of a full pull, with the values of ``tuned``."""

    overlapped: bool = fixed(True)
    """Decode a layer while it is fetched, and unpack all layers at once; else one step and one layer after the other,
    as Docker does."""
    decoder: str = option("isal", choices=("isal", "zlib"))
    """Names what inflates gzip."""
    before_t0: bool = fixed(False)
    """Have the image on the machine before T0: the floor, which shows what a lazy start can hope for."""
    keep_pages: bool = fixed(False)
    """With ``before_t0``, leave what unpacking put into the page cache there, as on a machine that ran the image
    before.
    """


class Snapshotter(StrEnum):
    """Lists containerd's snapshotters, by its own names for them."""

    OVERLAYFS = "overlayfs"
    EROFS = "erofs"
    STARGZ = "stargz"
    SOCI = "soci"


@dataclass(frozen=True, slots=True)
class SnapshotterPolicy:
    """Says how containerd and one of its snapshotters are set up; the policies beyond that are their own."""

    snapshotter: Snapshotter
    lazy: bool = False
    """Says whether the container starts before its image is there."""
    parallel: bool = False
    """Says whether containerd fetches layers in chunks and unpacks several at once (keys of its transfer service)."""
    parallel_pull: bool = False
    """Says whether SOCI fetches and unpacks whole layers itself, in parallel, and serves nothing lazily."""


@dataclass(frozen=True, slots=True)
class LazyPolicy:
    """Holds every option of the lazy modes, with the value of ``tuned``. Times are in seconds, sizes in bytes."""

    entry_timeout_s: float = FOREVER_S
    """Says how long the kernel believes that a name is what it was."""
    attr_timeout_s: float = FOREVER_S
    """Says how long the kernel believes that a file's attributes are what they were."""
    negative_timeout_s: float = option(FOREVER_S, only=(Presentation.TREE,))
    """Says how long the kernel believes that a name is not there; 0: it asks again every time."""
    skip_xattrs: bool = option(True, only=(Presentation.TREE,))
    """Answer xattr calls with ENOSYS where no file of any layer has one, so that the kernel stops asking."""
    skip_open: bool = option(True, only=(Presentation.TREE,))
    """Leave opening files and directories to the kernel, which then keeps what a directory lists, too."""
    partial_inflate: bool = True
    """Inflate a unit only as far as it is read, where its digest allows that; else always to its end."""
    inflate_step: int = option(256 * KIB, most=GIB)
    """Read ahead so much inside a unit: a step inflates at least this."""
    block_bytes: int = option(128 * KIB, most=GIB)
    """Small units that lie in the same aligned block of the blob as a missing one come along with it, as stored bytes:
    neighbours in a tar are read together. python-data, ``import pandas``, eStargz: 637 requests and 34 MB without,
    286 and 38 MB with 64 KiB, 209 and 41 MB with 128 KiB, 149 and 45 MB with 256 KiB."""
    region_bytes: int = option(0, most=GIB, only=(Form.ESTARGZ,))
    """eStargz: the blob is fetched in aligned regions of this size, each once (0: just the ranges that are wanted)."""
    region_step: int = option(0, most=GIB, only=(Form.ESTARGZ,))
    """With ``region_bytes``, a longer range is read in steps of this size (0: at once)."""
    probe_layers: bool = option(False, only=(Presentation.TREE,))
    """Ask what the reference daemons ask of each layer before its index: see ``sources.probe_layer``."""
    merge_gap: int = option(64 * KIB, most=GIB)
    """Missing units of one request that lie at most this far apart in the blob share one range request."""
    merge_bytes: int = option(4 * MIB, most=GIB)
    """A merged range request stays below this unless one unit alone is larger."""
    adaptive: bool = True
    """Where the registry is far, merge over larger gaps, fetch more around a miss and more at a time
    (``harness.lazyfs.data.pace``); near, the numbers hold as they are."""
    stream: bool = option(True)
    """Where a far registry leaves the CPU idle, bring the layers in order as well, as stored bytes, before the
    container is ready (``harness.lazyfs.data.stream``). What came so is counted and told."""
    far_in_flight: int = option(24, 1, 256)
    """Limits the prefetch requests at a time when the registry is as far as it gets."""
    readahead_units: int = option(2, most=1024)
    """Fetch so many units ahead of a reader that has walked from one unit into the next, together, whenever half of
    them are not there yet; 0 switches it off.
    """
    in_flight: int = option(4, 1, 256)
    """Limits the range requests at a time for reads that wait."""
    attempts: int = option(5, 1, 100)
    """Limits the tries of a request in all, on resets, timeouts, 429 and 5xx."""
    retry_first_s: float = option(0.1, most=60.0)
    """Wait so long before the second try; the pause doubles from there."""
    read_timeout_s: float = option(60.0, most=86_400.0)
    """A read that waits longer fails with an I/O error; 0: it waits as long as it takes."""
    wait_out_outages: bool = option(False)
    """While the registry is away, reads of bytes that are not local wait for it (up to ``read_timeout_s``); else they
    fail at once."""
    memory_bytes: int = option(64 * MIB, MIB, 1024 * GIB)
    """So many inflated and stored bytes are kept in memory; the coldest go to the disk cache."""
    disk_cache: bool = True
    """Keep on the machine's disk what memory has no room for; without it, that is fetched again."""
    cache_inflated: bool = False
    """Write every inflated unit to the disk cache at once (the reference daemons do), not only what memory loses."""
    prefetch: bool = key(True)
    """Follow the prefetch list of the request, or the image's own (landmark, prefetch artefact)."""
    prefetch_in_flight: int = option(3, 1, 256)
    """Limits the range requests at a time for a prefetch list."""
    prefetch_wait_s: float = option(0.0, most=3600.0)
    """The mount answers only when the prefetch is done, or after this long."""
    background: bool = key(True)
    background_after_s: float = option(1.0, most=86_400.0)
    """The background fetch begins so long after readiness (``reference``: after the mount)."""
    background_quiet_s: float = option(0.05, most=3600.0)
    """No background request begins sooner than this after a foreground fetch."""
    background_interval_s: float = option(0.05, most=3600.0)
    """Wait so long between two background requests."""
    background_units: int = option(0, most=1 << 20)
    """A background request fetches so many units; 0: as many as ``merge_bytes`` holds."""
    background_in_flight: int = option(1, 1, 256)
    """Limits the background requests at a time."""
    background_retry_s: float = option(5.0, 0.01, 60.0)
    """A background fetch that an outage or a bad answer stopped goes on after this pause; it doubles up to 60 s."""
    background_resumes: bool = option(True)
    """Go on after an outage; else the background fetch ends at the fifth failure in a row, as the references' does."""
    background_from_mount: bool = False
    """Count ``background_after_s`` from the mount, whether the container is ready or not."""
    read_ahead_kib: int = option(256, most=1024.0 * 1024)
    """Sets the kernel read-ahead of the mount, and so the largest request of a cached read (up to 1 MiB), through sysfs
    where that is writable; 0 leaves the kernel's 128. python-data, ``import pandas``, tree: 1 386 reads with 64, 1 115
    with 128, 934 with 256, 830 with 512, which begins to fetch spans that nobody needs.
    """
    eager: bool = fixed(False)
    """Blob presentation: fetch all layers whole and inflate them into the disk cache before the mount. Streams need no
    windows, one digest, and no seeking: cheaper than fetching everything span by span."""
    handover: bool = option(True, only=(Presentation.BLOB,))
    """Blob presentation: mount through a loop device where there is one; when all bytes are local, inflate them into
    the cache file and let the kernel read that (docs/how-it-works.md)."""
    inflate_share: float = option(0.5, 0.01, 1.0, only=(Presentation.BLOB,))
    """Limits the share of time spent in inflating for the handover."""
    trust_disk: bool = option(False, only=(Presentation.BLOB,))
    """Hand over what was synced without reading it back from the disk: what a full pull does."""
    devices: int = option(7, 1, 7, only=(Presentation.BLOB,))
    """So many loop devices share the layers. Each reads one thing after the other, so that a reader that waits for the
    registry holds up those of its own device only.
    """
    restart: bool = option(True)
    """Start the daemon again when it dies, and go on (Linux 6.9 and later); else the mount dies with it."""
    library: str = fixed("")
    """Names what speaks FUSE: our own session (empty), or ``pyfuse3``."""
    pack: bool = fixed(False)
    """Blob presentation: stream the index's start pack, what a recorded start asked for, beside everything else."""
    exact_read_ahead_kib: int = option(0, most=1024, only=(Presentation.BLOB,))
    """Sets the read-ahead of the loop devices until the container is ready, to which the FUSE file adds none of its
    own; 0: 128 KiB, and the file's own. onnx image: 31.8 MB of pages are used, 59.4 MB asked for with 128 KiB.
    """
    direct_io: bool = option(False, only=(Presentation.BLOB,))
    """Blob presentation: the FUSE file's bytes are not cached below EROFS, and so not handed to the kernel before it
    asks (``harness.lazyfs.fuse.kernel_pages``). A trace always does so: it must see what is read."""


STARGZ = LazyPolicy(
    entry_timeout_s=1.0, attr_timeout_s=1.0, negative_timeout_s=0.0, skip_xattrs=False, skip_open=False,
    partial_inflate=False,
    block_bytes=0, region_bytes=50_000, region_step=2 * MIB, probe_layers=True, merge_gap=0, merge_bytes=2 * MIB,
    readahead_units=0, in_flight=16, cache_inflated=True, prefetch_in_flight=1, prefetch_wait_s=10.0,
    background_after_s=5.0, background_quiet_s=5.0, background_interval_s=0.0, background_units=1,
    background_in_flight=2, background_from_mount=True, background_resumes=False, read_ahead_kib=0, attempts=6,
    retry_first_s=0.03, adaptive=False, stream=False, restart=False,
)  # fmt: skip
"""It holds the published defaults of stargz-snapshotter 0.19 (its configuration structures)."""
SOCI = LazyPolicy(
    entry_timeout_s=1.0, attr_timeout_s=1.0, negative_timeout_s=1.0, skip_xattrs=False, skip_open=False,
    partial_inflate=False,
    block_bytes=0, probe_layers=True, merge_gap=0, merge_bytes=0, readahead_units=0, in_flight=16, cache_inflated=True,
    background_after_s=30.0, background_quiet_s=0.0, background_interval_s=0.5, background_units=1,
    background_from_mount=True, background_resumes=False, attempts=9, retry_first_s=0.03, read_ahead_kib=0,
    adaptive=False, stream=False, restart=False,
)  # fmt: skip
"""It holds the published defaults of soci-snapshotter 0.16 (its configuration structures)."""


@dataclass(frozen=True, slots=True)
class Option:
    """Describes one option as a scenario sees it."""

    name: str
    kind: str
    """Is ``bool``, ``int``, ``float`` or ``str``."""
    limits: Limits

    @property
    def takes(self) -> str:
        """Returns the values it takes, in words."""
        if self.kind == "bool":
            return "true or false"
        if self.kind == "str":
            return f"one of {', '.join(self.limits.choices)}"
        most = "" if self.limits.most >= FOREVER_S else f" to {self.limits.most:.12g}"
        number = "a whole number" if self.kind == "int" else "a number"
        return f"{number} from {self.limits.least:.12g}{most}"

    def value(self, given: object) -> bool | int | float | str:
        """Returns ``given`` as this option's type. Raises UsageError, which says what it takes."""
        if self.kind == "str":
            fits = isinstance(given, str) and given in self.limits.choices
        elif self.kind == "bool":
            fits = isinstance(given, bool)
        else:
            fits = (
                isinstance(given, int | float)
                and not isinstance(given, bool)
                and self.limits.least <= given <= self.limits.most
                and (self.kind == "float" or given == int(given))
            )
        if not fits:
            raise UsageError(f"option {self.name}: expected {self.takes}, got {_shown(given)}")
        assert isinstance(given, bool | int | float | str)
        if self.kind == "float":
            return float(given)
        return int(given) if self.kind == "int" else given


def options_of(policy: type[PullPolicy] | type[LazyPolicy]) -> dict[str, Option]:
    """Returns the options of a kind of policy, by name."""
    return {
        item.name: Option(item.name, str(item.type), item.metadata.get("limits", Limits()))
        for item in dataclasses.fields(policy)
        if not {"fixed", "key"} & set(item.metadata)
    }


def keys_of(policy: type[PullPolicy] | type[LazyPolicy]) -> tuple[str, ...]:
    """Returns the fields of a kind of policy that a scenario changes by keys of their own."""
    return tuple(item.name for item in dataclasses.fields(policy) if "key" in item.metadata)


def _shown(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else repr(value)
