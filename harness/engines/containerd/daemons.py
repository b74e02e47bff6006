"""This module starts containerd, the snapshotter's daemon and our helper inside the machine before T0, hears and ends
them.
"""

from __future__ import annotations

import os
import queue
import signal
import socket
import subprocess
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING

from harness.engines.containerd.messages import Message, decode, encode
from harness.errors import MachineError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from harness.engines.containerd.messages import Deploy, Stop
    from harness.machine.machine import Machine

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 10.0
LOG_TAIL_BYTES = 4000
_POLL_S = 0.01
#: Daemons have settled when they used less than this much CPU in that long.
_SETTLED_CPU_S = 0.005
_SETTLED_FOR_S = 0.25
_SETTLE_LIMIT_S = 5.0


@dataclass
class Daemon:
    """Holds one process of the engine inside the machine, and what it writes."""

    name: str
    process: subprocess.Popen[bytes]
    log: IO[bytes]
    argv: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)

    def again(self, machine: Machine) -> Daemon:
        """Starts the same program in the place of this one, which has ended; it goes on with the same log."""
        process = machine.spawn(self.argv, stdout=self.log, stderr=self.log, env=self.environment)
        return Daemon(self.name, process, self.log, self.argv, self.environment)

    @property
    def pid(self) -> int:
        return self.process.pid

    def text(self, limit: int = LOG_TAIL_BYTES) -> str:
        """Returns the end of its log."""
        if self.log.closed:
            return ""
        size = self.log.seek(0, os.SEEK_END)
        return os.pread(self.log.fileno(), limit, max(0, size - limit)).decode("utf-8", "replace")

    def last_line(self) -> str:
        lines = [line for line in self.text().splitlines() if line.strip()]
        return lines[-1][-400:] if lines else "it wrote nothing"

    def end(self) -> None:
        """Sends SIGTERM, and SIGKILL when that does not help in time; idempotent."""
        if self.process.poll() is None:
            with suppress(ProcessLookupError):
                self.process.terminate()
            try:
                self.process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self.process.send_signal(signal.SIGKILL)
                self.process.wait()
        self.log.close()


def start(machine: Machine, name: str, argv: Sequence[str], environment: dict[str, str]) -> Daemon:
    """Start a daemon inside the machine. Raises MachineError."""
    log = tempfile.TemporaryFile()  # noqa: SIM115 - closed by end
    try:
        process = machine.spawn(argv, stdout=log, stderr=log, env=environment)
        return Daemon(name, process, log, tuple(argv), dict(environment))
    except BaseException:
        log.close()
        raise


def await_socket(machine: Machine, daemon: Daemon, path: Path, timeout_s: float = START_TIMEOUT_S) -> None:
    """Wait until a daemon listens on a socket of the machine.

    Raises:
        MachineError: it ended, or does not listen in time; its last line is in the message.
    """
    deadline = time.monotonic() + timeout_s
    with tempfile.TemporaryDirectory() as directory:
        link = Path(directory) / "s"  # a socket's name is limited to 107 bytes
        link.symlink_to(machine.outside(path))
        while not _listens(link):
            if daemon.process.poll() is not None:
                code = daemon.process.returncode
                raise MachineError(f"{daemon.name} ended while it started (exit {code}): {daemon.last_line()}")
            if time.monotonic() > deadline:
                raise MachineError(f"{daemon.name} did not listen within {timeout_s:.0f} s: {daemon.last_line()}")
            time.sleep(_POLL_S)


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True


def settle(machine: Machine) -> None:
    """Wait until what was started has come to rest, so that its start is not charged to the trial."""
    deadline = time.monotonic() + _SETTLE_LIMIT_S
    before = machine.counters().cpu_total_s
    while time.monotonic() < deadline:
        time.sleep(_SETTLED_FOR_S)
        now = machine.counters().cpu_total_s
        if now - before < _SETTLED_CPU_S:
            return
        before = now


