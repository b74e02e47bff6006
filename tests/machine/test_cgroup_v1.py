"""The version 1 driver on plain directories that stand for the hierarchies."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from harness.errors import HostUnfit, MachineError
from harness.machine import cgroup
from harness.machine.cgroup import UNLIMITED, CpuLimit, IoLimit
from harness.machine.cgroup_v1 import CgroupV1

if TYPE_CHECKING:
    from pathlib import Path

CONTROLLERS = ("cpu", "cpuacct", "memory", "pids", "blkio")


@pytest.fixture
def roots(tmp_path: Path) -> dict[str, Path]:
    """One directory per controller."""
    found = {name: tmp_path / name for name in CONTROLLERS}
    for path in found.values():
        path.mkdir()
    return found


@pytest.fixture
def driver(roots: dict[str, Path]) -> CgroupV1:
    """A group that exists."""
    made = CgroupV1("coldbench-00000001", roots)
    made.create()
    return made


def test_entering_names_each_hierarchy_once(tmp_path: Path) -> None:
    """A process enters every hierarchy; cpu and cpuacct mounted together are one."""
    both = tmp_path / "cpu,cpuacct"
    memory = tmp_path / "memory"
    for path in (both, memory):
        path.mkdir()
    driver = CgroupV1("g", {"cpu": both, "cpuacct": both, "memory": memory})
    driver.create()
    assert driver.entry_files() == [str(both / "g" / "cgroup.procs"), str(memory / "g" / "cgroup.procs")]


def test_missing_controller_is_unfit(roots: dict[str, Path]) -> None:
    """Without the memory controller there is no machine, and the message says so."""
    del roots["memory"]
    with pytest.raises(HostUnfit, match="memory"):
        CgroupV1("g", roots)


def test_cpu_limit_is_written_and_read_back(driver: CgroupV1, roots: dict[str, Path]) -> None:
    """Quota and period land in the CFS files; unlimited is -1."""
    driver.set_cpu(CpuLimit(5000, 80_000))
    group = roots["cpu"] / driver.name
    assert (group / "cpu.cfs_quota_us").read_text() == "5000"
    assert (group / "cpu.cfs_period_us").read_text() == "80000"
    assert driver.read_cpu() == CpuLimit(5000, 80_000)
    driver.set_cpu(CpuLimit.of_cores(None, 80_000))
    assert driver.read_cpu().quota_us == UNLIMITED


def test_memory_limit_covers_swap(driver: CgroupV1, roots: dict[str, Path]) -> None:
    """Memory and memory+swap get the same limit where the kernel counts swap."""
    swap = roots["memory"] / driver.name / "memory.memsw.limit_in_bytes"
    swap.write_text("9223372036854771712")
    driver.set_memory(1 << 30)
    assert swap.read_text() == str(1 << 30)
    assert driver.read_memory() == 1 << 30
    (roots["memory"] / driver.name / "memory.limit_in_bytes").write_text("9223372036854771712")
    assert driver.read_memory() is None


def test_io_limit_needs_a_kernel_that_throttles(driver: CgroupV1, roots: dict[str, Path]) -> None:
    """The limit is refused, not ignored, where the throttling files are missing."""
    limit = IoLimit((7, 3), bytes_per_s=10_000_000)
    assert not driver.set_io(limit)
    for name in ("read_bps", "write_bps", "read_iops", "write_iops"):
        (roots["blkio"] / driver.name / f"blkio.throttle.{name}_device").touch()
    assert driver.set_io(limit)
    assert (roots["blkio"] / driver.name / "blkio.throttle.write_bps_device").read_text() == "7:3 10000000"
    assert (roots["blkio"] / driver.name / "blkio.throttle.write_iops_device").read_text() == "7:3 0"


def test_counters(driver: CgroupV1, roots: dict[str, Path]) -> None:
    """The exact total is split in the ratio of the sampled parts; times are seconds, peaks bytes."""
    cpu, accounting, memory = (roots[name] / driver.name for name in ("cpu", "cpuacct", "memory"))
    (cpu / "cpu.stat").write_text("nr_periods 40\nnr_throttled 30\nthrottled_time 2500000000\n")
    (accounting / "cpuacct.usage").write_text("1000000000\n")
    (accounting / "cpuacct.usage_user").write_text("300000000\n")
    (accounting / "cpuacct.usage_sys").write_text("900000000\n")
    (accounting / "cpuacct.stat").write_text("user 3\nsystem 9\n")
    (memory / "memory.max_usage_in_bytes").write_text("4096\n")
    (memory / "memory.stat").write_text("cache 1\nrss 2\ntotal_cache 512\ntotal_rss 400\n")
    (memory / "memory.usage_in_bytes").write_text("1024\n")
    (memory / "memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 2\n")
    counters = driver.counters()
    assert counters.cpu_user_s == pytest.approx(0.25)
    assert counters.cpu_system_s == pytest.approx(0.75)
    assert counters.cpu_total_s == driver.cpu_used_s() == 1.0
    assert (counters.nr_periods, counters.nr_throttled, counters.throttled_s) == (40, 30, 2.5)
    assert (counters.memory_peak_bytes, counters.memory_bytes, counters.oom_kills) == (4096, 1024, 2)
    assert counters.memory_cache_bytes == 512


def test_split_falls_back_to_jiffies(driver: CgroupV1, roots: dict[str, Path]) -> None:
    """Kernels without the nanosecond split have cpuacct.stat's in jiffies."""
    accounting = roots["cpuacct"] / driver.name
    (accounting / "cpuacct.usage").write_text("2000000000\n")
    (accounting / "cpuacct.stat").write_text("user 150\nsystem 50\n")
    assert driver.counters().cpu_user_s == pytest.approx(1.5)


