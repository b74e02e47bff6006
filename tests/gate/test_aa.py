"""A/A analysis and planning: error rates of simulated hosts, steady counters, what an injected slowdown gives."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from harness.cli.main import app, load_commands
from harness.errors import NothingToCompare, UsageError
from harness.gate import aa_store
from harness.gate.aa_running import analyse, header_of, injected_share
from harness.gate.aa_wording import markdown
from harness.gate.environment import host_class
from harness.gate.sides import Side, parse
from harness.model.plan import Selection
from harness.oci.cache import Cache
from tests.gate import sessions

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.files


def aa_side(tmp_path: Path, *, seed: int = 1, blocks: int = 20, kind: str = "steady", slower: float = 1.0) -> Side:
    head = sessions.header(("app", "app.again"), session=f"aa{seed}", blocks=blocks)
    made = sessions.trials(head.plan, seed, kind=kind, slower={"app": slower})
    return parse(str(sessions.write(tmp_path / f"aa{seed}", head, made)))


def test_equal_sides_rarely_alarm(tmp_path: Path) -> None:
    """Of gates drawn from an A/A session hardly any says something wrong, and none is confirmed wrongly."""
    record = analyse(aa_side(tmp_path), gate_blocks=12, draws=200).record
    assert record.wrong.rate <= 0.05
    assert record.wrong_confirmed.hits == 0
    assert record.wrong.low <= record.wrong.rate <= record.wrong.high
    assert record.caught is not None
    assert record.caught.rate > 0.2
    assert record.margin_to_use > 0


def test_injected_slowdown_is_caught_and_recognised(tmp_path: Path) -> None:
    """A side that is half as slow again is caught in nearly all draws, sides as they were."""
    side = aa_side(tmp_path, slower=1.5)
    record = analyse(side, gate_blocks=12, inject=0.5, draws=200).record
    assert record.caught is not None
    assert record.caught.rate > 0.95
    assert "one side slowed by 50 %" in markdown(analyse(side, gate_blocks=12, inject=0.5, draws=10))


def test_counters_that_never_differ_are_steady(tmp_path: Path) -> None:
    """Bytes that are equal in every block are steady; a counter that differs has its largest difference."""
    side = aa_side(tmp_path, blocks=8)
    moved = tuple(
        o.model_copy(update={"disk_written_bytes": 1_000_000 + 10_000 * (o.trial % 3)}) for o in side.observations
    )
    record = analyse(Side("x", side.header, moved), gate_blocks=8, draws=10).record
    assert "received-before-ready" in record.steady
    assert "disk-written" not in record.steady
    assert 0 < record.scatter["disk-written"] < 0.03


def test_injection_needs_a_cpu_limit(tmp_path: Path) -> None:
    """A shape without a CPU limit cannot be slowed by one; with one the share is kept in the plan."""
    loaded = sessions.scenario()
    file = tmp_path / "app.toml"
    head = header_of(loaded, file, Selection(), 1, inject=0.1, registry="", workloads=False)
    assert injected_share(head) == pytest.approx(0.1)
    unlimited = loaded.model_copy(update={"shapes": (loaded.shapes[0].model_copy(update={"baseline_cores": None}),)})
    with pytest.raises(UsageError, match="has none; choose another with --shape"):
        header_of(unlimited, file, Selection(), 1, inject=0.1, registry="", workloads=False)


def test_other_sessions_are_no_a_a_runs(tmp_path: Path) -> None:
    """An ordinary session is refused with the command that makes an A/A one."""
    head = sessions.header()
    side = parse(str(sessions.write(tmp_path / "s", head, sessions.trials(head.plan))))
    with pytest.raises(UsageError, match="coldbench aa app"):
        analyse(side, gate_blocks=6)


def test_no_valid_trial_is_nothing_to_compare(tmp_path: Path) -> None:
    """An A/A session whose trials all failed has nothing to say, and says that."""
    head = sessions.header(("app", "app.again"), session="none")
    side = parse(str(sessions.write(tmp_path / "none", head, [])))
    with pytest.raises(NothingToCompare):
        analyse(side, gate_blocks=6)


def test_records_are_kept_by_host_class(tmp_path: Path) -> None:
    """The newest record of a scenario is found on hosts of its class and on no other."""
    cache = Cache(tmp_path / "cache")
    record = analyse(aa_side(tmp_path, blocks=8), gate_blocks=8, draws=10).record
    later = record.model_copy(update={"created_at": "2026-02-01T00:00:00+00:00", "session": "later"})
    aa_store.keep(cache, record)
    aa_store.keep(cache, later)
    found = aa_store.latest(cache, host_class(sessions.HOST), "app")
    assert found is not None
    assert found.session == "later"
    assert aa_store.latest(cache, host_class({**sessions.HOST, "cores": 8}), "app") is None
    assert aa_store.between_days([record, later]) == 1.0
    (aa_store.directory(cache, record.host_class) / "torn.json").write_text('{"schema')
    assert len(aa_store.records(cache, record.host_class, "app")) == 2


def test_plan_says_blocks_and_minutes(tmp_path: Path) -> None:
    """From any session's spread the command says how many blocks a change needs; a tiny one has no number."""
    load_commands()
    head = sessions.header()
    path = sessions.write(tmp_path / "s", head, sessions.trials(head.plan))
    said = CliRunner().invoke(app, ["plan", str(path), "--detect", "15%"])
    assert said.exit_code == 0, said.output
    assert "To find a change of 15 % 95 times of 100" in said.stdout
    assert "blocks, about" in said.stdout
    tiny = CliRunner().invoke(app, ["plan", str(path), "--detect", "0.1%"])
    assert "no number of blocks is enough" in tiny.stdout
    assert CliRunner().invoke(app, ["plan", str(path), "--detect", "5 percent"]).exit_code != 0


def test_a_slowed_machine_with_credits_is_slower_throughout() -> None:
    """CPU limit, burst and credits shrink alike, so that any amount of work takes longer by the share: a machine that
    went on earning as before would burst, and be the faster one."""
    from harness.gate.aa_running import slowed
    from harness.model.shape import parse_shape

    case = sessions.header().plan.cases[0]
    for name in ("gcp-e2-micro:drained", "aws-t3.micro:fresh"):
        shape = parse_shape(name)
        slow = slowed(case.model_copy(update={"shape": shape}), 0.15).shape
        assert shape.credits is not None
        assert slow.credits is not None
        assert slow.baseline_cores is not None
        assert slow.credits.earned_core_s_per_h / 3600 <= slow.baseline_cores + 1e-9
        assert shape.baseline_cores is not None
        factor = slow.baseline_cores / shape.baseline_cores
        assert factor == pytest.approx(1 / 1.15)
        assert slow.ceiling_cores == pytest.approx((shape.ceiling_cores or 0.0) * factor)
        assert slow.credits.at_boot_core_s == pytest.approx(shape.credits.at_boot_core_s * factor)
