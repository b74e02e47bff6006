"""Cold starts up to ready side by side: real daemons and Docker against coldbench's modes, under the same limits.

Every contestant deploys the same image in a simulated machine of its own made by the same code (control group, link,
distance, scratch disk, cold page cache). Its daemons run before the clock starts, without the quota; the clock runs
from the pull request until the container has exited. CPU seconds are those of the machine's control group: daemons,
shims and container; not the registry, nor the relay that makes it far. Rounds are interleaved: each takes the real
contestants and one `coldbench run` of one block in an order drawn anew, so that ratios pair inside rounds.

    python tools/ready_side_by_side.py python-data --shape cpu=0.25,memory=1G,bandwidth=1Gbit,rtt=10ms --rounds 4 \\
        --storage DIR --real stargz=app:esgz --real soci=app:soci --real overlayfs=app:plain --real docker=app:plain \\
        --out OUT

--storage is the file system storage of a distribution registry that holds what --real names, made by the real tools:
`docker-registry serve` it, then `skopeo copy` the image (coldbench image build SCENARIO prints where it is),
`ctr-remote image convert --estargz --oci` and `soci convert`, and push. The session serves that directory itself.

Docker needs dockerd and containerd, the others containerd with its runc shim, runc, and per snapshotter a daemon and a
client (--daemon, --client; tools/real_daemons.py says what may stand in them). --programs DIR is looked into first.
A second call with the same --out adds rounds; --rounds 0 prints the table again.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from real_daemons import (
    CLIENTS,
    DAEMONS,
    Programs,
    containerd_daemon,
    docker_daemon,
    run_with_containerd,
    run_with_docker,
)

from harness import scenarios
from harness.machine.machine import Machine
from harness.model.observation import Observation
from harness.model.shape import parse_shape
from harness.oci.cache import Cache
from harness.oci.location import open_source
from harness.session.preparation import Preparer
from harness.session.progress import Silent
from harness.session.registry import Endpoint, own_endpoint
from harness.stats.paired import paired_ratio

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.model.scenario import Scenario
    from harness.oci.descriptor import Descriptor

Row = dict[str, Any]
EAGER = ("docker", "overlayfs")
#: The snapshotters fall back to unpacking everything, without an error: a start that moved as much was none of theirs.
NOT_LAZY = 0.95
PROBE_BYTES = 100_000_000
#: Times as libcurl takes them, of a small request and of a large one, each on a connection of its own.
_PROBE = """
import json, pycurl, sys
found = []
for url, last in zip(sys.argv[1:3], ("", "0-" + sys.argv[3])):
    c = pycurl.Curl()
    c.setopt(pycurl.URL, url)
    c.setopt(pycurl.NOPROXY, "*")
    c.setopt(pycurl.BUFFERSIZE, 512 << 10)
    c.setopt(pycurl.WRITEFUNCTION, lambda piece: None)
    if last:
        c.setopt(pycurl.RANGE, last)
    c.perform()
    found.append({"connect_s": c.getinfo(c.CONNECT_TIME), "first_byte_s": c.getinfo(c.STARTTRANSFER_TIME),
                  "total_s": c.getinfo(c.TOTAL_TIME), "bytes": int(c.getinfo(c.SIZE_DOWNLOAD))})
