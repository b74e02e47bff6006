"""Device lists: the lines of version 1, and the program of version 2 in a real group."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from harness.errors import HostUnfit, UsageError
from harness.kernel import bpf
from harness.machine import cgroup
from harness.machine.cgroup_v1 import CgroupV1
from harness.machine.devices import STANDARD, DeviceRule, program, rule_of

if TYPE_CHECKING:
    from pathlib import Path


def test_rules_as_version_1_takes_them() -> None:
    """Kind, numbers with stars where any will do, and access."""
    assert [rule.text for rule in STANDARD[:3]] == ["c *:* m", "b *:* m", "c 1:3 rwm"]
    assert DeviceRule("b", 8, access="r").text == "b 8:* r"


def test_a_device_by_its_path(tmp_path: Path) -> None:
    """A path is looked up on this host; what is no device is refused with its name."""
    assert rule_of("/dev/null") == DeviceRule("c", 1, 3)
    plain = tmp_path / "plain"
    plain.touch()
    with pytest.raises(UsageError, match="no device node"):
        rule_of(str(plain))
    with pytest.raises(UsageError, match="No such file"):
        rule_of("/dev/nothing")


def test_version_1_without_the_controller_is_unfit(tmp_path: Path) -> None:
    """Without device lists a container could open the host's disks: there is no such machine."""
    roots = {name: tmp_path / name for name in ("cpu", "cpuacct", "memory")}
    for root in roots.values():
        root.mkdir()
    driver = CgroupV1("g", roots)
    driver.create()
    with pytest.raises(HostUnfit, match="devices"):
        driver.confine(STANDARD)


def test_version_1_enters_the_confined_group(tmp_path: Path) -> None:
    """The list is in a group below the machine's; all other hierarchies are entered as ever."""
    roots = {name: tmp_path / name for name in ("cpu", "cpuacct", "memory", "devices")}
    for root in roots.values():
        root.mkdir()
    driver = CgroupV1("g", roots)
    driver.create()
    entries = driver.confine(STANDARD)
    confined = tmp_path / "devices" / "g" / cgroup.CONFINED
    assert entries == [str(tmp_path / n / "g" / "cgroup.procs") for n in ("cpu", "cpuacct", "memory")] + [
        str(confined / "cgroup.procs")
    ]
    assert (confined / "devices.deny").read_text() == "a"


TRIAL = """
import os, sys
with open(sys.argv[1] + "/cgroup.procs", "w") as file: file.write("0")
for path in ("/dev/null", "/dev/urandom", "/dev/loop-control", "/dev/kmsg"):
    try: os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK)); print(path, "ok")
    except PermissionError: print(path, "refused")
    except FileNotFoundError: print(path, "refused")
os.mknod(sys.argv[2], 0o60600, os.makedev(7, 0))
try: os.open(sys.argv[2], os.O_RDONLY); print("made ok")
except PermissionError: print("made refused")
"""


@pytest.mark.root
def test_version_2_program_in_a_real_group(tmp_path: Path) -> None:
    """The kernel takes the program, and only the listed devices open in the group; a list can be replaced."""
    root = cgroup.find_mounts().v2
    if root is None:
        pytest.skip("this host has no version 2 hierarchy mounted, not even beside version 1")
    group = root / f"coldbench-{os.getpid():08x}"
    group.mkdir()
    try:
        outcomes = []
        for number, rules in enumerate((STANDARD, (*STANDARD, DeviceRule("b", 7), rule_of("/dev/loop-control")))):
            loaded = bpf.load_program(bpf.CGROUP_DEVICE, program(rules), "coldbench_test")
            bpf.attach_to_group(str(group), loaded)
            os.close(loaded)
            done = subprocess.run(
                ["python3", "-c", TRIAL, str(group), str(tmp_path / f"node{number}")],
                capture_output=True, text=True, check=True,
            )  # fmt: skip
            outcomes.append(dict(line.rsplit(" ", 1) for line in done.stdout.splitlines()))
        first, second = outcomes
        expected = {"/dev/null": "ok", "/dev/urandom": "ok", "/dev/loop-control": "refused", "/dev/kmsg": "refused"}
        assert first == {**expected, "made": "refused"}
        assert second == {**expected, "/dev/loop-control": "ok", "made": "ok"}
    finally:
        group.rmdir()


@pytest.mark.root
def test_a_program_that_the_kernel_refuses_says_why() -> None:
    """The verifier's words are in the error."""
    with pytest.raises(OSError, match="read_ok"):
        bpf.load_program(bpf.CGROUP_DEVICE, bpf.copy(3, 2) + b"\x95" + bytes(7), "coldbench_test")
