"""What ``clean`` takes away and what it leaves: with look-alikes, hostile users and killed runs. Needs root."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from harness.kernel import loop, syscalls
from harness.lazyfs.mounting.loop_device import OWNER_VARIABLE
from harness.machine import cgroup, records
from harness.machine.leftovers import find_leftovers, sweep
from harness.machine.records import ENVIRONMENT_MARK, ProcessId, Record, recorded_directory
from tests.machine.test_machine import HARNESS, await_true, traces

if TYPE_CHECKING:
    from collections.abc import Iterator

ROUNDS = 20


@pytest.fixture
def dead(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Record]:
    """The record of a run that has ended without tidying up; everything the test makes for it is gone afterwards.

    In a directory of its own, so that another run's sweep does not come first.
    """
    directory = tmp_path_factory.mktemp("run")
    monkeypatch.setattr(records, "RUN_DIR", directory)
    monkeypatch.setenv("COLDBENCH_RUN_DIR", str(directory))
    record = Record.new("machine", "test")
    record.owner = ProcessId(2**22 + 1, 1)  # above any pid
    record.save()
    record.directory.mkdir(mode=0o755)
    yield record
    shutil.rmtree(record.directory, ignore_errors=True)
    record.remove()


def found_of(*ids: str) -> list[str]:
    """What would be removed for these IDs."""
    return [str(leftover) for leftover in find_leftovers() if leftover.id in ids]


HOSTILE_NAMESPACE = """
set -e
mount -t tmpfs t {parent}
mkdir -p {directory}/scratch
mount -t tmpfs t {directory}/scratch
for program in umount nsenter sh python3; do
    for place in /usr/bin /usr/sbin /bin /sbin; do
        if test -e $place/$program; then mount --bind {trap} $place/$program; fi
    done
