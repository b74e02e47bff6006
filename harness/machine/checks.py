"""This module checks whether this host can do what is asked of it, and says for each check how to mend it."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from harness.errors import HostUnfit
from harness.machine import cgroup, host, network_filter, shaping, surroundings
from harness.machine.devices import STANDARD
from harness.machine.records import Record, recorded_directory
from harness.machine.scratch import default_directory
from harness.oci.cache import cache_root

Level = Literal["ok", "warn", "fail"]

STEAL_LIMIT = 0.02
LOAD_LIMIT = 0.5
_PROBE = Path(__file__).with_name("mount_probe.py")

#: Program, Debian package, and whether the main job needs it.
_TOOLS = (
    ("mkfs.ext4", "e2fsprogs", True),
    ("docker-registry", "docker-registry", True),
    ("fusermount3", "fuse3", False),
    ("mmdebstrap", "mmdebstrap", False),
)


@dataclass(frozen=True, slots=True)
class Check:
    """Holds one finding. ``fail``: trials cannot run here; ``warn``: something is missing, or results will be noisy."""

    name: str
    level: Level
    found: str
    mend: str = ""


def run_checks(facts: host.HostFacts) -> list[Check]:
    """Makes all checks, in the order in which a user should mend what fails."""
    root = os.geteuid() == 0
    checks = [
        Check("root", "ok" if root else "fail", "yes" if root else "no", "" if root else "run this with sudo"),
        _cgroups(root),
    ]
    if root:
        checks += _mounts()
        checks += _shaping()
    checks += _tools()
    checks += _noise(facts)
    checks += _surroundings()
    return checks


def _surroundings() -> list[Check]:
    """Checks what is different in a container; there is nothing on a host."""
    kind = surroundings.container()
    if not kind:
        return []
    found = [
        Check("container", "ok", f"this runs in one ({kind}): the kernel, its modules and its noise are the host's")
    ]
    limit = surroundings.cpu_limit_cores()
    if limit is not None:
        text = f"the container may use {limit:g} cores: machines, registry and harness share them"
        found.append(Check("its CPU limit", "warn", text, "run it without --cpus and --cpu-quota"))
    if not surroundings.sees_host_groups(cgroup.find_mounts()):
        text = "a namespace of its own, with this process at its root"
        found.append(Check("its control groups", "warn", text, "--cgroupns=host -v /sys/fs/cgroup:/sys/fs/cgroup"))
    stacked = surroundings.stacked_places(cache_root())
    if stacked:
        text = f"on the container's overlay: {', '.join(stacked)}; recipes cannot be built there, disks are slow"
        found.append(
            Check("its directories", "warn", text, "-v coldbench:/var/lib/coldbench, or COLDBENCH_CACHE and _SCRATCH")
        )
    if not Path(f"/lib/modules/{os.uname().release}").exists():
        text = "not seen here: what says modprobe below or above is to be done on the host"
        found.append(Check("its modules", "ok", text))
    if not surroundings.records_are_shared():
        text = "its own: after a kill -9 the host's `coldbench clean` knows nothing of what it left"
        found.append(Check("its records", "ok", text, "-v /run/coldbench:/run/coldbench shares them"))
    return found


def _cgroups(root: bool) -> Check:
    mounts = cgroup.find_mounts()
    if mounts.version == 0:
        return Check(
            "cgroups", "fail", "no hierarchy with the cpu and memory controllers",
            "mount cgroup2 on /sys/fs/cgroup (systemd does), or run the container privileged with the host's /sys",
        )  # fmt: skip
    if root:
        record = Record.new("doctor")
        record.save()
        driver = cgroup.make_driver(record.name, mounts)
        try:
            driver.create()
            driver.set_cpu(cgroup.CpuLimit(25_000, 100_000))
            if driver.read_cpu() != cgroup.CpuLimit(25_000, 100_000):
                return Check("cgroups", "fail", "a CPU quota does not hold", "the kernel needs CONFIG_CFS_BANDWIDTH")
            driver.confine(STANDARD)
        except HostUnfit as error:
            return Check("cgroups", "fail", str(error), "containers of an image nobody vouches for need them")
        except Exception as error:
            return Check("cgroups", "fail", str(error), "the control groups must be writable: not a read-only mount")
        finally:
            driver.remove()
            record.remove()
    note = "" if mounts.version == 2 else "version 1 limits only unbuffered disk writes"
    lists = ", device lists" if root else ""
    return Check("cgroups", "ok", f"version {mounts.version}{lists}", note)


def _disk() -> Path:
    """Returns where machines' disks lie; mounts are tried there, since an overlay would refuse some of them."""
    place = default_directory()
    place.mkdir(parents=True, exist_ok=True)
    return place


