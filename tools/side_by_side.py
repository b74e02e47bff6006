"""Full pulls side by side: Docker's and containerd's own against the embedded engine's presets, under the same limits.

Every contestant runs inside a simulated machine of its own (control group, network namespace, scratch disk, cold page
cache) against one registry outside it, and is charged what its control group counted from the pull request until the
image is unpacked. Rounds are interleaved, the order within a round is drawn anew.

    python tools/side_by_side.py oci:DIR:TAG --shape cpu=0.25,memory=2G --rounds 3

Needs root, coldbench's own requirements, and on PATH or in --programs: dockerd and containerd for Docker, and for the
containerd line a containerd with its ctr. Contestants whose programs are missing are left out and said so.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from real_daemons import Programs, containerd_daemon, docker_daemon, pull_with_docker

from harness.engines import make_engine
from harness.engines.protocol import DeployRequest, Process
from harness.machine.machine import Machine
from harness.model.shape import parse_shape
from harness.model.timeline import Recorder
from harness.oci.location import copy_image, open_source
from harness.oci.registry.client import RegistryClient
from harness.oci.registry.push import RegistryDestination
from harness.session.registry import own_endpoint

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

REPOSITORY = "side/by-side"
TAG = "latest"
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


def docker(programs: Programs, machine: Machine) -> Result:
    """Docker's own pull, asked for through its API from outside the machine."""
    with tempfile.TemporaryDirectory() as directory, docker_daemon(machine, Path(directory) / "log", programs) as api:
        machine.reset()
        machine.throttle(True)
        begin, wire = (time.monotonic(), machine.counters()), machine.wire()
        pull_with_docker(api, f"{machine.registry}/{REPOSITORY}", TAG)
        end = (time.monotonic(), machine.counters())
        return _result(begin, end, machine.wire().since(wire).received_bytes)


def containerd(programs: Programs, machine: Machine) -> Result:
    """containerd's own pull into its overlayfs snapshotter, asked for by ctr."""
    with tempfile.TemporaryDirectory() as directory:
        with containerd_daemon(machine, Path(directory) / "log", programs) as path:
            machine.reset()
            machine.throttle(True)
            begin, wire = (time.monotonic(), machine.counters()), machine.wire()
            reference = f"{machine.registry}/{REPOSITORY}:{TAG}"
            argv = ["ctr", "-a", path, "images", "pull", "--plain-http", "--snapshotter", "overlayfs", reference]
            with (Path(directory) / "ctr").open("wb") as out:
                code = machine.spawn(argv, stdout=out, stderr=out, env=programs.environment).wait()
            end = (time.monotonic(), machine.counters())
            if code:
                raise RuntimeError(f"ctr: {(Path(directory) / 'ctr').read_text(errors='replace')[-1000:]}")
            return _result(begin, end, machine.wire().since(wire).received_bytes)


@contextmanager
def registry(image: str) -> Iterator[tuple[str, int]]:
    """The distribution registry on a simulated address, holding ``image``."""
    with ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory(dir="/var/tmp"))
        endpoint = own_endpoint(stack, Path(directory))
        client = RegistryClient(endpoint.host, REPOSITORY, plain=True)
        with open_source(image) as source:
            copy_image(source, RegistryDestination(client), TAG, referrers=False)
        client.close()
        yield endpoint.upstream


def contestants(names: list[str], programs: Programs) -> dict[str, Callable[[Machine], Result]]:
    """Who takes part: name -> function of a machine."""
    chosen: dict[str, Callable[[Machine], Result]] = {}
    for name in names:
        if name in ("sequential", "tuned"):
            chosen[name] = partial(embedded, name, {})
        elif name == "docker" and programs.has("dockerd"):
            chosen[name] = partial(docker, programs)
        elif name == "containerd" and programs.has("containerd") and programs.has("ctr"):
            chosen[name] = partial(containerd, programs)
        else:
            print(f"{name}: left out (unknown, or its program is not on PATH)", file=sys.stderr)
    return chosen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("image", help="as coldbench names images: oci:DIR:TAG, docker://..., scenario:NAME")
    parser.add_argument("--shape", default="cpu=0.25,memory=2G")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--contestants", default="docker,containerd,sequential,tuned")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="append one JSON line per pull to this file")
    parser.add_argument("--programs", type=Path, help="directory looked into before PATH for the real programs")
    options = parser.parse_args()
    os.umask(0o022)
    runs: dict[str, list[Result]] = {}
    rng = random.Random(options.seed)
    chosen = contestants(options.contestants.split(","), Programs(options.programs))
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
