"""``coldbench mount``: an image to look at, gone at Ctrl-C."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from harness.kernel import loop
from harness.lazyfs.control import serving
from harness.lazyfs.mounting.mounts import mount_device
from harness.machine import leftovers, records
from tests.engines.support import tar_bytes
from tests.hostile.images import attacker
from tests.lazyfs.mounting.test_handover import forget_pages
from tests.lazyfs.support import MODES, File, convert, need_root, tar_of, text, write_image

if TYPE_CHECKING:
    from harness.oci.store import ImageSource

pytestmark = pytest.mark.root


def command(*arguments: str, ignore_interrupt: bool = False) -> subprocess.Popen[str]:
    """``ignore_interrupt``: as a shell without job control starts what goes to the background."""
    shell = ["sh", "-c", 'trap "" INT; exec "$0" "$@"'] if ignore_interrupt else []
    return subprocess.Popen(
        [*shell, sys.executable, "-m", "harness", "mount", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def holder_of(process: subprocess.Popen[str]) -> int:
    """The pid of who holds the mount's daemon."""
    (holder,) = [child.pid for child in psutil.Process(process.pid).children()]
    return holder


@pytest.mark.parametrize("mode", MODES)
def test_mounts_until_interrupted(mode: str, tmp_path: Path) -> None:
    """Both layers are seen as one tree; Ctrl-C unmounts, says what was fetched, and ends in 0."""
    need_root()
    lower, upper = tar_of(File("a", text(5000)), File("gone", b"x")), tar_of(File(".wh.gone", b""), File("b", b"2"))
    convert(write_image(tmp_path / "image", [lower, upper]), tmp_path / "lazy", mode)
    target = tmp_path / "mnt"
    process = command(f"oci:{tmp_path}/lazy:image", str(target), "--mode", mode)
    assert process.stdout is not None
    assert "is mounted on" in process.stdout.readline()
    assert (target / "a").read_bytes() == text(5000)
    assert (target / "b").read_bytes() == b"2"
    assert not (target / "gone").exists()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (0, "")
    assert "requests" in out
    assert mount_device(str(target)) is None


def lines_below(*places: Path) -> list[list[str]]:
    """Fields of this namespace's mounts at or below these places, and of the daemon's."""
    table = [line.split(" ") for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return [fields for fields in table if any(fields[4].startswith(str(place)) for place in places)]


def hostile_image(place: Path) -> ImageSource:
    """Two layers with a set-user-ID copy of a program that prints its effective user, and a device node."""
    disk = {"type": tarfile.BLKTYPE, "devmajor": 7, "devminor": 0, "mode": 0o666}
    lower = tar_bytes([("a", {"data": text(5000), "mode": 0o644}), ("disk", disk)])
    return write_image(place, [lower, tar_bytes([("root", {"data": attacker(), "mode": 0o4755})])])


@pytest.mark.parametrize("mode", MODES)
def test_the_image_gives_local_users_nothing(mode: str, open_directory: Path) -> None:
    """Every mount is read-only, without set-user-ID and devices; others get in with --allow-other only, and then gain
    nothing."""
    need_root()
    convert(hostile_image(open_directory / "image"), open_directory / "lazy", mode)
    target = open_directory / "mnt"
    user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    for options in ([], ["--allow-other"]):
        process = command(f"oci:{open_directory}/lazy:image", str(target), "--mode", mode, *options)
        assert process.stdout is not None
        assert "is mounted on" in process.stdout.readline()
        try:
            mounts = lines_below(target, records.RUN_DIR, Path("/var/tmp/coldbench-"))
            ours = [fields for fields in mounts if fields[4] == str(target) or "fuse.lazyfs" in fields]
            assert len(ours) >= 2
            for fields in ours:
                assert {"ro", "nosuid", "nodev"} <= set(fields[5].split(",")), fields
            assert (target / "a").read_bytes() == text(5000)
            with pytest.raises(OSError, match="denied"):
                os.open(target / "disk", os.O_RDONLY)
            tried = subprocess.run(
                [*user, "sh", "-c", f"{target}/root euid"], capture_output=True, text=True, check=False
            )
            assert tried.stdout == ("euid 65534\n" if options else "")
        finally:
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=30)
        assert process.returncode == 0
        assert mount_device(str(target)) is None


@pytest.mark.parametrize("mode", MODES)
def test_killed_and_cleaned(mode: str, tmp_path: Path) -> None:
    """After a kill -9, ``coldbench clean`` finds daemon, mounts, loop devices and scratch directory by the record."""
    need_root()
    convert(write_image(tmp_path / "image", [tar_of(File("a", text(5000)))]), tmp_path / "lazy", mode)
    target = tmp_path / "mnt"
    process = command(f"oci:{tmp_path}/lazy:image", str(target), "--mode", mode)
    assert process.stdout is not None
    assert "is mounted on" in process.stdout.readline()
    (record,) = [record for record in records.stored() if record.owner.pid == process.pid]
    process.kill()
    process.communicate()
    leftovers.sweep()
    assert not record.path.exists()
    assert not any(os.path.lexists(place) for place in (*record.files, str(record.directory)))
    assert not any(helper.alive for helper in record.processes)
    assert lines_below(target, record.directory, Path(record.files[0])) == []
    assert [device for device in Path("/dev").glob("loop[0-9]*") if loop.name_of(str(device)) == record.name] == []
    assert target.is_dir(), "the place was the user's choice"


def test_a_complete_mount_does_without_its_daemon(tmp_path: Path) -> None:
    """It says when the daemon is no longer needed, outlives its death, and ends as ever; from a script's background."""
    need_root()
    convert(write_image(tmp_path / "image", [tar_of(File("a", text(500_000)))]), tmp_path / "lazy", "erofs")
    target = tmp_path / "mnt"
    process = command(f"oci:{tmp_path}/lazy:image", str(target), "--mode", "erofs", ignore_interrupt=True)
    assert process.stdout is not None
    lines = iter(process.stdout.readline, "")
    assert "complete: the daemon is no longer needed\n" in lines
    for pid in (holder := holder_of(process), *serving(holder)):
        os.kill(pid, signal.SIGKILL)
    assert "the daemon ended; the mount goes on without it\n" in lines
    forget_pages()
    assert (target / "a").read_bytes() == text(500_000)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 0
    assert "Traceback" not in err
    assert mount_device(str(target)) is None


def test_a_stopped_daemon_does_not_hold_the_exit(tmp_path: Path) -> None:
    """SIGTERM ends it within seconds, and nothing stays mounted."""
    need_root()
    convert(write_image(tmp_path / "image", [tar_of(File("a", text(5000)))]), tmp_path / "lazy", "soci")
    target = tmp_path / "mnt"
    process = command(f"oci:{tmp_path}/lazy:image", str(target), "--mode", "soci")
    assert process.stdout is not None
    assert "is mounted on" in process.stdout.readline()
    (daemon,) = serving(holder_of(process))
    os.kill(daemon, signal.SIGSTOP)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert mount_device(str(target)) is None
    assert not psutil.pid_exists(daemon)


def test_image_without_an_index_is_a_clear_error(tmp_path: Path) -> None:
    """The message says which command makes the index."""
    need_root()
    write_image(tmp_path / "image", [tar_of(File("a", b"1"))])
    process = command(f"oci:{tmp_path}/image:image", str(tmp_path / "mnt"), "--mode", "erofs")
    _, err = process.communicate(timeout=30)
    assert process.returncode == 5
    assert "coldbench index erofs" in err
