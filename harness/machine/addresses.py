"""This module chooses addresses of the simulated network: /30 blocks of 198.18.0.0/15, which RFC 2544 sets aside for
benchmarks.
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, NamedTuple

from harness.errors import MachineError

if TYPE_CHECKING:
    import random
    from collections.abc import Iterable

NETWORK = ipaddress.ip_network("198.18.0.0/15")
PREFIX_LENGTH = 30
_BLOCKS = NETWORK.num_addresses // 4


class Block(NamedTuple):
    """Holds two usable addresses: the host's end and the machine's."""

    host: str
    machine: str


def is_simulated(address: str) -> bool:
    """Says whether an address belongs to the simulated network."""
    try:
        return ipaddress.ip_address(address) in NETWORK
    except ValueError:
        return False


def choose_block(used: Iterable[str], rng: random.Random) -> Block:
    """Chooses a block none of whose addresses is in ``used``; it starts at a random place so that runs rarely meet."""
    taken = set()
    first = int(NETWORK.network_address)
    for text in used:
        if is_simulated(text):
            taken.add((int(ipaddress.ip_address(text)) - first) // 4)
    start = rng.randrange(_BLOCKS)
    for step in range(_BLOCKS):
        block = (start + step) % _BLOCKS
        if block not in taken:
            base = first + 4 * block
            return Block(str(ipaddress.ip_address(base + 1)), str(ipaddress.ip_address(base + 2)))
    raise MachineError("all addresses of 198.18.0.0/15 are taken; `coldbench clean` removes those of killed runs")
