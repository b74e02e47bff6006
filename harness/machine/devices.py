"""This module writes device lists: which device nodes processes of a control group may make and open.

Version 1 takes lines in ``devices.allow``; version 2 asks a BPF program (kernel: admin-guide/cgroup-v1/devices,
admin-guide/cgroup-v2). Docker's containers may make any node and open the ten that every program expects.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from harness.errors import UsageError
from harness.kernel import bpf

if TYPE_CHECKING:
    from collections.abc import Sequence

_TYPES = {"b": 1, "c": 2}
_ACCESS = {"m": 1, "r": 2, "w": 4}


@dataclass(frozen=True, slots=True)
class DeviceRule:
    """Says that devices of a kind, all majors or minors where None, may be made (``m``), read (``r``) and written
    (``w``).
    """

    kind: Literal["b", "c"]
    major: int | None = None
    minor: int | None = None
    access: str = "rwm"

    @property
    def text(self) -> str:
        """Writes the rule as version 1 takes it."""
        numbers = ("*" if number is None else str(number) for number in (self.major, self.minor))
        return f"{self.kind} {':'.join(numbers)} {self.access}"


STANDARD: tuple[DeviceRule, ...] = (
    DeviceRule("c", access="m"),
    DeviceRule("b", access="m"),
    DeviceRule("c", 1, 3),  # null
    DeviceRule("c", 1, 5),  # zero
    DeviceRule("c", 1, 7),  # full
    DeviceRule("c", 1, 8),  # random
    DeviceRule("c", 1, 9),  # urandom
    DeviceRule("c", 5, 0),  # tty
    DeviceRule("c", 5, 1),  # console
    DeviceRule("c", 5, 2),  # ptmx
    DeviceRule("c", 136),  # pts
)


def rule_of(path: str) -> DeviceRule:
    """Returns the rule for one device of this host. Raises ``UsageError`` when there is none at this path."""
    try:
        status = os.stat(path)
    except OSError as error:
        raise UsageError(f"workload.devices: {path}: {error.strerror}; name a device node of this host") from None
    if not stat.S_ISCHR(status.st_mode) and not stat.S_ISBLK(status.st_mode):
        raise UsageError(f"workload.devices: {path} is no device node; name one of this host's, as /dev/fuse")
    kind: Literal["b", "c"] = "c" if stat.S_ISCHR(status.st_mode) else "b"
    return DeviceRule(kind, os.major(status.st_rdev), os.minor(status.st_rdev))


def program(rules: Sequence[DeviceRule]) -> bytes:
    """Writes the BPF program that says yes to what a rule allows (struct bpf_cgroup_dev_ctx: access, type, major,
    minor).
    """
    code = bpf.load(2, 1, 0) + bpf.load(4, 1, 4) + bpf.load(5, 1, 8)
    code += bpf.copy(3, 2) + bpf.mask(3, 0xFFFF) + bpf.shift_right(2, 16)
    for rule in rules:
        denied = 7 & ~sum(_ACCESS[letter] for letter in rule.access)
        tests = [bpf.Test(3, _TYPES[rule.kind])]
        tests += [bpf.Test(4, rule.major)] if rule.major is not None else []
        tests += [bpf.Test(5, rule.minor)] if rule.minor is not None else []
        code += bpf.when(tests, bpf.copy(0, 2) + bpf.mask(0, denied) + bpf.return_if_zero(0, 1))
    return code + bpf.give(0)
