"""The stored form of a session: what a crash, an older and a newer program leave behind."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from harness import __version__
from harness.errors import DiskFull, UsageError
from harness.model.observation import SCHEMA_VERSION, Observation
from harness.model.plan import make_plan
from harness.model.scenario import Scenario
from harness.model.session import Preparation, SessionHeader
from harness.session import store
from harness.session.campaign import header_of_block
from harness.session.migrations import MIGRATIONS
from harness.session.store import Store, load, load_preparations
from tests.gate import sessions

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.files


def header() -> SessionHeader:
    scenario = Scenario.model_validate(
        {
            "name": "web",
            "image": {"ref": "docker://registry.example/web:1"},
            "workload": {"readiness": {"kind": "stdout", "pattern": "^up$"}},
            "modes": ["overlay2", {"mode": "soci", "prefetch": ["/a", "/b"]}],
        }
    )
    return SessionHeader(
        coldbench_version=__version__,
        session="s",
        created_at="2026-01-01T00:00:00+00:00",
        plan=make_plan([scenario], seed=1),
        scenarios={"web": scenario},
    )


def observation(trial: int, **changes: Any) -> Observation:
    planned = header().plan
    fields: dict[str, Any] = {
        "coldbench_version": __version__, "session": "s", "trial": trial, "block": 0, "case": planned.cases[0].case,
        "started_at": "2026-01-01T00:00:00+00:00", "status": "ok", "time_to_ready_s": 1.5,
    }  # fmt: skip
    return Observation.model_validate(fields | changes)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    """Header, observations and preparations come back as they were written."""
    made = Preparation(scenario="web", form="soci", digest="sha256:1", cached=False, wall_s=1.0)
    with Store.create(tmp_path / "s", header()) as writer:
        writer.append(observation(0))
        writer.append(observation(1))
        writer.append_preparation(made)
    assert load(tmp_path / "s") == (header(), [observation(0), observation(1)])
    assert load_preparations(tmp_path / "s") == [made]


@pytest.mark.parametrize("torn", [b'{"schema_version":1,"tri', b'{"schema_version":1\n', b"\0\0\0\0"])
@pytest.mark.logs("the last line is cut off")
def test_torn_last_line(tmp_path: Path, torn: bytes) -> None:
    """A crash in mid-write loses its own line only: readers pass over it, resuming moves it aside and goes on."""
    directory = tmp_path / "s"
    with Store.create(directory, header()) as writer:
        writer.append(observation(0))
    with open(directory / store.OBSERVATIONS, "ab") as file:
        file.write(torn)
    assert load(directory)[1] == [observation(0)]
    with Store.resume(directory) as writer:
        assert writer.finished == {0}
        writer.append(observation(1))
    assert load(directory)[1] == [observation(0), observation(1)]
    assert (directory / "observations.jsonl.torn").read_bytes() == torn + b"\n"


def test_broken_line_in_the_middle_is_an_error(tmp_path: Path) -> None:
    """Only the last line can be torn by a crash; damage elsewhere is reported with file and line."""
    with Store.create(tmp_path / "s", header()) as writer:
        writer.append(observation(0))
    path = tmp_path / "s" / store.OBSERVATIONS
    path.write_bytes(b"{\n" + path.read_bytes())
    with pytest.raises(UsageError, match=r"observations\.jsonl:1: not JSON"):
        load(tmp_path / "s")


def test_newer_schema_is_named(tmp_path: Path) -> None:
    """A session of a later schema says which version wrote it and what to do."""
    with Store.create(tmp_path / "s", header()):
        pass
    path = tmp_path / "s" / store.HEADER
    data = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps(data | {"schema_version": SCHEMA_VERSION + 1, "coldbench_version": "9.0"}), "utf-8")
    with pytest.raises(UsageError, match=f"schema {SCHEMA_VERSION + 1} by coldbench 9.0; .* upgrade it"):
        load(tmp_path / "s")


def test_details_of_other_versions_are_kept() -> None:
    """Details are stored under the names they came with, those that this version does not know among them."""
    told = {
        "entries": 3,
        "lazy_layers": [0, 1],
        "versions": {"runc": "1.1"},
        "storm": {"machines": 2, "rack": 7},
        "x": 1,
    }
    assert json.loads(observation(0, details=told).model_dump_json())["details"] == told


def test_preparations_keep_what_they_were_told() -> None:
    """A preparation stores the facts that it has and those of other versions, and no empty places for the others."""
    told = {"application_core_s": 0.25, "measured_s": [0.2, 0.3], "weather": "fine"}
    entry = {"scenario": "s", "form": "application", "digest": "d", "cached": False, "details": told}
    assert json.loads(Preparation.model_validate(entry).model_dump_json())["details"] == told


def test_unknown_keys_of_the_same_schema_are_passed_over(tmp_path: Path) -> None:
    """A later program may add keys without a new schema; the rest is read."""
    with Store.create(tmp_path / "s", header()):
        pass
    data = observation(0).model_dump(mode="json")
    data["later"] = 1
    data["wire"]["colour"] = "red"
    (tmp_path / "s" / store.OBSERVATIONS).write_text(json.dumps(data) + "\n", "utf-8")
    assert load(tmp_path / "s")[1] == [observation(0)]


def test_older_schema_is_migrated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Migrations run in order from the version that wrote the file."""

    def migrate(data: dict[str, Any]) -> dict[str, Any]:
        data["time_to_ready_s"] = data.pop("ready_ms") / 1000
        return data

    with Store.create(tmp_path / "s", header()):
        pass
    monkeypatch.setitem(MIGRATIONS, SCHEMA_VERSION - 1, migrate)
    data = observation(0).model_dump(mode="json") | {"schema_version": SCHEMA_VERSION - 1, "ready_ms": 1500}
    del data["time_to_ready_s"]
    (tmp_path / "s" / store.OBSERVATIONS).write_text(json.dumps(data) + "\n", "utf-8")
    assert load(tmp_path / "s")[1] == [observation(0)]


