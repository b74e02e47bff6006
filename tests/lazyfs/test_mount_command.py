"""``coldbench mount``: an image to look at, gone at Ctrl-C."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from harness.kernel import loop
from harness.lazyfs.mounting.mounts import mount_device
from harness.machine import leftovers, records
from tests.engines.support import tar_bytes
from tests.hostile.images import attacker
from tests.lazyfs.support import MODES, File, convert, need_root, tar_of, text, write_image

if TYPE_CHECKING:
    from harness.oci.store import ImageSource

pytestmark = pytest.mark.root


def command(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "harness", "mount", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


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


def test_image_without_an_index_is_a_clear_error(tmp_path: Path) -> None:
    """The message says which command makes the index."""
    need_root()
    write_image(tmp_path / "image", [tar_of(File("a", b"1"))])
    process = command(f"oci:{tmp_path}/image:image", str(tmp_path / "mnt"), "--mode", "erofs")
    _, err = process.communicate(timeout=30)
    assert process.returncode == 5
    assert "coldbench index erofs" in err
