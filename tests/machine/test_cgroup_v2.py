"""The version 2 driver on a plain directory that stands for the unified hierarchy."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from harness.errors import HostUnfit
from harness.machine.cgroup import UNLIMITED, CpuLimit, IoLimit
from harness.machine.cgroup_v2 import CgroupV2

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def driver(tmp_path: Path) -> CgroupV2:
    """A group that exists below a root that offers what a distribution's kernel offers."""
    (tmp_path / "cgroup.controllers").write_text("cpuset cpu io memory hugetlb pids rdma\n")
    (tmp_path / "cgroup.subtree_control").write_text("memory pids\n")
    made = CgroupV2("coldbench-00000001", tmp_path)
    made.create()
    return made


def test_controllers_are_enabled_down_to_the_leaf(driver: CgroupV2, tmp_path: Path) -> None:
    """Missing controllers are enabled at the root and in the group; processes enter a leaf."""
    assert (tmp_path / "cgroup.subtree_control").read_text() == "+cpu +io"
    assert (tmp_path / driver.name / "cgroup.subtree_control").read_text() == "+cpu +memory +pids +io"
    assert driver.entry_files() == [str(tmp_path / driver.name / "engine" / "cgroup.procs")]


def test_missing_controller_is_unfit(tmp_path: Path) -> None:
    """Without the cpu controller there is no machine, and the message says so."""
    (tmp_path / "cgroup.controllers").write_text("memory pids\n")
    with pytest.raises(HostUnfit, match="cpu"):
        CgroupV2("g", tmp_path).create()


def test_limits_are_written_and_read_back(driver: CgroupV2, tmp_path: Path) -> None:
    """Fly's shape is ``cpu.max "5000 80000"``; memory has no swap beyond it."""
    group = tmp_path / driver.name
    (group / "memory.swap.max").write_text("max")
    (group / "pids.max").write_text("max")
    driver.set_cpu(CpuLimit.of_cores(0.0625, 80_000))
    driver.set_memory(256 << 20)
    driver.set_pids(100)
    assert (group / "cpu.max").read_text() == "5000 80000"
    assert (group / "memory.swap.max").read_text() == "0"
    assert driver.read_cpu() == CpuLimit(5000, 80_000)
    assert (driver.read_memory(), driver.read_pids()) == (256 << 20, 100)
    driver.set_cpu(CpuLimit(UNLIMITED, 100_000))
    driver.set_memory(None)
    driver.set_pids(None)
    assert (group / "cpu.max").read_text() == "max 100000"
    assert driver.read_cpu().cores is None
    assert (driver.read_memory(), driver.read_pids()) == (None, None)


def test_io_limit(driver: CgroupV2, tmp_path: Path) -> None:
    """One line of io.max holds all four limits; without the controller the limit is refused."""
    limit = IoLimit((7, 0), bytes_per_s=8 << 20, iops=2000)
    assert not driver.set_io(limit)
    (tmp_path / driver.name / "io.max").touch()
    assert driver.set_io(limit)
    text = (tmp_path / driver.name / "io.max").read_text()
    assert text == "7:0 rbps=8388608 wbps=8388608 riops=2000 wiops=2000"
    assert driver.set_io(IoLimit((7, 0)))
    assert "rbps=max wbps=max riops=max wiops=max" in (tmp_path / driver.name / "io.max").read_text()


def test_counters(driver: CgroupV2, tmp_path: Path) -> None:
    """cpu.stat is in microseconds; oom kills come from memory.events."""
    group = tmp_path / driver.name
    (group / "cpu.stat").write_text(
        "usage_usec 1000000\nuser_usec 600000\nsystem_usec 400000\n"
        "nr_periods 7\nnr_throttled 3\nthrottled_usec 500000\n"
    )
    (group / "memory.current").write_text("1000\n")
    (group / "memory.stat").write_text("anon 300\nfile 650\nfile_mapped 20\n")
    (group / "memory.peak").write_text("5000\n")
    (group / "memory.events").write_text("low 0\nhigh 0\nmax 9\noom 1\noom_kill 1\n")
    counters = driver.counters()
    assert (counters.cpu_user_s, counters.cpu_system_s, counters.cpu_total_s) == (0.6, 0.4, 1.0)
    assert (counters.nr_periods, counters.nr_throttled, counters.throttled_s) == (7, 3, 0.5)
    assert (counters.memory_peak_bytes, counters.oom_kills) == (5000, 1)
    assert (counters.memory_bytes, counters.memory_cache_bytes) == (1000, 650)
    assert driver.cpu_used_s() == 1.0


def test_peak_from_samples_where_the_kernel_has_none(driver: CgroupV2, tmp_path: Path) -> None:
    """Before memory.peak (Linux 5.19) the highest level seen stands for it, and can be started anew."""
    current = tmp_path / driver.name / "memory.current"
    for level in (1000, 9000, 2000):
        current.write_text(str(level))
        counters = driver.counters()
    assert counters.memory_peak_bytes == 9000
    driver.reset_peak()
    assert driver.counters().memory_peak_bytes == 2000


def test_removed_twice(driver: CgroupV2, tmp_path: Path) -> None:
    """Removal goes from the leaves up; what is not there is not an error."""
    (tmp_path / driver.name / "cgroup.subtree_control").unlink()
    driver.remove()
    assert not (tmp_path / driver.name).exists()
    driver.remove()
    driver.kill()
