"""This module drives control groups of version 2 (kernel: admin-guide/cgroup-v2).

A group with controllers for its children holds no processes itself, so the machine's processes live in a leaf,
``engine``, containers in a leaf with a device list, ``confined``, and container runtimes may make leaves of their own
beside them; limits and counters are the parent's.
"""

from __future__ import annotations

import contextlib
import os
import time
from typing import TYPE_CHECKING

from harness.errors import HostUnfit, MachineError
from harness.machine import cgroup
from harness.machine.cgroup import UNLIMITED, Counters, CpuLimit, IoLimit, read_pairs, read_text, write_value

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from harness.machine.devices import DeviceRule

_NEEDED = ("cpu", "memory")
_WANTED = ("pids", "io")


class CgroupV2:
    """Drives a group below the root of the unified hierarchy."""

    version = 2
    writeback_limited = True

    def __init__(self, name: str, root: Path) -> None:
        self.name = name
        self._root = root
        self._top = root / name
        self._leaf = self._top / "engine"
        self._peak_bytes = 0

    @property
    def parent(self) -> str:
        return f"/{self.name}"

    def create(self) -> None:
        available = set(read_text(self._root / "cgroup.controllers").split())
        missing = set(_NEEDED) - available
        if missing:
            raise HostUnfit(f"cgroup controllers not available in {self._root}: {', '.join(sorted(missing))}")
        controllers = [c for c in (*_NEEDED, *_WANTED) if c in available]
        self._enable(self._root, controllers)
        try:
            self._top.mkdir(exist_ok=True)
            self._enable(self._top, controllers)
            self._leaf.mkdir(exist_ok=True)
        except OSError as error:
            raise MachineError(f"cannot make the control group {self._top}: {error.strerror}") from error

    @staticmethod
    def _enable(group: Path, controllers: Sequence[str]) -> None:
        enabled = read_text(group / "cgroup.subtree_control").replace("+", " ").split()
        absent = [c for c in controllers if c not in enabled]
        if absent:
            try:
                write_value(group / "cgroup.subtree_control", " ".join(f"+{c}" for c in absent))
            except MachineError as error:
                raise HostUnfit(
                    f"{error}; in a container the processes of the root group must move to a child group first"
                ) from error

    def entry_files(self) -> Sequence[str]:
        return [str(self._leaf / "cgroup.procs")]

    def confine(self, rules: Sequence[DeviceRule]) -> Sequence[str]:
        from harness.kernel import bpf
        from harness.machine.devices import program

        group = self._top / cgroup.CONFINED
        try:
            group.mkdir(exist_ok=True)
        except OSError as error:
            raise MachineError(f"cannot make the control group {group}: {error.strerror}") from error
        try:
            loaded = bpf.load_program(bpf.CGROUP_DEVICE, program(rules), "coldbench_dev")
            try:
                bpf.attach_to_group(str(group), loaded)
            finally:
                os.close(loaded)
        except OSError as error:
            raise HostUnfit(
                f"the kernel takes no device list for a control group ({error}), and containers could open the host's "
                "disks without; it needs CONFIG_CGROUP_BPF"
            ) from error
        return [str(group / "cgroup.procs")]

    def set_cpu(self, limit: CpuLimit) -> None:
        quota = "max" if limit.quota_us < 0 else str(limit.quota_us)
        write_value(self._top / "cpu.max", f"{quota} {limit.period_us}")

    def read_cpu(self) -> CpuLimit:
        quota, period = read_text(self._top / "cpu.max").split()
        return CpuLimit(UNLIMITED if quota == "max" else int(quota), int(period))

    def set_memory(self, limit_bytes: int | None) -> None:
        write_value(self._top / "memory.max", "max" if limit_bytes is None else str(limit_bytes))
        swap = self._top / "memory.swap.max"
        if swap.exists():
            write_value(swap, "max" if limit_bytes is None else "0")

    def read_memory(self) -> int | None:
        value = read_text(self._top / "memory.max").strip()
        return None if value == "max" else int(value)

    def set_pids(self, limit: int | None) -> None:
        path = self._top / "pids.max"
        if path.exists():
            write_value(path, "max" if limit is None else str(limit))

    def read_pids(self) -> int | None:
        value = read_text(self._top / "pids.max").strip() or "max"
        return None if value == "max" else int(value)

    def set_io(self, limit: IoLimit) -> bool:
        path = self._top / "io.max"
        if not path.exists():
            return False
        bps = "max" if limit.bytes_per_s is None else str(limit.bytes_per_s)
        iops = "max" if limit.iops is None else str(limit.iops)
        major, minor = limit.device
        write_value(path, f"{major}:{minor} rbps={bps} wbps={bps} riops={iops} wiops={iops}")
        return True

    def counters(self) -> Counters:
        cpu = read_pairs(self._top / "cpu.stat")
        current = int(read_text(self._top / "memory.current") or 0)
        peak = read_text(self._top / "memory.peak").strip()  # since Linux 5.19; before it the caller's samples must do
        self._peak_bytes = max(self._peak_bytes, current, int(peak or 0))
        return Counters(
            cpu_user_s=cpu.get("user_usec", 0) / 1e6,
            cpu_system_s=cpu.get("system_usec", 0) / 1e6,
            cpu_total_s=cpu.get("usage_usec", 0) / 1e6,
            nr_periods=cpu.get("nr_periods", 0),
            nr_throttled=cpu.get("nr_throttled", 0),
            throttled_s=cpu.get("throttled_usec", 0) / 1e6,
            memory_peak_bytes=self._peak_bytes,
            memory_bytes=current,
            memory_cache_bytes=read_pairs(self._top / "memory.stat").get("file", 0),
            oom_kills=read_pairs(self._top / "memory.events").get("oom_kill", 0),
        )

    def cpu_used_s(self) -> float:
        return read_pairs(self._top / "cpu.stat")["usage_usec"] / 1e6

    def reset_peak(self) -> None:
        """Does nothing: the kernel's own peak can be reset per open file only (Linux 6.12), so it counts from the
        start.
        """
        self._peak_bytes = 0

    def drop_cache(self) -> None:
        reclaim = self._top / "memory.reclaim"  # since Linux 5.19
        if reclaim.exists():
            with contextlib.suppress(MachineError):  # EAGAIN: less could be reclaimed than asked
                write_value(reclaim, str(1 << 40))

    def pids(self) -> list[int]:
        return sorted(set(cgroup.list_pids(self._top)))

    def kill(self) -> None:
        if not self._top.exists():
            return
        with contextlib.suppress(MachineError):
            self.set_cpu(CpuLimit(UNLIMITED, 100_000))
        if not (self._top / "cgroup.kill").exists():  # before Linux 5.14
            with contextlib.suppress(MachineError):
                self.set_pids(0)
            cgroup.kill_all(self._top)
            return
        write_value(self._top / "cgroup.kill", "1")
        deadline = time.monotonic() + cgroup.KILL_TIMEOUT_S
        while pids := self.pids():
            if time.monotonic() > deadline:
                raise MachineError(f"processes {pids} of {self._top} do not end")
            time.sleep(0.005)

    def remove(self) -> None:
        if self._top.exists():
            cgroup.remove_tree(self._top)
