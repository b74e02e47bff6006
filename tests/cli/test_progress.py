"""What a run prints while it goes on, where nobody watches a terminal."""

from __future__ import annotations

import io

from harness.cli.progress import PlainProgress
from harness.model.observation import Failure
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
