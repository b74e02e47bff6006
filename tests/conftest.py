"""What holds for all tests: root tests say why they cannot run, and nothing is left behind at the end."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Without root, tests with real mounts, cgroups and containers are skipped with that reason."""
    if os.geteuid() == 0:
        return
    reason = pytest.mark.skip(reason="needs root: real mounts, cgroups, namespaces and containers")
    for item in items:
        if item.get_closest_marker("root") is not None:
            item.add_marker(reason)


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """A directory that other users can get into, which pytest's own are not."""
    with tempfile.TemporaryDirectory(prefix="coldbench-test-", dir="/var/tmp") as made:
        path = Path(made)
        path.chmod(0o755)
        yield path


@pytest.fixture(scope="session", autouse=True)
def _nothing_left_behind() -> Iterator[None]:
    """After the last test no mount, cgroup, namespace, loop device or process of a dead run is there."""
    yield
    if os.geteuid() == 0:
        from harness.machine.leftovers import find_leftovers

        left = find_leftovers()
        assert not left, f"left behind: {left}"
