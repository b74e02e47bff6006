"""This module says what is different when coldbench itself runs in a container: what it shares and what it lacks."""

from __future__ import annotations

import os
import re
from pathlib import Path

from harness.machine import cgroup
from harness.machine.records import RUN_DIR
from harness.machine.scratch import default_directory

_OWN = re.compile(r"/(docker|kubepods|libpod|lxc)[-/.:]")


def container(root: Path = Path("/")) -> str:
    """Names the kind of container that this process runs in: ``docker``, ``podman`` …; empty on a host or in a VM.

    A disk image that was made from a container image has ``/.dockerenv`` too, so that file counts only on an overlay.
    """
    if (root / "run/.containerenv").exists():
        return "podman"
    groups = cgroup.read_text(root / "proc/1/cgroup")
    found = _OWN.search(groups)
    if found:
        return {"kubepods": "kubernetes", "libpod": "podman"}.get(found[1], found[1])
    if (root / ".dockerenv").exists() and file_system(root / "proc/self/mountinfo", root) == "overlay":
        return "docker"
    return ""


def file_system(mountinfo: Path, path: Path) -> str:
    """Names the kind of file system that a path is on, by the longest mount point above it; empty where that is not
    known.
    """
    wanted = os.path.realpath(path)
    best, kind = "", ""
    for line in cgroup.read_text(mountinfo).splitlines():
        left, _, right = line.partition(" - ")
        words = left.split()
        if len(words) < 5 or not right:
            continue
        point = words[4]
        above = point in ("/", wanted) or wanted.startswith(f"{point}/")
        if above and len(point) >= len(best):
            best, kind = point, right.split()[0]
    return kind


def cpu_limit_cores(root: Path = Path("/")) -> float | None:
    """Says what the container itself may use, None for no limit: a machine inside cannot have more than that."""
    for line in cgroup.read_text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        relative = path.strip("/")
        if not controllers:
            quota, _, period = cgroup.read_text(root / "sys/fs/cgroup" / relative / "cpu.max").strip().partition(" ")
        elif "cpu" in controllers.split(","):
            place = root / "sys/fs/cgroup/cpu" / relative
            quota = cgroup.read_text(place / "cpu.cfs_quota_us").strip()
            period = cgroup.read_text(place / "cpu.cfs_period_us").strip()
        else:
            continue
        if quota.isdigit() and period.isdigit() and int(period):
            return int(quota) / int(period)
    return None


def stacked_places(cache: Path) -> list[str]:
    """Lists which of our directories lie on the container's overlay, where no overlay can be stacked and disks are
    slow.
    """
    mountinfo = Path("/proc/self/mountinfo")
    places = {"cache": cache, "scratch disks": default_directory()}
    return [f"{name} ({path})" for name, path in places.items() if file_system(mountinfo, _existing(path)) == "overlay"]


def _existing(path: Path) -> Path:
    return next(place for place in (path, *path.parents) if place.exists())


def sees_host_groups(mounts: cgroup.CgroupMounts) -> bool:
    """Says whether control groups are the host's: in a namespace of its own a container is at the
    root of what it sees.
    """
    if mounts.version != 2:
        return True
    own = cgroup.read_text(Path("/proc/self/cgroup"))
    return not own.strip().endswith(":/") or not container()


def records_are_shared() -> bool:
    """Says whether records of what runs here are the host's own, so that its ``coldbench clean`` finds them."""
    return file_system(Path("/proc/self/mountinfo"), _existing(RUN_DIR)) not in {"overlay", ""}