def test_version_1_is_read_as_today(tmp_path: Path) -> None:
    """Labels stood in the preset, and ``sequential`` was called otherwise: header, plan, keys and observations."""
    modes = ["overlay2", {"mode": "overlay2", "label": "zlib", "options": {"decoder": "zlib"}}]
    scenario = Scenario.model_validate(header().scenarios["web"].model_dump() | {"modes": modes})
    plan = make_plan([scenario], seed=1)
    today = header().model_copy(update={"plan": plan, "scenarios": {"web": scenario}})
    case = plan.cases[1].case
    seen = observation(0).model_copy(update={"case": case})
    with Store.create(tmp_path / "s", today) as writer:
        writer.append(seen)
    for name in (store.HEADER, store.OBSERVATIONS):
        path = tmp_path / "s" / name
        data = json.loads(path.read_text("utf-8"))
        data["schema_version"] = 1
        for stored in [data["case"]] if "case" in data else [c["case"] for c in data["plan"]["cases"]]:
            stored["preset"] = "docker-like" + ("+" + stored["label"] if stored["label"] else "")
            del stored["label"]
        text = json.dumps(data).replace("overlay2:sequential", "overlay2:docker-like")
        path.write_text(text.replace('"preset": "sequential"', '"preset": "docker-like"') + "\n", "utf-8")
        assert "docker-like" in text
        assert "sequential" not in path.read_text("utf-8")
    read, observations = load(tmp_path / "s")
    assert read == today
    assert observations == [seen]
    assert observations[0].case.variant == "sequential+zlib"


def failed(trial: int) -> Observation:
    return observation(trial, status="failed", time_to_ready_s=None, failure={"kind": "NotReady", "message": "late"})


