"""The page that puts our presets beside the real programs: what is paired, what agrees, what is left out."""

from __future__ import annotations

import pytest

from harness.model.observation import Case, Invalidity, Observation, Wire
from harness.report import credibility
from tests.report.observations import header, observation


def trial(engine: str, mode: str, preset: str, block: int, *moved: float) -> Observation:
    """A valid trial of some case that moved so much by readiness."""
    made = observation("soci", "tuned", block)
    case = Case.model_validate({**made.case.model_dump(), "engine": engine, "mode": mode, "preset": preset})
    megabytes, requests = moved
    wire = Wire(received_bytes=int(megabytes * 1e6), requests=int(requests))
    return made.model_copy(update={"case": case, "wire_before_ready": wire})


def session(blocks: int = 6) -> list[Observation]:
    return [
        made
        for block in range(blocks)
        for made in (
            trial("embedded", "soci", "reference", block, 41, 36),
            trial("containerd", "soci", "default", block, 40, 30),
            trial("containerd", "overlay2", "default", block, 62, 6),
        )
    ]


def test_cases_of_one_mode_are_paired() -> None:
    """Ours stands beside the real engine's case of the same mode, and beside no other."""
    (pair,) = credibility.pairs(session())
    assert (pair.ours.preset, pair.theirs.engine, pair.theirs.mode) == ("reference", "containerd", "soci")
    assert len(pair.trials) == 6
    assert pair.medians(credibility.received) == (41e6, 40e6)


def test_a_block_without_both_is_left_out() -> None:
    """Pairs are within blocks: an invalid trial takes its partner out of the comparison."""
    seen = session()
    bad = Invalidity(rule="not-lazy", reason="soci unpacked every layer")
    seen[1] = seen[1].model_copy(update={"invalid": (bad,)})
    (pair,) = credibility.pairs(seen)
    assert len(pair.trials) == 5


@pytest.mark.parametrize(
    ("ours", "theirs", "said"),
    [(41e6, 40e6, "yes (+2%)"), (36, 30, "no (+20%)"), (27, 30, "yes (-10%)"), (1, 0, "not known")],
)
def test_agreement_has_a_tolerance(ours: float, theirs: float, said: str) -> None:
    """Ten per cent either way is the same policy; what was not counted is not agreed on."""
    assert credibility.verdict(ours, theirs) == said


def test_a_library_is_named_with_its_version() -> None:
    """A session beside pyfuse3 says of which release; one without it does not."""
    known = header().model_copy(update={"versions": {"pyfuse3": "3.5.0", "numpy": "2"}})
    beside = [trial("embedded", "soci", preset, block, 40, 30) for block in range(6) for preset in ("tuned", "pyfuse3")]
    assert "; pyfuse3 3.5.0." in credibility.section(known, beside)
    assert "pyfuse3" not in credibility.section(known, session())