print(json.dumps({"small": found[0], "large": found[1]}))
"""


def layers(ref: str) -> tuple[Descriptor, ...]:
    """The layers of an image in a registry."""
    with open_source(f"docker://{ref}") as source:
        return source.resolve().layers


def run_real(
    options: argparse.Namespace, name: str, endpoint: Endpoint, command: Sequence[str], programs: Programs
) -> Row:
    """One cold start by a real daemon, in a machine made for it."""
    ref = options.real[name]
    log = options.out / f"{name}.log"
    with ExitStack() as stack:
        machine = stack.enter_context(
            Machine(parse_shape(options.shape), name="side", registry_upstream=endpoint.upstream)
        )
        api = stack.enter_context(docker_daemon(machine, log, programs)) if name == "docker" else None
        lazy = "" if name == "overlayfs" else name
        containerd = "" if api else stack.enter_context(containerd_daemon(machine, log, programs, lazy))
        machine.reset()
        requests = endpoint.requests() if endpoint.requests else 0
        machine.throttle(True)
        machine.verify()
        before, wire, start = machine.counters(), machine.wire(), time.monotonic()
        said = None
        if api is not None:
            run_with_docker(machine, api, ref, command)
        else:
            said = run_with_containerd(
                machine, ref, snapshotter=name, containerd=containerd, command=command, programs=programs
            )
        wall_s = time.monotonic() - start
        used, moved = machine.counters().since(before), machine.wire().since(wire)
        whole = sum(layer.size for layer in layers(f"{endpoint.host}/{ref}"))
        if name not in EAGER and moved.received_bytes > NOT_LAZY * whole:
            raise RuntimeError(f"{name} pulled the whole image, {moved.received_bytes / 1e6:.0f} MB; see {log}*")
        return {
            "contestant": name,
            "ready_s": wall_s if said is None else said,
            "wall_s": wall_s,
            "cpu_s": used.cpu_total_s,
            "received_mb": moved.received_bytes / 1e6,
            "requests": endpoint.requests() - requests if endpoint.requests else 0,
            "memory_peak_mb": used.memory_peak_bytes / 1e6,
        }


def run_ours(options: argparse.Namespace, number: int) -> list[Row]:
    """One block of `coldbench run` with its own registry; failed and invalid trials are said and left out."""
    session = options.out / f"ours-{number}"
    argv = [sys.executable, "-m", "harness", "run", options.scenario, "--shape", options.shape, "--distance", "none"]
    argv += [part for mode in options.mode for part in ("--mode", mode)]
    done = subprocess.run([*argv, "--blocks", "1", "--no-workloads", "--out", str(session)], check=False)
    if done.returncode:
        print(f"coldbench run ended with {done.returncode}", file=sys.stderr)
    return read_ours(session)


def read_ours(session: Path) -> list[Row]:
    """The valid trials of a session of ours, in the form of a real contestant's."""
    rows = []
    for line in (session / "observations.jsonl").read_text("utf-8").splitlines():
        seen = Observation.model_validate_json(line)
        name = f"{seen.case.mode}:{seen.case.variant}"
        if not seen.valid:
            print(f"{session.name}: {name} is left out: {seen.failure or seen.invalid}", file=sys.stderr)
            continue
        rows.append(
            {
                "contestant": name,
                "ready_s": seen.time_to_ready_s,
                "cpu_s": seen.cpu_to_ready_s,
                "received_mb": seen.wire_before_ready.received_bytes / 1e6,
                "requests": seen.wire_before_ready.requests,
                "bound_s": seen.bound.seconds if seen.bound else None,
            }
        )
    return rows


def probe(shape: str, endpoint: Endpoint, repository: str, reference: str) -> Row:
    """How far a registry is from inside a machine without CPU quota: connect, first byte, a download."""
    joint = "@" if ":" in reference else ":"
    layer = max(layers(f"{endpoint.host}/{repository}{joint}{reference}"), key=lambda found: found.size)
    with Machine(parse_shape(shape), name="probe", registry_upstream=endpoint.upstream) as machine:
        root = f"http://{machine.registry}/v2/"
        urls = [root, f"{root}{repository}/blobs/{layer.digest}"]
        argv = [sys.executable, "-W", "ignore", "-c", _PROBE, *urls, str(min(PROBE_BYTES, layer.size) - 1)]
        process = machine.spawn(argv, stdout=subprocess.PIPE)
        text, _ = process.communicate()
    found: Row = json.loads(text)
    return found


def probe_both(options: argparse.Namespace, scenario: Scenario, real: Endpoint) -> None:
    """Print what a machine sees of the registry that the real daemons use, and of the one that `coldbench run` does."""
    repository, _, tag = next(iter(options.real.values())).rpartition(":")
    sides = {"real": probe(options.shape, real, repository, tag)}
    with ExitStack() as stack:
        cache = Cache.default()
        endpoint = own_endpoint(stack, cache.registry)
        published = Preparer(cache, endpoint.host, endpoint.prefix, lambda _: None, Silent()).publish(
            scenario, "overlay2"
        )
        sides["coldbench"] = probe(options.shape, endpoint, published.repository, published.reference)
    for side, found in sides.items():
        small, large = found["small"], found["large"]
        rate = large["bytes"] * 8 / (large["total_s"] - large["first_byte_s"]) / 1e9
        print(
            f"distance of the registry, {side}: connect {small['connect_s'] * 1e3:.1f} ms, "
            f"first byte {small['first_byte_s'] * 1e3:.1f} ms, "
            f"{large['bytes'] / 1e6:.0f} MB in {large['total_s']:.2f} s ({rate:.2f} Gbit/s)",
            file=sys.stderr,
            flush=True,
        )
    (options.out / "distance.json").write_text(json.dumps({"shape": options.shape, **sides}) + "\n", "utf-8")


