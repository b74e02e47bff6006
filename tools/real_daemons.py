"""The real daemons inside simulated machines: started, driven once to a container's exit, and gone with the machine.

Shared by the tools that measure beside them; nothing here decides what is compared.
"""

from __future__ import annotations

import json
import shlex
import shutil
import socket
import subprocess
import tempfile
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from harness.machine.machine import Machine

START_TIMEOUT_S = 60
SETTLE_S = 2.0
RUN_TIMEOUT_S = 3600
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

#: How each snapshotter's daemon is started; ``overlayfs`` is containerd's own. Placeholders: ``Programs``.
DAEMONS = {
    "stargz": "containerd-stargz-grpc --address {socket} --root {root} --config {config}",
    "soci": "soci-snapshotter-grpc --address {socket} --root {root} --config {config}",
}
#: How an image is pulled and a container run to its end.
CLIENTS = {
    "overlayfs": "ctr -a {containerd} images pull --plain-http --snapshotter overlayfs {ref} && "
    "ctr -a {containerd} run --net-host --cgroup {cgroup}/c1 --snapshotter overlayfs {ref} c1 {command}",
    "stargz": "ctr-remote -a {containerd} images rpull --plain-http {ref} && "
    "ctr-remote -a {containerd} run --net-host --cgroup {cgroup}/c1 --snapshotter stargz {ref} c1 {command}",
}


@dataclass(frozen=True)
class Programs:
    """Where the real programs are, and how they are started.

    ``daemons`` and ``clients`` are shell lines by snapshotter. A daemon's may hold {socket}, {root}, {config} (a TOML
    file that allows plain HTTP to the registry) and {config_json} (the same as one JSON word), a client's {containerd},
    {snapshotter}, {cgroup}, {ref} and {command}. A client that prints a JSON line with ``seconds.exited`` is believed
    for the time to ready; of any other its own run time counts.
    """

    directory: Path | None = None
    daemons: dict[str, str] = field(default_factory=lambda: dict(DAEMONS))
    clients: dict[str, str] = field(default_factory=lambda: dict(CLIENTS))

    @property
    def environment(self) -> dict[str, str]:
        """What processes in the machine get."""
        path = f"{self.directory}:{PATH}" if self.directory is not None else PATH
        return {"PATH": path, "HOME": "/root", "LANG": "C.UTF-8"}

    def has(self, name: str) -> bool:
        """Whether a program is found."""
        return shutil.which(name, path=self.environment["PATH"]) is not None


@contextmanager
def daemon(machine: Machine, argv: Sequence[str], place: Path, log: Path, programs: Programs) -> Iterator[Path]:
    """A daemon inside the machine from its socket's appearance until the end; yields the socket as seen from outside.

    ``place`` is the socket as seen inside. The path outside is a short link, since a socket's name is limited.
    """
    with ExitStack() as stack:
        link = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "s"
        link.symlink_to(machine.outside(place))
        with log.open("wb") as out:
            process = machine.spawn(argv, stdout=out, stderr=out, env=programs.environment)

        def stop() -> None:
            machine.throttle(False)
            process.terminate()
            process.wait()

        stack.callback(stop)
        deadline = time.monotonic() + START_TIMEOUT_S
        while not _listens(link):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{argv[0]} did not start:\n{log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.1)
        yield link


def _listens(path: Path) -> bool:
    try:
        with socket.socket(socket.AF_UNIX) as probe:
            probe.connect(str(path))
        return True
    except OSError:
        return False


@contextmanager
def docker_daemon(machine: Machine, log: Path, programs: Programs) -> Iterator[Any]:
    """dockerd inside the machine; yields a client of its API, which stays outside."""
    import docker as sdk

    state = machine.scratch / "docker"
    machine.outside(state).mkdir()
    path = machine.scratch / "docker.sock"
    argv = [
        "dockerd", "--data-root", str(state / "data"), "--exec-root", str(state / "exec"),
        "--pidfile", str(state / "pid"), "-H", f"unix://{path}", "--iptables=false", "--ip6tables=false",
        "--bridge=none", "--ip-forward=false", "--ip-masq=false", "--storage-driver=overlay2",
        "--exec-opt", "native.cgroupdriver=cgroupfs", "--cgroup-parent", container_group(machine),
        "--insecure-registry", "198.18.0.0/15",
    ]  # fmt: skip
    with daemon(machine, argv, path, log, programs) as link:
        api = sdk.APIClient(base_url=f"unix://{link}", timeout=RUN_TIMEOUT_S)
        api.version()
        time.sleep(SETTLE_S)
        yield api
        api.close()


