"""Full pulls side by side: Docker's and containerd's own against the embedded engine's presets, under the same limits.

Every contestant runs inside a simulated machine of its own (control group, network namespace, scratch disk, cold page
cache) against one registry outside it, and is charged what its control group counted from the pull request until the
image is unpacked. Rounds are interleaved, the order within a round is drawn anew.

    python tools/side_by_side.py oci:DIR:TAG --shape cpu=0.25,memory=2G --rounds 3

Needs root, coldbench's own requirements, and on PATH (or named): dockerd and containerd for Docker, and for the
containerd line a containerd with its ctr. Contestants whose programs are missing are left out and said so.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.engines import make_engine
from harness.engines.protocol import DeployRequest, Process
from harness.machine.machine import Machine
from harness.machine.network import SimulatedNetwork
from harness.model.shape import parse_shape
from harness.model.timeline import Recorder
from harness.oci.location import copy_image, open_source
from harness.oci.registry_client import RegistryClient
from harness.oci.registry_push import RegistryDestination

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

REPOSITORY = "side/by-side"
TAG = "latest"
START_TIMEOUT_S = 60
Result = dict[str, float]


class _PullRecorder(Recorder):
    """Takes the counters when the layers are there: at the span that mounts them."""

    def __init__(self, machine: Machine) -> None:
        super().__init__(time.monotonic_ns())
        self._machine = machine
        self.pulled: tuple[float, Any] | None = None

    def add_message(self, message: dict[str, Any]) -> None:
        super().add_message(message)
        if message["name"] == "mount":
            self.pulled = (message["end_ns"] / 1e9, self._machine.counters())


def _result(begin: tuple[float, Any], end: tuple[float, Any], received: int) -> Result:
    used = end[1].since(begin[1])
    return {
        "wall_s": end[0] - begin[0],
        "cpu_s": used.cpu_total_s,
        "user_s": used.cpu_user_s,
        "system_s": used.cpu_system_s,
        "memory_peak_mb": used.memory_peak_bytes / 1e6,
        "received_mb": received / 1e6,
    }


def embedded(preset: str, options: dict[str, Any], machine: Machine) -> Result:
    """The embedded engine's pull of mode overlay2, up to the mounted root file system."""
    engine = make_engine("embedded")
    request = DeployRequest(
        registry=machine.registry, repository=REPOSITORY, reference=TAG, mode="overlay2", preset=preset,
        process=Process(args=("/no-program-is-started",)), options=options,
    )  # fmt: skip
    try:
        engine.start(machine, request)
        machine.reset()
        machine.throttle(True)
        begin, wire = (time.monotonic(), machine.counters()), machine.wire()
        recorder = _PullRecorder(machine)
        try:
            engine.deploy(machine, request, recorder)
        except Exception:
            if recorder.pulled is None:
                raise
        assert recorder.pulled is not None
        return _result(begin, recorder.pulled, machine.wire().since(wire).received_bytes)
    finally:
        engine.tear_down()


@contextmanager
def _daemon(machine: Machine, argv: list[str], ready: Path, log: Path) -> Iterator[None]:
    """A daemon inside the machine, from its socket's appearance until the end."""
    with log.open("wb") as out:
        process = machine.spawn(argv, stdout=out, stderr=out)
    try:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not _listens(ready):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{argv[0]} did not start:\n{log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.1)
        time.sleep(1)
        yield
    finally:
        machine.throttle(False)
        process.terminate()
        process.wait()


def _listens(path: Path) -> bool:
    try:
        with socket.socket(socket.AF_UNIX) as probe:
            probe.connect(str(path))
        return True
    except OSError:
        return False


