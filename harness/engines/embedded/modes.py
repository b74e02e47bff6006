"""This module lists the embedded engine's modes: what puts the root file system there, by the mode's presentation.

A mode consists of up to three parts, each named here as ``module:attribute`` and imported only where it runs:

* ``provide`` runs in the agent (inside the machine) at T0: it makes the layers visible as directories;
* ``daemon`` is a module that the engine starts inside the machine *before* T0 (``python -m MODULE --agent-fd N
  --harness-fd M``), with one socket to the agent and one to the harness; it is up when it has sent one line on each;
* ``observer`` runs in the harness and speaks to that daemon: readiness, counters, end of the background fetch.

Everything after that is the same for all modes: OverlayFS with a writable upper, an OCI bundle, crun.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

from harness.engines.embedded.messages import RootfsDetails
from harness.model.modes import Presentation, find

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from harness.lazyfs.control import DaemonClient
    from harness.lazyfs.messages import FileRange, Option, ReadRange, StoreAddress, Touch
    from harness.model.observation import LazyUsage
    from harness.model.timeline import Recorder
    from harness.oci.image import Image


ReportSpan = Callable[[str, int, int, int | None, str], None]
"""It puts a span on the timeline: name, start and end (CLOCK_MONOTONIC, ns), layer, detail."""


@dataclass(slots=True)
class Context:
    """Holds what a provider works with, inside the machine.

    ``client`` reads the image's store (a registry client, or a layout on disk), ``store`` says how a daemon finds the
    same, ``reference`` names the image there. ``scratch`` is a directory of this trial on the machine's own disk.
    ``report_span(name, start_ns, end_ns, layer, detail)`` puts a span on the timeline (CLOCK_MONOTONIC) and may be
    called from any thread. ``index`` is the digest of the one index to use, empty for any. ``daemon`` speaks to the
    mode's daemon, None for a mode without one.
    """

    client: Any
    mode: str
    store: StoreAddress
    reference: str
    scratch: str
    report_span: ReportSpan
    daemon: DaemonClient | None = None
    prefetch: tuple[str, ...] = ()
    reads: tuple[FileRange, ...] = ()
    trace: bool = False
    t0_ns: int = 0
    index: str = ""

    @contextmanager
    def span(self, name: str, layer: int | None = None, detail: str = "") -> Iterator[None]:
        """Report what runs inside as one span, also when it fails."""
        start = time.monotonic_ns()
        try:
            yield
        finally:
            self.report_span(name, start, time.monotonic_ns(), layer, detail)


@dataclass(slots=True)
class Rootfs:
    """Holds read-only directories to stack, topmost layer *first* as OverlayFS wants them, and how to take them away.

    ``cleanup`` unmounts what the provider mounted (the container and OverlayFS are gone by then); it must be safe
    to call twice. Plain directories below ``scratch`` need no cleanup. ``details`` go into the observation.
    """

    lowerdirs: tuple[str, ...]
    cleanup: Callable[[], None] = lambda: None
    details: RootfsDetails = field(default_factory=RootfsDetails)


class Provider(Protocol):
    def __call__(self, context: Context, image: Image, preset: str, options: Mapping[str, Option]) -> Rootfs:
        """Puts the layers there; raises ``harness.errors.ColdbenchError``."""
        ...


class Observer(Protocol):
    """Speaks, in the harness, to a mode's daemon; constructed as ``Observer(socket)``. Methods as in
    ``protocol.Engine``.
    """

    def wait_up(self, timeout_s: float) -> None:
        """Wait until the daemon has said that it is up, before T0; raises MachineError when it does not."""
        ...

    def mark_ready(self) -> None: ...

    def finish_background(self, timeout_s: float, timeline: Recorder) -> bool: ...

    def lazy_usage(self) -> LazyUsage | None: ...

    def first_touches(self) -> list[Touch]: ...

    def read_ranges(self) -> list[ReadRange]: ...

    def close(self) -> None:
        """Ask the daemon to end; the engine waits for its process and kills it after a while."""
        ...


@dataclass(frozen=True, slots=True)
class ModeParts:
    provide: str
    daemon: str | None = None
    observer: str | None = None
    look_ahead: str | None = None
    """It is called before the image is resolved, with (context, platform, preset, options); what it returns, if
    anything, is told of each manifest on the way (``harness.lazyfs.scout``).
    """


_LAZY = ModeParts(
    "harness.engines.embedded.lazy:provide",
    "harness.lazyfs.holder",
    "harness.engines.embedded.lazy:Observer",
    "harness.engines.embedded.lazy:look_ahead",
)
_PARTS = {
    Presentation.NONE: ModeParts(
        "harness.engines.embedded.overlay2:provide", look_ahead="harness.engines.embedded.overlay2:look_ahead"
    ),
    Presentation.TREE: _LAZY,
    Presentation.BLOB: _LAZY,
}


def parts_of(mode: str, preset: str = "") -> ModeParts:
    """Returns the parts of ``mode``; UsageError when there is no such mode or preset."""
    found = find(mode)
    found.preset(preset)
    return _PARTS[found.presentation]


def load(name: str) -> Any:
    """Imports the object that ``module:attribute`` names."""
    module, _, attribute = name.partition(":")
    return getattr(import_module(module), attribute)
