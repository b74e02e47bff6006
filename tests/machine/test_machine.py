"""A real machine: limits in force, isolation, counters; and nothing left after it. Needs root."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from harness.errors import MachineError
from harness.machine import cgroup, shaping
from harness.machine.cgroup import CpuLimit
from harness.machine.leftovers import find_leftovers
from harness.machine.machine import Machine
from harness.machine.network import SimulatedNetwork
from harness.model.shape import Distance, parse_shape

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.root

SCRATCH = 64 << 20
BURN = "import time\nwhile time.process_time() < {core_s}: pass"


def small(shape: str = "unlimited", **options: object) -> Machine:
    """A machine with a small disk."""
    return Machine(parse_shape(shape), scratch_bytes=SCRATCH, **options)  # type: ignore[arg-type]


def output(machine: Machine, *argv: str) -> str:
    """What a command in the machine prints."""
    process = machine.spawn(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    return process.communicate()[0].decode()


@pytest.fixture
def network() -> Iterator[SimulatedNetwork]:
    with SimulatedNetwork("test") as made:
        yield made


def test_processes_are_inside(tmp_path: Path) -> None:
    """A spawned process is in the control group with what it was given, and sees the host's files."""
    with small("cpu=0.5,memory=64M") as machine:
        (tmp_path / "seen").write_text("yes")
        groups = output(machine, "cat", "/proc/self/cgroup")
        assert f"/coldbench-{machine.id}" in groups
        assert output(machine, "cat", str(tmp_path / "seen")) == "yes"
        assert output(machine, "sh", "-c", "ls /proc/self/fd; pwd").split() == ["0", "1", "2", "3", "/"]
        variables = output(machine, "env").split()
        trust = {"SSL_CERT_FILE", "CURL_CA_BUNDLE"}  # handed through where the harness has them
        assert {v.partition("=")[0] for v in variables} - trust == {"PATH", "HOME", "LANG", "COLDBENCH_MACHINE"}
        with machine.exec_python("json.tool", ["--help"], stdout=subprocess.PIPE) as process:
            assert b"usage" in process.communicate()[0]
        reading, writing = os.pipe()
        with machine.spawn(["sh", "-c", f"echo passed > /proc/self/fd/{writing}"], pass_fds=[writing], cwd="/usr"):
            os.close(writing)
        with open(reading, encoding="ascii") as file:
            assert file.read() == "passed\n"


def test_limits_are_in_force_when_throttled() -> None:
    """Set-up runs without a quota; ``throttle`` puts exactly the asked one in force and can lift it again."""
    with small("cpu=0.25,memory=96M,period=80ms,bandwidth=80Mbit") as machine:
        driver = machine._cgroup
        assert driver.read_cpu().cores is None
        before = time.monotonic_ns()
        assert machine.throttle(True) >= before
        assert driver.read_cpu() == CpuLimit(20_000, 80_000)
        assert driver.read_memory() == 96 << 20
        assert driver.read_pids() == 8192
        assert shaping.read_rates(machine._record, machine.namespace_pid) == ([10_000_000], [10_000_000])
        machine.throttle(False)
        assert driver.read_cpu().cores is None


def test_limits_that_do_not_hold_are_noticed() -> None:
    """A quota that somebody moved is an error that names it."""
    with small("cpu=0.25") as machine:
        machine.throttle(True)
        machine._cgroup.set_cpu(CpuLimit(90_000, 100_000))
        with pytest.raises(MachineError, match="limits are not as asked: CPU 90000/100000"):
            machine.verify()


def test_cpu_is_throttled_as_asked() -> None:
    """A process that wants a whole core gets a fifth of one, and the counters say that it was held back."""
    with small("cpu=0.2") as machine:
        machine.throttle(True)
        start, before = time.monotonic(), machine.counters()
        with machine.spawn([sys.executable, "-S", "-c", BURN.format(core_s=0.4)]) as process:
            assert process.wait(60) == 0
        elapsed, used = time.monotonic() - start, machine.counters().since(before)
        assert used.cpu_total_s >= 0.35, "what it used before it entered is not the machine's"
        # Two periods' quota may be used at once at the start.
        assert used.cpu_total_s <= 0.2 * elapsed + 2 * 0.02 + 0.02
        assert used.nr_throttled > 0
        assert used.throttled_s > 0
        assert used.cpu_user_s + used.cpu_system_s == pytest.approx(used.cpu_total_s, rel=0.01)


