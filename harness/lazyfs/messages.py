"""This module defines what agent, daemon and harness tell each other, as frozen dataclasses.

A request names its answer's class, so that the type checker follows a call across the process boundary; an error
comes back as ``Refused``. The dataclasses hold plain values only (numbers, strings, tuples and each other), because
``harness.lazyfs.channel`` writes them as JSON lines. The agent's own messages are in
``harness.engines.embedded.messages``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Generic, TypeVar

Option = bool | int | float | str
"""Is the value of one of a mode's options."""

A = TypeVar("A")


@dataclass(frozen=True, slots=True)
class Up:
    """Tells that the daemon runs, with its FUSE session mounted at ``root``.

    ``restarts`` daemons died before this one. What was asked of them and not answered has to be asked again.
    """

    pid: int
    root: str
    restarts: int = 0


@dataclass(frozen=True, slots=True)
class Refused:
    """Answers a request that failed; ``harness.errors.from_kind`` rebuilds the error."""

    kind: str
    message: str


@dataclass(frozen=True, slots=True)
class Span:
    """Holds one span of the timeline (CLOCK_MONOTONIC, in nanoseconds), with its ``layer`` where it belongs to one."""

    name: str
    start_ns: int
    end_ns: int
    layer: int | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True)
class StoreAddress:
    """Says where the image's blobs are: in an OCI layout on disk, or else in a repository of a registry.

    ``plain`` says whether the registry speaks HTTP without TLS (None: as its name suggests); ``routes`` say how the
    machine reaches its hosts (``harness.oci.registry.places``).
    """

    layout: str = ""
    registry: str = ""
    repository: str = ""
    plain: bool | None = None
    credentials: dict[str, str] = field(default_factory=dict)
    routes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class LazyLayer:
    """Describes a layer to serve through its index; ``kind`` is ``ztoc`` or ``estargz``.

    A zTOC is a blob of its own with digest and size, an eStargz TOC lies in the layer and has a digest only.
    ``prefetch_digest`` names a SOCI prefetch artefact, where there is one.
    """

    number: int
    kind: str
    digest: str
    size: int
    index_digest: str
    index_size: int = 0
    prefetch_digest: str = ""
    prefetch_size: int = 0


@dataclass(frozen=True, slots=True)
class BlobName:
    """Holds the part of a descriptor that tells one blob from another."""

    media_type: str
    digest: str
    size: int


@dataclass(frozen=True, slots=True)
class ErofsIndexName:
    """Names an image's EROFS index: its manifest's text, and the manifest and layers that it must be an index of."""

    manifest: str
    image: BlobName
    layers: tuple[BlobName, ...]


@dataclass(frozen=True, slots=True)
class MetadataFile:
    """Describes the parts of an EROFS image: ``path`` holds the metadata; devices begin at ``starts`` in the file."""

    path: str
    starts: tuple[int, ...]


class Request(Generic[A]):
    """Asks the daemon for something, and is answered with an ``A``."""

    __slots__ = ()
    answer: ClassVar[type]


@dataclass(frozen=True, slots=True)
class Done:
    """Answers a request, and holds nothing."""


@dataclass(frozen=True, slots=True)
class TreeMounted:
    """Tells that each of the served layers, numbered ``layers``, is a directory of that name below the FUSE mount."""

    layers: tuple[int, ...]
    opaque_roots: tuple[int, ...]
    """Lists the layers that hide all below them."""
    spans: tuple[Span, ...] = ()
    asked: tuple[tuple[int, int], ...] = ()
    """Says when the daemon's requests to the registry began and ended."""
    survives: bool = False
    """Says that another daemon takes over when this one dies."""


@dataclass(frozen=True, slots=True)
class BlobMounted:
    """Tells that the image file is ``file`` below the FUSE mount; ``loop`` asks for a loop device, if possible."""

    file: str
    loop: bool
    metadata: MetadataFile | None
    layers_whole: tuple[int, ...]
    """Lists the layers that were fetched whole before the mount."""
    spans: tuple[Span, ...] = ()
    exact_read_ahead_kib: int = 0
    """Sets the read-ahead of the loop devices, to which the file's own then adds nothing; 0 leaves it as ever."""
    asked: tuple[tuple[int, int], ...] = ()
    """Says when the daemon's requests to the registry began and ended."""
    survives: bool = False
    """Says that another daemon takes over when this one dies."""


@dataclass(frozen=True, slots=True)
class FileRange:
    """Names a part of a file; with ``size`` None it goes to the file's end."""

    path: str
    offset: int = 0
    size: int | None = None


@dataclass(frozen=True, slots=True)
class Serving:
    """Holds what every mount request says, whichever the presentation.

    ``options`` change single policies of the preset (``harness.lazyfs.policy``), ``scratch`` is a directory on the
    machine's disk, ``prefetch`` an ordered list of paths, ``reads`` one of recorded reads, ``latency_s`` the round trip
    to the registry as far as it was measured, ``trace`` asks for first touches, ``layers_unpacked`` counts the layers
    that somebody else unpacks.
    """

    mode: str
    preset: str
    store: StoreAddress
    scratch: str
    options: dict[str, Option] = field(default_factory=dict)
    prefetch: tuple[str, ...] = ()
    latency_s: float = 0.0
    trace: bool = False
    t0_ns: int = 0
    layers_unpacked: int = 0
    reads: tuple[FileRange, ...] = ()


@dataclass(frozen=True, slots=True)
class Wanted:
    """Names bytes of a blob that a mount will want; at most ``parts`` requests bring them."""

    digest: str
    offset: int
    size: int
    parts: int = 1


