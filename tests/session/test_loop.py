"""The run loop on set-ups that fail to prepare: what goes on, and what ends the session."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from harness import __version__
from harness.errors import ColdbenchError, ContentError, RegistryError, RehearsalFailed, UnsupportedMediaType
from harness.model.plan import PlannedCase, PlannedTrial, make_plan
from harness.model.scenario import Scenario
from harness.model.session import SessionHeader
from harness.session.interrupts import Interrupts
from harness.session.progress import Silent
from harness.session.run import Outcome, SessionRun
from harness.session.store import Store, load
from tests.session.test_trial import Bench

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.files


class FakeSetups:
    """``Setups`` without an image: trials run on the fakes of ``tests.session.fakes``."""

    def __init__(self) -> None:
        self.sealed = 0
        self.image: ColdbenchError | None = None
        self.publishing: dict[str, ColdbenchError] = {}
        self.tracing: ColdbenchError | None = None
        self.alone: ColdbenchError | None = None
        self.rehearsed: list[bool] = []
        self.rehearsals = self

    def seal(self) -> None:
        self.sealed += 1

    def unseal(self) -> None:
        self.sealed = 0

    def material(self, _scenario: Scenario) -> Any:
        if self.image is not None:
            raise self.image
        return SimpleNamespace(compressed_bytes=1000)

    def publish(self, case: PlannedCase) -> None:
        if (error := self.publishing.get(case.choice.mode)) is not None:
            raise error

    def rehearse(self, _scenario: Scenario, *, trace: bool, calibrate: bool = True) -> None:
        self.rehearsed.append(trace)
        if calibrate and self.alone is not None:
            raise self.alone
        if trace and self.tracing is not None:
            raise self.tracing

    def setup(self, trial: PlannedTrial, case: PlannedCase) -> Any:
        return replace(Bench().setup, trial=trial, case=case)


@pytest.fixture
def setups() -> FakeSetups:
    return FakeSetups()


def run(directory: Path, setups: FakeSetups, *, keep_going: bool = False) -> Outcome:
    """Two modes, one of them with a trace, two blocks."""
    scenario = Scenario.model_validate(
        {
            "name": "web",
            "image": {"ref": "docker://registry.example/web:1"},
            "workload": {"readiness": {"kind": "exit"}},
            "shapes": ["cpu=0.5"],
            "modes": ["overlay2", {"mode": "overlay2", "preset": "tuned"}, {"mode": "soci", "prefetch": "trace"}],
            "blocks": 2,
        }
    )
    header = SessionHeader(
        coldbench_version=__version__, session="s", created_at="2026-01-01T00:00:00+00:00",
        plan=make_plan([scenario], seed=1), scenarios={"web": scenario},
    )  # fmt: skip
    with Store.create(directory, header) as store:
        return SessionRun(store, setups, Interrupts(), Silent(), keep_going).run()  # type: ignore[arg-type]


def failures(directory: Path) -> set[tuple[str, str, str]]:
    return {(o.case.mode, o.failure.kind, o.failure.phase) for o in load(directory)[1] if o.failure}


def test_a_case_that_cannot_be_prepared(tmp_path: Path, setups: FakeSetups) -> None:
    """Its trials are recorded as failed, in the order of the plan, and the other cases run."""
    setups.publishing["soci"] = UnsupportedMediaType("no layer can be indexed")
    run(tmp_path / "s", setups)
    header, seen = load(tmp_path / "s")
    assert [o.trial for o in seen] == [t.trial for t in header.plan.trials]
    assert failures(tmp_path / "s") == {("soci", "UnsupportedMediaType", "preparation")}
    assert sum(o.status == "ok" for o in seen) == 4
    assert setups.rehearsed == [False], "nobody needs the trace any more"


def test_a_trace_that_fails(tmp_path: Path, setups: FakeSetups) -> None:
    """Only the cases that wanted the list fail; the rest of the rehearsal is done without it."""
    setups.tracing = ContentError("the trace trial failed")
    run(tmp_path / "s", setups)
    assert failures(tmp_path / "s") == {("soci", "ContentError", "preparation")}
    assert setups.rehearsed == [True, False]


def test_an_image_that_cannot_be_had(tmp_path: Path, setups: FakeSetups) -> None:
    """Without an image there is nothing to measure: the error itself, with or without ``keep_going``."""
    setups.image = RegistryError("unreachable")
    for keep_going in (False, True):
        with pytest.raises(RegistryError, match="unreachable"):
            run(tmp_path / f"s{keep_going}", setups, keep_going=keep_going)
        expected = {(mode, "RegistryError", "preparation") for mode in ("overlay2", "soci")}
        assert failures(tmp_path / f"s{keep_going}") == expected, "recorded: --retry-failed tries them again"


def test_a_workload_that_fails_by_itself(tmp_path: Path, setups: FakeSetups) -> None:
    """The session ends before its first trial, which would fail as all others would; ``keep_going`` runs them."""
    setups.alone = RehearsalFailed("web: the workload fails by itself")
    with pytest.raises(RehearsalFailed, match="by itself"):
        run(tmp_path / "s", setups)
    assert load(tmp_path / "s")[1] == []
    assert run(tmp_path / "on", setups, keep_going=True) == Outcome(4, 2, 0), "soci on the fakes is not lazy"


def test_nothing_can_be_prepared(tmp_path: Path, setups: FakeSetups) -> None:
    """Where every case fails, the first error says why, and every trial is recorded as failed for it."""
    setups.publishing = {mode: RegistryError("refused") for mode in ("overlay2", "soci")}
    with pytest.raises(RegistryError, match="refused"):
        run(tmp_path / "s", setups)
    assert failures(tmp_path / "s") == {(mode, "RegistryError", "preparation") for mode in ("overlay2", "soci")}