def test_credits_run_out() -> None:
    """With a little credit the quota starts at the burst and ends at the baseline, and the series shows it."""
    with small("cpu=0.02,burst=2,credits=0.2") as machine:
        machine.throttle(True)
        assert machine._cgroup.read_cpu() == CpuLimit(200_000, 100_000)
        machine.spawn([sys.executable, "-S", "-c", BURN.format(core_s=60)])
        await_true(lambda: machine.credit_samples()[-1].quota_cores < 1, seconds=60)
        assert machine._cgroup.read_cpu() == CpuLimit(2_000, 100_000)
        machine.verify()
    samples = machine.credit_samples()
    assert samples[0].t_s < 0.1
    assert samples[0].balance_core_s == pytest.approx(0.2, abs=0.02)
    quotas = [sample.quota_cores for sample in samples]
    assert quotas[0] == 2.0
    assert quotas[-1] == 0.02
    assert quotas == sorted(quotas, reverse=True)


def test_out_of_memory_is_counted() -> None:
    """A process that takes more memory than the machine has is killed, and the counter says why."""
    with small("memory=32M") as machine:
        with machine.spawn(["python3", "-S", "-c", "b = bytearray(200 << 20)"], stderr=subprocess.DEVNULL) as process:
            assert process.wait(60) != 0
        counters = machine.counters()
        assert counters.oom_kills >= 1
        assert counters.memory_peak_bytes <= 32 << 20


def test_disk_is_full() -> None:
    """The scratch disk ends where it was said to, and what was written reached the device."""
    with small() as machine:
        said = output(machine, "dd", "if=/dev/zero", f"of={machine.scratch}/big", "bs=1M", "count=200", "conv=fsync")
        assert "No space left on device" in said
        assert machine.counters().io_written_bytes > SCRATCH // 2


