"""What is different in a container is told from what the kernel shows there, and only there."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from harness.machine import surroundings

if TYPE_CHECKING:
    from pathlib import Path

OVERLAY = "22 1 0:50 / / rw - overlay overlay rw\n23 22 8:1 / /var/lib/coldbench rw - ext4 /dev/sda1 rw\n"
DISK = "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n"


def _root(place: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return place


@pytest.mark.parametrize(
    ("files", "kind"),
    [
        ({"proc/1/cgroup": "0::/\n"}, ""),
        ({"proc/1/cgroup": "9:cpu:/docker/abc\n"}, "docker"),
        ({"proc/1/cgroup": "0::/kubepods.slice/pod1\n"}, "kubernetes"),
        ({"proc/1/cgroup": "0::/\n", "run/.containerenv": ""}, "podman"),
        ({"proc/1/cgroup": "0::/\n", ".dockerenv": "", "proc/self/mountinfo": OVERLAY}, "docker"),
        ({"proc/1/cgroup": "0::/\n", ".dockerenv": "", "proc/self/mountinfo": DISK}, ""),
    ],
)
def test_kinds_of_container(tmp_path: Path, files: dict[str, str], kind: str) -> None:
    """Docker with and without the host's groups, podman, Kubernetes; a VM whose disk was an image is none."""
    assert surroundings.container(_root(tmp_path, files)) == kind


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"proc/self/cgroup": "0::/a\n", "sys/fs/cgroup/a/cpu.max": "150000 100000\n"}, 1.5),
        ({"proc/self/cgroup": "0::/a\n", "sys/fs/cgroup/a/cpu.max": "max 100000\n"}, None),
        (
            {
                "proc/self/cgroup": "4:cpu,cpuacct:/docker/x\n2:memory:/\n",
                "sys/fs/cgroup/cpu/docker/x/cpu.cfs_quota_us": "50000\n",
                "sys/fs/cgroup/cpu/docker/x/cpu.cfs_period_us": "100000\n",
            },
            0.5,
        ),
        ({"proc/self/cgroup": "4:cpu:/\n", "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n"}, None),
        ({}, None),
    ],
)
def test_the_containers_own_cpu_limit(tmp_path: Path, files: dict[str, str], cores: float | None) -> None:
    """Read of version 2 and 1; no quota, or nothing to read, is no limit."""
    assert surroundings.cpu_limit_cores(_root(tmp_path, files)) == cores


def test_a_volume_is_told_from_the_overlay(tmp_path: Path) -> None:
    """The longest mount point above a path counts, whole names only."""
    (tmp_path / "mountinfo").write_text(OVERLAY)
    for path, kind in (("/var/lib/coldbench/cache", "ext4"), ("/var/lib/coldbench2", "overlay"), ("/", "overlay")):
        assert surroundings.file_system(tmp_path / "mountinfo", tmp_path.__class__(path)) == kind
