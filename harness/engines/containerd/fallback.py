"""This module says whether a lazy snapshotter served the image lazily or unpacked it without a word.

That is the field's most frequent complaint. A snapshotter that cannot mount a layer (no index, no labels, no footer it
knows) logs a line and lets containerd unpack it. The container runs all the same, only late. Sources:
stargz-snapshotter 2142 and 1979, containerd 11082.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from harness.model.observation import Invalidity

#: Smaller layers are unpacked by design: `soci convert` indexes none below its --min-layer-size, 10 MiB by default.
SMALL_LAYER_BYTES = 10 << 20
_COMPLAINT = re.compile(
    r"failed to prepare remote snapshot|remote-snapshot-prepared\W+false|failed to (?:resolve|mount|fetch)"
    r"|unable to (?:fetch|resolve|find)|no valid index|skipping mounting layer",
    re.IGNORECASE,
)
_MESSAGE = re.compile(r'(?:error|msg)[="\\: ]+((?:[^"\\]|\\.)+)')


@dataclass(frozen=True)
class Layers:
    """Says what became of an image's layers, by their numbers."""

    sizes: tuple[int, ...]
    unpacked: frozenset[int]

    @property
    def lazy(self) -> int:
        return len(self.sizes) - len(self.unpacked)


def found(snapshotter: str, layers: Layers, log: str, small_bytes: int = SMALL_LAYER_BYTES) -> tuple[Invalidity, ...]:
    """Says why a trial that should have been lazy was not; empty when it was."""
    whole = sorted(n for n in layers.unpacked if layers.sizes[n] >= small_bytes)
    if layers.sizes and layers.lazy == 0:
        what = f"{snapshotter} unpacked every layer"
    elif whole:
        size = sum(layers.sizes[n] for n in whole)
        which = ", ".join(map(str, whole))
        what = f"{snapshotter} unpacked layer {which} ({size / 1e6:.0f} MB) instead of serving it"
    else:
        return ()
    return (Invalidity(rule="not-lazy", reason=f"{what}; its log: {complaint(log) or 'no reason'}"),)


def complaint(log: str) -> str:
    """Returns the first line of a snapshotter's log that says why a layer was not mounted, shortened; empty if none
    does.
    """
    for line in log.splitlines():
        if _COMPLAINT.search(line):
            said = _MESSAGE.search(line)
            return (said.group(1) if said else line).replace('\\"', '"').strip()[:300]
    return ""
