"""Numbers as reports write them."""

from __future__ import annotations

import pytest

from harness.gate.wording import change, percent
from harness.report import wording


@pytest.mark.parametrize(
    ("value", "digits", "written"),
    [(0.0123, 2, "0.012"), (9.96, 2, "10"), (99.4, 2, "99"), (99.63, 2, "100"), (133.2, 2, "133"), (999.6, 3, "1000")],
)
def test_figures_before_the_point_are_never_an_exponent(value: float, digits: int, written: str) -> None:
    assert wording.figures(value, digits) == written
    assert wording.figures(-value, digits) == f"-{written}"
    assert wording.figures(value, digits, "+") == f"+{written}"


def test_shares_and_changes_are_percentages() -> None:
    assert [percent(share) for share in (0, 0.0037, 0.9963, 1, 2.5)] == ["0 %", "0.37 %", "100 %", "100 %", "250 %"]
    assert [change(ratio) for ratio in (1.0, 0.5, 1.997, 3.7)] == ["+0 %", "-50 %", "+100 %", "+270 %"]
