"""What a run prints while it goes on, where nobody watches a terminal."""

from __future__ import annotations

import io

from rich.console import Console
from rich.live import Live

from harness.cli.live import LiveProgress
from harness.cli.progress import PlainProgress
from harness.model.observation import Failure, Observation
from harness.model.plan import Selection, make_plan
from harness.model.shape import parse_shape
from harness.scenarios import find, load
from harness.session.progress import last_lines
from tests.report.observations import observation

OUTPUT = "".join(f"line {n}\n" for n in range(30)) + "Error: no module\x1b[0m\n}\n\n"


def printed(*failures: Failure) -> str:
    stream = io.StringIO()
    progress = PlainProgress(stream)
    for block, failure in enumerate(failures):
        seen = observation("soci", "tuned", block).model_copy(
            update={"status": "failed", "time_to_ready_s": None, "failure": failure, "output_tail": OUTPUT}
        )
        progress.ended(seen, 0.0)
    return stream.getvalue()


def test_a_failure_shows_the_end_of_the_output_once() -> None:
    """Twenty lines below the first failed trial of a case; the next one says the same."""
    failure = Failure(kind="WorkloadExited", message="it ended", phase="start")
    text = printed(failure, failure)
    assert text.count("failed in start: WorkloadExited: it ended") == 2
    assert text.count("    line 29\n") == 1
    assert "    line 11\n" not in text
    assert "    line 12\n" in text


def test_a_failure_before_the_start_has_no_output_to_show() -> None:
    """What a registry did wrong is not explained by what a container said."""
    assert "line 29" not in printed(Failure(kind="RegistryError", message="refused", phase="pull"))


def test_output_is_no_command_to_the_terminal() -> None:
    """Control characters are left out, blank lines at the end, too; indentation stays."""
    assert last_lines(OUTPUT, 2) == ["Error: no module[0m", "}"]
    assert last_lines("  at f\n\tat g\n\n") == ["  at f", "    at g"]


def displayed(*seen: Observation, height: int = 30) -> str:
    """What the live display shows, and printed above it, after these trials of the made-up session."""
    stream = io.StringIO()
    console = Console(file=stream, width=90, height=height, force_terminal=False)
    scenario = load(find("python-data"))
    plan = make_plan([scenario], 1, Selection(modes=MODES, shapes=(parse_shape(SHAPE),)))
    times = iter(range(1000))
    with Live(console=console, auto_refresh=False) as live:
        progress = LiveProgress(console, live, clock=lambda: float(next(times)))
        progress.session(plan, 0, 300.0)
        progress.trial(plan.trials[0], 1, 300.0)
        progress.phase("pull")
        for observation in seen:
            progress.ended(observation, 60.0)
        progress.trial(plan.trials[1], 2, 50.0)
        progress.phase("workloads: stat-walk cold")
    return stream.getvalue()


SHAPE = "gcp-e2-micro"
MODES = ("overlay2:sequential", "overlay2:tuned", "soci:tuned", "erofs:tuned")


def of_shape(seen: Observation) -> Observation:
    return seen.model_copy(update={"case": seen.case.model_copy(update={"shape": parse_shape(SHAPE).label})})


def test_the_live_display_says_what_runs_and_what_came_of_it() -> None:
    """Case, phase, time gone and left, and of each case how many count, the last result and the median."""
    text = displayed(*(of_shape(observation("erofs", "tuned", block)) for block in range(3)))
    assert "3 of 24 trials" in text
    assert "gone, about 50 s left" in text
    assert "· workloads: stat-walk cold ·" in text
    row = next(line for line in text.splitlines() if line.startswith("erofs:tuned"))
    assert "3/6" in row
    assert row.count(" s") == 2


def test_what_does_not_count_stays_above_the_display() -> None:
    """A failed trial is printed with its reason, once, and its case says so."""
    failure = Failure(kind="NotReady", message="not ready within 5 s", phase="start")
    failed = observation("soci", "tuned", 0).model_copy(
        update={"status": "failed", "time_to_ready_s": None, "failure": failure, "output_tail": OUTPUT}
    )
    text = displayed(of_shape(failed))
    assert "failed in start: NotReady: not ready within 5 s" in text
    row = next(line for line in text.splitlines() if line.startswith("soci:tuned"))
    assert "0/6" in row
    assert "failed" in row


def test_a_low_terminal_shows_the_cases_that_ran_last() -> None:
    """The display never grows beyond the terminal: older cases leave the table."""
    seen = [of_shape(observation(mode, preset, 0)) for mode, preset in (name.split(":") for name in MODES)]
    assert displayed(*seen, height=40).count("1/6") == 4
    low = displayed(*seen, height=8)
    assert low.count("1/6") == 3
    assert "overlay2:sequential   " not in low
