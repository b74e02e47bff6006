"""A recorded A/A session of a busy host fixes what is said of it, and is the noise that simulated gates must stand."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from scipy import stats

from harness.gate import aa
from harness.gate.aa_running import analyse
from harness.gate.aa_wording import markdown as aa_markdown
from harness.gate.baseline import Baseline
from harness.gate.comparing import compare_sides
from harness.gate.sides import parse, select
from harness.gate.wording import markdown

DATA = Path(__file__).parent.parent / "data"
RECORDED = DATA / "aa-quickstart"

pytestmark = pytest.mark.files


def golden(name: str, text: str) -> None:
    """Compare with the stored text; ``COLDBENCH_UPDATE=1`` writes it anew."""
    path = DATA / name
    if os.environ.get("COLDBENCH_UPDATE"):
        path.write_text(text)
    assert text == path.read_text()


def test_the_a_a_text_of_a_recorded_session() -> None:
    """Rates, noise, margin and counters of the recorded session are those that were said of it."""
    side = parse(str(RECORDED))
    golden("aa-quickstart.md", aa_markdown(analyse(side, gate_blocks=12, draws=200)))


def test_the_comparison_of_two_recorded_modes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two modes of one recorded session: ratios, marks and verdicts are those that were said of them."""
    monkeypatch.chdir(DATA)
    side = select(parse("aa-quickstart"), {"scenario": "quickstart"}, "aa-quickstart")
    candidate, baseline = select(side, {"mode": "erofs"}, "erofs"), select(side, {"mode": "overlay2:tuned"}, "overlay2")
    golden("compare-quickstart.md", markdown(compare_sides(candidate, baseline, margin=0.05)))


def test_two_hundred_simulated_gates_of_this_noise() -> None:
    """Of 200 gates drawn from the recorded noise no more are wrong than the rate allows, none is confirmed wrongly,
    and a start slower by 15 % is caught as often as the record states."""
    side = parse(str(RECORDED))
    gate = side.header.scenarios["quickstart"].gate
    pairs, alone = Baseline("again").pairs(side.header, side.observations, side)
    assert not alone
    drawer = aa.Drawer(pairs, gate, 20, seed=99)
    wrong, confirmed = aa.false_alarms(drawer, 200)
    assert wrong.hits <= stats.binom.ppf(0.9999, 200, gate.alpha)
    assert confirmed.hits <= stats.binom.ppf(0.9999, 200, gate.alpha / 4)
    caught = aa.power(drawer, 0.15, 200)
    stated = analyse(side, gate_blocks=20, draws=400).record.caught
    assert stated is not None
    assert caught.low <= stated.high
    assert stated.low <= caught.high
    assert stated.rate > 0.5


def test_the_reference_job_narrows_the_interval() -> None:
    """In the recorded session the ratio to the reference job scatters less than the plain one, in both modes."""
    record = analyse(parse(str(RECORDED)), gate_blocks=20, draws=1).record
    noise = {(line.case, line.metric): line.spread_log for line in record.noise}
    for case in {case for case, _ in noise}:
        assert noise[case, "runtime-relative"] < 0.8 * noise[case, "runtime-overhead"]
