"""Campaigns with real workers in two network namespaces, each with a cache of its own: killed, slow, another kernel,
a scheduler that restarts; what the client holds in the end is what one undisturbed run would hold."""

from __future__ import annotations

import contextlib
import json
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from harness.machine import addresses, shaping
from harness.machine.leftovers import find_leftovers
from harness.machine.records import host_lock
from harness.session import hosts
from harness.session.store import OBSERVATIONS, load
from tests.session.support import write_scenario

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.root

BLOCKS = 4
DASK = str(Path(sys.executable).parent / "dask")

#: A worker on which the kernel says to be another, or everything takes longer.
OTHER_KERNEL = """
import os
real_uname = os.uname
os.uname = lambda: os.uname_result((*real_uname()[:2], "5.15.0-faked", *real_uname()[3:]))
"""
SLOW = """
import time
from harness.machine import host
real_collect = host.collect
def collect(look_s=0.3):
    time.sleep(3)
    return real_collect(look_s)
host.collect = collect
"""


def wait_for(
    seen: Callable[[], bool], what: str, client: subprocess.Popen[str] | None = None, limit_s: float = 150.0
) -> None:
    end = time.monotonic() + limit_s
    while not seen():
        assert client is None or client.poll() is None, client.communicate()[0]
        assert time.monotonic() < end, f"waited {limit_s:.0f} s for {what}"
        time.sleep(0.1)


