"""What a scenario may say of faults, and where their trials stand in a plan."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from pydantic import ValidationError

from harness.model.faults import FAULTS, Faults, SampleReads, parse_fault
from harness.model.plan import make_plan, remaining_s
from harness.model.scenario import Scenario


def scenario(**changes: Any) -> Scenario:
    """A full pull and a lazy mode, two blocks, one with faults."""
    return Scenario.model_validate(
        {
            "name": "web",
            "image": {"ref": "docker://registry.example/web:1"},
            "workload": {"readiness": {"kind": "exit"}},
            "modes": ["overlay2", "erofs"],
            "blocks": 2,
            "faults": {"which": ["registry-refuses", "daemon-killed@after"], "onsets": ["ready", "30s"]},
            **changes,
        }
    )


def test_every_fault_is_planned_at_its_onsets() -> None:
    """A bare name stands for all onsets, one with an onset for that; a full pull has one onset, since all is there."""
    table = Faults(which=("registry-refuses", "daemon-killed@after", "registry-503+quiet"), onsets=("ready", "30s"))
    lazy = [fault.key for fault in table.planned(lazy=True)]
    assert lazy == [
        "registry-refuses@ready", "registry-refuses@30s", "daemon-killed@after", "registry-503@ready+quiet",
        "registry-503@30s+quiet",
    ]  # fmt: skip
    full = [fault.key for fault in table.planned(lazy=False)]
    assert full == ["registry-refuses@ready", "daemon-killed@ready", "registry-503@ready+quiet"]
    assert [parse_fault(key).key for key in lazy] == lazy


@pytest.mark.parametrize(
    ("which", "words"),
    [
        ("daemon-kiled", "expected a fault .*daemon-killed"),
        ("disk-full@soon", 'expected "ready", "background", "after" or seconds'),
        ("disk-full@", 'expected "ready"'),
    ],
)
def test_what_is_no_fault_is_refused(which: str, words: str) -> None:
    """An unknown fault or onset is refused with what there is."""
    with pytest.raises(ValidationError, match=words):
        Faults(which=(which,))


def test_fault_trials_stand_among_the_others() -> None:
    """Each fault of each case has a trial in the first blocks, shuffled among the starts; ids follow one another."""
    plan = make_plan([scenario()], seed=1, faults=True)
    assert [trial.trial for trial in plan.trials] == list(range(len(plan.trials)))
    starts = Counter(trial.case for trial in plan.trials if not trial.fault)
    assert set(starts.values()) == {2}
    struck = [trial for trial in plan.trials if trial.fault]
    assert {trial.block for trial in struck} == {0}
    assert Counter(trial.case.split("/")[1] for trial in struck) == {"overlay2:sequential": 2, "erofs:tuned": 3}
    orders = {
        tuple(bool(t.fault) for t in make_plan([scenario()], seed=seed, faults=True).trials if t.block == 0)
        for seed in range(20)
    }
    assert len(orders) > 10, "starts and faults are mixed"
    assert make_plan([scenario()], seed=1, faults=True) == plan


def test_a_plan_without_faults_is_what_it_was() -> None:
    """Who does not ask for faults gets starts only, in the same order as of a scenario that names none."""
    assert make_plan([scenario()], seed=3).trials == make_plan([scenario(faults=None)], seed=3).trials


def test_time_left_counts_fault_trials_apart() -> None:
    """A fault trial's measured time is for others of its kind; starts are not taken to be as long."""
    plan = make_plan([scenario()], seed=1, faults=True)
    guesses = {case.case.key: 5.0 for case in plan.cases}
    struck = next(trial for trial in plan.trials if trial.fault)
    done = {struck.kind: [1000.0]}
    everything_else = frozenset(t.trial for t in plan.trials if t.fault)
    assert remaining_s(plan, done, everything_else, guesses) == pytest.approx(4 * 5.0)


def test_every_fault_is_of_something() -> None:
    """Each name says what it hits: the daemon, the registry, the disk, or nothing."""
    for name in FAULTS:
        fault = parse_fault(f"{name}@ready")
        assert fault.of_registry + name.startswith("daemon-") + (name in {"disk-full", "nothing"}) == 1


def test_untried_files_are_no_successes() -> None:
    """The share that failed is of the files tried; with none tried there is no share."""
    reads = SampleReads(sample="untouched", files=300, ok=10, failed=5, hung=5, untried=280)
    assert reads.share == pytest.approx(0.5)
    assert SampleReads(sample="untouched", files=3, untried=3).share is None
