"""What holds for all tests: root tests say why they cannot run, and nothing is left behind at the end."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator


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


_SUSPICIOUS = re.compile(r"Traceback \(most recent call last\)|Exception ignored in|was never awaited|ResourceWarning")
"""What no process of a passing test writes: s3ql's pytest_checklogs looks for much the same."""
_LOGGED = re.compile(r"^(?:WARNING|ERROR|CRITICAL) +harness\..*", re.MULTILINE)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A test that passes all the same fails for a warning of ours that it does not expect, or for a lost exception.

    A test that expects warnings says which (``@pytest.mark.logs("pattern")``) or looks at them itself (``caplog``).
    """
    report = yield
    if call.when == "call" and report.passed:
        found = suspicious(report.caplog, report.capstderr, [str(m.args[0]) for m in item.iter_markers("logs")])
        if found and "caplog" not in getattr(item, "fixturenames", ()):
            report.outcome = "failed"
            report.longrepr = "suspicious output of a passing test:\n" + "\n".join(found)
    return report


def suspicious(log: str, output: str, expected: list[str]) -> list[str]:
    """Lines of a test's log and output that nobody expected."""
    lines = [line.group() for line in _LOGGED.finditer(log)]
    unexpected = [line for line in lines if not any(re.search(pattern, line) for pattern in expected)]
    return unexpected + [match.group() for match in _SUSPICIOUS.finditer(output)]


@pytest.fixture(scope="session", autouse=True)
def _nothing_left_behind() -> Iterator[None]:
    """After the last test no mount, cgroup, namespace, loop device or process of a dead run is there."""
    yield
    if os.geteuid() == 0:
        from harness.machine.leftovers import find_leftovers

        left = find_leftovers()
        assert not left, f"left behind: {left}"
