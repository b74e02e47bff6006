"""What ``coldbench run`` and ``bench`` print and end with; the trials themselves are made up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from harness import __version__
from harness.cli.main import app, load_commands
from harness.errors import Interrupted, UsageError
from harness.model.observation import Failure, Observation
from harness.session.run import Outcome
from harness.session.store import Store, load
from tests.test_scenarios import GOOD

if TYPE_CHECKING:
    from collections.abc import Callable

    from harness.model.plan import PlannedTrial

pytestmark = pytest.mark.files

load_commands()


class FakeLauncher:
    """``Launcher`` whose trials take no time; ``wrong`` of them fail, and ``stop_after`` a number a signal comes."""

    wrong = 0
    stop_after: int | None = None
    asked: dict[str, Any]

    def __init__(self, progress: object, *, offline: bool = False) -> None:
        type(self).asked = {"offline": offline}

    def __enter__(self) -> FakeLauncher:
        return self

    def __exit__(self, *_: object) -> None: ...

    def endpoint(self, registry: str) -> None:
        self.asked["registry"] = registry

    def run(
        self, store: Store, *, keep_going: bool = False, takes: Callable[[PlannedTrial], bool] | None = None
    ) -> Outcome:
        self.asked["keep_going"] = keep_going
        cases = {case.case.key: case.case for case in store.header.plan.cases}
        for trial in store.header.plan.trials:
            if trial.trial not in store.finished and (takes is None or takes(trial)):
                if self.stop_after is not None and len(store.finished) >= self.stop_after:
                    raise Interrupted("interrupted by SIGINT")
                store.append(self._observation(store, trial, cases[trial.case]))
        return Outcome(len(store.finished) - self.wrong, 0, self.wrong)

    def _observation(self, store: Store, trial: PlannedTrial, case: Any) -> Observation:
        fails = trial.trial < self.wrong
        return Observation(
            coldbench_version=__version__, session=store.header.session, trial=trial.trial, block=trial.block,
            case=case, started_at="2026-01-01T00:00:00+00:00", status="failed" if fails else "ok",
            failure=Failure(kind="NotReady", message="late") if fails else None,
            time_to_ready_s=None if fails else 1.0 + trial.trial / 100,
        )  # fmt: skip


@pytest.fixture(autouse=True)
def launcher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> type[FakeLauncher]:
    """The working directory holds one scenario, and nothing is really run."""

    class Fresh(FakeLauncher):
        pass

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("harness.session.opening.Launcher", Fresh)
    (tmp_path / "web.toml").write_text(GOOD, "utf-8")
    return Fresh


def coldbench(*arguments: str) -> Any:
    return CliRunner().invoke(app, arguments)


def test_run_says_what_came_of_it() -> None:
    """Counts and the session's place; the report's command is there to be copied."""
    result = coldbench("run", "web.toml", "--blocks", "1", "--out", "s", "--keep-going", "--offline")
    assert result.exit_code == 0
    total = len(load("s")[1])
    assert result.stdout.splitlines() == [
        f"{total} trials: {total} ok, 0 invalid, 0 failed",
        "session: s   report: coldbench report s",
    ]


def test_options_reach_the_launcher(launcher: type[FakeLauncher]) -> None:
    """What the command line says is what the session is run with."""
    coldbench("run", "web.toml", "--blocks", "1", "--out", "s", "--keep-going", "--offline", "--no-workloads",
              "--seed", "7", "--registry", "http://127.0.0.1:5000")  # fmt: skip
    assert launcher.asked == {"offline": True, "keep_going": True, "registry": "http://127.0.0.1:5000"}
    header = load("s")[0]
    assert (header.seed, header.workloads, header.registry) == (7, False, "http://127.0.0.1:5000")


def test_run_as_json() -> None:
    """One object for scripts, and nothing else on stdout."""
    told = json.loads(coldbench("run", "web.toml", "--blocks", "1", "--out", "s", "--json").stdout)
    assert told["session"] == "s"
    assert told["ok"] == told["recorded"] == told["trials"]


def test_failed_trials_end_with_5(launcher: type[FakeLauncher]) -> None:
    """Also in bench, which shows the comparison first."""
    launcher.wrong = 1
    assert coldbench("run", "web.toml", "--blocks", "1", "--out", "s").exit_code == 5
    result = coldbench("bench", "web.toml", "--blocks", "1", "--out", "b")
    assert result.exit_code == 5
    assert "NotReady: late" in result.stdout
    assert "Report: " in result.stdout


def test_an_interrupt_says_how_to_go_on(launcher: type[FakeLauncher]) -> None:
    """What was recorded stays, and the rest runs on resume."""
    launcher.stop_after = 2
    result = coldbench("run", "web.toml", "--blocks", "2", "--out", "s")
    assert isinstance(result.exception, Interrupted)
    assert result.exception.exit_code == 130
    assert "2 of " in str(result.exception)
    assert "coldbench run --resume --out s" in str(result.exception)
    launcher.stop_after = None
    assert coldbench("run", "--resume", "--out", "s").exit_code == 0
    header, seen = load("s")
    assert len(seen) == len(header.plan.trials)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--resume", "--out", "s", "--registry", "http://127.0.0.1:1"], "nothing that changes the plan"),
        (["--resume", "--out", "s", "--no-workloads"], "nothing that changes the plan"),
        (["--resume", "--out", "s", "--blocks", "3"], "nothing that changes the plan"),
        (["web.toml", "--out", "s"], "holds a session already; continue it with --resume"),
        (["--resume", "--out", "nowhere"], "no session.json to resume"),
    ],
)
def test_what_a_stored_session_does_not_take(arguments: list[str], message: str) -> None:
    """An option that would be dropped is refused."""
    coldbench("run", "web.toml", "--blocks", "1", "--out", "s")
    result = coldbench("run", *arguments)
    assert isinstance(result.exception, UsageError)
    assert message in str(result.exception)


def test_bench_prints_the_comparison_alone_as_json() -> None:
    """Scripts read stdout; counts are for whoever watches."""
    result = coldbench("bench", "web.toml", "--blocks", "1", "--out", "b", "--json")
    assert json.loads(result.stdout)["session"] == "b"
    assert "trials:" in result.stderr


def test_bench_names_its_session_itself() -> None:
    """Without ``--out`` the session is below results, by time and scenario."""
    result = coldbench("bench", "web.toml", "--blocks", "1")
    (made,) = Path("results").iterdir()
    assert made.name.endswith("-web")
    assert f"Report: {(made / 'report.html').resolve()}" in result.stdout