def test_the_shape_says_how_large_the_disk_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``disk-size=`` is the size of the scratch disk; COLDBENCH_SCRATCH says where its file is."""
    monkeypatch.setenv("COLDBENCH_SCRATCH", str(tmp_path))
    with Machine(parse_shape("disk-size=48M"), name="test") as machine:
        status = os.statvfs(machine.outside(machine.scratch))
        assert 24 << 20 < status.f_blocks * status.f_frsize < 48 << 20
        name = Path(f"/sys/block/{Path(machine._disk.device).name}/loop/backing_file").read_text("ascii")
        assert name.startswith(str(tmp_path))


def test_mounts_are_private() -> None:
    """The scratch disk and what is mounted inside are seen inside and through ``outside`` only."""
    with small() as machine:
        output(machine, "touch", f"{machine.scratch}/inside")
        assert list(machine.scratch.iterdir()) == []
        assert (machine.outside(machine.scratch) / "inside").exists()
        output(machine, "sh", "-c", f"mkdir {machine.scratch}/m; mount -t tmpfs t {machine.scratch}/m")
        assert f"{machine.scratch}/m" in output(machine, "cat", "/proc/self/mounts")
        assert machine.id not in Path("/proc/self/mounts").read_text()


def test_network_reaches_the_registry_and_nothing_else(network: SimulatedNetwork) -> None:
    """From inside there is loopback, the link, and the host's simulated address; not the host's loopback."""
    with socket.create_server((network.address, 0)) as registry, socket.create_server(("127.0.0.1", 0)) as private:
        port = registry.getsockname()[1]
        with small("bandwidth=100Mbit", registry_upstream=(network.address, port)) as machine:
            assert machine.registry == f"{network.address}:{port}"
            names = output(machine, "cat", "/proc/self/net/dev")
            assert [line.split(":")[0].strip() for line in names.splitlines()[2:]] == ["lo", "eth0"]
            connect = "import socket,sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 5); print('in')"
            assert output(machine, "python3", "-c", connect, network.address, str(port)) == "in\n"
            assert registry.accept()[1][0] == machine.address
            refused = output(machine, "python3", "-c", connect, "127.0.0.1", str(private.getsockname()[1]))
            assert "ConnectionRefusedError" in refused
            wire = machine.wire()
            assert wire.sent_packets >= 3
            assert wire.received_bytes > 0


def test_bandwidth_holds(network: SimulatedNetwork) -> None:
    """Bytes take at least as long as the bandwidth allows, and the wire counts them."""
    size, rate = 1_500_000, 2_000_000
    with socket.create_server((network.address, 0)) as registry:
        port = registry.getsockname()[1]
        with small("bandwidth=16Mbit", registry_upstream=(network.address, port)) as machine:
            receive = (
                "import socket,sys,time; s=socket.create_connection((sys.argv[1], int(sys.argv[2]))); "
                "t=time.monotonic(); n=0\nwhile d := s.recv(1<<16): n+=len(d)\nprint(n, time.monotonic()-t)"
            )
            process = machine.spawn(["python3", "-c", receive, network.address, str(port)], stdout=subprocess.PIPE)
            with registry.accept()[0] as connection:
                connection.sendall(bytes(size))
            received, elapsed = process.communicate()[0].split()
            assert int(received) == size
            assert float(elapsed) >= (size - (256 << 10)) / rate
            assert machine.wire().received_bytes >= size


def test_round_trip_holds(network: SimulatedNetwork) -> None:
    """A request and its answer take at least the round trip, by netem or by the relay, beside the bandwidth."""
    with socket.create_server((network.address, 0)) as registry:
        upstream = (network.address, registry.getsockname()[1])
        with small("bandwidth=80Mbit,rtt=30ms", registry_upstream=upstream) as machine:
            machine.verify()
            ask = (
                "import socket,sys,time; s=socket.create_connection((sys.argv[1], int(sys.argv[2]))); "
                "t=time.monotonic(); s.sendall(b'x'); s.recv(1); print(time.monotonic()-t)"
            )
            process = machine.spawn(["python3", "-c", ask, *machine.registry.split(":")], stdout=subprocess.PIPE)
            with registry.accept()[0] as connection:
                assert connection.recv(1) == b"x"
                connection.sendall(b"y")
            assert float(process.communicate()[0]) >= 0.030


def test_a_far_registry_is_behind_a_relay(network: SimulatedNetwork) -> None:
    """With a distance the registry is reached at the host's end of the link, and the relay ends with the machine."""
    with socket.create_server((network.address, 0)) as registry:
        upstream = (network.address, registry.getsockname()[1])
        with small(distance=Distance(first_byte_ms=5, rtt_ms=2), registry_upstream=upstream) as machine:
            assert machine.registry.startswith(f"{machine.host_address}:")
            (relay,) = machine.ways.relays
            assert relay.alive
        assert not relay.alive


def test_no_registry() -> None:
    """A machine made without a registry says so when asked for it."""
    with small() as machine, pytest.raises(MachineError, match="without a registry"):
        assert machine.registry


def test_a_missing_program_is_an_error() -> None:
    """What cannot be started in the machine is named."""
    with small() as machine, pytest.raises(MachineError, match="cannot start no-such-program"):
        machine.spawn(["no-such-program"])


def test_reset_starts_the_measurement_anew() -> None:
    """After ``reset`` the memory peak is that of what follows."""
    with small() as machine:
        output(machine, "python3", "-S", "-c", "b = bytearray(80 << 20)")
        assert machine.counters().memory_peak_bytes > 80 << 20
        machine.reset()
        if machine._cgroup.version == 1:
            assert machine.counters().memory_peak_bytes < 40 << 20


def test_machines_side_by_side() -> None:
    """Several machines have their own addresses and groups, and one's end leaves the others alone."""
    with small() as first:
        with small() as second:
            assert first.address != second.address
            survivor = first.spawn(["sleep", "60"])
            assert second.pids() == []
        assert survivor.poll() is None
        assert first.pids() == [survivor.pid]
        first.verify()
    assert survivor.wait(10) == -9


def held() -> set[tuple[str, str]]:
    """What this process holds: the networks of other tests' fixtures live on until the end."""
    return {(found.id, found.what) for found in find_leftovers(mine=True)}


