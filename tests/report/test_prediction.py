"""Predictions hold against starts that were measured on the predicted machines."""

from __future__ import annotations

import math
from pathlib import Path
from statistics import median

import pytest

from harness.model.shape import parse_shape
from harness.report.advice import choices_of
from harness.report.prediction import TOLERANCE, Parts, obstacle, parts_of, predict
from harness.report.worth import Variant, repacked
from harness.session import store

#: Quickstart under all modes on three machines: a quarter of a core, one core, half a core behind 100 Mbit/s.
RECORDED = Path(__file__).parents[1] / "data" / "shapes-quickstart"

PARTS = Parts(
    shape=parse_shape("cpu=0.5,memory=1G"), distance="none", ready_s=4.0, cpu_core_s=1.0, received_bytes=50e6,
    memory_bytes=80e6, inflate_core_s=0.3, per_byte_core_s=0.02,
)  # fmt: skip


def test_every_measured_start_lies_in_its_range() -> None:
    """Each case is predicted on each machine from each other; half of the middles are within a fifth of the truth."""
    header, observations = store.load(RECORDED)
    known = [(case, parts) for case in header.plan.cases if (parts := parts_of(case, observations)) is not None]
    middles = []
    for case, parts in known:
        for other, measured in known:
            if other.case.shape == case.case.shape or (other.mode, other.preset) != (case.mode, case.preset):
                continue
            found = predict(parts, other.shape)
            assert found.low_s / (1 + TOLERANCE) <= measured.ready_s <= found.high_s * (1 + TOLERANCE), (case, other)
            middles.append(found.middle_s / measured.ready_s)
    assert len(middles) == 36
    assert median(abs(math.log(middle)) for middle in middles) < math.log(1.2)


def test_predicted_machines_are_marked() -> None:
    """A measured machine is no prediction; of another one it is said from which it was predicted, and between what."""
    header, observations = store.load(RECORDED)
    shapes = [parse_shape(text) for text in ("cpu=1,memory=1G", "cpu=0.3,memory=1G")]
    *measured, predicted = choices_of(header, observations, "quickstart", shapes)
    assert [choice.measured for choice in measured] == [True, True, True]
    assert (predicted.measured, predicted.measured_on) == (False, "cpu=0.25,memory=1G")
    assert predicted.low_s <= predicted.ready_s <= predicted.high_s


def test_the_same_machine_predicts_itself() -> None:
    """Nothing changes, so nothing is a range."""
    found = predict(PARTS, PARTS.shape)
    assert found.low_s == found.high_s == pytest.approx(4.0)


def test_what_cannot_be_predicted_says_why() -> None:
    """Another distance, and less memory than a start holds; page cache does not count."""
    assert obstacle(PARTS, parse_shape("cpu=1,memory=1G,rtt=10ms")) == "measured at distance none"
    assert "76 MiB" in obstacle(PARTS, parse_shape("cpu=1,memory=64M"))
    assert obstacle(PARTS, parse_shape("cpu=1,memory=128M")) == ""
    assert math.isnan(predict(PARTS, parse_shape("cpu=1,memory=64M")).middle_s)


def test_less_compression_is_weighed_against_more_bytes() -> None:
    """Without a limit of the link, layers that are not packed start sooner; behind a slow one they start later."""
    plain = Variant("not compressed", 3.0, inflates=False)
    assert repacked("x", PARTS, PARTS.shape, plain).sooner
    assert not repacked("x", PARTS, parse_shape("cpu=0.5,memory=1G,bandwidth=50Mbit"), plain).sooner
    light = Variant("gzip -1", 1.1, inflates=True)
    assert not repacked("x", PARTS, PARTS.shape, light).sooner
