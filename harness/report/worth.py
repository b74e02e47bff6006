"""This module says whether a lazy form of an image is worth its registry bytes and build seconds, and after how many
starts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.model.modes import Form
from harness.report.prediction import predict

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.model.session import Preparation
    from harness.model.shape import Shape
    from harness.report.comparison import CaseLine, Group
    from harness.report.prediction import Parts


@dataclass(frozen=True, slots=True)
class Worth:
    """Says what one form costs a build, and what it saves a start against the best full pull.

    ``extra_bytes`` is what the registry holds more: all of it for a converted image, which stands beside the original;
    ``build_s`` is None where the form was kept from an earlier session, which did not time it here.
    """

    label: str
    form: Form
    image_bytes: int
    extra_bytes: int
    build_s: float | None
    saving_s: float

    @property
    def pays_from_starts(self) -> float | None:
        """Counts the starts per build from which the seconds saved exceed those spent; infinite
        where nothing is saved.
        """
        if self.saving_s <= 0:
            return math.inf
        return None if self.build_s is None else max(1.0, math.ceil(self.build_s / self.saving_s))

    def daily_s(self, starts: float, builds: float) -> float | None:
        """Returns the seconds saved a day less the seconds of building; None where building was not timed."""
        return None if self.build_s is None else starts * self.saving_s - builds * self.build_s


def worth(group: Group, prepared: Sequence[Preparation], forms: dict[str, Form]) -> list[Worth]:
    """Finds the worth of each lazy case of a group that may be recommended; ``forms`` says what the registry holds for
    a label.
    """
    full = [line for line in group.lines if line.offered and not line.lazy and line.ready is not None]
    if not full:
        return []
    best = min(_median(line) for line in full)
    image = _made(prepared, Form.IMAGE)
    found = []
    for line in group.lines:
        form = forms.get(line.label, Form.IMAGE)
        made = _made(prepared, form)
        if not line.offered or not line.lazy or line.ready is None or form is Form.IMAGE or not made or not image:
            continue
        # Indexes lie in a layout with the image itself; a converted image is another image.
        extra = made.bytes if form is Form.ESTARGZ else made.bytes - image.bytes
        timed = None if made.cached else made.wall_s
        found.append(Worth(line.label, form, image.bytes, extra, timed, best - _median(line)))
    return sorted(found, key=lambda entry: -entry.saving_s)


def _made(prepared: Sequence[Preparation], form: str) -> Preparation | None:
    """Returns how a form was made: the record that timed it, else any."""
    records = [p for p in prepared if p.form == form]
    return next((p for p in records if not p.cached), records[0] if records else None)


def _median(line: CaseLine) -> float:
    return line.ready.median if line.ready else math.inf


@dataclass(frozen=True, slots=True)
class Variant:
    """Stands for the same layers stored otherwise: ``growth`` is their size over what it is now."""

    name: str
    growth: float
    inflates: bool


@dataclass(frozen=True, slots=True)
class Repacked:
    """Holds predicted seconds to ready of one case on one machine, as it is and with its layers stored otherwise."""

    label: str
    variant: Variant
    now_s: float
    then_s: float

    @property
    def sooner(self) -> bool:
        """Says whether it starts sooner by more than rounding."""
        return self.then_s < 0.97 * self.now_s


def repacked(label: str, parts: Parts, shape: Shape, variant: Variant) -> Repacked:
    """Predicts what storing layers otherwise does: more bytes to receive and hash, nothing to inflate where they are
    not packed.

    Only the part that every engine must do is taken off (``inflate_core_s`` at this host's best rate), so one that
    inflates slower gains more than this says.
    """
    more = variant.growth - 1
    core_s = parts.cpu_core_s + more * parts.per_byte_core_s - (0.0 if variant.inflates else parts.inflate_core_s)
    then = predict(parts, shape, cpu_core_s=max(0.0, core_s), received_bytes=parts.received_bytes * variant.growth)
    return Repacked(label, variant, parts.ready_s, then.middle_s)