def test_a_failed_trial_that_ran_again_counts_once(tmp_path: Path) -> None:
    """The later record of the same trial wins."""
    with Store.create(tmp_path / "s", header()) as writer:
        writer.append(failed(0))
        writer.append(observation(0, time_to_ready_s=2.5))
    assert [o.time_to_ready_s for o in load(tmp_path / "s")[1]] == [2.5]


def altered(**changes: Any) -> dict[str, Any]:
    """A stored observation with fields that were changed in the file; ``a__b`` is ``b`` of ``a``."""
    data = observation(0).model_dump(mode="json")
    for name, value in changes.items():
        *parents, key = name.split("__")
        place = data
        for parent in parents:
            place = place[parent]
        place[key] = value
    return data


PHASE = {"phase": "pull", "wall_s": 1, "cpu_user_s": 1, "cpu_system_s": 0, "throttled_s": 0, "nr_periods": 0,
         "nr_throttled": 0}  # fmt: skip


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (altered(time_to_ready_s=0), ":1: time_to_ready_s: expected more than 0 seconds, got 0"),
        (altered(time_to_ready_s=-1.5), ":1: time_to_ready_s: expected more than 0 seconds, got -1.5"),
        (altered(time_to_ready_s=float("nan")), ":1: not JSON \\(NaN is no number\\)"),
        (altered(time_to_ready_s=float("inf")), "Infinity is no number"),
        (altered(time_to_ready_s=None), "expected a time, since the status is ok"),
        (altered(status="failed", time_to_ready_s=None), "failure: expected one, since the status is failed"),
        (altered(failure={"kind": "NotReady", "message": "x"}), "status: expected failed, since there is a failure"),
        (altered(phases=[PHASE | {"cpu_system_s": -2}]), r"phases\[0\] \(pull\): expected at least 0 CPU seconds"),
        (altered(timeline=[{"name": "fetch", "start_s": 2, "end_s": 1}]), r"timeline\[0\] \(fetch\): ends 1 s before"),
        (altered(wire__received_bytes=-5), "wire.received_bytes: expected at least 0, got -5"),
        (altered(memory_peak_bytes=-5), "memory_peak_bytes: expected at least 0"),
        (altered(trial=-1), "expected numbers from 0, got -1"),
        (altered(time_to_ready_s="soon"), "time_to_ready_s: Input should be"),
        (altered(schema_version=0), "schema 0, which no coldbench ever wrote"),
        (altered(schema_version=1, case=3), "not of schema 1 as it says"),
        (altered(schema_version=True), "no schema_version|schema True"),
        ([], "no schema_version; this is not a file of coldbench"),
    ],
)  # fmt: skip
def test_what_no_trial_can_have_recorded_is_refused(tmp_path: Path, data: Any, message: str) -> None:
    """A file that was edited, cut or merged by hand is told in one line, with file and line."""
    Store.create(tmp_path / "s", header()).close()
    (tmp_path / "s" / store.OBSERVATIONS).write_text(json.dumps(data) + "\n" + json.dumps(altered(trial=1)) + "\n")
    with pytest.raises(UsageError, match=message) as caught:
        load(tmp_path / "s")
    assert "\n" not in str(caught.value)
    assert f"{store.OBSERVATIONS}:1" in str(caught.value)


def test_a_trial_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    """Two files put together by hand would count a trial twice; both lines are named."""
    Store.create(tmp_path / "s", header()).close()
    lines = [json.dumps(altered()), json.dumps(altered(trial=1)), json.dumps(altered(time_to_ready_s=3))]
    (tmp_path / "s" / store.OBSERVATIONS).write_text("\n".join(lines) + "\n")
    with pytest.raises(UsageError, match=r"observations.jsonl:3: trial 0 is there twice, on line 1 before"):
        load(tmp_path / "s")


