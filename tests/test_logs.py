"""A passing test with suspicious output fails."""

from __future__ import annotations

import logging

import pytest

from tests.conftest import suspicious


@pytest.mark.parametrize(
    ("log", "output", "expected", "found"),
    [
        ("WARNING  harness.lazyfs.service:service.py:1 away", "", [], 1),
        ("ERROR    harness.oci:x.py:1 lost", "", ["lost"], 0),
        ("ERROR    harness.oci:x.py:1 lost", "", ["other"], 1),
        ("INFO     harness.oci:x.py:1 fine", "", [], 0),
        ("WARNING  other.library:x.py:1 theirs", "", [], 0),
        ("", "lazyfs: the registry is away", [], 0),
        ("", "Traceback (most recent call last):\n  File", [], 1),
        ("", "Exception ignored in: <function f>", [], 1),
    ],
)
def test_what_is_suspicious(log: str, output: str, expected: list[str], found: int) -> None:
    """Warnings of ours that nobody expects, and exceptions that went nowhere."""
    assert len(suspicious(log, output, expected)) == found


@pytest.mark.logs("is known")
def test_an_expected_warning_does_not_fail_its_test() -> None:
    """The marker takes a pattern, and only what matches is expected."""
    logging.getLogger("harness.test").warning("this is known")
