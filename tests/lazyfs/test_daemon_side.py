"""Counters, imports, and what mounting says where the kernel refuses."""

from __future__ import annotations

import dataclasses
import errno
import os
import subprocess
import sys
import time

import pytest

from harness.errors import HostUnfit, MachineError
from harness.formats.erofs.index import INDEX_TYPE
from harness.lazyfs import counters, plan
from harness.lazyfs.messages import MetadataFile
from harness.lazyfs.mounting import mounts
from harness.model.observation import LazyUsage


def test_counters_have_the_stored_form() -> None:
    """The observation's model takes them as they are; buckets are powers of two of microseconds."""
    found = counters.Counters(bytes_fetched=10, requests=2)
    opcode = found.opcode("read")
    now = time.perf_counter_ns()
    opcode.record(now - 5_000, now)
    found.freeze()
    found.bytes_fetched = 30
    usage = LazyUsage.model_validate(dataclasses.asdict(found.usage()))
    assert (usage.bytes_fetched_before_ready, usage.bytes_fetched) == (10, 30)
    assert usage.fuse is not None
    assert usage.fuse["read"].count == 1
    assert usage.fuse["read"].queueing.counts[2] == 1  # 5 us lie in [4, 8)
    assert usage.memory_peak_bytes is not None
    assert usage.memory_peak_bytes > 1 << 20


def test_daemon_stays_light() -> None:
    """Neither the daemon nor the agent's side of it imports what a small machine has no room for."""
    code = "import sys, harness.lazyfs.daemon as d; d.import_formats(); print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"pandas", "pydantic", "rich", "typer", "httpx", "scipy", "docker"} & set(modules)
    code = "import sys, harness.engines.embedded.lazy; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"pandas", "pydantic", "rich", "numpy", "trio"} & set(modules)


def test_artifact_type_is_that_of_the_format() -> None:
    """The agent keeps a copy, to do without numpy."""
    assert plan.EROFS_INDEX_TYPE == INDEX_TYPE


class Kernel:
    """Answers mount(2) with what it is told, call by call; 0 is success."""

    def __init__(self, *answers: int) -> None:
        self.answers = list(answers)
        self.sources: list[str] = []
        self.options: list[str | None] = []
        self.attached: list[tuple[str, int]] = []

    def mount(self, source: str, target: str, kind: str | None, flags: int, data: str | None) -> None:
        self.sources.append(source)
        self.options.append(data)
        code = self.answers.pop(0)
        if code:
            raise OSError(code, os.strerror(code))

    def calls(self, loop: str | int = "/dev/loop-none") -> mounts.Syscalls:
        def attach(path: str, offset: int) -> object:
            self.attached.append((path, offset))
            if isinstance(loop, int):
                raise OSError(loop, os.strerror(loop))
            return Device(loop)

        return mounts.Syscalls(mount=self.mount, attach_loop=attach)  # type: ignore[arg-type]


class Device:
    def __init__(self, path: str) -> None:
        self.path = path

    def close(self) -> None:
        pass


def test_erofs_is_mounted_from_the_file() -> None:
    """No loop device where the kernel can do without."""
    kernel = Kernel(0)
    assert mounts.mount_erofs("/f/image", "/t", syscalls=kernel.calls()).way == "file"
    assert kernel.sources == ["/f/image"]


def test_loop_device_is_the_fallback() -> None:
    """Kernels before 6.12 say ENOTBLK to a file."""
    kernel = Kernel(errno.ENOTBLK, 0)
    assert mounts.mount_erofs("/f/image", "/t", syscalls=kernel.calls()).way == "loop"
    assert kernel.sources == ["/f/image", "/dev/loop-none"]


def test_without_a_loop_device_the_file_will_do() -> None:
    """A device is better, since its backing can be changed; it is no condition."""
    kernel = Kernel(0)
    mounted = mounts.mount_erofs("/f/image", "/t", loop=True, syscalls=kernel.calls(errno.EBUSY))
    assert (mounted.way, mounted.devices, len(mounted.refused)) == ("file", (), 1)
    kernel = Kernel(0)
    mounted = mounts.mount_erofs("/f/image", "/t", loop=True, syscalls=kernel.calls())
    assert (mounted.way, mounted.devices) == ("loop", ("/dev/loop-none",))


PARTS = MetadataFile("/s/metadata", (8192, 16384))


def test_metadata_has_a_device_of_its_own() -> None:
    """The layers' device begins where they begin in the file; EROFS is mounted from the metadata's."""
    kernel = Kernel(0)
    mounted = mounts.mount_erofs("/f/image", "/t", loop=True, parts=PARTS, syscalls=kernel.calls())
    assert mounted == mounts.Mounted("loops", ("/dev/loop-none", "/dev/loop-none"), "/dev/loop-none")
    assert kernel.attached == [("/f/image", 8192), ("/f/image", 16384), ("/s/metadata", 0)]
    assert kernel.options == ["device=/dev/loop-none,device=/dev/loop-none"]


def test_a_kernel_that_knows_no_second_device_gets_the_whole_file_as_one() -> None:
    """Refused in two parts, the image is tried in one, and the refusal is told."""
    kernel = Kernel(errno.EINVAL, 0)
    mounted = mounts.mount_erofs("/f/image", "/t", loop=True, parts=PARTS, syscalls=kernel.calls())
    assert mounted.way == "loop"
    assert len(mounted.refused) == 1
    assert mounted.refused[0].startswith("loops: the kernel refuses the EROFS image")
    assert kernel.attached[3:] == [("/f/image", 0)]
    assert kernel.options[1] is None


@pytest.mark.parametrize(
    ("answers", "loop", "error"),
    [
        ((errno.ENODEV,), "/dev/loop-none", HostUnfit),
        ((errno.EPERM,), "/dev/loop-none", MachineError),
        ((errno.ENOTBLK,), errno.EBUSY, HostUnfit),
        ((errno.ENOTBLK, errno.EINVAL), "/dev/loop-none", MachineError),
    ],
    ids=["no EROFS", "refused", "no free loop device", "blocks too small for the kernel"],
)
def test_refusals_name_the_way_out(answers: tuple[int, ...], loop: str | int, error: type[Exception]) -> None:
    """Every failure says what is missing and that mode soci needs none of it."""
    with pytest.raises(error, match="--mode soci"):
        mounts.mount_erofs("/f/image", "/t", syscalls=Kernel(*answers).calls(loop))


def test_unmounting_what_is_not_mounted_is_no_error() -> None:
    """Cleaning up twice is allowed."""

    def umount(target: str, flags: int) -> None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    assert mounts.unmount("/nowhere", mounts.Syscalls(umount=umount)) is False
