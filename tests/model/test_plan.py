"""Plans: cases, blocks, order, selection, estimates."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from harness.errors import UsageError
from harness.model.modes import ENGINES, Form, Mode, Presentation, Preset
from harness.model.plan import (
    Plan,
    Selection,
    choose_after_ready,
    choose_modes,
    estimate_trial_s,
    make_plan,
    remaining_s,
)
from harness.model.scenario import Scenario
from harness.model.shape import DISTANCES, parse_shape


def scenario(**changes: Any) -> Scenario:
    """A scenario of two shapes and three modes."""
    fields: dict[str, Any] = {
        "name": "web",
        "image": {"ref": "docker://registry.example/web:1"},
        "workload": {"readiness": {"kind": "tcp", "port": 80}},
        "shapes": ["gcp-e2-micro", "cpu=0.5"],
        "modes": ["overlay2", "soci", {"mode": "soci", "label": "traced", "prefetch": "trace"}],
        "blocks": 3,
    }
    return Scenario.model_validate(fields | changes)


def keys(plan: Plan) -> list[str]:
    return [trial.case for trial in plan.trials]


def test_blocks_hold_every_case_once() -> None:
    """Each block has one trial of every case; ids count from 0 in running order."""
    plan = make_plan([scenario()], seed=1)
    assert len(plan.cases) == 6
    assert [t.trial for t in plan.trials] == list(range(18))
    for block in range(3):
        assert Counter(t.case for t in plan.trials if t.block == block) == {c.case.key: 1 for c in plan.cases}


def test_seed_decides_the_order() -> None:
    """The same seed gives the same order on every run of the program; another seed or block another order."""
    plan = make_plan([scenario()], seed=1)
    assert plan == make_plan([scenario()], seed=1)
    assert keys(plan) != keys(make_plan([scenario()], seed=2))
    assert keys(plan)[:6] != keys(plan)[6:12]
    small = make_plan([scenario(shapes=["cpu=0.5"])], seed=44)
    assert [k.split("/")[1] for k in keys(small)[:3]] == ["overlay2:sequential", "soci:tuned", "soci:tuned+traced"]


def test_plan_survives_storage() -> None:
    """A plan read back from its stored form is the same plan."""
    plan = make_plan([scenario(distance="far")], seed=7)
    assert Plan.model_validate_json(plan.model_dump_json()) == plan


def test_scenarios_keep_their_own_number_of_blocks() -> None:
    """A scenario with fewer blocks drops out of the later ones."""
    plan = make_plan([scenario(), scenario(name="db", blocks=1)], seed=1)
    assert Counter(t.case.partition("/")[0] for t in plan.trials) == {"web": 18, "db": 6}


def test_same_scenario_twice_is_refused() -> None:
    """Names tell cases apart, so they must differ within a session."""
    with pytest.raises(UsageError, match="'web' is there twice"):
        make_plan([scenario(), scenario()], seed=1)


def test_inline_shape_brings_its_own_distance() -> None:
    """``rtt=`` in a shape stands in the place of the scenario's distance and of the selected ones."""
    selection = Selection(shapes=(parse_shape("cpu=1,rtt=10ms"),), distances=(DISTANCES["far"],), modes=("overlay2",))
    (case,) = make_plan([scenario()], 1, selection).cases
    assert case.distance.rtt_ms == 10


@pytest.mark.parametrize(
    ("modes", "presets", "chosen"),
    [
        ([], [], ["overlay2:sequential", "soci:tuned", "soci:tuned+traced"]),
        (["soci"], [], ["soci:tuned", "soci:tuned+traced"]),
        (["soci:tuned+traced"], [], ["soci:tuned+traced"]),
        (["erofs"], [], ["erofs:tuned"]),
        (["overlay2:tuned", "erofs:eager"], [], ["overlay2:tuned", "erofs:eager"]),
        (["soci"], ["reference", "tuned"], ["soci:reference", "soci:tuned"]),
        (["overlay2", "soci"], ["tuned"], ["overlay2:tuned", "soci:tuned"]),
    ],
)
def test_choose_modes(modes: list[str], presets: list[str], chosen: list[str]) -> None:
    """A selection takes the scenario's own entries where it names them, and defaults where it does not."""
    assert [m.key for m in choose_modes(scenario(), modes, presets)] == chosen