@contextmanager
def containerd_daemon(machine: Machine, log: Path, programs: Programs, snapshotter: str = "") -> Iterator[str]:
    """containerd inside the machine, and the snapshotter's daemon if named; yields containerd's socket, seen inside."""
    state = machine.scratch / "containerd"
    machine.outside(state).mkdir()
    path = machine.scratch / "containerd.sock"
    served = machine.scratch / "snapshotter.sock"
    config = (
        f'version = 2\nroot = "{state}/root"\nstate = "{state}/state"\n'
        'disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images", '
        '"io.containerd.cri.v1.runtime"]\n'
        f'[grpc]\n  address = "{path}"\n'
    )
    if snapshotter:
        config += f'[proxy_plugins.{snapshotter}]\n  type = "snapshot"\n  address = "{served}"\n'
    machine.outside(state / "config.toml").write_text(config)
    with ExitStack() as stack:
        if snapshotter:
            argv = _snapshotter_argv(machine, snapshotter, served, programs.daemons[snapshotter])
            stack.enter_context(daemon(machine, argv, served, log.with_suffix(f".{snapshotter}"), programs))
        argv = ["containerd", "-c", str(state / "config.toml")]
        stack.enter_context(daemon(machine, argv, path, log, programs))
        time.sleep(SETTLE_S)
        yield str(path)


def _snapshotter_argv(machine: Machine, snapshotter: str, served: Path, line: str) -> list[str]:
    """The daemon's command; its configuration is its own but for plain HTTP to the registry."""
    host = machine.registry
    state = machine.scratch / "containerd"
    config = state / "snapshotter.toml"
    # SOCI parses a mirror as a URL; without one it falls back to a full pull, silently.
    mirror = {"host": f"http://{host}" if snapshotter == "soci" else host, "insecure": True}
    lines = f'[[resolver.host."{host}".mirrors]]\nhost = "{mirror["host"]}"\ninsecure = true\n'
    machine.outside(config).write_text(lines)
    values = {
        "socket": served,
        "root": state / "snapshotter",
        "config": config,
        "config_json": json.dumps({"resolver": {"host": {host: {"mirrors": [mirror]}}}}),
    }
    return [word.format(**values) for word in shlex.split(line)]


def container_group(machine: Machine) -> str:
    """The control group below which a daemon has to make its containers', to be charged to the machine."""
    return "/" + machine.cgroup_parent.strip("/")


def run_with_containerd(
    machine: Machine, ref: str, *, snapshotter: str, containerd: str, command: Sequence[str], programs: Programs
) -> float | None:
    """Pull and run to the end by the client; the seconds it names itself, if it does. RuntimeError if it fails."""
    line = programs.clients[snapshotter].format(
        containerd=containerd,
        snapshotter=snapshotter,
        cgroup=container_group(machine),
        ref=f"{machine.registry}/{ref}",
        command=shlex.join(command),
    )
    # One program is executed in the shell's place, so that the shell costs nothing.
    shell = line if "&&" in line or ";" in line else f"exec {line}"
    with tempfile.TemporaryFile() as out:
        process = machine.spawn(["sh", "-c", shell], stdout=out, stderr=subprocess.STDOUT, env=programs.environment)
        code = process.wait(RUN_TIMEOUT_S)
        out.seek(0)
        text = out.read().decode(errors="replace")
    said = _said(text)
    if code or (said is not None and said.get("code")):
        raise RuntimeError(f"{snapshotter}: the client failed with {code}:\n{text[-2000:]}")
    return None if said is None else float(said["seconds"]["exited"])


def _said(text: str) -> dict[str, Any] | None:
    for line in reversed(text.splitlines()):
        if line.startswith("{"):
            try:
                found = json.loads(line)
            except ValueError:
                continue
            if isinstance(found, dict) and "exited" in found.get("seconds", {}):
                return found
    return None


def run_with_docker(machine: Machine, api: Any, ref: str, command: Sequence[str]) -> None:
    """Pull and run to the end through Docker's API; RuntimeError if it fails."""
    repository, _, tag = f"{machine.registry}/{ref}".rpartition(":")
    pull_with_docker(api, repository, tag)
    host = api.create_host_config(network_mode="host")
    made = api.create_container(f"{repository}:{tag}", command=list(command), host_config=host)
    api.start(made)
    ended = api.wait(made)
    if ended["StatusCode"]:
        raise RuntimeError(f"docker: the container exited with {ended['StatusCode']}: {api.logs(made)[-1000:]!r}")


def pull_with_docker(api: Any, repository: str, tag: str) -> None:
    """Docker's own pull; RuntimeError if it fails."""
    for line in api.pull(repository, tag=tag, stream=True, decode=True):
        if "error" in line:
            raise RuntimeError(f"docker: {line['error']}")
