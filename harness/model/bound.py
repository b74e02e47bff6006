"""This module computes a cold start's physical lower bound: the time before which no engine, however good, is ready.

A result below its bound is a measuring error. So every term errs downwards: rates are the best ever seen on this host,
work is what *has* to be done (each compressed byte received and hashed once, each decompressed byte inflated and
written once, each file created once), and what a simulated machine gives away at the edges is subtracted: the first
period's quota, the credit governor's tick, the token bucket's burst.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

from harness.model.observation import Bound

if TYPE_CHECKING:
    from harness.model.shape import Distance, Network, Shape

GOVERNOR_TICK_S = 0.1
"""A governor may leave the burst quota in force for so long after the credits have run out."""


class Rates(BaseModel):
    """Says what one core of this host does at its best; measured once (``coldbench doctor --rates``)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    inflate_bytes_s: float = Field(gt=0)
    """Counts decompressed bytes per core-second out of gzip."""
    inflate_zstd_bytes_s: float = Field(gt=0)
    hash_bytes_s: float = Field(gt=0)
    """Counts bytes per core-second through SHA-256."""
    receive_core_s_per_byte: float = Field(ge=0)
    """Says what it costs to receive a byte from a socket into memory."""
    write_core_s_per_byte: float = Field(ge=0)
    """Says what it costs to write a byte from memory into a file (page cache)."""
    create_core_s: float = Field(ge=0)
    """Says what one small file costs: create, write, close, owner and time."""
    fuse_request_core_s: float = Field(default=0.0, ge=0)
    measured_at: str = ""
    host: str = ""
    """Names the CPU model and kernel for which the rates hold."""


@dataclass(frozen=True, slots=True)
class ImageSize:
    """Holds an image in figures: S, S' and N of the formulas."""

    compressed_bytes: int
    uncompressed_bytes: int
    files: int
    compression: str = "gzip"
    """Is ``gzip``, ``zstd`` or ``none``."""


class CpuBudget:
    """Says how many core-seconds a shape can have given by a time: burst while credits last, then the baseline.

    With burst b, baseline c and Q core-seconds of credit, spent only above the baseline, X core-seconds take X/b if X
    <= b Q/(b-c), else Q/(b-c) + (X - b Q/(b-c))/c.
    """

    def __init__(self, shape: Shape, host_cores: int) -> None:
        ceiling = shape.ceiling_cores
        self.burst = min(float(host_cores), ceiling) if ceiling is not None else float(host_cores)
        baseline = shape.baseline_cores
        self.base = self.burst if baseline is None else min(baseline, self.burst)
        self.cap = 0.0
        self.credit = 0.0
        if shape.credits is not None:
            self.credit = math.inf if shape.credits.surplus else shape.credits.at_boot_core_s
            self.cap = shape.credits.cap_core_s
            self.credit += (self.burst - self.base) * GOVERNOR_TICK_S
        # A quota is handed out whole at the start of its period, at which the host's cores may use it up at once: that
        # of the period that was running when the limit came in force, and of the first one after it.
        self.host = float(host_cores)
        limited = shape.ceiling_cores is not None
        self.ahead = 2 * self.burst * shape.period_us / 1e6 if limited and self.burst < self.host else 0.0
        self.ahead_at_base = 2 * self.base * shape.period_us / 1e6 if self.base < self.burst else 0.0

    def seconds(self, core_s: float, credit: float | None = None) -> float:
        """Returns the least time for so many core-seconds with so much credit (what the shape has at boot if None)."""
        work = max(0.0, core_s)
        left = self.credit if credit is None else credit
        above = self.burst - self.base
        if above <= 0 or math.isinf(left):
            limited_s = (work - self.ahead) / self.burst
        else:
            at_burst_s = left / above
            slow = work - self.ahead - self.burst * at_burst_s
            limited_s = (
                (work - self.ahead) / self.burst
                if slow <= 0
                else at_burst_s + max(0.0, slow - self.ahead_at_base) / self.base
            )
        return max(work / self.host, limited_s)

    def credit_after(self, elapsed_s: float, used_core_s: float) -> float:
        """Returns the most credit that can be left after so much time and use."""
        if math.isinf(self.credit):
            return self.credit
        balance = self.credit + self.base * elapsed_s - used_core_s
        return max(0.0, min(balance, max(self.cap, self.credit)))


def transfer_seconds(size_bytes: float, network: Network | None, total_bytes_s: int | None = None) -> float:
    """Returns the least time for so many bytes over the machine's link, with its bucket full."""
    limits = [] if total_bytes_s is None else [float(total_bytes_s)]
    if network is None:
        if not limits:
            return 0.0
        peak = sustained = limits[0]
        bucket = 0.0
    else:
        peak = min([network.peak_bits_s / 8, *limits])
        sustained = min([network.rate_bits_s / 8, *limits])
        bucket = float(network.bucket_bytes or 0)
    size = max(0.0, size_bytes - burst_bytes(peak))
    if peak <= sustained:
        return size / peak
    at_peak_s = bucket / (peak - sustained)
    if size <= peak * at_peak_s:
        return size / peak
    return at_peak_s + (size - peak * at_peak_s) / sustained