def test_nothing_is_left() -> None:
    """After an exception inside, with processes and mounts still there, nothing of the machine remains."""
    before = held()
    started = []

    def fail() -> None:
        with small("memory=64M,bandwidth=1Gbit") as machine:
            script = f"mount -t tmpfs t {machine.scratch}; sleep 60 & sleep 60"
            started.append(machine.spawn(["sh", "-c", script]))
            machine.throttle(True)
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail()
    assert started[0].wait(10) == -9
    assert held() <= before


def test_half_made_machine_is_unmade(monkeypatch: pytest.MonkeyPatch) -> None:
    """A failure while the machine is being made takes back what was made so far."""
    before = held()
    monkeypatch.setattr(shaping, "shape_link", lambda *_args: (_ for _ in ()).throw(MachineError("no shaping")))
    with pytest.raises(MachineError, match="no shaping"), small():
        pass
    assert held() <= before


HARNESS = """
import json, sys, time
from harness.machine.machine import Machine
from harness.machine.network import SimulatedNetwork
from harness.model.shape import parse_shape
with SimulatedNetwork() as network:
    with Machine(parse_shape("cpu=0.1,memory=64M,first-byte=5ms"), scratch_bytes=64 << 20,
                 registry_upstream=(network.address, 1)) as machine:
        machine.throttle(True)
        script = f"mount -t tmpfs t {machine.scratch}; sleep 300 & sleep 300"
        inner = machine.spawn(["sh", "-c", script], stdout=-3, stderr=-3)
        said = [machine.id, machine.namespace_pid, inner.pid, machine.ways.relays[0].pid, network._record.id]
        print(json.dumps(said), flush=True)
        time.sleep(300)
"""


def start_harness() -> tuple[subprocess.Popen[bytes], list[object]]:
    """Another process with a network and a machine, and the identifiers it tells."""
    process = subprocess.Popen([sys.executable, "-c", HARNESS], stdout=subprocess.PIPE)
    assert process.stdout is not None
    return process, json.loads(process.stdout.readline())


def gone(pid: object) -> bool:
    """Whether a process has ended (a zombie whose parent has not looked yet has)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def await_true(condition: object, seconds: float = 20.0) -> None:
    """Wait for something another process does."""
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def traces(*ids: object) -> list[str]:
    """Whatever on this host still carries one of these identifiers."""
    found = [path for path in os.listdir("/run/coldbench") if path[:8] in ids]
    found += [name for name in shaping.interfaces() if name[2:10] in ids]
    found += [label for label in shaping.loopback_addresses().values() if label[2:10] in ids]
    for root in cgroup.find_mounts().roots:
        found += [str(path) for path in root.glob("coldbench-*") if path.name[-8:] in ids]
    found += [p for p in Path("/sys/block").glob("loop*/loop/backing_file") if str(ids[0]) in cgroup.read_text(p)]  # type: ignore[misc]
    return found


@pytest.mark.parametrize("holder_too", [False, True])
def test_killed_harness_and_clean(holder_too: bool) -> None:
    """After SIGKILL of the harness (and of its holder) its processes end and ``coldbench clean`` removes the rest."""
    process, (machine, holder, inner, relay, network) = start_harness()
    live = [str(found) for found in find_leftovers() if found.id in (machine, network)]
    assert live == [], "a live run's things are nobody's leftovers"
    if holder_too:
        os.kill(int(str(holder)), 9)
    process.kill()
    process.communicate()
    await_true(lambda: all(gone(pid) for pid in (holder, inner, relay)))
    # What it printed is not looked at: another run starting at this moment may have cleaned up first.
    subprocess.run([sys.executable, "-m", "harness", "clean"], capture_output=True, check=True)
    assert traces(machine, network) == []
    assert [found for found in find_leftovers() if found.id in (machine, network)] == []


def test_terminated_harness_leaves_no_process_behind() -> None:
    """SIGTERM, which ends a harness that does not handle it, leaves no process and no control group of the machine."""
    process, (machine, holder, inner, relay, network) = start_harness()
    process.terminate()
    process.communicate()
    await_true(lambda: all(gone(pid) for pid in (holder, inner, relay)))
    with SimulatedNetwork():  # the next run cleans up before it starts
        assert traces(machine, network) == []