done
echo ready
exec {sleep} 60
"""


@pytest.mark.root
def test_a_users_namespace_is_left_alone(dead: Record, open_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user who makes a mount of our name, and a umount of his own, in a namespace of his gets nothing run as root."""
    run = open_directory / "run"  # where the user can make what a record vouches for
    monkeypatch.setattr(records, "RUN_DIR", run)
    monkeypatch.setenv("COLDBENCH_RUN_DIR", str(run))
    dead.save()
    dead.directory.mkdir()
    tmp_path = open_directory / "theirs"
    tmp_path.mkdir()
    tmp_path.chmod(0o777)
    marker = tmp_path / "taken"
    trap = tmp_path / "trap"
    trap.write_text(f"#!/usr/bin/perl\nopen(F, '>', '{marker}'); print F $<;\n")
    trap.chmod(0o755)
    sleep = shutil.copy("/bin/sleep", tmp_path / "sleep")
    script = HOSTILE_NAMESPACE.format(directory=dead.directory, parent=records.RUN_DIR, trap=trap, sleep=sleep)
    user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "unshare", "-Urm", "sh", "-c", script]
    with subprocess.Popen(user, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as attacker:
        try:
            assert attacker.stdout is not None
            assert attacker.stdout.readline() == b"ready\n"
            mounts = Path(f"/proc/{attacker.pid}/mountinfo").read_text()
            assert f"{dead.directory}/scratch" in mounts
            assert not any(text.startswith("mount") for text in found_of(dead.id))
            subprocess.run([sys.executable, "-m", "harness", "clean"], check=True, capture_output=True)
            assert Path(f"/proc/{attacker.pid}/mountinfo").read_text() == mounts
            assert not marker.exists()
            assert not dead.path.exists(), "the record itself is ours and goes"
        finally:
            attacker.kill()


@pytest.mark.root
def test_a_copy_of_our_mount_goes_without_running_anything(dead: Record, tmp_path: Path) -> None:
    """A mount that another namespace of root copied is detached there, with programs there that must not run."""
    target = dead.directory / "scratch"
    target.mkdir()
    marker, trap = tmp_path / "taken", tmp_path / "trap"
    trap.write_text(f"#!/usr/bin/perl\nopen(F, '>', '{marker}');\n")
    trap.chmod(0o755)
    syscalls.mount(dead.name, str(target), "tmpfs", 0)
    script = f"mount --bind {trap} $(readlink -f $(command -v umount)); echo ready; exec sleep 60"
    with subprocess.Popen(
        ["unshare", "-m", "--propagation", "private", "sh", "-c", script], stdout=subprocess.PIPE
    ) as copy:
        try:
            assert copy.stdout is not None
            assert copy.stdout.readline() == b"ready\n"
            assert str(target) in Path(f"/proc/{copy.pid}/mountinfo").read_text()
            sweep()
            assert str(target) not in Path(f"/proc/{copy.pid}/mountinfo").read_text()
            assert str(target) not in Path("/proc/self/mountinfo").read_text()
            assert not marker.exists()
        finally:
            copy.kill()
    assert not dead.path.exists()


def test_no_program_is_run_in_another_namespace() -> None:
    """Nothing in the package calls a program that enters namespaces and executes what it finds there."""
    package = Path(records.__file__).parents[1]
    callers = [str(file) for file in package.rglob("*.py") if "nsenter" in file.read_text("utf-8")]
    assert callers == []


@pytest.mark.root
def test_what_only_looks_like_ours_stays(tmp_path: Path) -> None:
    """Groups, mounts, loop devices and directories with a date after ``coldbench-`` are other people's."""
    name = "coldbench-20261130"
    mount = tmp_path / name
    mount.mkdir()
    group = cgroup.find_mounts().roots[0] / name
    image = tmp_path / f"{name}.img"
    image.write_bytes(b"\0" * (1 << 20))
    with contextlib.ExitStack() as stack:
        group.mkdir()
        stack.callback(group.rmdir)
        syscalls.mount(name, str(mount), "tmpfs", 0)
        stack.callback(syscalls.umount, str(mount), syscalls.MNT_DETACH)
        file = os.open(image, os.O_RDWR)
        stack.callback(os.close, file)
        descriptor, device = loop.attach(file, name.encode(), loop.AUTOCLEAR)
        stack.callback(os.close, descriptor)
        assert found_of("20261130") == []
        subprocess.run([sys.executable, "-m", "harness", "clean"], check=True, capture_output=True)
        assert group.is_dir()
        assert os.path.ismount(mount)
        assert loop.name_of(device) == name


@pytest.mark.root
def test_another_record_directory_does_not_make_live_runs_dead(tmp_path: Path) -> None:
    """``clean`` that looks for records elsewhere knows nothing of a live run's things, and leaves them."""
    process = subprocess.Popen([sys.executable, "-c", HARNESS], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        machine, _holder, inner, _relay, network = json.loads(process.stdout.readline())
        there = traces(machine, network)
        environment = {**os.environ, "COLDBENCH_RUN_DIR": str(tmp_path / "elsewhere")}
        done = subprocess.run(
            [sys.executable, "-m", "harness", "clean"], check=True, capture_output=True, text=True, env=environment
        )
        assert machine not in done.stdout
        assert network not in done.stdout
        assert traces(machine, network) == there
        assert Path(f"/proc/{inner}").exists()
    finally:
        process.terminate()
        process.communicate()
    await_true(lambda: not Path(f"/proc/{inner}").exists())
    sweep()


@pytest.mark.root
def test_a_users_process_with_our_mark_is_not_killed(dead: Record) -> None:
    """Anybody may give his processes our variable; only root's own count."""
    environment = {ENVIRONMENT_MARK: dead.name, "PATH": os.environ["PATH"]}
    user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "sleep", "60"]
    theirs = subprocess.Popen(user, env=environment)
    ours = subprocess.Popen(["sleep", "60"], env=environment)
    try:
        await_true(lambda: any(text.startswith(f"process {ours.pid} (sleep") for text in found_of(dead.id)))
        await_true(lambda: b"sleep" in Path(f"/proc/{theirs.pid}/cmdline").read_bytes()[:6])
        sweep()
        assert ours.wait(10) == -9
        assert theirs.poll() is None
    finally:
        for process in (theirs, ours):
            process.kill()
            process.wait()


@pytest.mark.root
@pytest.mark.parametrize("how", ["owner", "mode", "link", "directory"])
def test_a_record_that_others_can_write_vouches_for_nothing(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A record that another user owns or may change, a link to one, or one in his directory, is none."""
    monkeypatch.setattr(records, "RUN_DIR", tmp_path / "run")
    record = Record.new("machine")
    victim = tmp_path / "victim"
    victim.touch()
    record.files.append(str(victim))
    record.owner = ProcessId(2**22 + 1, 1)
    record.save()
    assert records.stored() == [record]
    if how == "owner":
        os.chown(record.path, 65534, 65534)
    elif how == "mode":
        record.path.chmod(0o666)
    elif how == "link":
        record.path.rename(tmp_path / "elsewhere.json")
        record.path.symlink_to(tmp_path / "elsewhere.json")
    else:
        records.RUN_DIR.chmod(0o777)
    assert records.stored() == []
    assert found_of(record.id) == []


@pytest.mark.root
def test_a_file_that_another_user_put_in_its_place_stays(dead: Record, tmp_path: Path) -> None:
    """What stands at a recorded path now and belongs to somebody else is not removed."""
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    for path in (theirs, ours):
        path.touch()
    os.chown(theirs, 65534, 65534)
    dead.files += [str(theirs), str(ours)]
    dead.save()
    sweep()
    assert theirs.exists()
    assert not ours.exists()


@pytest.mark.root
def test_a_tree_of_any_depth_goes(dead: Record, tmp_path: Path) -> None:
    """A scratch directory with an image's tree of 1 500 levels is removed, and ``clean`` does not stumble over it."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    descriptor = os.open(scratch, os.O_RDONLY)
    for _level in range(1500):
        os.mkdir("level", dir_fd=descriptor)
        below = os.open("level", os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = below
    os.close(descriptor)
    dead.files.append(str(scratch))
    dead.save()
    sweep()
    assert not scratch.exists()
    assert not dead.path.exists()


@pytest.mark.root
def test_a_noted_mount_point_is_found_and_what_the_user_mounted_since_stays(dead: Record, tmp_path: Path) -> None:
    """At a place the user chose, only a mount that carries our name as its source goes."""
    ours, theirs = tmp_path / "with space", tmp_path / "theirs"
    for place in (ours, theirs):
        place.mkdir()
        dead.add_mount(str(place))
    syscalls.mount(dead.name, str(ours), "tmpfs", 0)
    syscalls.mount("tmpfs", str(theirs), "tmpfs", 0)
    try:
        assert dead.mounts() == [str(ours), str(theirs)]
        sweep()
        assert not os.path.ismount(ours)
        assert ours.is_dir(), "the directory was there before us"
        assert os.path.ismount(theirs)
        assert not dead.path.exists()
    finally:
        syscalls.umount(str(theirs), syscalls.MNT_DETACH)


@pytest.mark.root
def test_a_loop_device_is_known_by_its_name(dead: Record, tmp_path: Path) -> None:
    """A device that was attached for a dead run goes, wherever its file is; daemons give them their machine's name."""
    assert OWNER_VARIABLE == ENVIRONMENT_MARK
    image = tmp_path / "anything"
    image.write_bytes(b"\0" * (1 << 20))
    file = os.open(image, os.O_RDWR)
    descriptor, device = loop.attach(file, dead.name.encode(), 0)
    os.close(descriptor)
    os.close(file)
    sweep()
    assert loop.name_of(device) == ""
    assert not dead.path.exists()


@pytest.mark.root
def test_a_record_stays_as_long_as_something_is_left(dead: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be removed keeps its record, so that the next ``clean`` finds it again."""
    group = cgroup.find_mounts().roots[0] / dead.name
    group.mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(cgroup, "remove_tree", lambda _top: None)
        sweep()
        assert dead.path.exists()
    sweep()
    assert not group.exists()
    assert not dead.path.exists()


@pytest.mark.root
def test_a_recorded_directory_goes_with_its_owner() -> None:
    """A directory for scratch has a record before it is made, and neither is there afterwards."""
    with recorded_directory("test") as made:
        record = Record.load(records.RUN_DIR / f"{made.name.removeprefix('coldbench-')}.json")
        assert record is not None
        assert record.files == [str(made)]
        assert made.stat().st_mode & 0o777 == 0o700
    assert not made.exists()
    assert not record.path.exists()


@pytest.mark.root
def test_killed_at_random_moments_everything_goes() -> None:
    """Killed at twenty random moments, from its start to long after its machine is up, a run leaves nothing behind.

    What the killed process had made is told by its record, which it writes first; the test knows the owner's pid.
    """
    rng = random.Random(os.getpid())
    for _round in range(ROUNDS):
        process = subprocess.Popen([sys.executable, "-c", HARNESS], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        # A machine is up within half a second on an idle host; the moments cover its making and its use.
        time.sleep(0.25 + rng.random() * 1.5)
        owned = [record.id for record in records.stored() if record.owner.pid == process.pid]
        process.kill()
        process.communicate()
        owned += [r.id for r in records.stored() if r.owner.pid == process.pid and r.id not in owned]
        sweep()
        await_true(lambda: not found_of(*owned), 30.0)  # noqa: B023 - called at once
        assert traces(*owned, "none") == []
