"""How much to ask for at once: a policy's sizes and counts, widened where the registry is far.

Near, a request costs CPU and bytes cost CPU, and the policy's own numbers are the ones tuned for that. Far, a request
costs its latency, which other requests in flight share: what comes over one connection in that share of the time is
free, so gaps up to there are fetched along rather than asked around.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from harness.model.policy import LazyPolicy
    from harness.oci.registry.link import Link

_SECONDS_PER_REQUEST = 0.01
"""One more request in flight for each of these of latency."""
_DEFAULT_RATE = 10e6
_MAX_GAP = 1 << 20
_MAX_BLOCK = 2 << 20
_FULL_LATENCY_S = 0.1
"""From here on neighbours worth all of a round trip are fetched with a miss, below in proportion: bytes cost CPU, too.
python-data, ``import pandas``, 10 ms and 1 Gbit/s, eStargz: 40.9 MB and 6.0 s with blocks of 128 KiB, 48 MB and 5.5 s
with 256 KiB, 60 MB and 5.2 s with 2 MiB; EROFS: 51 MB and 5.2 s, 51 MB and 4.9 s, 75 MB and 5.0 s."""
_BLOCKS_LEFT = 8
"""A block is at most this part of what may still come with misses: the last ones shrink instead of ending at once."""

_TAIL_SHARE = 128
_MAX_TAIL = 4 << 20
"""A compressed TOC is a 140th to a 220th of most large eStargz layers (of the shipped scenarios)."""


@dataclass(frozen=True, slots=True)
class Pace:
    """What holds at one moment. Sizes in bytes."""

    far: bool
    in_flight: int
    """Prefetch requests at a time."""
    merge_gap: int
    block: int
    """A miss brings its neighbours within an aligned block of this size, while the allowance for that lasts."""
    least_block: int
    """The size of that block when the allowance is used up."""


def pace_of(policy: LazyPolicy, link: Link | None) -> Pace:
    """The policy's numbers, or wider ones where ``policy.adaptive`` and ``link`` says that the registry is far."""
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
    """The size of the block around a miss, a power of two, when ``allowance`` more bytes may come with all misses."""
    block = min(pace.block, max(allowance // _BLOCKS_LEFT, pace.least_block))
    return 1 << (block.bit_length() - 1) if block else 0


def tail_of(policy: LazyPolicy, link: Link | None, blob_bytes: int, near_bytes: int) -> int:
    """How much of an eStargz blob's end to read first: near the footer and a small TOC with it, far nearly any TOC."""
    return far_tail(blob_bytes, near_bytes, far=pace_of(policy, link).far)


def far_tail(blob_bytes: int, near_bytes: int = 64 << 10, *, far: bool) -> int:
    """The same where it is known how far the registry is."""
    return max(near_bytes, min(blob_bytes // _TAIL_SHARE, _MAX_TAIL)) if far else near_bytes
