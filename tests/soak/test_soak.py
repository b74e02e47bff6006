"""Faults again and again: minutes to half an hour, and so by hand (``nox -s soak``); root."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.lazyfs.killing import read_while_killed
from tests.lazyfs.support import MODES
from tests.soak.starts import run, told

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.root


@pytest.mark.parametrize("mode", MODES)
def test_killed_a_hundred_times_nothing_is_lost(mode: str, tmp_path: Path) -> None:
    """While tar reads everything and Python imports from the mount: no error, no wrong byte."""
    read_while_killed(mode, 100, tmp_path)


def test_starts_with_random_faults(tmp_path: Path) -> None:
    """Every byte read is right, only faults of registry or disk make reads fail, all come back, nothing is left."""
    starts, seed = int(os.environ.get("SOAK_STARTS", "200")), int(os.environ.get("SOAK_SEED", "1"))
    tally = run(starts, seed, tmp_path)
    print(f"\n{starts} starts, seed {seed}\n{told(tally)}")
    assert (tally.wrong, tally.unexpected) == ([], [])
    assert tally.restarts > 0 or starts < 20
