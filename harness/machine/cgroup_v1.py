"""This module drives control groups of version 1: one directory per controller's hierarchy (kernel:
admin-guide/cgroup-v1).
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from harness.errors import HostUnfit, MachineError
from harness.machine import cgroup
from harness.machine.cgroup import UNLIMITED, Counters, CpuLimit, IoLimit, read_pairs, read_text, write_value

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from harness.machine.devices import DeviceRule

#: memory.limit_in_bytes reads as this (rounded down to a page) when there is none.
_NO_MEMORY_LIMIT = 1 << 62


class CgroupV1:
    """Drives a group of one name in the hierarchies of cpu, cpuacct, memory, and where present
    pids, blkio and devices.
    """

    version = 1
    writeback_limited = False

    def __init__(self, name: str, hierarchies: Mapping[str, Path]) -> None:
        missing = {"cpu", "cpuacct", "memory"} - set(hierarchies)
        if missing:
            raise HostUnfit(f"cgroup controllers not mounted: {', '.join(sorted(missing))}")
        self.name = name
        self._dirs = {controller: root / name for controller, root in hierarchies.items()}

    @property
    def parent(self) -> str:
        return f"/{self.name}"

    @property
    def _tops(self) -> list[Path]:
        """Returns one directory per hierarchy; cpu and cpuacct often share one."""
        return list(dict.fromkeys(self._dirs.values()))

    def create(self) -> None:
        for top in self._tops:
            try:
                top.mkdir(exist_ok=True)
            except OSError as error:
                raise MachineError(f"cannot make the control group {top}: {error.strerror}") from error

    def entry_files(self) -> Sequence[str]:
        return [str(top / "cgroup.procs") for top in self._tops]

    def confine(self, rules: Sequence[DeviceRule]) -> Sequence[str]:
        top = self._dirs.get("devices")
        if top is None:
            raise HostUnfit("the cgroup controller devices is not mounted: containers could open the host's disks")
        group = top / cgroup.CONFINED
        try:
            group.mkdir(exist_ok=True)
        except OSError as error:
            raise MachineError(f"cannot make the control group {group}: {error.strerror}") from error
        write_value(group / "devices.deny", "a")
        for rule in rules:
            write_value(group / "devices.allow", rule.text)
        return [str((group if entry == top else entry) / "cgroup.procs") for entry in self._tops]

    def set_cpu(self, limit: CpuLimit) -> None:
        cpu = self._dirs["cpu"]
        # The kernel checks quota against period at each write: lift the quota before the period moves.
        if read_text(cpu / "cpu.cfs_period_us").strip() != str(limit.period_us):
            write_value(cpu / "cpu.cfs_quota_us", str(UNLIMITED))
            write_value(cpu / "cpu.cfs_period_us", str(limit.period_us))
        write_value(cpu / "cpu.cfs_quota_us", str(limit.quota_us))

    def read_cpu(self) -> CpuLimit:
        cpu = self._dirs["cpu"]
        return CpuLimit(int(read_text(cpu / "cpu.cfs_quota_us")), int(read_text(cpu / "cpu.cfs_period_us")))

    def set_memory(self, limit_bytes: int | None) -> None:
        memory = self._dirs["memory"]
        value = str(UNLIMITED if limit_bytes is None else limit_bytes)
        swap = memory / "memory.memsw.limit_in_bytes"
        if swap.exists():  # never below the memory limit, so it goes up first and comes down last
            write_value(swap, str(UNLIMITED))
        write_value(memory / "memory.limit_in_bytes", value)
        if swap.exists():
            write_value(swap, value)

    def read_memory(self) -> int | None:
        value = int(read_text(self._dirs["memory"] / "memory.limit_in_bytes"))
        return None if value >= _NO_MEMORY_LIMIT else value

    def set_pids(self, limit: int | None) -> None:
        if "pids" in self._dirs:
            write_value(self._dirs["pids"] / "pids.max", "max" if limit is None else str(limit))

    def read_pids(self) -> int | None:
        value = read_text(self._dirs["pids"] / "pids.max").strip() if "pids" in self._dirs else "max"
        return None if value == "max" else int(value)

    def set_io(self, limit: IoLimit) -> bool:
        blkio = self._dirs.get("blkio")
        if blkio is None:
            return False
        major, minor = limit.device
        wanted = {
            "read_bps": limit.bytes_per_s,
            "write_bps": limit.bytes_per_s,
            "read_iops": limit.iops,
            "write_iops": limit.iops,
        }
        for name, value in wanted.items():
            path = blkio / f"blkio.throttle.{name}_device"
            if not path.exists():
                return False
            write_value(path, f"{major}:{minor} {value or 0}")
        return True

    def counters(self) -> Counters:
        cpu, accounting, memory = (self._dirs[name] for name in ("cpu", "cpuacct", "memory"))
        stat = read_pairs(cpu / "cpu.stat")
        total_s = int(read_text(accounting / "cpuacct.usage") or 0) / 1e9
        user_s = total_s * self._user_share()
        return Counters(
            cpu_user_s=user_s,
            cpu_system_s=total_s - user_s,
            cpu_total_s=total_s,
            nr_periods=stat.get("nr_periods", 0),
            nr_throttled=stat.get("nr_throttled", 0),
            throttled_s=stat.get("throttled_time", 0) / 1e9,
            memory_peak_bytes=int(read_text(memory / "memory.max_usage_in_bytes") or 0),
            memory_bytes=int(read_text(memory / "memory.usage_in_bytes") or 0),
            memory_cache_bytes=read_pairs(memory / "memory.stat").get("total_cache", 0),
            oom_kills=sum(
                read_pairs(group / "memory.oom_control").get("oom_kill", 0) for group in cgroup.group_dirs(memory)
            ),
        )

    def _user_share(self) -> float:
        """Returns user mode's part of the CPU time.

        cpuacct.usage is exact, its split is sampled by the timer tick (and cpuacct.stat's is rounded to jiffies of 10
        ms beside), so the parts may sum to something else: only their ratio is used, as version 2 does itself.
        """
        accounting = self._dirs["cpuacct"]
        user, system = (int(read_text(accounting / f"cpuacct.usage_{part}") or 0) for part in ("user", "sys"))
        if not user + system:
            jiffies = read_pairs(accounting / "cpuacct.stat")
            user, system = jiffies.get("user", 0), jiffies.get("system", 0)
        return user / (user + system) if user + system else 1.0

    def cpu_used_s(self) -> float:
        return int(read_text(self._dirs["cpuacct"] / "cpuacct.usage")) / 1e9

    def reset_peak(self) -> None:
        write_value(self._dirs["memory"] / "memory.max_usage_in_bytes", "0")

    def drop_cache(self) -> None:
        with contextlib.suppress(MachineError):  # EBUSY: some pages are in use, the rest has gone
            write_value(self._dirs["memory"] / "memory.force_empty", "0")

    def pids(self) -> list[int]:
        return sorted({pid for top in self._tops for pid in cgroup.list_pids(top)})

    def kill(self) -> None:
        if not self._dirs["cpu"].exists():
            return
        # Dying needs CPU time as well, and nothing may be forked meanwhile.
        with contextlib.suppress(MachineError):
            self.set_cpu(CpuLimit(UNLIMITED, 100_000))
        with contextlib.suppress(MachineError):
            self.set_pids(0)
        for top in self._tops:
            cgroup.kill_all(top)

    def remove(self) -> None:
        for top in self._tops:
            if top.exists():
                cgroup.remove_tree(top)
