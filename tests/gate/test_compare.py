"""``compare``: sides and their selection, differences of the environment, refusals, corrected verdicts."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import jsonschema  # type: ignore[import-untyped]
import pytest
from typer.testing import CliRunner

from harness.cli.main import app, load_commands
from harness.errors import NothingToCompare, UsageError
from harness.gate.comparing import compare_sides
from harness.gate.schemas import schema
from harness.gate.sides import pairs, parse
from harness.gate.wording import markdown
from harness.model.observation import SCHEMA_VERSION
from tests.gate import sessions

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.files


def stored(
    path: Path, name: str, *, seed: int = 1, blocks: int = 12, host: dict[str, Any] | None = None, **more: Any
) -> str:
    """A session on disk; its directory as the command line takes it."""
    head = sessions.header(session=name, blocks=blocks)
    head = head.model_copy(update={"host": {**sessions.HOST, **(host or {})}})
    return str(sessions.write(path / name, head, sessions.trials(head.plan, seed, **more)))


def test_modes_of_one_session_are_paired(tmp_path: Path) -> None:
    """Two modes of one session are compared block by block, and a threefold start is a proven improvement."""
    one = stored(tmp_path, "a")
    compared = compare_sides(parse(f"{one}#mode=erofs"), parse(f"{one}#mode=overlay2:tuned"), margin=0.05)
    assert compared.side_by_side
    line = next(line for line in compared.lines if line.metric == "time-to-ready")
    assert line.ratio.ratio == pytest.approx(1 / 3, rel=0.2)
    assert line.verdict == "improvement"
    assert line.proven
    assert line.case == "app cpu=0.25,memory=1G"


def test_two_sessions_are_not_paired_and_it_says_so(tmp_path: Path) -> None:
    """Blocks of two sessions have nothing in common: no pairing, and the text says what no interval covers."""
    one, other = stored(tmp_path, "a"), stored(tmp_path, "b", seed=2)
    compared = compare_sides(parse(other), parse(one), margin=0.05)
    assert not compared.side_by_side
    assert "did not run in the same blocks" in markdown(compared)
    assert {line.case for line in compared.lines} == {
        "app overlay2:tuned cpu=0.25,memory=1G", "app erofs:tuned cpu=0.25,memory=1G",
    }  # fmt: skip


def test_kernel_is_listed_first_and_processor_refuses(tmp_path: Path) -> None:
    """Another kernel is a line before the table; another processor refuses, and --anyway says so in every output."""
    one = stored(tmp_path, "a")
    kernel = stored(tmp_path, "b", host={"kernel": "6.8.0"})
    text = markdown(compare_sides(parse(kernel), parse(one), margin=0.05))
    assert text.index("kernel: 6.1.0 against 6.8.0") < text.index("| case |")
    other = stored(tmp_path, "c", host={"cpu_model": "Other CPU"})
    with pytest.raises(UsageError, match="cpu model: Example CPU against Other CPU"):
        compare_sides(parse(other), parse(one), margin=0.05)
    overruled = compare_sides(parse(other), parse(one), margin=0.05, anyway=True)
    assert overruled.anyway
    assert "Compared anyway, although these are not comparable" in markdown(overruled)


def test_a_case_on_one_side_only_is_named(tmp_path: Path) -> None:
    """What has no partner is listed, not dropped."""
    one = stored(tmp_path, "a")
    found, alone = pairs(parse(one), parse(f"{stored(tmp_path, 'b')}"))
    assert len(found) == 2
    assert not alone
    head = sessions.header(session="c")
    only = [o for o in sessions.trials(head.plan) if o.case.mode == "erofs"]
    sessions.write(tmp_path / "c", head, only)
    compared = compare_sides(parse(str(tmp_path / "c")), parse(one), margin=0.05)
    assert compared.alone == ("app overlay2:tuned cpu=0.25,memory=1G: only in the baseline",)


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        ("mode=soci", "no trial has mode=soci; there are overlay2:tuned, erofs:tuned"),
        ("mod=soci", "'mod=soci' is no selection; did you mean 'mode'"),
        ("mode", "'mode' is no selection"),
    ],
)
def test_a_selection_that_names_nothing_says_what_there_is(tmp_path: Path, selection: str, message: str) -> None:
    """A wrong selection names the nearest coordinate, or the values that are there."""
    one = stored(tmp_path, "a")
    with pytest.raises(UsageError) as caught:
        parse(f"{one}#{selection}")
    assert message in str(caught.value)


def test_one_block_decides_nothing(tmp_path: Path) -> None:
    """A single block has ratios without an interval and no verdict but inconclusive."""
    one, other = stored(tmp_path, "a", blocks=1), stored(tmp_path, "b", blocks=1)
    compared = compare_sides(parse(other), parse(one), margin=0.05)
    assert {line.verdict for line in compared.lines} == {"inconclusive"}
    assert "no interval" in markdown(compared)


def test_all_trials_invalid_is_nothing_to_compare(tmp_path: Path) -> None:
    """Where no trial is valid the error says why the first one is not."""
    from harness.model.observation import Invalidity

    head = sessions.header(session="bad")
    bad = [
        o.model_copy(update={"invalid": (Invalidity(rule="host-stolen", reason="9 % was stolen"),)})
        for o in sessions.trials(head.plan)
    ]
    sessions.write(tmp_path / "bad", head, bad)
    with pytest.raises(NothingToCompare, match=r"9 % was stolen"):
        compare_sides(parse(str(tmp_path / "bad")), parse(stored(tmp_path, "a")), margin=0.05)


def test_an_a_a_table_is_not_marked(tmp_path: Path) -> None:
    """Same against same, many ratios: none of forty simulated tables marks more than the level allows."""
    marked = 0
    for seed in range(40):
        head = sessions.header(("app", "app.baseline"), session=f"s{seed}")
        path = sessions.write(tmp_path / str(seed), head, sessions.trials(head.plan, seed, kind="spiky"))
        compared = compare_sides(parse(f"{path}#scenario=app"), parse(f"{path}#scenario=app.baseline"), margin=0.02)
        marked += any(line.proven for line in compared.lines)
    assert marked <= 7  # the 99.9 % bound of forty tables at 5 % each


def test_json_and_text_from_the_command_line(tmp_path: Path) -> None:
    """The command prints Markdown, or the same as JSON; the exit code is 0 whatever the verdict."""
    load_commands()
    one, other = stored(tmp_path, "a"), stored(tmp_path, "b", slower={"app": 1.5})
    said = CliRunner().invoke(app, ["compare", one, other, "--json"])
    assert said.exit_code == 0, said.output
    data = json.loads(said.stdout)
    jsonschema.validate(data, schema("compare"))
    assert data["side_by_side"] is False
    assert {line["metric"] for line in data["lines"]} >= {"time-to-ready", "cpu-to-ready", "runtime-overhead"}
    assert CliRunner().invoke(app, ["compare", one, other]).stdout.startswith(f"# {other} against {one}")


def test_entries_of_one_preset_are_told_apart_by_their_labels(tmp_path: Path) -> None:
    """What differs by its options alone is selected by label, and never taken for the entry without one."""
    head = sessions.header()
    seen = sessions.trials(head.plan)
    other = [
        o.model_copy(update={"case": o.case.model_copy(update={"label": "zlib"}), "trial": o.trial + len(seen)})
        for o in seen
        if o.case.mode == "overlay2"
    ]
    both = str(sessions.write(tmp_path / "a", head, [*seen, *other]))
    compared = compare_sides(
        parse(f"{both}#mode=overlay2:tuned+zlib"), parse(f"{both}#mode=overlay2:tuned"), margin=0.05
    )
    assert {line.ratio.ratio for line in compared.lines} == {1.0}
    plain = stored(tmp_path, "b")
    alone = compare_sides(parse(both), parse(plain), margin=0.05).alone
    assert alone == ("app overlay2:tuned+zlib cpu=0.25,memory=1G: only in the candidate",)
    with pytest.raises(UsageError, match=r"no trial has mode=overlay2:tuned\+lz4; there are .*overlay2:tuned\+zlib"):
        parse(f"{both}#mode=overlay2:tuned+lz4")


def test_ambiguous_sides_are_refused(tmp_path: Path) -> None:
    """A side that leaves open which of its modes is meant asks for a selection."""
    one = stored(tmp_path, "a")
    with pytest.raises(UsageError, match="select one of them"):
        compare_sides(parse(one), parse(f"{one}#mode=erofs"), margin=0.05)


@pytest.mark.parametrize("anyway", [False, True])
def test_limits_of_a_container_are_compared_with_no_machines(tmp_path: Path, anyway: bool) -> None:
    """A Docker that runs already is outside of the limits; nothing overrules that, and two such sessions compare."""
    one = stored(tmp_path, "a")

    def outside(name: str) -> str:
        head = sessions.header(session=name).model_copy(update={"host": sessions.HOST})
        seen = sessions.trials(head.plan)
        moved = [o.model_copy(update={"case": o.case.model_copy(update={"limits": "container"})}) for o in seen]
        return str(sessions.write(tmp_path / name, head, moved))

    other = outside("b")
    with pytest.raises(UsageError, match="the shape's limits held for the container only"):
        compare_sides(parse(other), parse(one), margin=0.05, anyway=anyway)
    assert compare_sides(parse(outside("c")), parse(other), margin=0.05, anyway=anyway).lines


@pytest.mark.logs("the last line is cut off")
def test_a_cut_last_line_is_said(tmp_path: Path) -> None:
    """A session whose last line was cut is compared without it, and the output says so."""
    from harness.session.store import OBSERVATIONS

    one, other = stored(tmp_path, "a"), stored(tmp_path, "b", seed=2)
    with open(f"{other}/{OBSERVATIONS}", "rb+") as file:
        file.seek(-30, 2)
        file.truncate()
    compared = compare_sides(parse(other), parse(one), margin=0.05)
    assert f"left out: {other}: the last line of its observations, which was cut" in markdown(compared)


def test_a_session_of_a_newer_program_is_refused(tmp_path: Path) -> None:
    """A stored form that this program does not know is refused with the way out."""
    one = stored(tmp_path, "a")
    path = tmp_path / "a" / "session.json"
    path.write_text(path.read_text().replace(f'"schema_version": {SCHEMA_VERSION}', '"schema_version": 99', 1))
    with pytest.raises(UsageError, match="upgrade it"):
        parse(one)
