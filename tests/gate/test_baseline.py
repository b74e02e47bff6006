"""The baseline that options name: what a session then runs, and what is refused before anything is prepared."""

from __future__ import annotations

import pytest

from harness.errors import UsageError
from harness.gate.baseline import choose, modes_to_run
from harness.model.plan import Selection, make_plan
from tests.gate import sessions


@pytest.mark.parametrize(
    ("named", "mode", "runs"),
    [
        ([], "overlay2", ["overlay2:tuned", "erofs:tuned"]),
        ([], "erofs:tuned", ["overlay2:tuned", "erofs:tuned"]),
        ([], "soci", ["overlay2:tuned", "erofs:tuned", "soci:tuned"]),
        ([], "overlay2:sequential", ["overlay2:tuned", "erofs:tuned", "overlay2:sequential"]),
        (["erofs"], "soci", ["erofs:tuned", "soci:tuned"]),
    ],
)
def test_a_baseline_mode_runs_beside_the_others(named: list[str], mode: str, runs: list[str]) -> None:
    """A mode that the scenario does not name is measured too, as the option promises; one that it names, once."""
    scenario = sessions.scenario()
    modes = modes_to_run(scenario, choose(scenario, "", mode, "", ""), named)
    plan = make_plan([scenario], 1, Selection(modes=tuple(modes)))
    assert [case.choice.key for case in plan.cases] == runs


@pytest.mark.parametrize(
    ("image", "mode", "engine", "message"),
    [
        ("debian:12", "", "", "did you mean docker://debian:12"),
        ("", "overlay", "", "--baseline-mode overlay: expected a mode"),
        ("", "overlay2:tunde", "", "--baseline-mode overlay2:tunde: .*did you mean 'tuned'"),
        ("", "overlay2:tuned+zlib", "", "--baseline-mode .*scenario app has no mode"),
        ("", "", "dokcer", "did you mean 'docker'"),
        ("", "erofs", "docker", "a gate has one baseline"),
    ],
)
def test_wrong_baselines_are_refused(image: str, mode: str, engine: str, message: str) -> None:
    """The message names the option, and the nearest name or all."""
    with pytest.raises(UsageError, match=message):
        choose(sessions.scenario(), image, mode, engine, "")