def _mounts() -> list[Check]:
    with recorded_directory("doctor", _disk()) as top:
        (top / "mnt").mkdir()
        (top / "empty").mkdir()
        image = top / "erofs.img"
        mkfs = host.find_tool("mkfs.erofs")
        if mkfs is not None:
            subprocess.run([mkfs, str(image), str(top / "empty")], capture_output=True, check=False)
        said = subprocess.run(
            [sys.executable, "-S", "-E", str(_PROBE), str(top / "mnt"), *([str(image)] if image.exists() else [])],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    works = said.stdout.split()
    checks = [
        Check("namespaces", "ok", "mount and network")
        if "namespaces" in works
        else Check("namespaces", "fail", "not allowed", "run outside of a container, or in a privileged one"),
        Check("overlay", "ok", "mounts")
        if "overlay" in works
        else Check("overlay", "fail", "does not mount", "modprobe overlay"),
    ]
    if "fuse-resend" in works:
        checks.append(Check("fuse", "ok", "a daemon that dies is replaced"))
    elif os.path.exists("/dev/fuse") and _opens("/dev/fuse"):
        checks.append(
            Check("fuse", "ok", "a lazy mount dies with its daemon", "Linux 6.9 or later lets another one take over")
        )
    else:
        checks.append(Check("fuse", "warn", "/dev/fuse does not open; no lazy mode", "modprobe fuse"))
    if "erofs-file" in works:
        checks.append(Check("erofs", "ok", "mounts from a file"))
    elif mkfs is None and "erofs" in host.file_systems():
        checks.append(Check("erofs", "warn", "known, mounting from a file not tried", "apt-get install erofs-utils"))
    else:
        checks.append(
            Check("erofs", "warn", "does not mount from a file; mode erofs will not run",
                  "Linux 6.12 or later with CONFIG_EROFS_FS_BACKED_BY_FILE; modprobe erofs")
        )  # fmt: skip
    if os.path.exists("/dev/loop-control"):
        checks.append(Check("loop", "ok", "/dev/loop-control"))
    else:
        checks.append(Check("loop", "fail", "no /dev/loop-control", "modprobe loop"))
    return checks


def _opens(path: str) -> bool:
    try:
        os.close(os.open(path, os.O_RDWR))
    except OSError:
        return False
    return True


def _shaping() -> list[Check]:
    try:
        tbf = shaping.has_tbf()
        netem = shaping.has_netem()
        filtered = _network_filter()
    except Exception as error:
        return [Check("shaping", "fail", f"no veth pair: {error}", "modprobe veth")]
    return [
        filtered,
        Check("bandwidth", "ok", "tbf") if tbf else Check("bandwidth", "fail", "no tbf", "modprobe sch_tbf"),
        Check("round trip", "ok", "netem")
        if netem
        else Check(
            "round trip", "ok", "delaying relay (the kernel has no netem)", "modprobe sch_netem, if you want it"
        ),
    ]


def _network_filter() -> Check:
    try:
        found = network_filter.way()
    except HostUnfit as error:
        return Check(
            "network filter", "fail", str(error), "modprobe -a sch_ingress cls_bpf, or apt-get install nftables"
        )
    return Check("network filter", "ok", f"{found}: containers reach the registry, not this host")


def _tools() -> list[Check]:
    checks = []
    runtime = next((name for name in ("crun", "runc") if host.find_tool(name)), None)
    if runtime is None:
        checks.append(Check("container runtime", "fail", "neither crun nor runc", "apt-get install crun"))
    else:
        checks.append(_runtime(runtime))
    for name, package, needed in _TOOLS:
        if host.find_tool(name):
            checks.append(Check(name, "ok", "installed"))
        else:
            level: Level = "fail" if needed else "warn"
            checks.append(Check(name, level, "not installed", f"apt-get install {package}"))
    return checks


def _runtime(name: str) -> Check:
    """Checks that crun or runc runs, since not every installed one does, and says what is hidden from crun."""
    found = host.tool_version(name)
    if found in ("", "does not run"):
        return Check("container runtime", "fail", f"{name} does not run", f"apt-get install --reinstall {name}")
    held = cgroup.find_mounts().hybrid_controllers if name == "crun" else ()
    note = f"crun refuses version 2 groups that hold {', '.join(held)}: hidden from it in machines" if held else ""
    return Check("container runtime", "ok", found if name in found else f"{name} {found}", note)


def _noise(facts: host.HostFacts) -> list[Check]:
    steal = facts.steal_share
    checks = [
        Check("steal", "ok", f"{steal:.1%}")
        if steal <= STEAL_LIMIT
        else Check("steal", "warn", f"{steal:.1%} of the CPU time goes to other guests", "measure at a quieter time"),
        Check("load", "ok", f"{facts.load_per_core:.2f} per core")
        if facts.load_per_core <= LOAD_LIMIT
        else Check("load", "warn", f"{facts.load_per_core:.2f} per core", "stop what else runs here"),
        Check("cores", "ok", str(facts.cores))
        if facts.cores >= 2
        else Check(
            "cores", "warn", str(facts.cores), "the registry needs a core beside the machine's: use two or more"
        ),
    ]
    if facts.governor in ("", "performance"):
        checks.append(Check("governor", "ok", facts.governor or "not shown by this host"))
    else:
        checks.append(
            Check("governor", "warn", facts.governor, "cpupower frequency-set -g performance keeps the clock steady")
        )
    return checks