@pytest.mark.parametrize(
    ("modes", "presets", "message"),
    [
        (["overlay"], [], "did you mean 'overlay2'"),
        (["soci:eager"], [], "expected a preset of mode soci"),
        (["soci:tuned+x"], [], "has no mode"),
        ([], ["tunde"], "did you mean 'tuned'"),
        (["overlay2:docker-like"], [], "it is called 'sequential' now"),
        ([], ["docker-like"], "it is called 'sequential' now"),
    ],
)
def test_wrong_selection(modes: list[str], presets: list[str], message: str) -> None:
    """What a selection cannot mean is a usage error that says what is there."""
    with pytest.raises(UsageError, match=message):
        choose_modes(scenario(), modes, presets)


def test_engines_run_what_they_implement(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each entry runs on the engines that have its mode and preset, and with each engine's own default preset."""
    store = Preset("store", "images in a store", None)
    full_pull = Mode("overlay2", Form.IMAGE, Presentation.NONE, (store,), "s", "red")
    monkeypatch.setitem(ENGINES, "docker", (full_pull,))
    plan = make_plan([scenario(shapes=["cpu=0.5"])], 1, Selection(engines=("embedded", "docker")))
    assert [(c.case.engine, f"{c.case.mode}:{c.case.variant}") for c in plan.cases] == [
        ("embedded", "overlay2:sequential"), ("embedded", "soci:tuned"), ("embedded", "soci:tuned+traced"),
        ("docker", "overlay2:store"),
    ]  # fmt: skip
    with pytest.raises(UsageError, match="nothing to run"):
        make_plan([scenario()], 1, Selection(engines=("docker",), modes=("soci", "overlay2:tuned")))


def test_estimates_are_ordered() -> None:
    """A full pull of a large image on a quarter core takes minutes, a lazy start seconds; trials replace it."""
    plan = make_plan([scenario(shapes=["cpu=0.25,memory=1G"])], seed=1)
    guesses = {c.case.key: estimate_trial_s(c, 338_000_000) for c in plan.cases}
    full = next(c.case.key for c in plan.cases if not c.lazy)
    lazy = next(c.case.key for c in plan.cases if c.lazy)
    assert 60 < guesses[full] < 180
    assert guesses[lazy] < guesses[full] / 2
    everything = remaining_s(plan, {}, frozenset(), guesses)
    assert everything == pytest.approx(3 * sum(guesses.values()))
    assert remaining_s(plan, {full: [10.0]}, frozenset(range(9)), guesses) == 0
    halved = remaining_s(plan, {full: [guesses[full] / 2]}, frozenset(), guesses)
    assert halved == pytest.approx(everything / 2)


def test_workloads_are_chosen_by_name_and_temperature() -> None:
    """What a selection leaves out of a scenario's workloads is not measured; its own order and temperatures stay."""
    own = scenario(
        runtime={
            "temperatures": ["cold", "warm"],
            "workloads": ["stat-walk", "read-small", {"name": "again", "argv": ["a"], "temperatures": ["stale"]}],
        }
    )
    assert choose_after_ready(own, Selection()) is own
    impatient = choose_after_ready(own, Selection(background=False))
    assert impatient.timeouts.background_s == 0
    assert impatient.timeouts.deploy_s == own.timeouts.deploy_s
    assert impatient.runtime == own.runtime
    chosen = choose_after_ready(own, Selection(workloads=("read-small", "stat-walk"), temperatures=("cold",)))
    assert [(w.name, w.temperatures) for w in chosen.runtime.workloads] == [
        ("stat-walk", ("cold",)),
        ("read-small", ("cold",)),
    ]
    with pytest.raises(UsageError, match=r"--workload read-smal: .* did you mean"):
        choose_after_ready(own, Selection(workloads=("read-smal",)))
    with pytest.raises(UsageError, match="none of its workloads runs at evicted files"):
        choose_after_ready(own, Selection(temperatures=("evicted",)))
