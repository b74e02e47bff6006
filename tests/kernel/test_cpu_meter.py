"""What a process inside a machine sees of its CPU, from files like the kernel's."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from harness.kernel.cpu_meter import CpuMeter, CpuReading

if TYPE_CHECKING:
    from pathlib import Path

STAT = "cpu  100 0 50 700 50 0 0 0 0 0\ncpu0 100 0 50 700 50 0 0 0 0 0\n"


def proc(place: Path, mountinfo: list[str], groups: list[str]) -> str:
    """A /proc of these mounts and groups."""
    (place / "proc" / "self").mkdir(parents=True)
    (place / "proc" / "stat").write_text(STAT)
    (place / "proc" / "self" / "mountinfo").write_text("".join(line + "\n" for line in mountinfo))
    (place / "proc" / "self" / "cgroup").write_text("".join(line + "\n" for line in groups))
    return str(place / "proc")


def write(directory: Path, **files: str) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (directory / name.replace("__", ".", 1)).write_text(text)


@pytest.mark.files
def test_version_1(tmp_path: Path) -> None:
    """The nearest group with a quota counts, which may be one above, and cpuacct may be a hierarchy of its own."""
    cpu, usage = tmp_path / "cpu", tmp_path / "cpuacct"
    write(cpu / "m" / "inner", cpu__cfs_quota_us="-1\n", cpu__cfs_period_us="100000\n")
    write(cpu / "m", cpu__cfs_quota_us="25000\n", cpu__cfs_period_us="100000\n")
    write(usage / "m", cpuacct__usage="1500000000\n")
    where = proc(
        tmp_path,
        [f"30 20 0:20 / {cpu} rw - cgroup cgroup rw,cpu", f"31 20 0:21 / {usage} rw - cgroup cgroup rw,cpuacct"],
        ["2:cpuacct:/m/inner", "1:cpu:/m/inner", "0::/"],
    )
    assert CpuMeter(where).read() == CpuReading(1.5, 0.25)
    write(cpu / "m", cpu__cfs_quota_us="200000\n")
    assert CpuMeter(where).read() == CpuReading(1.5, 2.0), "credits move the quota"


@pytest.mark.files
def test_version_2(tmp_path: Path) -> None:
    """The unified hierarchy, seen from a mount that shows a part of it."""
    group = tmp_path / "unified" / "m"
    write(group, cpu__max="50000 100000\n", cpu__stat="usage_usec 2500000\nuser_usec 1\n")
    mounts = [f"30 20 0:20 /slice {tmp_path / 'unified'} rw - cgroup2 cgroup2 rw"]
    assert CpuMeter(proc(tmp_path, mounts, ["0::/slice/m"])).read() == CpuReading(2.5, 0.5)


@pytest.mark.files
def test_without_a_quota_the_host_counts(tmp_path: Path) -> None:
    """Then all that ran on its cores was used."""
    cores = float(len(os.sched_getaffinity(0)))
    used_s = 150 / os.sysconf("SC_CLK_TCK")
    assert CpuMeter(proc(tmp_path, [], ["0::/"])).read() == CpuReading(used_s, cores)


@pytest.mark.files
def test_waiting_for_a_core_is_seen(tmp_path: Path) -> None:
    """The kernel says of each thread how long it was ready and did not run."""
    where = proc(tmp_path, [], ["0::/"])
    write(tmp_path / "proc" / "thread-self", schedstat="5000000 2500000000 17\n")
    found = CpuMeter(where).read()
    assert found is not None
    assert found.delayed_s == 2.5
    real = CpuMeter().read()
    assert real is not None
    assert real.delayed_s > 0.0


@pytest.mark.files
def test_what_is_not_seen_is_not_known(tmp_path: Path) -> None:
    """Without /proc there is no figure, and no error either."""
    assert CpuMeter(str(tmp_path / "nowhere")).read() is None
