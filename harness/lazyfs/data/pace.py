"""This module says how much to ask for at once: a policy's sizes and counts, or larger ones where the registry is far.

Near the registry, requests and bytes cost CPU, and the policy's own numbers are tuned for that. Far from it, a request
costs its latency, which other requests in flight share: what comes over one connection in that share of the time is
free, so gaps up to that size are fetched along rather than asked around.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from harness.model.policy import LazyPolicy
    from harness.oci.registry.link import Link

_SECONDS_PER_REQUEST = 0.01
"""Says for how much latency one more request is kept in flight."""
_DEFAULT_RATE = 10e6
_MAX_GAP = 1 << 20
_MAX_BLOCK = 2 << 20
_FULL_LATENCY_S = 0.1
"""Says from which latency on a miss brings neighbours worth all of a round trip, below in proportion: bytes cost CPU,
too. python-data, ``import pandas``, 10 ms and 1 Gbit/s, eStargz: 40.9 MB and 6.0 s with blocks of 128 KiB, 48 MB and
5.5 s with 256 KiB, 60 MB and 5.2 s with 2 MiB; EROFS: 51 MB and 5.2 s, 51 MB and 4.9 s, 75 MB and 5.0 s."""
_BLOCKS_LEFT = 8
"""Limits a block to one in so many parts of what may still come with misses, so that the last blocks get smaller."""

_TAIL_SHARE = 128
_MAX_TAIL = 4 << 20
"""A compressed TOC is a 140th to a 220th of most large eStargz layers (of the shipped scenarios)."""


@dataclass(frozen=True, slots=True)
class Pace:
    """Holds the sizes (in bytes) and counts that apply at one moment."""

    far: bool
    in_flight: int
    """Counts the prefetch requests that may be under way at a time."""
    merge_gap: int
    block: int
    """A miss brings its neighbours within an aligned block of this size, while the allowance for that lasts."""
    least_block: int
    """Says the size of a miss's block when the allowance is used up."""


def pace_of(policy: LazyPolicy, link: Link | None) -> Pace:
    """Returns the policy's numbers, or larger ones if ``policy.adaptive`` is set and ``link`` is to a far registry."""
    if link is None or not policy.adaptive or not link.far:
        return Pace(False, policy.prefetch_in_flight, policy.merge_gap, policy.block_bytes, policy.block_bytes)
    latency_s = link.latency_s
    wanted = math.ceil(latency_s / _SECONDS_PER_REQUEST)
    in_flight = max(policy.prefetch_in_flight, min(wanted, policy.far_in_flight))
    free = int(latency_s * link.rate(_DEFAULT_RATE))
    worth = int(free * min(1.0, latency_s / _FULL_LATENCY_S))
    return Pace(
        far=True,
        in_flight=in_flight,
        merge_gap=max(policy.merge_gap, min(free // in_flight, _MAX_GAP)),
        block=max(policy.block_bytes, min(worth, _MAX_BLOCK)),
        least_block=policy.block_bytes,
    )


def block_around(pace: Pace, allowance: int) -> int:
    """Returns the size of the block around a miss, a power of two; ``allowance`` bytes may still come with misses."""
    block = min(pace.block, max(allowance // _BLOCKS_LEFT, pace.least_block))
    return 1 << (block.bit_length() - 1) if block else 0


def tail_of(policy: LazyPolicy, link: Link | None, blob_bytes: int, near_bytes: int) -> int:
    """Returns how much of an eStargz blob's end to read first.

    Near, that is the footer and a small TOC with it, far nearly any TOC.
    """
    return far_tail(blob_bytes, near_bytes, far=pace_of(policy, link).far)


def far_tail(blob_bytes: int, near_bytes: int = 64 << 10, *, far: bool) -> int:
    """Returns the same as ``tail_of`` where it is known how far the registry is."""
    return max(near_bytes, min(blob_bytes // _TAIL_SHARE, _MAX_TAIL)) if far else near_bytes
