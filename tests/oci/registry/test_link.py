"""What requests say of the way to a registry."""

from __future__ import annotations

import pytest

from harness.oci.registry.curl_pool import CurlPool
from harness.oci.registry.link import Link
from tests.oci.registry.fault_server import Answer, FaultServer

DEFAULT = 5e6


def test_nothing_is_known_at_first() -> None:
    """No latency, and the caller's own guess of the rate."""
    assert (Link().latency_s, Link().rate(DEFAULT)) == (0.0, DEFAULT)


def test_one_request_alone_says_nothing() -> None:
    """It may have waited for its CPU quota."""
    link = Link()
    link.note(0.075, 100, 0.0)
    assert link.latency_s == 0.0
    link.note(0.001, 100, 0.0)
    assert link.latency_s == 0.001


def test_latency_is_the_least_seen() -> None:
    """Queues and quotas only ever add to it."""
    link = Link()
    for first_byte_s in (0.31, 0.23, 0.9, 0.24):
        link.note(first_byte_s, 0, 0.0)
    assert link.latency_s == 0.23


def test_old_requests_are_forgotten() -> None:
    """A way that has become longer shows."""
    link = Link()
    link.note(0.001, 0, 0.0)
    for _ in range(40):
        link.note(0.2, 0, 0.0)
    assert link.latency_s == 0.2


def test_a_hint_counts_until_a_request_is_faster() -> None:
    """Another client's latency stands in for the first requests; 0 is no hint."""
    link = Link()
    link.hint(0.0)
    assert link.latency_s == 0.0
    link.hint(0.2)
    assert link.latency_s == 0.2
    link.note(0.05, 0, 0.0)
    assert link.latency_s == 0.05


def test_rate_is_that_of_longer_answers() -> None:
    """Bytes over seconds of all that count; an answer of one segment would be infinitely fast."""
    link = Link()
    link.note(0.1, 1000, 0.0)
    assert link.rate(DEFAULT) == DEFAULT
    link.note(0.1, 1_000_000, 0.5)
    link.note(0.1, 3_000_000, 0.5)
    assert link.rate(DEFAULT) == 4e6


@pytest.mark.files
def test_requests_are_noted() -> None:
    """Each answered GET of a pool, with what its body took."""
    pool = CurlPool()
    with FaultServer(lambda request: Answer(200, b"x" * (1 << 20))) as server:
        for _ in range(2):
            assert pool.get(f"http://{server.host}/blob", limit=1 << 20).status == 200
    pool.close()
    assert pool.link.latency_s > 0.0
    assert pool.link.rate(DEFAULT) != DEFAULT


def test_a_link_is_full_when_answers_take_long_to_come() -> None:
    """Waiting for the first byte leaves bandwidth idle; waiting for the last does not. Short answers tell nothing."""
    idle, full, short = Link(), Link(), Link()
    for _ in range(4):
        idle.note(0.23, 1 << 20, 0.1)
        full.note(0.01, 600 << 10, 0.05)
        short.note(0.01, 1 << 10, 1.0)
    assert (idle.is_full, full.is_full, short.is_full, Link().is_full) == (False, True, False, False)
