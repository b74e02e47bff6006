"""Shards of one plan, and their merge: whole blocks, hosts apart, nothing twice, the same again."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from harness.cli.main import app, load_commands
from harness.errors import UsageError
from harness.gate.comparing import compare_sides
from harness.gate.sides import parse as parse_side
from harness.gate.wording import markdown
from harness.session import hosts
from harness.session.merge import merge
from harness.session.shards import Shard, check, parse
from harness.session.store import OBSERVATIONS, load
from tests.gate import sessions

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.files


def shard(path: Path, index: int, count: int, *, host: str = "", seed: int = 1, **facts: Any) -> Path:
    """One shard of the same session as a run on its own host leaves it."""
    head = sessions.header(blocks=12)
    part = Shard(index, count)
    name = host or f"host-{index}"
    made = [o for o, t in zip(sessions.trials(head.plan, seed), head.plan.trials, strict=True) if part.takes(t)]
    head = head.model_copy(
        update={"shard": str(part), "session": f"s{index}", "host": {**sessions.HOST, "name": name, **facts}}
    )
    return sessions.write(path / f"s{index}", head, made)


def fingerprint(directory: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(directory.iterdir()) if p.is_file()}


def test_shards_are_whole_blocks_of_one_plan() -> None:
    """Every trial is in exactly one shard, and all trials of a block are in the same one."""
    plan = sessions.header(blocks=12).plan
    owners = {trial.trial: [i for i in range(1, 6) if Shard(i, 5).takes(trial)] for trial in plan.trials}
    assert all(len(found) == 1 for found in owners.values())
    assert all(len({owners[t.trial][0] for t in plan.trials if t.block == block}) == 1 for block in range(12))


@pytest.mark.parametrize("text", ["0/3", "4/3", "2", "a/b", "1/0"])
def test_a_shard_that_is_none_is_refused(text: str) -> None:
    """The message says what a shard looks like."""
    with pytest.raises(UsageError, match="as 2/5"):
        parse(text)


def test_more_shards_than_blocks_is_refused() -> None:
    """A shard without a block would be an empty session."""
    with pytest.raises(UsageError, match="use fewer shards"):
        check(Shard(13, 13), sessions.header(blocks=12).plan)


def test_a_shard_needs_a_seed() -> None:
    """Without the same seed everywhere shards would be of different plans."""
    load_commands()
    with pytest.raises(UsageError, match="needs --seed"):
        CliRunner().invoke(app, ["run", "quickstart", "--shard", "1/2"], catch_exceptions=False)


def test_merged_shards_hold_what_one_session_holds(tmp_path: Path) -> None:
    """Three shards give all trials, each with its host; the comparison has hosts on top and says its model."""
    merged = merge([shard(tmp_path, i, 3) for i in (1, 2, 3)], tmp_path / "m")
    assert merged.hosts == ("host-1", "host-2", "host-3")
    assert not merged.missing_blocks
    _, seen = load(tmp_path / "m")
    assert [o.trial for o in seen] == list(range(24))
    assert {o.host for o in seen} == set(merged.hosts)
    one = str(tmp_path / "m")
    compared = compare_sides(parse_side(f"{one}#mode=erofs"), parse_side(f"{one}#mode=overlay2"), margin=0.05)
    line = next(line for line in compared.lines if line.metric == "time-to-ready")
    assert line.hosts is not None
    assert line.hosts.model == "random effects over hosts"
    assert {host for host, _ in line.per_host} == set(merged.hosts)
    assert "Model: random effects over hosts; hosts agree" in markdown(compared)


def test_two_hosts_fall_back_in_words(tmp_path: Path) -> None:
    """With two hosts the interval comes from blocks, and the text says that it speaks of these hosts only."""
    merge([shard(tmp_path, i, 2) for i in (1, 2)], tmp_path / "m")
    one = str(tmp_path / "m")
    compared = compare_sides(parse_side(f"{one}#mode=erofs"), parse_side(f"{one}#mode=overlay2"), margin=0.05)
    assert "Model: these hosts only" in markdown(compared)


def test_merging_again_changes_nothing(tmp_path: Path) -> None:
    """The same shards in another order, and the merged session with one of them, give the same bytes."""
    parts = [shard(tmp_path, i, 3) for i in (1, 2, 3)]
    merge(parts, tmp_path / "m")
    before = fingerprint(tmp_path / "m")
    merge(parts[::-1], tmp_path / "m")
    assert fingerprint(tmp_path / "m")[OBSERVATIONS] == before[OBSERVATIONS]
    merge([tmp_path / "m", parts[1]], tmp_path / "m")
    assert fingerprint(tmp_path / "m")[OBSERVATIONS] == before[OBSERVATIONS]
    assert hosts.load(tmp_path / "m").keys() == {"host-1", "host-2", "host-3"}


def test_a_missing_shard_is_said(tmp_path: Path) -> None:
    """Blocks of a shard that was not given are named, with the command that runs them."""
    load_commands()
    parts = [str(shard(tmp_path, i, 3)) for i in (1, 3)]
    said = CliRunner().invoke(app, ["merge", *parts, "--out", str(tmp_path / "m")])
    assert said.exit_code == 0
    assert "missing or incomplete: blocks 1, 4, 7, 10" in said.output


def test_other_plans_are_refused(tmp_path: Path) -> None:
    """A shard of another seed is refused, and both seeds are named."""
    one = shard(tmp_path, 1, 2)
    head = sessions.header(blocks=12)
    other_plan = head.plan.model_copy(update={"seed": 7})
    other = sessions.write(tmp_path / "x", head.model_copy(update={"plan": other_plan}), [])
    with pytest.raises(UsageError, match="seed 7 against 1"):
        merge([one, other], tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_a_block_on_two_hosts_is_refused(tmp_path: Path) -> None:
    """The same shard run on two hosts: nobody can say which counts."""
    one, other = shard(tmp_path / "a", 1, 2), shard(tmp_path / "b", 1, 2, host="elsewhere")
    with pytest.raises(UsageError, match="a block counts once"):
        merge([one, other], tmp_path / "m")


@pytest.mark.logs("the last line is cut off")
def test_a_torn_last_line_is_left_out_and_said(tmp_path: Path) -> None:
    """A crash in mid-line loses that trial only, and the command names the session."""
    load_commands()
    parts = [shard(tmp_path, i, 2) for i in (1, 2)]
    with open(parts[1] / OBSERVATIONS, "rb+") as file:
        file.truncate((parts[1] / OBSERVATIONS).stat().st_size - 40)
    said = CliRunner().invoke(app, ["merge", *map(str, parts), "--out", str(tmp_path / "m")])
    assert said.exit_code == 0
    assert "its last line was cut; that trial is left out" in said.output
    assert "23 of 24 trials" in said.output


def test_a_clock_that_is_off_changes_no_pair(tmp_path: Path) -> None:
    """A host whose clock is an hour ahead gives the same comparison: blocks are paired by number, not by time."""

    def ratio(directory: Path) -> float:
        one = str(directory)
        compared = compare_sides(parse_side(f"{one}#mode=erofs"), parse_side(f"{one}#mode=overlay2"), margin=0.05)
        return compared.lines[0].ratio.ratio

    merge([shard(tmp_path, i, 2) for i in (1, 2)], tmp_path / "m")
    right = ratio(tmp_path / "m")
    off = tmp_path / "off"
    parts = [shard(off, i, 2) for i in (1, 2)]
    text = (parts[1] / OBSERVATIONS).read_text().replace("2026-01-01T00:", "2026-01-01T01:")
    (parts[1] / OBSERVATIONS).write_text(text)
    merge(parts, off / "m")
    assert ratio(off / "m") == right


def test_other_images_are_refused(tmp_path: Path) -> None:
    """Shards that built different images cannot be merged; the message says how to give all the same."""
    parts = [shard(tmp_path, i, 2) for i in (1, 2)]
    text = (parts[1] / OBSERVATIONS).read_text().replace("a" * 64, "c" * 64)
    (parts[1] / OBSERVATIONS).write_text(text)
    with pytest.raises(UsageError, match="push the image once"):
        merge(parts, tmp_path / "m")


def test_another_kernel_is_listed_among_the_hosts(tmp_path: Path) -> None:
    """Facts of every host are kept, so that one of another kernel is seen."""
    merge([shard(tmp_path, 1, 2), shard(tmp_path, 2, 2, kernel="5.15.0")], tmp_path / "m")
    known = hosts.load(tmp_path / "m")
    assert {facts["kernel"] for facts in known.values()} == {"6.1.0", "5.15.0"}
    one = str(tmp_path / "m")
    compared = compare_sides(parse_side(f"{one}#mode=erofs"), parse_side(f"{one}#mode=overlay2"), margin=0.05)
    assert "host-2: Example CPU, 2 cores, 4 GiB, kernel 5.15.0" in markdown(compared)