def test_pids_come_from_groups_below_too(driver: CgroupV1, roots: dict[str, Path]) -> None:
    """A container runtime's own groups below the machine's belong to it; each process counts once."""
    (roots["cpu"] / driver.name / "cgroup.procs").write_text("10\n11\n")
    child = roots["memory"] / driver.name / "container"
    child.mkdir()
    (child / "cgroup.procs").write_text("11\n12\n")
    assert driver.pids() == [10, 11, 12]


def test_remove_takes_groups_below_along(driver: CgroupV1, roots: dict[str, Path]) -> None:
    """Removal goes from the leaves up, and a second one finds nothing to do."""
    (roots["memory"] / driver.name / "a" / "b").mkdir(parents=True)
    driver.remove()
    assert [path for root in roots.values() for path in root.iterdir()] == []
    driver.remove()
    driver.kill()


def test_a_refused_write_names_file_and_value(tmp_path: Path) -> None:
    """An error of the kernel becomes one line that says what was written where."""
    with pytest.raises(MachineError, match=r"cannot write '1' to .*missing/file"):
        cgroup.write_value(tmp_path / "missing" / "file", "1")


MOUNTINFO_V1 = """\
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
38 31 0:35 / /sys/fs/cgroup/blkio rw,relatime - cgroup cgroup rw,blkio
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
"""


def test_hybrid_host_is_version_1() -> None:
    """A host with its controllers in version 1 and an empty unified hierarchy is driven through version 1."""
    mounts = cgroup.find_mounts(MOUNTINFO_V1)
    assert mounts.version == 1
    assert str(mounts.v1["cpuacct"]) == "/sys/fs/cgroup/cpu,cpuacct"
    assert str(mounts.v2) == "/sys/fs/cgroup/unified"


def test_every_hierarchy_is_known_and_stray_groups_go(tmp_path: Path) -> None:
    """Groups of one name are removed in hierarchies that machines are not in, too; other names stay."""
    lines = [f"30 1 0:7 / {tmp_path}/{name} rw - cgroup cgroup rw,{name}" for name in ("cpu", "freezer")]
    lines.append(f"31 1 0:9 / {tmp_path}/unified rw - cgroup2 cgroup2 rw")
    mounts = cgroup.find_mounts("\n".join(lines))
    assert mounts.roots == (tmp_path / "cpu", tmp_path / "freezer", tmp_path / "unified")
    for root in mounts.roots:
        (root / "coldbench-1" / "container").mkdir(parents=True)
        (root / "coldbench-2").mkdir()
    cgroup.remove_strays("coldbench-1", mounts)
    assert [sorted(os.listdir(root)) for root in mounts.roots] == [["coldbench-2"]] * 3


def test_unified_host_is_version_2(tmp_path: Path) -> None:
    """A host with the controllers in the unified hierarchy is driven through version 2."""
    (tmp_path / "cgroup.controllers").write_text("cpuset cpu io memory pids\n")
    mounts = cgroup.find_mounts(f"29 22 0:26 / {tmp_path} rw - cgroup2 cgroup2 rw,nsdelegate\n")
    assert mounts.version == 2
    assert cgroup.make_driver("coldbench-00000001", mounts).version == 2


def test_host_without_controllers_is_unfit() -> None:
    """No controllers anywhere: unfit, with the command that says more."""
    mounts = cgroup.find_mounts("22 1 0:21 / /proc rw - proc proc rw\n")
    assert mounts.version == 0
    with pytest.raises(HostUnfit, match="doctor"):
        cgroup.make_driver("g", mounts)
