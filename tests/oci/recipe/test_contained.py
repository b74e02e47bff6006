"""What a recipe's commands can reach: tried from inside, in each of the places where they run."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from harness.oci.recipe import contained
from harness.oci.recipe.layers import _DPKG_WITHOUT_NETWORK
from tests.oci.registry.fault_server import Answer, FaultServer

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.root


def contain(request: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-I", contained.__file__, json.dumps({**request, "parent": os.getpid()})]
    return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)


@pytest.fixture
def in_tree(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs a shell script in a tree that is this host's /usr, with nothing else of it."""
    base = tmp_path / "base"
    for name in ("proc", "dev", "tmp", "etc", "run", "root"):
        (base / name).mkdir(parents=True)
    for name in ("upper", "work", "merged"):
        (tmp_path / name).mkdir()
    overlay = f"lowerdir={base}:/usr,upperdir={tmp_path}/upper,workdir={tmp_path}/work"

    def run(script: str, *, network: bool = False) -> subprocess.CompletedProcess[str]:
        return contain(
            {
                "where": "tree",
                "tree": str(tmp_path / "merged"),
                "overlay": overlay,
                "network": network,
                "command": ["/bin/sh", "-c", script],
            }
        )

    return run


@pytest.fixture
def in_users(tmp_path: Path) -> Callable[[str], subprocess.CompletedProcess[str]]:
    """Runs a shell script where mmdebstrap runs."""
    room = tmp_path / "room"
    room.mkdir()
    os.chown(room, contained.FIRST_USER, contained.FIRST_USER)

    def run(script: str) -> subprocess.CompletedProcess[str]:
        return contain({"where": "users", "room": str(room), "network": True, "command": ["/bin/sh", "-c", script]})

    return run


