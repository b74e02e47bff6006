"""This module says what this host is: it collects facts once per session, for every result to carry."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import time
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from harness.errors import NotRoot

#: Program and the arguments that make it print its version.
TOOLS = {
    "crun": ("--version",),
    "runc": ("--version",),
    "docker-registry": ("--version",),
    "mkfs.ext4": ("-V",),
    "fusermount3": ("--version",),
    "mmdebstrap": ("--version",),
    "dockerd": ("--version",),
    "containerd": ("--version",),
    "mkfs.erofs": ("--version",),
}
_SBIN = "/usr/local/sbin:/usr/sbin:/sbin"


def require_root(what: str) -> None:
    """Raises ``NotRoot`` unless this process may make namespaces, mounts and control groups."""
    if os.geteuid() != 0:
        raise NotRoot(f"{what} needs root; run this with sudo")


class HostFacts(BaseModel):
    """Describes this host at one moment; ``model_dump`` gives JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = ""
    """This name tells the host from others of a campaign, without saying which it is."""
    kernel: str
    machine: str
    cpu_model: str
    cores: int
    memory_bytes: int
    virtualised: bool
    cgroup_version: int
    file_systems: tuple[str, ...]
    """Lists the file systems that matter here: ext4, overlay, fuse, erofs, xfs, btrfs."""
    tools: dict[str, str]
    steal_share: float
    """This is the part of the CPU time that the hypervisor kept for others, over the time of the look."""
    load_per_core: float
    governor: str
    """Names the CPU frequency governor; empty where the host shows none."""
    git_commit: str
    """Names the commit of the checkout this program runs from; empty for an installed one."""


def collect(look_s: float = 0.3) -> HostFacts:
    """Looks at this host for ``look_s`` seconds (steal is a rate)."""
    before = cpu_ticks()
    commit = git_commit()
    tools = {name: version for name in TOOLS if (version := tool_version(name))}
    time.sleep(look_s)
    from harness.machine.cgroup import find_mounts

    return HostFacts(
        name=host_name(),
        kernel=os.uname().release,
        machine=os.uname().machine,
        cpu_model=cpu_model(),
        cores=usable_cores(),
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        virtualised=" hypervisor" in _cpuinfo("flags"),
        cgroup_version=find_mounts().version,
        file_systems=file_systems(),
        tools=tools,
        steal_share=steal_share(before, cpu_ticks()),
        load_per_core=round(os.getloadavg()[0] / usable_cores(), 3),
        governor=governor(),
        git_commit=commit,
    )


def host_name() -> str:
    """Returns ``COLDBENCH_HOST``, else a short digest of the kernel's boot id: the same for all that runs on this host
    now.
    """
    named = os.environ.get("COLDBENCH_HOST", "")
    boot = _read("/proc/sys/kernel/random/boot_id").strip()
    return named or f"host-{hashlib.sha256(boot.encode()).hexdigest()[:8]}"


def usable_cores() -> int:
    """Counts the cores this process may run on."""
    return len(os.sched_getaffinity(0))


def cpu_model() -> str:
    """Returns the model as /proc/cpuinfo names it; the architecture where it does not."""
    return _cpuinfo("model name") or os.uname().machine


def _cpuinfo(key: str) -> str:
    for line in _read("/proc/cpuinfo").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == key:
            return f" {value.strip()}" if key == "flags" else value.strip()
    return ""


def file_systems() -> tuple[str, ...]:
    """Lists the file systems known to the running kernel (one whose module is not loaded yet is not)."""
    known = {line.split("\t")[-1] for line in _read("/proc/filesystems").splitlines()}
    return tuple(name for name in ("ext4", "overlay", "fuse", "erofs", "xfs", "btrfs") if name in known)


def cpu_ticks() -> tuple[int, int]:
    """Returns (stolen, all) CPU time so far in ticks, over all cores (proc_stat(5))."""
    values = [int(v) for v in _read("/proc/stat").split("\n", 1)[0].split()[1:9]]
    return values[7], sum(values)


def steal_share(before: tuple[int, int], after: tuple[int, int]) -> float:
    """Returns the part of the CPU time between two looks that was stolen."""
    passed = after[1] - before[1]
    return round((after[0] - before[0]) / passed, 4) if passed > 0 else 0.0


def governor() -> str:
    """Returns the CPU frequency governor of the first core."""
    return _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").strip()


def find_tool(name: str) -> str | None:
    """Finds where a program is; looks in the sbin directories, too, which a user's PATH often lacks."""
    return shutil.which(name) or shutil.which(name, path=_SBIN)


def tool_version(name: str) -> str:
    """Returns the first line in which a program states its version; empty if it is not installed."""
    path = find_tool(name)
    if path is None:
        return ""
    try:
        said = subprocess.run([path, *TOOLS[name]], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return "does not run"
    lines = [line.strip() for line in (said.stdout + said.stderr).splitlines() if any(c.isdigit() for c in line)]
    return lines[0][:80] if lines else "installed"


def git_commit() -> str:
    """Returns the commit of the checkout this package lies in, with ``+`` if files differ from it."""
    top = Path(__file__).resolve().parents[2]
    git = find_tool("git")
    if git is None or not (top / ".git").exists():
        return ""

    def ask(*arguments: str) -> str:
        said = subprocess.run(
            [git, "-c", f"safe.directory={top}", "-C", str(top), *arguments],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        return said.stdout.strip() if said.returncode == 0 else ""

    commit = ask("rev-parse", "--short=12", "HEAD")
    return commit + ("+" if commit and ask("status", "--porcelain", "--untracked-files=no") else "")


def _read(path: str) -> str:
    try:
        return Path(path).read_text("utf-8", errors="replace")
    except OSError:
        return ""
