"""This module makes the machine: one simulated VM, made on entry and unmade on exit, whatever happens in between.

A machine is a control group, a network namespace behind a shaped veth pair, a private mount namespace and a scratch
disk. The harness and the registry stay outside; every process of the engine and the container lives inside and is
charged to it.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import MachineError
from harness.kernel import syscalls
from harness.machine import addresses, cgroup, leftovers, shaping
from harness.machine.cgroup import CgroupDriver, Counters, CpuLimit, IoLimit
from harness.machine.credits import Governor, Sample
from harness.machine.host import require_root
from harness.machine.records import ENVIRONMENT_MARK, Record, host_lock
from harness.machine.scratch import MOUNT_OPTIONS, ScratchDisk, default_directory, default_size
from harness.machine.ways import Gated, Ways
from harness.model.shape import Distance, Shape

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import TracebackType

    from harness.machine.devices import DeviceRule

PIDS_LIMIT = 8192
HOLDER_TIMEOUT_S = 30.0

_HOLDER = Path(__file__).with_name("holder.py")
_EXT4_IOC_SHUTDOWN = 0x8004587D
_EXT4_NO_FLUSH = (2).to_bytes(4, "little")

_ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LANG": "C.UTF-8",
}

_TRUST_VARIABLES = ("SSL_CERT_FILE", "CURL_CA_BUNDLE")
"""They say which certificates the user trusts; that holds inside, too."""


@dataclass(frozen=True, slots=True)
class Traffic:
    """Holds the machine's own view of its network interface since it was made."""

    received_bytes: int
    sent_bytes: int
    received_packets: int
    sent_packets: int

    def since(self, earlier: Traffic) -> Traffic:
        return Traffic(
            self.received_bytes - earlier.received_bytes,
            self.sent_bytes - earlier.sent_bytes,
            self.received_packets - earlier.received_packets,
            self.sent_packets - earlier.sent_packets,
        )