def test_output_and_exit_code_pass_through(in_tree: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    """The command's words and its code are the caller's, and a script that is killed is no success."""
    done = in_tree("echo out; echo err >&2; exit 7")
    assert (done.stdout, done.stderr, done.returncode) == ("out\n", "err\n", 7)
    assert in_tree("kill -9 $$").returncode == 128 + signal.SIGKILL


def test_a_tree_sees_nothing_of_the_host(
    in_tree: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    """No process, no mount and no file of the host is there; what is written ends up in the tree."""
    done = in_tree(
        f"echo $$; cat /proc/self/mountinfo; ls {tmp_path} /home /var 2>&1; ls -d /proc/[0-9]*; touch /etc/made"
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.splitlines()[0]) < 10
    assert str(Path.cwd()) not in done.stdout
    assert done.stdout.count("No such file") >= 1
    assert (tmp_path / "upper" / "etc" / "made").exists()


def test_devices_are_the_harmless_ones(in_tree: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    """Six nodes; no other can be made, and none of the kernel's can be mounted in."""
    done = in_tree(
        "ls /dev; echo x > /dev/null && head -c 4 /dev/zero | wc -c; mknod /dev/disk b 8 0; mknod /tmp/disk b 8 0;"
        " mount -t devtmpfs none /tmp; mount -t tmpfs none /etc; ls -A /tmp"
    )
    names = done.stdout.split()
    assert set(names[: names.index("4")]) == {*contained.DEVICES, "fd", "stdin", "stdout", "stderr", "shm", "pts"}
    assert names[names.index("4") + 1 :] == []
    assert done.stderr.count("permitted") + done.stderr.count("denied") + done.stderr.count("superuser") == 4


def test_capabilities_are_few(in_tree: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    """Exactly those that installing files needs, also after the next exec, and no way to more."""
    done = in_tree("cat /proc/self/status; chown 5:6 /etc && chmod 2755 /etc && ls -dn /etc")
    facts = dict(line.split(":\t", 1) for line in done.stdout.splitlines() if ":\t" in line)
    kept = f"{sum(1 << number for number in contained.KEPT.values()):016x}"
    assert (facts["CapEff"], facts["CapPrm"], facts["CapBnd"], facts["NoNewPrivs"]) == (kept, kept, kept, "1")
    assert done.stdout.splitlines()[-1].startswith("drwxr-sr-x")


def test_the_kernel_cannot_be_set(in_tree: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    """Root's uid alone would be enough to write to /proc/sys: it is read-only."""
    done = in_tree("echo x > /proc/sys/kernel/core_pattern; cat /proc/keys /proc/timer_list")
    assert "core_pattern: Read-only" in done.stderr
    assert done.stdout == ""


def test_network_is_there_only_when_asked_for(in_tree: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    """Fetching has it; the step that runs scripts reaches nobody, not even services of this machine."""
    with FaultServer(lambda request: Answer(200, b"yes")) as server:
        host, port = server.host.split(":")
        script = f"""bash -c 'exec 3<>/dev/tcp/{host}/{port}; printf "GET / HTTP/1.0\\r\\n\\r\\n" >&3; cat <&3'"""
        assert "yes" in in_tree(script, network=True).stdout
        assert "unreachable" in in_tree(script).stderr
        assert len(server.requests) == 1


def test_it_dies_with_its_parent(tmp_path: Path) -> None:
    """When the builder is killed, nothing of what it started goes on."""
    request = {"where": "host", "tree": "/mnt", "overlay": f"lowerdir=/usr:{tmp_path}", "network": False}
    read, write = os.pipe()
    program = (
        "import json, os, subprocess, sys; "
        f"request = {{**{request!r}, 'command': ['sleep', '600'], 'parent': os.getpid()}}; "
        f"subprocess.run([sys.executable, '-I', {contained.__file__!r}, json.dumps(request)], close_fds=False)"
    )
    holder = subprocess.Popen([sys.executable, "-c", program], pass_fds=[write])
    os.close(write)
    # The pipe is held by every process of the build: its end is the end of them all.
    children = Path(f"/proc/{holder.pid}/task/{holder.pid}/children")
    while not children.read_text():
        assert holder.poll() is None
    holder.kill()
    holder.wait()
    assert select.select([read], [], [], 30)[0], "something of the build goes on"
    assert os.read(read, 1) == b""
    os.close(read)


def test_a_tool_of_the_host_is_nobody_there(in_users: Callable[[str], subprocess.CompletedProcess[str]]) -> None:
    """Root inside can make what he likes in his room, and nothing anywhere else: no file, no device, no setting."""
    done = in_users(
        f"id -u; touch {contained.ROOM}/made && chown 5:6 {contained.ROOM}/made && ls -n {contained.ROOM};"
        " touch /etc/x; mount -o remount,rw /; mknod /tmp/disk b 8 0; mount -t devtmpfs none /tmp;"
        " echo x > /proc/sys/kernel/core_pattern; cat /etc/shadow"
    )
    assert done.stdout.splitlines()[0] == "0"
    assert done.stdout.splitlines()[-1].split()[2:4] == ["5", "6"]
    assert len(done.stderr.splitlines()) >= 6
    assert Path("/etc/x").exists() is False


def test_dpkg_has_no_network(tmp_path: Path) -> None:
    """The hook puts a dpkg first in the tree's path that hands on its arguments without network."""
    subprocess.run(["sh", "-c", _DPKG_WITHOUT_NETWORK, "sh", str(tmp_path)], check=True)
    wrapper = tmp_path / "run" / "coldbench" / "dpkg"
    text = wrapper.read_text()
    assert text == '#!/bin/sh\nexec unshare --net /usr/bin/dpkg "$@"\n'
    wrapper.write_text(text.replace("/usr/bin/dpkg", "sh -c 'cat /proc/net/dev; echo \"$@\"' sh"))
    done = subprocess.run([wrapper, "a b", "c"], capture_output=True, text=True, check=True)
    assert [line.split(":")[0].strip() for line in done.stdout.splitlines()[2:-1]] == ["lo"]
    assert done.stdout.splitlines()[-1] == "a b c"