def unmount_below(machine: Machine, directory: Path) -> None:
    """Take away what daemons that were killed have left mounted: overlays, and FUSE file systems nobody serves now."""
    try:
        table = Path(f"/proc/{machine.namespace_pid}/mountinfo").read_text("utf-8", errors="replace")
    except OSError:
        return  # the machine is gone, and its mounts with it
    points = [line.split()[4] for line in table.splitlines()]
    for point in reversed([point for point in points if point.startswith(f"{directory}/")]):
        with suppress(MachineError, subprocess.TimeoutExpired):
            machine.spawn(["umount", "--lazy", point], stderr=subprocess.DEVNULL).wait(STOP_TIMEOUT_S)


@dataclass
class Helper:
    """Keeps up the conversation with our Go program: requests go as JSON lines to its stdin, a thread takes messages
    back.
    """

    daemon: Daemon
    messages: queue.SimpleQueue[Message | None] = field(default_factory=queue.SimpleQueue)
    exit_code: int | None = None
    exited_ns: int = 0
    _on_exit: Callable[[int], object] = lambda _at_ns: None
    exited: threading.Event = field(default_factory=threading.Event)
    stopped: threading.Event = field(default_factory=threading.Event)
    _reader: threading.Thread | None = None

    @classmethod
    def start(cls, machine: Machine, program: str, address: Path, environment: dict[str, str]) -> Helper:
        """Start it and wait until it is connected to containerd. Raises MachineError."""
        log = tempfile.TemporaryFile()  # noqa: SIM115 - closed by end
        process = machine.spawn(
            [program, "-address", str(address)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
            env=environment,
        )  # fmt: skip
        helper = cls(Daemon("the helper for containerd", process, log))
        helper._reader = threading.Thread(target=helper._read, name="containerd-helper", daemon=True)
        helper._reader.start()
        try:
            first = helper.messages.get(timeout=START_TIMEOUT_S)
        except queue.Empty:
            first = Message("failed", message="it said nothing")
        if first is None or first.event != "up":
            said = (first.message if first else "") or helper.daemon.last_line()
            helper.end()
            raise MachineError(f"the helper cannot reach containerd: {said}")
        return helper

    def send(self, request: Deploy | Stop) -> None:
        """Sends a request; raises MachineError when the helper is gone."""
        assert self.daemon.process.stdin is not None
        try:
            self.daemon.process.stdin.write(encode(request))
            self.daemon.process.stdin.flush()
        except (OSError, ValueError):
            raise MachineError(f"the helper for containerd ended: {self.daemon.last_line()}") from None

    def _read(self) -> None:
        assert self.daemon.process.stdout is not None
        for line in self.daemon.process.stdout:
            message = decode(line)
            if message is None:
                continue
            if message.event == "exited":
                self.exit_code, self.exited_ns = message.code, message.end_ns
                self.exited.set()
                self._on_exit(message.end_ns)
            elif message.event == "stopped":
                self.stopped.set()
            else:
                self.messages.put(message)
        self.exited.set()
        self.stopped.set()
        self.messages.put(None)

    def tell_exit(self, listener: Callable[[int], object]) -> None:
        """Have ``listener`` told when the container ended (CLOCK_MONOTONIC ns), also if it has already; maybe twice."""
        self._on_exit = listener
        if self.exited.is_set() and self.exited_ns:
            listener(self.exited_ns)

    def wait_code(self, timeout_s: float) -> int | None:
        """Waits for the container's exit code; None when it has not ended within the time or nobody can say."""
        self.exited.wait(timeout_s)
        return self.exit_code

    def end(self) -> None:
        """Close its stdin, at which it ends; idempotent."""
        process = self.daemon.process
        if process.stdin is not None:
            with suppress(OSError):
                process.stdin.close()
        self.daemon.end()
        if self._reader is not None:
            self._reader.join(STOP_TIMEOUT_S)
        if process.stdout is not None:
            process.stdout.close()
