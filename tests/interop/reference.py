"""The reference daemons, started for one test and ended after it: containerd, the stargz and the SOCI snapshotter.

They come from a directory named by ``COLDBENCH_REFERENCE_TOOLS``: ``containerd``, ``ctr`` and
``containerd-shim-runc-v2`` (containerd 2.x), ``soci-snapshotter-grpc``, and ``real``, a small program around
stargz-snapshotter's and containerd's Go modules (docs/formats.md says what it has to do).
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

NEEDED = ("containerd", "ctr", "containerd-shim-runc-v2", "soci-snapshotter-grpc", "real")


def tools() -> Path:
    """The directory of the reference tools; says what is missing and how to name it."""
    named = os.environ.get("COLDBENCH_REFERENCE_TOOLS", "")
    missing = [name for name in NEEDED if not named or not (Path(named) / name).exists()]
    if missing:
        raise RuntimeError(
            f"set COLDBENCH_REFERENCE_TOOLS to a directory with {', '.join(NEEDED)}; missing: {', '.join(missing)}"
        )
    return Path(named)


def loopback_bytes() -> int:
    """Bytes received on the loopback interface so far."""
    for line in Path("/proc/net/dev").read_text().splitlines():
        if line.strip().startswith("lo:"):
            return int(line.split(":")[1].split()[0])
    raise RuntimeError("no loopback interface")


class Reference:
    """containerd with both lazy snapshotters, state in one directory."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self.bin = tools()
        self.socket = state / "containerd.sock"
        self._processes: list[subprocess.Popen[bytes]] = []
        self._environment = {**os.environ, "PATH": f"{self.bin}:{os.environ['PATH']}"}

    def start(self) -> None:
        """Start the daemons and wait for their sockets."""
        config = self.state / "containerd.toml"
        plugins = "".join(
            f'[proxy_plugins.{name}]\n  type = "snapshot"\n  address = "{self.state}/{name}.sock"\n'
            for name in ("stargz", "soci")
        )
        config.write_text(
            f'version = 3\nroot = "{self.state}/root"\nstate = "{self.state}/run"\n'
            'disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images", '
            '"io.containerd.cri.v1.runtime"]\n'
            f'[grpc]\n  address = "{self.socket}"\n{plugins}'
        )
        soci = self.state / "soci.toml"
        soci.write_bytes(subprocess.check_output([self.bin / "soci-snapshotter-grpc", "config", "default"]))
        address, root = "--address", "--root"
        self._spawn("real", "daemon", "-address", f"{self.state}/stargz.sock", "-root", f"{self.state}/stargz")
        self._spawn(
            "soci-snapshotter-grpc",
            address,
            f"{self.state}/soci.sock",
            root,
            f"{self.state}/soci",
            "--config",
            str(soci),
        )
        self._spawn("containerd", "-c", str(config))
        for _ in range(300):
            if all((self.state / f"{name}.sock").exists() for name in ("containerd", "stargz", "soci")):
                time.sleep(1)
                return
            time.sleep(0.1)
        raise RuntimeError(f"the reference daemons did not come up; see {self.state}/*.log")

    def _spawn(self, name: str, *arguments: str) -> None:
        with (self.state / f"{name}.log").open("wb") as log:
            self._processes.append(
                subprocess.Popen([self.bin / name, *arguments], stdout=log, stderr=log, env=self._environment)
            )

    def run(self, snapshotter: str, reference: str, *command: str) -> dict[str, Any]:
        """Pull, create, start and wait; adds the bytes received on loopback until the exit."""
        before = loopback_bytes()
        line = subprocess.check_output(
            [self.bin / "real", "run", "-address", self.socket, "-snapshotter", snapshotter, reference, *command],
            env=self._environment,
        )
        answer: dict[str, Any] = json.loads(line)
        answer["bytes"] = loopback_bytes() - before
        return answer

    @contextlib.contextmanager
    def unpacked(self, reference: str, target: Path) -> Iterator[Path]:
        """The image pulled and unpacked by containerd's overlayfs snapshotter, mounted at ``target``."""
        ctr = [str(self.bin / "ctr"), "--address", str(self.socket)]
        quiet = subprocess.DEVNULL
        subprocess.run(
            [*ctr, "images", "pull", "--plain-http", reference], check=True, stdout=quiet, env=self._environment
        )
        target.mkdir()
        subprocess.run(
            [*ctr, "images", "mount", reference, str(target)], check=True, stdout=quiet, env=self._environment
        )
        try:
            yield target
        finally:
            subprocess.run([*ctr, "images", "unmount", str(target)], check=True, stdout=quiet, env=self._environment)

    def stop(self) -> None:
        """End the daemons by their pids and unmount whatever they left under the state directory."""
        for process in reversed(self._processes):
            process.send_signal(signal.SIGTERM)
        for process in self._processes:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        for point in sorted((p for p in points if p.startswith(f"{self.state}/")), reverse=True):
            subprocess.run(["umount", "-l", point], check=False)
