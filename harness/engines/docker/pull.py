"""This module turns Docker's progress of a pull into spans of a timeline: per layer wait, fetch, verify, unpack.

The stream has a line per step and layer, in the order in which Docker takes them; a layer goes by twelve digits of its
digest. Docker's two image stores tell different things. The classic one counts bytes while it downloads and extracts,
and names the verification. containerd's counts seconds while it extracts (``"units": "s"``, no total), names no
verification, and lists layers in no order. Both begin with ``Pulling fs layer`` and end with ``Pull complete``. A step
is taken to begin at its first line and to end where the next one begins: what a stream does not name gets no span.

Source: the stream of Docker Engine 20.10 and 28.5 as recorded in tests/engines/docker_streams.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from harness.model.timeline import Recorder

#: The span that a line's words open for their layer; None where they end the layer.
_STEPS: dict[str, str | None] = {
    "Pulling fs layer": "wait",
    "Waiting": "wait",
    "Downloading": "fetch",
    "Verifying Checksum": "verify",
    "Download complete": "wait",
    "Extracting": "unpack",
    "Pull complete": None,
    "Already exists": None,
}


@dataclass(slots=True)
class _Layer:
    index: int
    step: str
    since_ns: int
    fetched: bool = False


@dataclass(slots=True)
class PullProgress:
    """Turns lines into spans as they come; ``error`` holds what Docker said when the pull failed."""

    timeline: Recorder
    digests: Sequence[str] = ()
    """Lists the image's layers, the lowest first; where they are not known, layers count in the order of the stream."""
    clock_ns: Callable[[], int] = time.monotonic_ns
    error: str = ""
    existing: int = 0
    """Lists layers that were there already: a cold pull has none."""
    _layers: dict[str, _Layer] = field(default_factory=dict)
    _resolved: bool = False

    def feed(self, line: dict[str, Any]) -> None:
        """Take one decoded line of the stream."""
        now_ns = self.clock_ns()
        if "error" in line or "errorDetail" in line:
            detail = line.get("errorDetail") or {}
            self.error = str(line.get("error") or detail.get("message") or "no reason given")
            return
        status, name = str(line.get("status", "")), str(line.get("id", ""))
        if not self._resolved:
            self._resolved = True
            self.timeline.add("resolve", self.timeline.t0_ns, now_ns)
        if status not in _STEPS or not name:
            return
        if status == "Already exists":
            self.existing += 1
        layer = self._layers.get(name)
        if layer is None:
            known = [number for number, digest in enumerate(self.digests) if name in digest]
            layer = self._layers[name] = _Layer(known[0] if known else len(self._layers), "wait", now_ns)
        self._enter(layer, status, now_ns)

    def _enter(self, layer: _Layer, status: str, now_ns: int) -> None:
        step = _STEPS[status]
        if status == "Download complete" and not layer.fetched and layer.step == "wait":
            layer.step = "fetch"  # so small or so fast that no line came while it was downloaded
        if step == layer.step or not layer.step:
            return
        self.timeline.add(layer.step, layer.since_ns, now_ns, layer.index, _detail(layer))
        layer.fetched = layer.fetched or layer.step in {"fetch", "verify"}
        layer.step, layer.since_ns = step or "", now_ns

    def finish(self) -> None:
        """Closes what is open when the stream has ended, as a pull that fails leaves it."""
        now_ns = self.clock_ns()
        for layer in self._layers.values():
            if layer.step and layer.step != "wait":
                self.timeline.add(layer.step, layer.since_ns, now_ns, layer.index, "unfinished")
            layer.step = ""


def _detail(layer: _Layer) -> str:
    if layer.step != "wait":
        return ""
    return "for the layers below" if layer.fetched else "for its turn"
