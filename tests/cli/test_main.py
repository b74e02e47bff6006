"""The command as a whole: its exit codes, and that a bug of ours never reads as a regression."""

from __future__ import annotations

import pytest

from harness.cli import main as module
from harness.errors import HostUnfit, NothingToCompare, ScenarioError


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (ScenarioError("web.toml:3: modes: expected a mode, got :new"), 2, "coldbench: web.toml:3: modes: expected"),
        (HostUnfit("no cgroup"), 4, "coldbench: no cgroup"),
        (NothingToCompare("no trial"), 6, "coldbench: no trial"),
        (KeyboardInterrupt(), 130, "coldbench: interrupted"),
        (KeyError("x"), 5, "coldbench: this is a bug in coldbench"),
    ],
)
def test_exit_codes(
    error: BaseException, code: int, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each kind of error has its code and its line; 1 is a confirmed regression and nothing else."""

    def fails() -> None:
        raise error

    monkeypatch.setattr(module, "app", fails)
    monkeypatch.setattr(module, "load_commands", lambda: None)
    with pytest.raises(SystemExit) as ended:
        module.main()
    assert ended.value.code == code
    assert said in capsys.readouterr().err


def test_a_tag_is_no_picture(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """``:new:`` and ``[red]`` in a message are the user's words."""

    def fails() -> None:
        raise ScenarioError("app:new:x [red]")

    monkeypatch.setattr(module, "app", fails)
    monkeypatch.setattr(module, "load_commands", lambda: None)
    with pytest.raises(SystemExit):
        module.main()
    assert "app:new:x [red]" in capsys.readouterr().err
