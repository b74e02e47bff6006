"""What the kernel still asks when everything of a shipped image was touched before. By hand: ``nox -s equality``."""

from __future__ import annotations

import os
import stat
from itertools import islice
from typing import TYPE_CHECKING

import pytest

from harness import scenarios
from harness.model.modes import find
from tests.equality.support import shown
from tests.equality.test_scenarios import preparer  # noqa: F401 - a fixture

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from harness.session.preparation import Preparer

pytestmark = pytest.mark.root

SCENARIO, FILES, ATTEMPTS = "python-data", 2000, 10


def files_below(root: str) -> Iterator[str]:
    for directory, _, names in os.walk(root):
        for name in names:
            path = os.path.join(directory, name)
            if stat.S_ISREG(os.lstat(path).st_mode):
                yield path


def touch(paths: list[str]) -> int:
    """Stat and read each; the bytes read."""
    total = 0
    for path in paths:
        size = os.stat(path).st_size
        with open(path, "rb") as file:
            total += len(file.read())
        assert os.stat(path).st_size == size
    return total


@pytest.mark.parametrize("mode", ["soci", "estargz", "erofs"])
def test_second_touch_is_the_kernel_s_alone(mode: str, preparer: Preparer, tmp_path: Path) -> None:  # noqa: F811
    """No request at all, not even to open a file or to list a directory."""
    published = preparer.publish(scenarios.load(SCENARIO), find(mode).form)
    with shown(preparer.host, published, mode, tmp_path, background=False) as image:
        root = str(image.root)
        paths = list(islice(files_below(root), FILES))
        assert len(paths) == FILES
        size = touch(paths)
        # A cold start elsewhere on this host drops all caches, and memory may be short: what the kernel asks each
        # time is what it always asks.
        for _ in range(ATTEMPTS):
            before = image.requests()
            assert list(islice(files_below(root), FILES)) == paths
            assert touch(paths) == size
            after = image.requests()
            asked = {name: count - before.get(name, 0) for name, count in after.items() if count != before.get(name, 0)}
            if not asked:
                break
        print(f"\n{SCENARIO} {mode}: {FILES} files, {size / 1e6:.0f} MB, second touch asks {asked or 'nothing'}")
        assert not asked
