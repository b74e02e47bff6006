"""The sentence that names other programs by their versions, beside the best of ours."""

from __future__ import annotations

import pytest

from harness.model.details import Details
from harness.model.observation import Case, Observation
from harness.report.answer import answer
from harness.report.comparison import compare
from harness.report.programs import sentence
from tests.report.observations import session


def _real(o: Observation, where: str, factor: float, versions: dict[str, str]) -> Observation:
    """A trial of ``engine/mode:preset``, so many times as slow as ``o``."""
    engine, mode, preset = where.replace(":", "/").split("/")
    case = Case(scenario=o.case.scenario, mode=mode, preset=preset, engine=engine, shape=o.case.shape)
    assert o.time_to_ready_s is not None
    changed = {"case": case, "time_to_ready_s": o.time_to_ready_s * factor, "details": Details(versions=versions)}
    return o.model_copy(update=changed)


def test_programs_stand_with_their_versions_the_slowest_first() -> None:
    """Each program once, with its soonest preset; ours is the soonest that may be recommended."""
    ours = session()
    slow = [o for o in ours if o.valid and o.case.mode == "erofs"]
    seen = [
        *ours,
        *(_real(o, "docker/overlay2:overlay2", 13.0, {"docker": "28.5.2", "runc": "1.1"}) for o in slow),
        *(_real(o, "docker/overlay2:containerd-store", 14.0, {"docker": "28.5.2"}) for o in slow),
        *(_real(o, "containerd/soci:default", 4.0, {"soci-snapshotter-grpc": "0.16.1"}) for o in slow),
        *(_real(o, "containerd/estargz:default", 5.0, {}) for o in slow),
    ]
    (group,) = compare(seen)
    said = sentence(group)
    assert said.startswith("Docker 28.5.2 takes 4")
    assert said.count("Docker") == 1
    assert ", the real SOCI 0.16.1 1" in said
    assert said.index("stargz") < said.index("SOCI") < said.index("ours (erofs:tuned) 3.")
    assert said in answer(group).sentences


@pytest.mark.parametrize("engine", ["embedded", "docker"])
def test_one_side_alone_is_no_sentence(engine: str) -> None:
    """Without another program, or without anything of ours, nothing is said."""
    seen = session()
    if engine == "docker":
        seen = [_real(o, "docker/overlay2:overlay2", 1.0, {}) for o in seen if o.valid]
    (group,) = compare(seen)
    assert sentence(group) == ""