def burst_bytes(rate_bytes_s: float) -> int:
    """Returns the bytes that the simulated link lets pass at once: two milliseconds' worth, and above one GSO packet of
    64 KiB.
    """
    return max(128 << 10, int(rate_bytes_s * 0.002))


@dataclass(frozen=True, slots=True)
class Setting:
    """Says what a trial runs under, beside its image."""

    shape: Shape
    distance: Distance
    rates: Rates
    host_cores: int
    control_rounds: int = 1
    """Counts requests that must answer before the first data request can be sent (m); each takes L."""
    application_core_s: float = 0.0
    """Counts CPU seconds that the workload needs until ready (A); 0 where it is not known."""
    disk_limited: bool = False
    """Says whether the shape's disk limit holds for buffered writes, too."""

    @property
    def latency_s(self) -> float:
        """Returns L: the seconds from sending one request to the first byte of its answer."""
        return self.distance.latency_s


def _inflate_core_s(size_bytes: float, compression: str, rates: Rates) -> float:
    if compression == "none":
        return 0.0
    return size_bytes / (rates.inflate_zstd_bytes_s if compression == "zstd" else rates.inflate_bytes_s)


def full_pull(setting: Setting, image: ImageSize) -> Bound:
    """Returns T >= m L + L + max(S/B, S'/disk, T_cpu(S v + S/H + S'/D + S' w + N f)) + T_cpu(A with the credit left).

    The image's bytes cannot arrive sooner than one latency after they were asked for, nor the application start before
    all of it is there. Of the disk only what exceeds the machine's memory counts: the rest may still be in the cache.
    Hashing the decompressed bytes, too, is not counted: not every engine does, and none has to.
    """
    rates = setting.rates
    shape = setting.shape
    cpu = CpuBudget(shape, setting.host_cores)
    core_s = {
        "receive": image.compressed_bytes * rates.receive_core_s_per_byte,
        "hash": image.compressed_bytes / rates.hash_bytes_s,
        "inflate": _inflate_core_s(image.uncompressed_bytes, image.compression, rates),
        "write": image.uncompressed_bytes * rates.write_core_s_per_byte,
        "create": image.files * rates.create_core_s,
    }
    work = sum(core_s.values())
    network_s = transfer_seconds(image.compressed_bytes, shape.network, setting.distance.total_bytes_s)
    disk_s = 0.0
    disk = shape.disk
    if setting.disk_limited and disk is not None and disk.bytes_per_s and shape.memory_bytes is not None:
        disk_s = max(0, image.uncompressed_bytes - shape.memory_bytes) / disk.bytes_per_s
    cpu_s = cpu.seconds(work)
    rounds_s = (setting.control_rounds + 1) * setting.latency_s
    pull_s = max(network_s, disk_s, cpu_s)
    application_s = cpu.seconds(setting.application_core_s, cpu.credit_after(rounds_s + pull_s, work))
    return Bound(
        seconds=rounds_s + pull_s + application_s,
        terms={
            "rounds_s": rounds_s,
            "network_s": network_s,
            "disk_s": disk_s,
            "cpu_s": cpu_s,
            "application_s": application_s,
            **{f"{name}_core_s": value for name, value in core_s.items()},
        },
    )


@dataclass(frozen=True, slots=True)
class LazyWork:
    """Says what a lazy start has to move before ready: W, W', I, k, n of the formulas; 0 where it is not known."""

    compressed_bytes: int
    uncompressed_bytes: int
    unpacked_bytes: int = 0
    """Counts bytes out of the zstd frames of a start pack."""
    index_bytes: int = 0
    dependent_rounds: int = 1
    fuse_requests: int = 0
    compression: str = "gzip"


def lazy(setting: Setting, work: LazyWork) -> Bound:
    """Returns T >= m L + max((W+I)/B, k L + W/B, T_cpu((W+I) v + W/H + W'/D + P/Z + n phi + A)).

    Fetching, inflating and the application overlap, so the largest term counts. Inflating more than is used (a > 1) is
    an engine's choice and no bound.
    """
    rates = setting.rates
    cpu = CpuBudget(setting.shape, setting.host_cores)
    network, total = setting.shape.network, setting.distance.total_bytes_s
    received = work.compressed_bytes + work.index_bytes
    core_s = {
        "receive": received * rates.receive_core_s_per_byte,
        "hash": work.compressed_bytes / rates.hash_bytes_s,
        "inflate": _inflate_core_s(work.uncompressed_bytes, work.compression, rates),
        **({"unpack": work.unpacked_bytes / rates.inflate_zstd_bytes_s} if work.unpacked_bytes else {}),
        "fuse": work.fuse_requests * rates.fuse_request_core_s,
        "application": setting.application_core_s,
    }
    rounds_s = setting.control_rounds * setting.latency_s
    network_s = transfer_seconds(received, network, total)
    demand_s = work.dependent_rounds * setting.latency_s + transfer_seconds(work.compressed_bytes, network, total)
    cpu_s = cpu.seconds(sum(core_s.values()))
    return Bound(
        seconds=rounds_s + max(network_s, demand_s, cpu_s),
        terms={
            "rounds_s": rounds_s,
            "network_s": network_s,
            "demand_s": demand_s,
            "cpu_s": cpu_s,
            **{f"{name}_core_s": value for name, value in core_s.items()},
        },
    )
