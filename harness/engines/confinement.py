"""This module says what a container is kept from: it has Docker's capabilities, devices, system calls and paths.

An image is not trusted. Whatever is executed from it, the container's process and run-time workloads alike, runs under
one of these; a scenario may ask for more, and the observation says that it did.

Sources: the manual of ``docker run``; moby, oci/defaults.go (masked and read-only paths); OCI runtime spec 1.0.
"""

from __future__ import annotations

import functools
import glob
import json
import os
import platform
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.engines import system_calls
from harness.errors import UsageError
from harness.kernel.privileges import own_capabilities
from harness.kernel.seccomp import compile_profile
from harness.machine.devices import STANDARD, rule_of
from harness.model.privileges import CAPABILITIES, DEFAULT_CAPABILITIES

if TYPE_CHECKING:
    from harness.engines.protocol import Process
    from harness.machine.devices import DeviceRule

_MASKED = (
    "/proc/asound", "/proc/acpi", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
    "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware",
    "/sys/devices/virtual/powercap",
)  # fmt: skip
_READ_ONLY = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")
_THERMAL = "/sys/devices/system/cpu/cpu*/thermal_throttle"
_EPERM, _ENOSYS = 1, 38


@dataclass(frozen=True, slots=True)
class Confinement:
    """Holds the default, and what a scenario asks for beyond: ``capabilities`` by full name, ``devices`` by path."""

    capabilities: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()
    privileged: bool = False

    @classmethod
    def of(cls, process: Process) -> Confinement:
        """Returns what a request's process asks for."""
        return cls(process.capabilities, process.devices, process.privileged)

    def described(self) -> dict[str, Any]:
        """Describes what is beyond the default, for the observation; empty for the default."""
        said: dict[str, Any] = {"privileged": True} if self.privileged else {}
        if self.capabilities:
            said["capabilities"] = list(self.capabilities)
        if self.devices:
            said["devices"] = list(self.devices)
        return said

    @property
    def all_capabilities(self) -> tuple[str, ...]:
        """Returns those the container's root has, as far as this process has them. Raises UsageError for one that was
        asked for.
        """
        own = own_capabilities()
        for name in self.capabilities:
            if CAPABILITIES.index(name) not in own:
                raise UsageError(f"workload.capabilities: root has no {name} here; leave it out, or run elsewhere")
        wanted = CAPABILITIES if self.privileged else dict.fromkeys((*DEFAULT_CAPABILITIES, *self.capabilities))
        return tuple(name for name in wanted if CAPABILITIES.index(name) in own)

    @property
    def capability_numbers(self) -> tuple[int, ...]:
        return tuple(CAPABILITIES.index(name) for name in self.all_capabilities)

    @property
    def no_new_privileges(self) -> bool:
        return not self.privileged

    @property
    def masked_paths(self) -> tuple[str, ...]:
        return () if self.privileged else (*_MASKED, *sorted(glob.glob(_THERMAL)))

    @property
    def read_only_paths(self) -> tuple[str, ...]:
        return () if self.privileged else _READ_ONLY

    def device_rules(self) -> tuple[DeviceRule, ...] | None:
        """Returns the device list of the container's control group; None for all devices. Raises UsageError for no
        device.
        """
        return None if self.privileged else (*STANDARD, *(rule_of(path) for path in self.devices))

    def device_nodes(self) -> list[dict[str, Any]]:
        """Returns the nodes the container finds beside the standard ones, as an OCI bundle lists them."""
        nodes = []
        for path in self.devices:
            rule, mode = rule_of(path), os.stat(path).st_mode & 0o777
            nodes.append({"path": path, "type": rule.kind, "major": rule.major, "minor": rule.minor, "fileMode": mode,
                          "uid": 0, "gid": 0})  # fmt: skip
        return nodes

    def seccomp(self) -> dict[str, Any] | None:
        """Returns the profile as an OCI bundle has it; None for every system call."""
        if self.privileged:
            return None
        names = [*system_calls.ALWAYS, *system_calls.OF_PROCESSOR.get(platform.machine(), ())]
        held = set(self.all_capabilities)
        for name, calls in system_calls.WITH_CAPABILITY.items():
            names += calls.split() if name in held else ()
        rules: list[dict[str, Any]] = [{"names": list(dict.fromkeys(names)), "action": "SCMP_ACT_ALLOW"}]
        rules.append(_allowed("socket", 0, system_calls.AF_VSOCK, "SCMP_CMP_NE"))
        rules += [_allowed("personality", 0, value, "SCMP_CMP_EQ") for value in system_calls.PERSONALITIES]
        if "CAP_SYS_ADMIN" not in held:
            # The flags are clone's first argument, on s390 its second. clone3 has them in memory, out of a filter's
            # sight: programs fall back to clone when it is said not to exist.
            place = 1 if platform.machine() == "s390x" else 0
            rules.append(_allowed("clone", place, system_calls.NEW_NAMESPACES, "SCMP_CMP_MASKED_EQ"))
            rules.append({"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": _ENOSYS})
        return {
            "defaultAction": "SCMP_ACT_ERRNO",
            "defaultErrnoRet": _EPERM,
            "architectures": list(system_calls.ARCHITECTURES.get(platform.machine(), ())),
            "syscalls": rules,
        }

    def seccomp_program(self) -> bytes:
        """Returns the profile as the program that the kernel takes; empty for every system call.

        Raises MissingTool without libseccomp.
        """
        profile = self.seccomp()
        return b"" if profile is None else _translated(json.dumps(profile))


@functools.cache
def _translated(profile: str) -> bytes:
    """A profile in JSON as a program, kept: it is the same for all trials of a session."""
    return compile_profile(json.loads(profile))


def _allowed(name: str, index: int, value: int, operator: str) -> dict[str, Any]:
    argument = {"index": index, "value": value, "valueTwo": 0, "op": operator}
    return {"names": [name], "action": "SCMP_ACT_ALLOW", "args": [argument]}