@dataclass(frozen=True, slots=True)
class Expect(Request[Done]):
    """Tells that a mount of ``serving`` will follow: connections open, and ask for its ``blobs``, at once."""

    answer: ClassVar[type] = Done
    serving: Serving
    blobs: tuple[Wanted, ...] = ()


@dataclass(frozen=True, slots=True)
class MountTree(Request[TreeMounted]):
    """Asks to serve each of ``layers`` (bottom first) as a directory."""

    answer: ClassVar[type] = TreeMounted
    serving: Serving
    layers: tuple[LazyLayer, ...]


@dataclass(frozen=True, slots=True)
class MountBlob(Request[BlobMounted]):
    """Asks to serve all layers as one EROFS image file."""

    answer: ClassVar[type] = BlobMounted
    serving: Serving
    index: ErofsIndexName


@dataclass(frozen=True, slots=True)
class UseDevices(Request[Done]):
    """Tells that ``paths`` are the loop devices over the image file, and ``mounted`` is what EROFS is mounted from."""

    answer: ClassVar[type] = Done
    paths: tuple[str, ...]
    mounted: str


@dataclass(frozen=True, slots=True)
class MarkReady(Request[Done]):
    """Tells that the container is ready: counters "before ready" are frozen, the background fetch may begin."""

    answer: ClassVar[type] = Done


@dataclass(frozen=True, slots=True)
class BackgroundState:
    """``complete`` tells whether the background fetch has ended with all local; ``spans`` ended after the mount."""

    complete: bool
    spans: tuple[Span, ...]


@dataclass(frozen=True, slots=True)
class AwaitBackground(Request[BackgroundState]):
    """Asks for an answer when the background fetch has ended, or after ``wait_s``."""

    answer: ClassVar[type] = BackgroundState
    wait_s: float = 3600.0


@dataclass(frozen=True, slots=True)
class Histogram:
    """Counts times: ``counts[i]`` of them had i binary digits as a number of 2-microsecond units."""

    counts: tuple[int, ...]
    total_s: float
    max_s: float


@dataclass(frozen=True, slots=True)
class OpcodeUsage:
    """Says how often one kind of FUSE request came, and how long it took."""

    count: int
    service: Histogram
    queueing: Histogram


@dataclass(frozen=True, slots=True)
class PackUsage:
    """Says what came of a start pack; the fields are those of ``harness.model.observation.PackUsage``."""

    frames_total: int
    frames: int
    bytes_pushed: int
    reads: int
    outside: int
    passed_over: int
    failures: int
    failure: str
    differs: str


@dataclass(frozen=True, slots=True)
class Usage:
    """Holds everything the daemon counted; the fields are those of ``harness.model.observation.LazyUsage``."""

    layers_lazy: int
    layers_unpacked: int
    bytes_fetched_before_ready: int
    bytes_fetched: int
    requests_before_ready: int
    requests: int
    spans_fetched: int
    spans_total: int
    bytes_inflated: int
    digest_mismatches: int
    retries: int
    fuse: dict[str, OpcodeUsage]
    handed_over: bool
    bytes_pushed: int
    memory_peak_bytes: int
    cpu_s: float
    read_errors: int
    disk_full: bool
    layers_refetched: int
    not_handed_over: str
    background_finished: bool | None
    restarts: int | None
    bytes_streamed_before_ready: int = 0
    bytes_streamed: int = 0
    streamed_since_s: float | None = None
    streamed_why: str = ""
    pack: PackUsage | None = None


@dataclass(frozen=True, slots=True)
class GetUsage(Request[Usage]):
    answer: ClassVar[type] = Usage


@dataclass(frozen=True, slots=True)
class Touch:
    """Names the part of a file that a start read, and says when it read it first (seconds after T0)."""

    path: str
    layer: int
    offset: int
    size: int
    t_s: float
    reads: tuple[tuple[int, int, float], ...] = ()
    """Lists (offset, size, seconds after T0) of its reads, in that order; what follows on a read belongs to it."""


@dataclass(frozen=True, slots=True)
class Touches:
    """Lists touches in first-touch order."""

    touches: tuple[Touch, ...]


@dataclass(frozen=True, slots=True)
class GetTouches(Request[Touches]):
    """Asks for the first touches so far; there are none unless the mount request asked for a trace."""

    answer: ClassVar[type] = Touches


@dataclass(frozen=True, slots=True)
class ReadRange:
    """Describes a read of bytes [begin, end) of a layer's address space, ``t_s`` seconds after T0."""

    layer: int
    begin: int
    end: int
    t_s: float


@dataclass(frozen=True, slots=True)
class ReadRanges:
    """Lists ranges in the order of the reads, each range once."""

    ranges: tuple[ReadRange, ...]


@dataclass(frozen=True, slots=True)
class GetReadRanges(Request[ReadRanges]):
    """Asks for the kernel's reads so far; there are none unless a mount request for a blob asked for a trace."""

    answer: ClassVar[type] = ReadRanges


@dataclass(frozen=True, slots=True)
class End(Request[Done]):
    """Asks to unmount and end."""

    answer: ClassVar[type] = Done


REQUESTS: tuple[type, ...] = (
    Expect, MountTree, MountBlob, UseDevices, MarkReady, AwaitBackground, GetUsage, GetTouches, GetReadRanges, End,
)  # fmt: skip
ANSWERS: tuple[type, ...] = (Up, Refused, Done, TreeMounted, BlobMounted, BackgroundState, Usage, Touches, ReadRanges)