class Machine:
    """Simulates one VM, as a context manager.

    CPU and disk limits are off until ``throttle(True)``, so that what a VM has running before it is told to deploy
    (daemons) starts quickly; memory, processes and the network are limited from the beginning.
    """

    def __init__(
        self,
        shape: Shape,
        distance: Distance | None = None,
        *,
        name: str = "",
        scratch_bytes: int | None = None,
        scratch_dir: Path | None = None,
        registry_upstream: tuple[str, int] | None = None,
        further_upstreams: Sequence[tuple[str, int]] = (),
        gated: Gated = "",
    ) -> None:
        """Takes what the machine is like; nothing is made before it is entered.

        An inline shape's own distance goes before ``distance``; ``scratch_bytes`` stands in the place of the shape's
        disk size. ``registry_upstream`` is where the registry really listens: an address of ``SimulatedNetwork``, or
        any host (then a relay stands in front of it). ``further_upstreams`` are other hosts that are reached in the
        same way, at the same distance (token server, blob store). ``gated``: the registry can be made to fail
        (``ways``).
        """
        self.shape = shape
        self.distance = shape.distance or distance or Distance()
        self.label = name
        self._scratch_dir = scratch_dir or default_directory()
        self._scratch_bytes = scratch_bytes or shape.disk_size_bytes or default_size(self._scratch_dir)
        self._upstream = registry_upstream
        self._further_upstreams = tuple(further_upstreams)
        self._registry: str | None = None
        self._further: tuple[str, ...] = ()
        self._stack = contextlib.ExitStack()
        self._governor: Governor | None = None
        self._samples: tuple[Sample, ...] = ()
        self._throttled = False
        self._io_limited = False
        self._problems: list[str] = []
        self._record: Record
        self._cgroup: CgroupDriver
        self._holder: subprocess.Popen[bytes]
        self._disk: ScratchDisk
        self._gated = gated
        self.ways: Ways
        self._spawner: ThreadPoolExecutor
        self._namespaces: dict[str, int] = {}

    # -- making and unmaking

    def __enter__(self) -> Machine:
        """Makes the machine. Raises ``NotRoot``, ``HostUnfit``, ``MissingTool``, ``DiskFull``, ``MachineError``; then
        nothing is left.
        """
        require_root("a simulated machine")
        leftovers.sweep()
        try:
            self._make()
        except BaseException:
            self._unmake()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._unmake()
        if self._problems and kind is None:
            raise MachineError(f"the machine could not be taken away: {'; '.join(self._problems)}")

    def _unmake(self) -> None:
        self._stop_governor()
        self._stack.close()

    def _undo(self, action: Callable[..., object], *arguments: Any) -> None:
        """Has ``action`` done at the end, also when others fail; what fails is kept as a problem."""

        def act() -> None:
            try:
                action(*arguments)
            except Exception as error:  # the rest has to be undone all the same
                self._problems.append(str(error))

        self._stack.callback(act)

    def _make(self) -> None:
        record = self._record = Record.new("machine", self.label)
        record.files.append(str(self._scratch_dir / f"{record.name}.img"))
        record.save()
        self._undo(self._forget)
        record.directory.mkdir(mode=0o755)
        self._undo(self._remove_directory)
        mount_point = record.directory / "scratch"
        mount_point.mkdir(mode=0o755)

        self._cgroup = cgroup.make_driver(record.name)
        self._undo(cgroup.remove_strays, record.name)
        self._undo(self._cgroup.remove)
        self._cgroup.create()
        self._cgroup.set_memory(self.shape.memory_bytes)
        self._cgroup.set_pids(PIDS_LIMIT)

        self._disk = ScratchDisk(record.name, self._scratch_bytes, self._scratch_dir)
        self._undo(self._await_loop_release)
        self._undo(self._disk.close)
        self._start_holder(mount_point)
        self._disk.close()
        self._make_network()
        self._spawner = ThreadPoolExecutor(max_workers=1, thread_name_prefix=record.name)
        self._undo(self._spawner.shutdown)
        self._undo(self._cgroup.kill)

    def _start_holder(self, mount_point: Path) -> None:
        groups = [str(Path(entry).parent) for entry in self._cgroup.entry_files()]
        if self._cgroup.version == 2:
            groups = [str(Path(group).parent) for group in groups]
        self._holder = subprocess.Popen(
            [sys.executable, "-S", "-E", str(_HOLDER), self._disk.device, str(mount_point), MOUNT_OPTIONS, *groups],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        self._undo(self._stop_holder)
        self._record.add_process(self._holder.pid)
        assert self._holder.stdout is not None
        answer = self._holder.stdout.readline().decode().strip()
        if answer != "ready":
            raise MachineError(f"cannot make the machine's namespaces: {answer.removeprefix('error ') or 'no answer'}")
        for kind in ("net", "mnt"):
            self._namespaces[kind] = os.open(f"/proc/{self._holder.pid}/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC)
            self._undo(os.close, self._namespaces[kind])
        self._undo(self._discard_scratch)

    def _make_network(self) -> None:
        with host_lock():
            block = addresses.choose_block(shaping.used_addresses(), random.Random())
            self._undo(shaping.remove_interface, self._record.interface("h"))
            shaping.make_link(self._record, self._holder.pid, block)
        self.address, self.host_address = block.machine, block.host
        self._chain: list[shaping.Filter] = []
        if self.shape.network is not None:
            self._chain = shaping.filters(self.shape.network, self.distance.total_bytes_s)
        elif self.distance.total_bytes_s is not None:
            self._chain = shaping.cap_filters(self.distance.total_bytes_s)
        delayed = self.distance.rtt_ms > 0 and shaping.has_netem()
        delay_us = round(self.distance.rtt_ms * 500) if delayed else 0
        shaping.shape_link(self._record, self._holder.pid, self._chain, delay_us)
        ways = self.ways = Ways(self._record, self._undo, self._gated)
        if self._upstream is not None:
            rest = self.distance.model_copy(update={"rtt_ms": 0.0}) if delayed else self.distance
            itself = ways.to(self._upstream, rest, self.host_address)
            self._registry = ways.through_gate(itself, self.host_address)
            self._further = tuple(ways.to(other, rest, self.host_address) for other in self._further_upstreams)
        # Nothing of the host is reached from inside but the registry and what stands in front of it.
        reached = ways.close_others([*([self._registry] if self._registry else ()), *self._further])
        shaping.add_routes(self._holder.pid, reached, self.host_address)

    def _discard_scratch(self) -> None:
        """Forgets what was not written yet: unmounting would write it all out, for nobody (ext4's shutdown ioctl)."""
        import fcntl

        with contextlib.suppress(OSError):
            descriptor = os.open(self.outside(self.scratch), os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.ioctl(descriptor, _EXT4_IOC_SHUTDOWN, _EXT4_NO_FLUSH)
            finally:
                os.close(descriptor)

    def _stop_holder(self) -> None:
        assert self._holder.stdin is not None
        assert self._holder.stdout is not None
        with contextlib.suppress(OSError):
            self._holder.stdin.close()
        self._holder.stdout.close()
        try:
            self._holder.wait(HOLDER_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._holder.kill()
            self._holder.wait()

    def _await_loop_release(self) -> None:
        """Waits for the device: it clears itself when the last mount goes, a moment after the namespace's last
        process.
        """
        backing = Path(f"/sys/block/{Path(self._disk.device).name}/loop/backing_file")
        deadline = time.monotonic() + HOLDER_TIMEOUT_S
        while self._record.name in cgroup.read_text(backing):
            if time.monotonic() > deadline:
                raise MachineError(f"{self._disk.device} is still in use; `coldbench clean` tries again")
            time.sleep(0.005)

    def _remove_directory(self) -> None:
        for path in (self._record.directory / "scratch", self._record.directory):
            with contextlib.suppress(FileNotFoundError):
                path.rmdir()

    def _forget(self) -> None:
        """Removes the record last of all, and only if nothing is left for ``coldbench clean``."""
        if not self._problems:
            self._record.remove()

    # -- places

    @property
    def id(self) -> str:
        """Returns eight hexadecimal digits; artefacts are named ``coldbench-ID``."""
        return self._record.id

    @property
    def scratch(self) -> Path:
        """Returns the scratch disk's path as processes inside see it."""
        return self._record.directory / "scratch"

    def outside(self, path: Path | str) -> Path:
        """Returns a path of the machine as the harness reaches it (through ``/proc/PID/root``)."""
        return Path(f"/proc/{self._holder.pid}/root/{str(path).lstrip('/')}")

    @property
    def namespace_pid(self) -> int:
        """Returns a process in the machine's namespaces, for tools that enter them by pid."""
        return self._holder.pid

    @property
    def cgroup_parent(self) -> str:
        """Returns the machine's control group within each hierarchy, for runtimes that make groups below it."""
        return self._cgroup.parent

    @property
    def registry(self) -> str:
        """Returns ``host:port`` of the registry as reached from inside."""
        if self._registry is None:
            raise MachineError("this machine was made without a registry")
        return self._registry

    @property
    def further(self) -> tuple[str, ...]:
        """Returns ``host:port`` of each further upstream as reached from inside, in their order."""
        return self._further

    # -- running things

    def spawn(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        stdin: int | Any = subprocess.DEVNULL,
        stdout: int | Any = None,
        stderr: int | Any = None,
        pass_fds: Sequence[int] = (),
        cwd: str | Path = "/",
        devices: Sequence[DeviceRule] | None = None,
    ) -> subprocess.Popen[bytes]:
        """Starts a process inside: control group, network and mounts. ``env`` is all it gets (a plain one if None).

        With ``devices`` it and all that it starts can use these only; the list holds for every process of the machine
        that was started with one. Without, nothing but the kernel's own rules for root limit it. It dies with the
        harness. ``argv[0]`` is looked up on the PATH of ``env``. Raises ``MachineError``.
        """
        trusted = {name: os.environ[name] for name in _TRUST_VARIABLES if name in os.environ}
        environment = dict(_ENVIRONMENT | trusted if env is None else env)
        environment[ENVIRONMENT_MARK] = self._record.name
        harness = os.getpid()
        files = self._cgroup.entry_files() if devices is None else self.confine(devices)
        entries = [os.open(path, os.O_WRONLY | os.O_CLOEXEC) for path in files]
        network, mounts = self._namespaces["net"], self._namespaces["mnt"]
        directory = str(cwd)

        def enter() -> None:
            for entry in entries:
                os.write(entry, b"0")
            syscalls.setns(network, syscalls.CLONE_NEWNET)
            syscalls.setns(mounts, syscalls.CLONE_NEWNS)
            os.chdir(directory)
            syscalls.set_parent_death_signal(signal.SIGKILL)
            if os.getppid() != harness:  # it died before the line above
                os._exit(127)

        def start() -> subprocess.Popen[bytes]:
            return subprocess.Popen(
                list(argv), env=environment, stdin=stdin, stdout=stdout, stderr=stderr, pass_fds=tuple(pass_fds),
                preexec_fn=enter,  # noqa: PLW1509 - setns has to happen between fork and exec; it takes no lock
                start_new_session=True,
            )  # fmt: skip

        try:
            # One thread starts them all: the death signal follows the thread that forked, so it has to live on.
            return self._spawner.submit(start).result()
        except (OSError, subprocess.SubprocessError) as error:
            raise MachineError(f"cannot start {argv[0]} in the machine: {error}") from error
        finally:
            for entry in entries:
                os.close(entry)

    def confine(self, devices: Sequence[DeviceRule]) -> Sequence[str]:
        """Returns files into which a process of the machine writes ``0`` so that it, and all it starts, can use these
        devices only.

        There is one such group; a later list takes the place of an earlier one. Raises ``HostUnfit``.
        """
        return self._cgroup.confine(devices)

    def exec_python(self, module: str, arguments: Sequence[str] = (), **options: Any) -> subprocess.Popen[bytes]:
        """Starts, by ``spawn``, this Python running a module, as ``python -m`` does."""
        return self.spawn([sys.executable, "-m", module, *arguments], **options)

    # -- limits

    def throttle(self, on: bool = True) -> int:
        """Puts the shape's CPU and disk limits in force, or lifts them; returns CLOCK_MONOTONIC ns when that was done.

        Turned on, the credits start as the shape says, and the returned time is theirs to count from (T0).
        ``MachineError`` if the limits in force are not those asked for.
        """
        self._stop_governor()
        self._throttled = on
        self._limit_disk(on)
        if not on:
            self._cgroup.set_cpu(CpuLimit.of_cores(None, self.shape.period_us))
        elif self.shape.credits is not None:
            self._governor = Governor(self.shape, self._cgroup.cpu_used_s, self._cgroup.set_cpu)
            self._governor.start()
        else:
            self._cgroup.set_cpu(self._baseline_limit())
        done_ns = time.monotonic_ns()
        self.verify()
        return done_ns

    def _stop_governor(self) -> None:
        if self._governor is not None:
            self._governor.stop()
            self._samples = self._governor.samples
            self._governor = None

    def _baseline_limit(self) -> CpuLimit:
        return CpuLimit.of_cores(self.shape.baseline_cores, self.shape.period_us)

    def _limit_disk(self, on: bool) -> None:
        disk = self.shape.disk
        if disk is not None:
            limit = IoLimit(self._disk.number, disk.bytes_per_s if on else None, disk.iops if on else None)
            self._io_limited = self._cgroup.set_io(limit) and on

    def verify(self) -> None:
        """Raises ``MachineError`` unless the limits in force are as asked and what holds them is alive."""
        cpu = self._cgroup.read_cpu()
        allowed = [CpuLimit.of_cores(None, self.shape.period_us)]
        if self._throttled:
            allowed = [self._baseline_limit(), CpuLimit.of_cores(self.shape.ceiling_cores, self.shape.period_us)]
        wrong = []
        if cpu not in allowed:
            wrong.append(f"CPU {cpu.quota_us}/{cpu.period_us} us, not {allowed[0].quota_us}/{allowed[0].period_us}")
        memory = self._cgroup.read_memory()
        wanted = self.shape.memory_bytes
        # The kernel rounds down to whole pages.
        if (memory is None) != (wanted is None) or (memory is not None and wanted and not 0 <= wanted - memory < 65536):
            wrong.append(f"memory {memory} bytes, not {wanted}")
        rates = [bucket.rate_bytes_s for bucket in self._chain]
        for direction, found in zip(
            ("towards", "from"), shaping.read_rates(self._record, self._holder.pid), strict=True
        ):
            if found != rates:
                wrong.append(f"bandwidth {direction} the machine {found} bytes/s, not {rates}")
        if self._governor is not None and self._governor.failure is not None:
            wrong.append(f"the credit governor failed: {self._governor.failure}")
        if not all(relay.alive for relay in self.ways.relays):
            wrong.append("a relay in front of the registry has ended")
        if self._holder.poll() is not None:
            wrong.append("the process that holds the machine's namespaces has ended")
        if wrong:
            raise MachineError(f"limits are not as asked: {'; '.join(wrong)}")

    @property
    def disk_limited(self) -> str:
        """Says how far the shape's disk limits hold: ``no``, ``all``, or ``unbuffered`` (version 1
        sees no writeback).
        """
        if not self._io_limited:
            return "no"
        return "all" if self._cgroup.writeback_limited else "unbuffered"

    # -- looking

    def counters(self) -> Counters:
        """Returns what was charged to the machine since it was made."""
        disk = self._disk.use()
        return replace(self._cgroup.counters(), io_written_bytes=disk.written_bytes, io_read_bytes=disk.read_bytes)

    def wire(self) -> Traffic:
        """Returns the machine's traffic since it was made, counted at the host's end of its link."""
        statistics = Path(f"/sys/class/net/{self._record.interface('h')}/statistics")

        def read(name: str) -> int:
            return int((statistics / name).read_text("ascii"))

        return Traffic(read("tx_bytes"), read("rx_bytes"), read("tx_packets"), read("rx_packets"))

    def credit_samples(self) -> tuple[Sample, ...]:
        """Returns balance and quota from T0 on; empty for a shape without credits."""
        return self._governor.samples if self._governor is not None else self._samples

    def pids(self) -> list[int]:
        """Returns the processes inside."""
        return self._cgroup.pids()

    def reset(self, *, keep_pages: bool = False) -> None:
        """Prepares for T0, just before it: writes back what set-up wrote, drops the host's page cache, starts the
        memory peak anew.

        With ``keep_pages`` the page cache stays as it is.
        """
        if keep_pages:
            os.sync()
        else:
            self.drop_caches()
        self._cgroup.reset_peak()

    def drop_caches(self) -> None:
        """Writes out the scratch disk and drops clean page cache, dentries and inodes of the whole host."""
        descriptor = os.open(self.outside(self.scratch), os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.sync()
        Path("/proc/sys/vm/drop_caches").write_text("3", "ascii")
