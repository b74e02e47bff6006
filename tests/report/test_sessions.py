"""Sessions load as tidy, typed frames with the documented columns, compare as the report does, and export."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import pytest

import harness
from harness.errors import NothingToCompare, UsageError
from harness.report import dictionary, exports, frames
from harness.report.sessions import Sessions
from tests.report.observations import session, write_session

if TYPE_CHECKING:
    from collections.abc import Callable

DOCUMENT = Path(__file__).parents[2] / "docs" / "data.md"


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    write_session(tmp_path / "s")
    return tmp_path / "s"


def test_every_frame_has_the_documented_columns_and_types(stored: Path) -> None:
    """Names, order and types are the dictionary's, also in a frame without a row."""
    loaded = harness.load(stored)
    for name, columns in dictionary.FRAMES.items():
        for frame in (loaded.frame(name), frames.frame(name, [])):
            assert list(frame.columns) == [c.name for c in columns]
            assert [str(t) for t in frame.dtypes] == [c.dtype for c in columns]


def test_only_valid_trials_have_a_time(stored: Path) -> None:
    """A failed and an invalid trial keep their rows, with the reason and without a time."""
    trials = harness.load(stored).trials
    assert len(trials) == 28
    assert (~trials.valid).sum() == 2
    assert trials[~trials.valid].ready_s.isna().all()
    assert trials[trials.valid].ready_s.notna().all()
    assert "not ready after 300 s" in set(trials.why)


def test_frames_hold_what_the_observations_hold(stored: Path) -> None:
    """Spans, phases, workloads and credits have one row each."""
    loaded = harness.load(stored)
    seen = loaded.observations
    assert len(loaded.spans) == sum(len(o.timeline) for o in seen)
    assert len(loaded.phases) == sum(len(o.phases) for o in seen)
    assert len(loaded.credits) == sum(len(o.credits) for o in seen)
    assert len(loaded.workloads) == sum(len(o.workloads) for o in seen if o.valid)
    assert len(loaded.fuse) == sum(len(o.lazy.fuse or {}) for o in seen if o.lazy)


def test_trials_say_what_the_engine_was_told(stored: Path) -> None:
    """Options keep names, values and types, in whatever order they were stored; a trial without any says so."""
    loaded = harness.load(stored)
    told: tuple[dict[str, bool | int | float | str], ...] = (
        {"decoder": "zlib", "restart": False},
        {"restart": False, "decoder": "zlib"},
        {"exact_read_ahead_kib": 64, "share": 0.5},
    )
    seen = [o.model_copy(update={"options": t, "prefetch": "list"}) for o, t in zip(session(1), told, strict=False)]
    made = frames.trials([*seen, loaded.observations[0]])
    assert [json.loads(text) for text in made.options] == [*told, {}]
    assert made.options[0] == made.options[1]
    assert list(made.prefetch) == ["list", "list", "list", "none"]


def test_ratio_is_the_reports(stored: Path) -> None:
    """A ratio asked for by two labels is paired in blocks, and equals the report's."""
    loaded = harness.load(str(stored))
    baseline = loaded.groups[0].baselines[0]
    line = loaded.groups[0].line("soci:tuned")
    assert line is not None
    assert loaded.ratio("soci:tuned", baseline) == line.ratios[baseline]
    with pytest.raises(UsageError, match="no case 'x'"):
        loaded.ratio("x", baseline)


def test_ratio_needs_a_common_block(stored: Path) -> None:
    """Cases that never ran in one block have no ratio."""
    loaded = harness.load(stored)
    kept = tuple(o for o in loaded.observations if (o.case.mode == "soci") == (o.block < 3))
    with pytest.raises(NothingToCompare, match="no block"):
        Sessions(loaded.paths, loaded.headers, kept).ratio("soci:tuned", "erofs:tuned")