def docker(programs: dict[str, str], machine: Machine) -> Result:
    """Docker's own pull, asked for through its API from outside the machine."""
    import docker as sdk

    state = machine.scratch / "docker"
    machine.outside(state).mkdir()
    path = f"{machine.scratch}/docker.sock"
    argv = [
        programs["dockerd"], "--data-root", str(state / "data"), "--exec-root", str(state / "exec"),
        "--pidfile", str(state / "pid"), "-H", f"unix://{path}", "--iptables=false", "--ip6tables=false",
        "--bridge=none", "--ip-forward=false", "--ip-masq=false", "--storage-driver=overlay2",
        "--insecure-registry", "198.18.0.0/15",
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as directory:
        link = Path(directory) / "s"
        link.symlink_to(machine.outside(path))
        with _daemon(machine, argv, link, Path(directory) / "log"):
            api = sdk.APIClient(base_url=f"unix://{link}", timeout=3600)
            api.version()
            machine.reset()
            machine.throttle(True)
            begin, wire = (time.monotonic(), machine.counters()), machine.wire()
            for line in api.pull(f"{machine.registry}/{REPOSITORY}", tag=TAG, stream=True, decode=True):
                if "error" in line:
                    raise RuntimeError(f"docker: {line['error']}")
            end = (time.monotonic(), machine.counters())
            api.close()
            return _result(begin, end, machine.wire().since(wire).received_bytes)


def containerd(programs: dict[str, str], machine: Machine) -> Result:
    """containerd's own pull into its overlayfs snapshotter, asked for by ctr."""
    state = machine.scratch / "containerd"
    machine.outside(state).mkdir()
    path = f"{machine.scratch}/containerd.sock"
    config = (
        f'version = 2\nroot = "{state}/root"\nstate = "{state}/state"\n'
        'disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images", '
        '"io.containerd.cri.v1.runtime"]\n'
        f'[grpc]\n  address = "{path}"\n'
    )
    machine.outside(state / "config.toml").write_text(config)
    with tempfile.TemporaryDirectory() as directory:
        link = Path(directory) / "s"
        link.symlink_to(machine.outside(path))
        argv = [programs["containerd"], "-c", str(state / "config.toml")]
        with _daemon(machine, argv, link, Path(directory) / "log"):
            machine.reset()
            machine.throttle(True)
            begin, wire = (time.monotonic(), machine.counters()), machine.wire()
            reference = f"{machine.registry}/{REPOSITORY}:{TAG}"
            argv = [programs["ctr"], "-a", path, "images", "pull", "--plain-http", "--snapshotter", "overlayfs"]
            with (Path(directory) / "ctr").open("wb") as out:
                code = machine.spawn([*argv, reference], stdout=out, stderr=out).wait()
            end = (time.monotonic(), machine.counters())
            if code:
                raise RuntimeError(f"ctr: {(Path(directory) / 'ctr').read_text(errors='replace')[-1000:]}")
            return _result(begin, end, machine.wire().since(wire).received_bytes)


@contextmanager
def registry(image: str) -> Iterator[tuple[str, int]]:
    """The distribution registry on a simulated address, holding ``image``."""
    program = shutil.which("docker-registry") or shutil.which("registry")
    if program is None:
        sys.exit("docker-registry is not on PATH; apt-get install docker-registry")
    with ExitStack() as stack:
        network = stack.enter_context(SimulatedNetwork("side-by-side"))
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(dir="/var/tmp")))
        with socket.create_server((network.address, 0)) as free:
            port = free.getsockname()[1]
        config = directory / "config.yml"
        config.write_text(
            "version: 0.1\nlog: {level: error, accesslog: {disabled: true}}\n"
            f"storage: {{filesystem: {{rootdirectory: {directory}/storage}}}}\n"
            f"http: {{addr: '{network.address}:{port}', secret: side}}\n"
        )
        process = subprocess.Popen([program, "serve", str(config)], stderr=subprocess.DEVNULL)
        stack.callback(process.wait)
        stack.callback(process.terminate)
        client = RegistryClient(f"{network.address}:{port}", REPOSITORY, plain=True)
        client.ping()
        with open_source(image) as source:
            copy_image(source, RegistryDestination(client), TAG, referrers=False)
        client.close()
        yield network.address, port


def contestants(options: argparse.Namespace) -> dict[str, Callable[[Machine], Result]]:
    """Who takes part: name -> function of a machine."""
    chosen: dict[str, Callable[[Machine], Result]] = {}
    found = {name: getattr(options, name) or shutil.which(name) or "" for name in ("dockerd", "containerd", "ctr")}
    for name in options.contestants.split(","):
        if name in ("docker-like", "tuned"):
            chosen[name] = partial(embedded, name, {})
        elif name == "docker" and found["dockerd"]:
            chosen[name] = partial(docker, found)
        elif name == "containerd" and found["containerd"] and found["ctr"]:
            chosen[name] = partial(containerd, found)
        else:
            print(f"{name}: left out (unknown, or its program is not on PATH)", file=sys.stderr)
    return chosen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("image", help="as coldbench names images: oci:DIR:TAG, docker://..., scenario:NAME")
    parser.add_argument("--shape", default="cpu=0.25,memory=2G")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--contestants", default="docker,containerd,docker-like,tuned")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="append one JSON line per pull to this file")
    for name in ("dockerd", "containerd", "ctr"):
        parser.add_argument(f"--{name}", help=f"path of {name}")
    options = parser.parse_args()
    os.umask(0o022)
    runs: dict[str, list[Result]] = {}
    rng = random.Random(options.seed)
    chosen = contestants(options)
    with registry(options.image) as upstream:
        for number in range(options.rounds):
            for name in rng.sample(list(chosen), len(chosen)):
                with Machine(parse_shape(options.shape), name="side", registry_upstream=upstream) as machine:
                    result = chosen[name](machine)
                runs.setdefault(name, []).append(result)
                line = {"contestant": name, "round": number, "shape": options.shape, **result}
                if options.json:
                    with options.json.open("a") as out:
                        out.write(json.dumps(line) + "\n")
                print(json.dumps(line), file=sys.stderr, flush=True)
    print(
        f"| {options.shape} | "
        + " | ".join(["wall s", "CPU s", "user", "system"])
        + " | CPU to docker | to containerd |"
    )
    print("|---|" + "---|" * 6)
    middle = {name: {key: statistics.median(r[key] for r in rows) for key in rows[0]} for name, rows in runs.items()}
    for name, row in middle.items():
        ratios = [
            f"{row['cpu_s'] / middle[other]['cpu_s']:.2f}" if other in middle else ""
            for other in ("docker", "containerd")
        ]
        cells = [f"{row[key]:.2f}" for key in ("wall_s", "cpu_s", "user_s", "system_s")] + ratios
        print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