@dataclass
class Site:
    """A scheduler, two network namespaces, and workers in them."""

    directory: Path
    port: int
    names: tuple[str, str]
    blocks: list[addresses.Block] = field(default_factory=list)
    """Host's and site's addresses of each link, as it is made."""
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    scheduler: subprocess.Popen[bytes] | None = None

    def start_scheduler(self) -> None:
        arguments = ["--host", "0.0.0.0", "--port", str(self.port), "--no-dashboard"]
        self.scheduler = self._start([DASK, "scheduler", *arguments], {}, "scheduler")

        def there() -> bool:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return True
            return False

        wait_for(there, "the scheduler")

    def start_worker(self, number: int, patch: str = "") -> subprocess.Popen[bytes]:
        """A worker in namespace ``number``; ``patch`` is Python that runs before it."""
        name = f"site{number}"
        patches = self.directory / f"patch-{name}"
        patches.mkdir(exist_ok=True)
        (patches / "sitecustomize.py").write_text(patch)
        here = str(Path(__file__).parents[2])
        environment = {
            "COLDBENCH_CACHE": str(self.directory / f"cache-{name}"), "COLDBENCH_HOST": name,
            "PYTHONPATH": f"{patches}:{here}",
        }  # fmt: skip
        address = f"tcp://{self.blocks[number - 1].host}:{self.port}"
        command = [DASK, "worker", address, "--resources", "coldbench=1", "--nthreads", "1", "--no-nanny"]
        command += ["--no-dashboard", "--death-timeout", "60", "--local-directory", str(self.directory / name)]
        # A host's /sys shows the interfaces of its network namespace, so this one has a /sys of its own; control groups
        # are the machine's.
        aside = self.directory / f"cgroup-{name}"
        aside.mkdir(exist_ok=True)
        own_sys = (
            f"mount --rbind /sys/fs/cgroup {aside} && mount -t sysfs none /sys && "
            f'mount --rbind {aside} /sys/fs/cgroup && umount -l {aside} && exec "$@"'
        )
        inside = ["nsenter", f"--net=/run/netns/{self.names[number - 1]}", "unshare", "-m", "sh", "-c", own_sys, "sh"]
        return self._start([*inside, *command], environment, name)

    def start_client(self, scenario: Path, *more: str) -> subprocess.Popen[str]:
        arguments = ["run", str(scenario), "--mode", "overlay2:sequential", "--mode", "overlay2:tuned", "--seed", "3"]
        arguments += ["--blocks", str(BLOCKS), "--no-workloads", "--out", str(self.directory / "out"), *more]
        return self.start_command(*arguments)

    def start_command(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "harness", *arguments, "--scheduler", f"tcp://127.0.0.1:{self.port}"],
            cwd=Path(__file__).parents[2], text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def _start(self, command: list[str], environment: dict[str, str], name: str) -> subprocess.Popen[bytes]:
        with open(self.directory / f"{name}.log", "ab") as log:
            process = subprocess.Popen(
                command, env={**os.environ, **environment}, stdout=log, stderr=log, start_new_session=True
            )
        self.processes.append(process)
        return process

    def lines(self) -> list[dict[str, object]]:
        """Observations the client has appended so far."""
        path = self.directory / "out" / OBSERVATIONS
        if not path.exists():
            return []
        return [json.loads(line) for line in path.read_text().split("\n")[:-1]]

    def stop(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.terminate()
        for process in self.processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(30)
            if process.poll() is None:
                process.kill()
                process.wait()


@pytest.fixture(scope="module")
def rates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """This host's rates, measured once for all caches of this module."""
    cache = tmp_path_factory.mktemp("rates")
    program = "from harness.machine import rates; rates.ensure()"
    subprocess.run([sys.executable, "-c", program], env={**os.environ, "COLDBENCH_CACHE": str(cache)}, check=True)
    return cache / "rates.json"


@pytest.fixture
def site(tmp_path: Path, rates: Path) -> Iterator[Site]:
    with a_site(tmp_path, rates) as made:
        yield made


@contextlib.contextmanager
def a_site(tmp_path: Path, rates: Path) -> Iterator[Site]:
    for number in (1, 2):
        (tmp_path / f"cache-site{number}").mkdir()
        shutil.copy(rates, tmp_path / f"cache-site{number}" / "rates.json")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    tag = secrets.token_hex(3)
    names = (f"dtest{tag}a", f"dtest{tag}b")
    made = Site(tmp_path, port, names)

    def ip(*arguments: str, check: bool = True) -> None:
        subprocess.run(["ip", *arguments], check=check, capture_output=True)

    try:
        for number, name in enumerate(names, 1):
            ip("netns", "add", name)
            ip("link", "add", f"dt{tag}h{number}", "type", "veth", "peer", "name", "up0", "netns", name)
            # Chosen and taken under the lock of whoever makes machines here, so that no two runs get the same.
            with host_lock():
                block = addresses.choose_block(shaping.used_addresses(), random.Random())
                ip("addr", "add", f"{block.host}/{addresses.PREFIX_LENGTH}", "dev", f"dt{tag}h{number}")
            made.blocks.append(block)
            ip("link", "set", f"dt{tag}h{number}", "up")
            ip("-n", name, "addr", "add", f"{block.machine}/{addresses.PREFIX_LENGTH}", "dev", "up0")
            ip("-n", name, "link", "set", "up0", "up")
            ip("-n", name, "link", "set", "lo", "up")
        made.start_scheduler()
        yield made
    finally:
        made.stop()
        for number, name in enumerate(names, 1):
            ip("link", "del", f"dt{tag}h{number}", check=False)
            ip("netns", "del", name, check=False)


def finish(process: subprocess.Popen[str], limit_s: float = 240.0) -> str:
    out, _ = process.communicate(timeout=limit_s)
    assert process.returncode == 0, out
    return out


def check_whole(directory: Path) -> dict[int, str]:
    """Every trial of the plan is recorded once, each block on one host; hosts by block."""
    header, seen = load(directory)
    assert sorted(o.trial for o in seen) == [t.trial for t in header.plan.trials]
    planned = {t.trial: (t.block, t.case) for t in header.plan.trials}
    assert all(planned[o.trial] == (o.block, o.case.key) for o in seen)
    assert all(o.status == "ok" for o in seen), [o.failure for o in seen if o.failure]
    owners: dict[int, set[str]] = {}
    for o in seen:
        owners.setdefault(o.block, set()).add(o.host)
    assert all(len(names) == 1 for names in owners.values()), owners
    return {block: next(iter(names)) for block, names in owners.items()}


def test_a_killed_worker_a_slow_one_and_another_kernel(site: Site, tmp_path: Path) -> None:
    """The block of a worker killed in mid-block is run again whole elsewhere; the other worker is slow and has another
    kernel, which the session's hosts say; the result has every trial once, as without the fault."""
    scenario = write_scenario(tmp_path, ["/bin/probe", "exit"])
    doomed = site.start_worker(1)
    client = site.start_client(scenario)
    wait_for(lambda: any(line["host"] == "site1" for line in site.lines()), "a trial on the first host", client)
    site.start_worker(2, OTHER_KERNEL + SLOW)

    def in_mid_block() -> bool:
        trials: dict[object, int] = {}
        for line in site.lines():
            trials[line["block"]] = trials.get(line["block"], 0) + 1
        return any(n == 1 for n in trials.values())

    wait_for(in_mid_block, "the middle of a block", client)
    os.kill(doomed.pid, signal.SIGKILL)
    finish(client)
    owners = check_whole(tmp_path / "out")
    assert "site2" in owners.values()
    kernels = {name: facts["kernel"] for name, facts in hosts.load(tmp_path / "out").items()}
    assert kernels["site2"] == "5.15.0-faked"
    wait_for(lambda: not [left for left in find_leftovers() if "coldbench" in str(left)], "the killed host to be clean")


def test_the_scheduler_restarts(site: Site, tmp_path: Path) -> None:
    """The client waits for a scheduler that went away, and hands out again what is left."""
    scenario = write_scenario(tmp_path, ["/bin/probe", "exit"])
    first = site.start_worker(1)
    client = site.start_client(scenario)
    wait_for(lambda: len(site.lines()) >= 2, "the first block", client)
    assert site.scheduler is not None
    site.scheduler.kill()
    site.scheduler.wait()
    first.terminate()
    first.wait(60)
    site.start_scheduler()
    site.start_worker(2)
    said = finish(client)
    check_whole(tmp_path / "out")
    assert f"{2 * BLOCKS} trials" in said


def test_ctrl_c_cleans_the_hosts_and_the_session_resumes(site: Site, tmp_path: Path) -> None:
    """Ctrl-C at the client ends the trial on its host, takes the machine away, and --resume runs the rest."""
    scenario = write_scenario(tmp_path, ["/bin/probe", "exit"])
    site.start_worker(1)
    client = site.start_client(scenario)
    wait_for(lambda: len(site.lines()) >= 1, "the first trial", client)
    client.send_signal(signal.SIGINT)
    out, _ = client.communicate(timeout=120)
    assert client.returncode == 130, out
    assert "ending the trials that run" in out
    again = site.start_command("run", "--resume", "--out", str(tmp_path / "out"))
    finish(again)
    check_whole(tmp_path / "out")


def test_two_sites_at_once_do_not_meet(site: Site, rates: Path, tmp_path: Path) -> None:
    """Runs beside each other have links of their own: no address twice, and each place reaches its own scheduler."""
    (tmp_path / "other").mkdir()
    with a_site(tmp_path / "other", rates) as other:
        every = [address for made in (site, other) for block in made.blocks for address in block]
        assert len(set(every)) == 8
        assert all(addresses.is_simulated(address) for address in every)
        for made in (site, other):
            for name, block in zip(made.names, made.blocks, strict=True):
                reach = f"import socket; socket.create_connection(('{block.host}', {made.port}), 20)"
                subprocess.run(["ip", "netns", "exec", name, sys.executable, "-c", reach], check=True)


def test_no_scheduler_is_one_line(tmp_path: Path) -> None:
    """Nobody listens there: exit code 4, and the line says how to start one."""
    scenario = write_scenario(tmp_path, ["/bin/probe", "exit"])
    done = subprocess.run(
        [sys.executable, "-m", "harness", "run", str(scenario), "--out", str(tmp_path / "o"), "--scheduler",
         "tcp://127.0.0.1:9"],
        cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 4
    assert "start one (dask scheduler)" in done.stderr