def test_a_pattern_takes_all_sessions_and_passes_over_others(stored: Path) -> None:
    """``results/*`` loads every session there; blocks of several are not pairs, so they are not compared."""
    write_session(stored.with_name("t"))
    stored.with_name("empty").mkdir()
    loaded = harness.load(str(stored.parent / "*"))
    assert [p.name for p in loaded.paths] == ["s", "t"]
    assert len(loaded.trials) == 56
    with pytest.raises(UsageError, match="load one"):
        _ = loaded.groups


def test_nothing_there_is_said(tmp_path: Path) -> None:
    """A path or pattern without a session is refused with what was looked for."""
    with pytest.raises(UsageError, match="no session there"):
        harness.load(tmp_path / "*")
    with pytest.raises(UsageError, match="expected a frame"):
        Sessions((), (), ()).frame("trial")


def test_a_notebook_shows_sessions_as_tables(stored: Path) -> None:
    """The HTML names the session and each case; what comes from outside is escaped."""
    loaded = harness.load(stored)
    header = loaded.headers[0].model_copy(update={"host": {"cpu_model": "<b>x"}})
    text = Sessions(loaded.paths, (header,), loaded.observations)._repr_html_()
    assert "&lt;b&gt;x" in text
    assert "<b>x" not in text
    assert "soci" in text


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_export_of_frames_reads_back(stored: Path, tmp_path: Path, kind: str) -> None:
    """Each frame is a file, and reads back with the same values."""
    loaded = harness.load(stored)
    written = exports.export_frames(loaded, tmp_path / "out", kind)
    assert [p.name for p in written] == [f"{name}.{kind}" for name in dictionary.FRAMES]
    read: Callable[[Path], pd.DataFrame] = pd.read_csv if kind == "csv" else pd.read_parquet
    back = read(tmp_path / "out" / f"trials.{kind}")
    assert list(back.ready_s.dropna().round(9)) == list(loaded.trials.ready_s.dropna().round(9))


def test_parquet_without_pyarrow_is_refused(stored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message names what to install and the way without it."""
    monkeypatch.setattr(exports, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="pip install"):
        exports.export_frames(harness.load(stored), tmp_path, "parquet")


def test_export_for_pytest_benchmark_is_what_its_own_reader_takes(stored: Path, tmp_path: Path) -> None:
    """The file has pytest-benchmark's keys: a round per valid trial, phases in extra_info."""
    (path,) = exports.export_benchmarks(harness.load(stored), tmp_path)
    document = json.loads(path.read_text())
    by_name = {b["name"]: b for b in document["benchmarks"]}
    erofs = next(b for name, b in by_name.items() if "erofs:tuned" in name)
    assert erofs["stats"]["rounds"] == 6
    assert erofs["stats"]["median"] == pytest.approx(sorted(erofs["stats"]["data"])[2:4][0], rel=0.1)
    assert {"pull_s", "start_s", "cpu_s"} <= erofs["extra_info"].keys()
    assert document["commit_info"] == {}
    assert (erofs["extra_info"]["options"], erofs["extra_info"]["prefetch"]) == ({}, "none")


@pytest.mark.parametrize("told", [{"options": {"decoder": "zlib"}}, {"prefetch": "trace"}])
def test_trials_told_otherwise_are_not_one_benchmark(tmp_path: Path, told: dict[str, object]) -> None:
    """The same case of two sessions, once with other options or another prefetch, is refused with its name."""
    one = session(1)[0]
    with pytest.raises(UsageError, match=r"python-data.*one session at a time"):
        exports.export_benchmarks(Sessions((), (), (one, one.model_copy(update=told))), tmp_path)


def test_export_of_failures_alone_is_nothing_to_compare(tmp_path: Path) -> None:
    """No benchmark is made up where no trial is valid."""
    failed = tuple(o.model_copy(update={"status": "failed", "time_to_ready_s": None}) for o in session(1))
    with pytest.raises(NothingToCompare):
        exports.export_benchmarks(Sessions((), (), failed), tmp_path)


def test_the_document_of_the_data_is_current() -> None:
    """docs/data.md shows the dictionary as the code has it; ``python -m harness.report.dictionary`` rewrites it."""
    assert dictionary.markdown() in DOCUMENT.read_text("utf-8")
