"""This module speaks in JSON lines to a process of ours inside a container's namespaces."""

from __future__ import annotations

import json
import select
import subprocess
from typing import TYPE_CHECKING, Any

from harness.errors import MachineError

if TYPE_CHECKING:
    from harness.engines.confinement import Confinement
    from harness.machine.machine import Machine
    from harness.probes.entering import Entry


class LineProcess:
    """Runs ``module`` in the machine and tells it first where to enter; ``name`` is what errors call it."""

    def __init__(self, machine: Machine, module: str, entry: Entry, confinement: Confinement, name: str) -> None:
        self._name = name
        self._process = machine.exec_python(
            module,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=tuple(entry.namespaces.values()),
            devices=confinement.device_rules(),
        )
        self.tell(entry.encode())

    @property
    def pid(self) -> int:
        return self._process.pid

    def tell(self, line: str) -> None:
        """Sends one line; a process that has ended says so when it is heard."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line.encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # the answer says why

    def hear(self, what: str, timeout_s: float) -> Any:
        """Returns the next answer, decoded. Raises TimeoutError, and MachineError when the process has ended."""
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], timeout_s)
        if not ready:
            raise TimeoutError
        line = self._process.stdout.readline()
        if not line:
            assert self._process.stderr is not None
            self._process.wait()
            tail = self._process.stderr.read().decode(errors="replace").strip().splitlines()[-1:]
            raise MachineError(f"{self._name} ended during {what}: {' '.join(tail) or 'no output'}")
        return json.loads(line)

    def close(self) -> None:
        """Ends it. Children that the kernel holds up end when what they wait for does."""
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            if stream is not None:
                stream.close()
        self._process.kill()
        self._process.wait()