def table(rounds: dict[int, dict[str, Row]], real: Sequence[str]) -> str:
    """Medians with ranges, and every contestant's ratio to each real one, paired inside rounds."""
    names = list(dict.fromkeys(name for rows in rounds.values() for name in rows))
    lines = ["| | rounds | ready, s | range | CPU s | MB before ready | requests | bound, s |", "|---|" + "---|" * 7]
    for name in names:
        rows = [found[name] for found in rounds.values() if name in found]
        ready = [row["ready_s"] for row in rows]
        bound = rows[0].get("bound_s")
        middle = {key: statistics.median(row[key] for row in rows) for key in ("cpu_s", "received_mb", "requests")}
        lines.append(
            f"| {name} | {len(rows)} | {statistics.median(ready):.2f} | {min(ready):.2f} to {max(ready):.2f} | "
            f"{middle['cpu_s']:.2f} | {middle['received_mb']:.1f} | {middle['requests']:.0f} | "
            f"{f'{bound:.1f}' if bound else ''} |"
        )
    against = [name for name in real if name in names]
    lines += ["", "| ready (CPU) | " + " | ".join(f"against {name}" for name in against) + " |"]
    lines.append("|---|" + "---|" * len(against))
    for name in names:
        cells = [_ratio(rounds, name, other) if name != other else "" for other in against]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _ratio(rounds: dict[int, dict[str, Row]], name: str, other: str) -> str:
    pairs = [(rows[name], rows[other]) for rows in rounds.values() if name in rows and other in rows]
    if not pairs:
        return ""
    ready = paired_ratio([a["ready_s"] for a, _ in pairs], [b["ready_s"] for _, b in pairs])
    cpu = paired_ratio([a["cpu_s"] for a, _ in pairs], [b["cpu_s"] for _, b in pairs])
    interval = f" [{ready.low:.3g}, {ready.high:.3g}]" if ready.has_interval else ""
    return f"{ready.ratio:.3g}{interval} ({cpu.ratio:.3g})"


def load_rounds(out: Path) -> dict[int, dict[str, Row]]:
    """What earlier calls with this directory recorded."""
    rounds: dict[int, dict[str, Row]] = {}
    if (out / "real.jsonl").exists():
        for line in (out / "real.jsonl").read_text("utf-8").splitlines():
            row = json.loads(line)
            rounds.setdefault(row["round"], {})[row["contestant"]] = row
    for session in out.glob("ours-*"):
        number = int(session.name.partition("-")[2])
        rounds.setdefault(number, {}).update({row["contestant"]: row for row in read_ours(session)})
    return dict(sorted(rounds.items()))


def _pairs(entries: Sequence[str], option: str) -> dict[str, str]:
    found = dict(entry.partition("=")[::2] for entry in entries)
    if not all(found.values()):
        sys.exit(f"{option}: expected NAME=VALUE")
    return found


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenario", help="a scenario whose readiness is the exit of its command")
    parser.add_argument("--shape", default="cpu=0.25,memory=1G")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True, help="directory of the results; a second call adds rounds")
    parser.add_argument("--storage", type=Path, help="storage of a registry that holds what --real names")
    parser.add_argument("--real", action="append", default=[], metavar="NAME=REPOSITORY:TAG",
                        help="docker, overlayfs (containerd's own), or the name of a lazy snapshotter")  # fmt: skip
    parser.add_argument("--mode", action="append", default=[], help="a mode of coldbench (the scenario's if none)")
    parser.add_argument("--programs", type=Path, help="directory looked into before PATH for the real programs")
    parser.add_argument("--daemon", action="append", default=[], metavar="NAME=LINE", help="starts a snapshotter")
    parser.add_argument("--client", action="append", default=[], metavar="NAME=LINE",
                        help="pulls and runs; NAME all stands for every snapshotter")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.real = _pairs(options.real, "--real")
    if options.real and options.storage is None:
        parser.error("--real needs --storage")
    return options


def main() -> None:
    options = parse_arguments()
    daemons, clients = _pairs(options.daemon, "--daemon"), _pairs(options.client, "--client")
    every = clients.pop("all", None)
    chosen = {name: every for name in options.real if name != "docker"} if every else {}
    programs = Programs(options.programs, DAEMONS | daemons, CLIENTS | chosen | clients)
    for name in options.real.keys() - {"docker", *programs.clients}:
        sys.exit(f"--real {name}: no client is known that pulls and runs with it; name one by --client {name}=LINE")
    scenario = scenarios.load(scenarios.find(options.scenario))
    if scenario.workload.readiness.kind != "exit":
        sys.exit(f"{options.scenario}: its readiness is {scenario.workload.readiness.kind}, expected exit")
    options.out.mkdir(parents=True, exist_ok=True)
    rounds = load_rounds(options.out)
    first = max(rounds, default=-1) + 1
    rng = random.Random(options.seed + first)
    with ExitStack() as stack:
        served = options.rounds and options.real
        endpoint = own_endpoint(stack, options.storage.absolute()) if served else None
        if endpoint is not None:
            probe_both(options, scenario, endpoint)
        for number in range(first, first + options.rounds):
            names = [*options.real, "ours"]
            for name in rng.sample(names, len(names)):
                if name == "ours":
                    rows = run_ours(options, number)
                else:
                    assert endpoint is not None
                    rows = [run_real(options, name, endpoint, scenario.workload.command, programs)]
                    with (options.out / "real.jsonl").open("a", encoding="utf-8") as out:
                        out.write(json.dumps({"round": number, "shape": options.shape, **rows[0]}) + "\n")
                    print(json.dumps(rows[0]), file=sys.stderr, flush=True)
                rounds.setdefault(number, {}).update({row["contestant"]: row for row in rows})
    print(table(dict(sorted(rounds.items())), list(options.real) or ["docker", "overlayfs", "stargz", "soci"]))


if __name__ == "__main__":
    main()