def test_a_line_that_was_cut_off_is_dropped_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The trial of a torn line did not count for the run that wrote it either; whoever reads hears of it."""
    Store.create(tmp_path / "s", header()).close()
    (tmp_path / "s" / store.OBSERVATIONS).write_text(json.dumps(altered()) + "\n" + json.dumps(altered(trial=1))[:50])
    assert load(tmp_path / "s")[1] == [observation(0)]
    assert "observations.jsonl:2: the last line is cut off; it is left out" in caplog.text


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    """A second run of the same session is refused while the first lives, and possible afterwards."""
    with Store.create(tmp_path / "s", header()), pytest.raises(UsageError, match="another coldbench"):
        Store.resume(tmp_path / "s")
    Store.resume(tmp_path / "s").close()


def test_wrong_directories(tmp_path: Path) -> None:
    """Creating over a session, resuming or loading nothing: each says what to do instead."""
    with Store.create(tmp_path / "s", header()):
        pass
    with pytest.raises(UsageError, match="--resume"):
        Store.create(tmp_path / "s", header())
    with pytest.raises(UsageError, match="leave --resume out"):
        Store.resume(tmp_path / "nothing")
    with pytest.raises(UsageError, match=r"no session\.json"):
        load(tmp_path)


def test_failed_trials_are_run_again_when_asked(tmp_path: Path) -> None:
    """With ``retry_failed`` a failed trial is not finished; its later record takes the place of the failure."""
    failure = {"kind": "NotReady", "message": "no", "phase": "start"}
    with Store.create(tmp_path / "s", header()) as writer:
        writer.append(observation(0))
        writer.append(observation(1, status="failed", failure=failure, time_to_ready_s=None))
    with Store.resume(tmp_path / "s") as writer:
        assert writer.finished == {0, 1}
    with Store.resume(tmp_path / "s", retry_failed=True) as writer:
        assert writer.finished == {0}
        writer.append(observation(1))
    assert load(tmp_path / "s")[1] == [observation(0), observation(1)]


@pytest.mark.root
@pytest.mark.logs("the last line is cut off")
def test_a_full_disk_is_one_line_and_the_session_goes_on(tmp_path: Path) -> None:
    """The results directory runs full in mid-line: the error says how to go on, and a resume drops only that line."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k", "none", str(disk)], check=True)
    try:
        head = sessions.header(blocks=12)
        made = [o.model_copy(update={"output_tail": "x" * 20_000}) for o in sessions.trials(head.plan)]
        with Store.create(disk / "s", head) as store:

            def append_all() -> None:
                for observation in made:
                    store.append(observation)

            with pytest.raises(DiskFull, match="go on with: coldbench run --resume"):
                append_all()
        kept = len(load(disk / "s")[1])
        assert 0 < kept < len(made)
        subprocess.run(["mount", "-o", "remount,size=4m", str(disk)], check=True)
        with Store.resume(disk / "s") as store:
            for observation in made[kept:]:
                store.append(observation)
        assert len(load(disk / "s")[1]) == len(made)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_block_run_again_elsewhere_counts_once(tmp_path: Path) -> None:
    """A campaign's block that a lost worker began is run again whole on another host: the later records count."""
    head = sessions.header(blocks=2)
    made = [o.model_copy(update={"host": "lost"}) for o in sessions.trials(head.plan)[:1]]
    made += [o.model_copy(update={"host": "other"}) for o in sessions.trials(head.plan)]
    sessions.write(tmp_path / "s", head, made)
    _, seen = load(tmp_path / "s")
    assert [o.trial for o in seen] == [t.trial for t in head.plan.trials]
    assert {o.host for o in seen} == {"other"}


def test_a_task_carries_its_own_block_alone() -> None:
    """What a worker of a campaign gets names the trials that it runs, all cases and scenarios, and nobody else's
    trials.
    """
    whole = header()
    blocks = {trial.block for trial in whole.plan.trials}
    assert len(blocks) > 1
    for block in blocks:
        own = SessionHeader.model_validate_json(header_of_block(whole, block))
        assert {trial.block for trial in own.plan.trials} == {block}
        assert set(own.plan.trials) <= set(whole.plan.trials)
        assert (own.plan.cases, own.scenarios, own.session) == (whole.plan.cases, whole.scenarios, whole.session)
