"""This module describes a storm: several machines start at once on one host, against one registry, as a fleet rolls
out.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from harness.model import quantity
from harness.model.workload import Table

MOST_MACHINES = 32


def _uplink(text: str) -> str:
    """Refuses what is no bandwidth. Raises ValueError."""
    quantity.bits_per_s(text)
    return text


class Storm(Table):
    """Says how many machines one trial starts at the same moment, and what they pull."""

    machines: int = Field(ge=1, le=MOST_MACHINES, description="Machines that are told to deploy at the same moment.")
    images: Literal["same", "distinct"] = Field(
        default="same",
        description="The same image for all, or the same files for each in blobs of its own.",
    )
    uplink: Annotated[str, AfterValidator(_uplink)] | None = Field(
        default=None, description="Bandwidth that all machines share on the way from the registry, as 1Gbit."
    )

    @property
    def uplink_bytes_s(self) -> int | None:
        """Returns the shared bandwidth in bytes per second; None where only the machines' own links limit them."""
        return None if self.uplink is None else quantity.bits_per_s(self.uplink) // 8


def all_ready_s(
    machines: int,
    *,
    alone_s: float,
    received_bytes: float,
    core_s: float,
    host_cores: float,
    uplink_bytes_s: float | None = None,
) -> float:
    """Returns the least time until all machines are ready, if one alone takes ``alone_s`` and each does what it does.

    T(n) >= max(T(1), n S / B, n X / C): S bytes through an uplink of B, X core-seconds on a host of C cores. What the
    registry, the network and contention cost besides is not in it, so a storm that takes longer shows what they cost.
    """
    uplink_s = machines * received_bytes / uplink_bytes_s if uplink_bytes_s else 0.0
    return max(alone_s, uplink_s, machines * core_s / host_cores)
