"""Parts of the docker engine without Docker: recorded progress streams, versions, words, output."""

from __future__ import annotations

import json
import os
import socket
import stat
import struct
from pathlib import Path
from typing import Any

import pytest

from harness.engines import programs as found_programs
from harness.engines.docker import client, programs
from harness.engines.docker.pull import PullProgress
from harness.engines.docker.streams import OutputStreams
from harness.engines.protocol import Program
from harness.errors import AuthError, ContentError, DiskFull, ImageNotFound, RegistryError
from harness.model.engine import DockerChoice
from harness.model.timeline import Recorder

STREAMS = Path(__file__).with_name("docker_streams")
LAYERS = tuple(f"sha256:{digits}{'0' * 52}" for digits in ("05b010be6ba5", "db99ecb8f160", "de4f06d81cea"))


def replay(name: str, digests: tuple[str, ...] = LAYERS) -> tuple[PullProgress, dict[tuple[str, int | None], float]]:
    """A recorded stream through the reader, and the ends of its spans by name and layer."""
    now = [0]
    progress = PullProgress(Recorder(0), digests, lambda: now[0])
    for line in (STREAMS / f"{name}.jsonl").read_text().splitlines():
        told = json.loads(line)
        now[0] = round(told.pop("at_s") * 1e9)
        progress.feed(told)
    progress.finish()
    return progress, {(s.name, s.layer): s.end_s for s in progress.timeline.sorted()}


@pytest.mark.parametrize("name", ["20.10-overlay2", "28.5-overlay2", "28.5-containerd-store"])
def test_a_recorded_pull_becomes_spans(name: str) -> None:
    """Each layer is fetched and unpacked once, in that order, and what a stream does not name gets no span."""
    progress, ends = replay(name)
    spans = progress.timeline.sorted()
    assert [s.layer for s in spans if s.name == "resolve"] == [None]
    for layer in range(3):
        assert ends["fetch", layer] <= ends["unpack", layer]
        assert len([s for s in spans if s.name == "fetch" and s.layer == layer]) == 1
        assert len([s for s in spans if s.name == "unpack" and s.layer == layer]) == 1
    assert any(s.name == "verify" for s in spans) == (name != "28.5-containerd-store")
    assert all(s.start_s <= s.end_s for s in spans)
    assert not progress.error
    assert not progress.existing


def test_the_classic_store_unpacks_bottom_first() -> None:
    """A layer that was downloaded early waits for those below it, and the span says what it waits for."""
    progress, ends = replay("28.5-overlay2")
    assert ends["unpack", 0] < ends["unpack", 1] < ends["unpack", 2]
    waits = [s for s in progress.timeline.sorted() if s.name == "wait" and s.layer == 2]
    assert [s.detail for s in waits] == ["for its turn", "for the layers below"]
    assert waits[1].end_s >= ends["unpack", 1]


def test_layers_go_by_their_digests() -> None:
    """containerd's store lists layers in no order: the digests say which is which, the stream's order does not."""
    _, by_digest = replay("28.5-containerd-store")
    _, by_order = replay("28.5-containerd-store", ())
    assert by_digest["fetch", 1] == by_order["fetch", 2]
    assert by_digest["fetch", 1] != by_order["fetch", 1]


def test_a_pull_that_fails_keeps_what_was_seen() -> None:
    """The error's words are kept, and what was going on is a span that says it was not finished."""
    now = [1]
    progress = PullProgress(Recorder(0), LAYERS, lambda: now[0])
    name = LAYERS[0][7:19]
    progress.feed({"status": "Pulling from x", "id": "latest"})
    progress.feed({"status": "Pulling fs layer", "id": name})
    progress.feed({"status": "Downloading", "id": name})
    now[0] = 5
    progress.feed({"errorDetail": {"message": "unexpected EOF"}, "error": "unexpected EOF"})
    progress.finish()
    assert progress.error == "unexpected EOF"
    (fetch,) = [s for s in progress.timeline.sorted() if s.name == "fetch"]
    assert fetch.detail == "unfinished"


def test_layers_that_were_there_are_counted() -> None:
    """A pull that finds layers on the machine was not cold."""
    progress = PullProgress(Recorder(0))
    progress.feed({"status": "Already exists", "id": "abc"})
    assert progress.existing == 1


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ("write /x: no space left on device", DiskFull),
        ("manifest unknown: manifest unknown", ImageNotFound),
        ("unauthorized: authentication required", AuthError),
        ("filesystem layer verification failed for digest sha256:00", ContentError),
        ("Get http://198.18.0.1:5000/v2/: dial tcp: connect: connection refused", RegistryError),
    ],
)
def test_docker_s_words_name_their_kind(said: str, kind: type[Exception]) -> None:
    """What Docker says about a pull becomes the error it stands for, on one line, with its words."""
    error = client.pull_failure(said.replace(": ", ":\n ", 1))
    assert type(error) is kind
    assert "\n" not in str(error)
    assert said.rsplit(": ", maxsplit=1)[-1] in str(error)


def docker(version: str, **paths: str) -> programs.DockerPrograms:
    """A Docker of this version, complete unless a path is overridden."""
    names = {"dockerd": version, "containerd": "1.7.0", "shim": "1.7.0", "runc": "1.1"}
    made = {n: Program(n, paths.get(n, f"/x/{n}"), v if paths.get(n, "x") else "") for n, v in names.items()}
    return programs.DockerPrograms(**made)


@pytest.mark.parametrize(
    ("found", "store", "reason"),
    [
        (docker("20.10.24+dfsg1"), False, ""),
        (docker("28.5.2"), True, ""),
        (docker("20.10.24+dfsg1"), True, "dockerd 20.10.24+dfsg1 keeps no images in containerd's store"),
        (docker("19.03.5"), False, "dockerd 19.03.5 is too old"),
        (docker(""), False, "does not tell its version"),
        (docker("28.5.2", runc=""), False, "needs runc"),
        (docker("28.5.2", dockerd=""), False, "apt-get install docker.io"),
    ],
)
def test_availability(
    found: programs.DockerPrograms, store: bool, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reason names what is missing, the version found and what to do; none means that it can run."""
    monkeypatch.delenv(programs.VARIABLE, raising=False)
    said = programs.availability(found, DockerChoice(), containerd_store=store).reason
    assert (reason in said) if reason else not said


def script(path: Path, version: str) -> str:
    path.write_text(f"#!/bin/sh\necho 'Docker version {version}, build x'\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def test_which_docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The scenario goes before the environment, the environment before the PATH; programs beside it go with it."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    named, other = script(tmp_path / "a" / "dockerd", "27.1.0"), script(tmp_path / "b" / "dockerd", "26.0.1")
    beside = script(tmp_path / "a" / "containerd", "1.7.3")
    monkeypatch.setenv(programs.VARIABLE, other)
    assert programs.find(DockerChoice()).dockerd == Program("dockerd", other, "26.0.1")
    found = programs.find(DockerChoice(dockerd=named))
    assert found.dockerd == Program("dockerd", named, "27.1.0")
    assert found.containerd.path == beside
    assert found.search_path.startswith(str(tmp_path / "a"))
    monkeypatch.setenv(programs.VARIABLE, str(tmp_path / "missing"))
    gone = programs.find(DockerChoice())
    assert not gone.dockerd.path
    assert f"there is no program {tmp_path / 'missing'}" in (
        programs.availability(gone, DockerChoice(), containerd_store=False).reason
    )


def test_versions_compare_as_numbers() -> None:
    """Distributions append to versions; ten is more than nine."""
    assert found_programs.version_numbers("20.10.24+dfsg1") == (20, 10, 24)
    assert found_programs.version_numbers("9.1") < found_programs.version_numbers("10.0-rc1")
    assert found_programs.version_numbers("library-import") == ()


def frame(stream: int, data: bytes) -> bytes:
    return struct.pack(">BxxxL", stream, len(data)) + data


def read_all(descriptor: int) -> bytes:
    os.set_blocking(descriptor, True)
    with os.fdopen(descriptor, "rb") as file:
        return file.read()


def test_output_is_taken_apart() -> None:
    """Pieces of both streams arrive in order and whole, however the connection cuts them, and end with it."""
    ours, theirs = socket.socketpair()
    streams = OutputStreams(ours)
    sent = frame(1, b"one ") + frame(2, b"oops") + frame(1, b"two" * 3000) + frame(1, b"")
    for at in range(0, len(sent), 1000):
        theirs.sendall(sent[at : at + 1000])
    theirs.close()
    assert read_all(streams.stdout) == b"one " + b"two" * 3000
    assert read_all(streams.stderr) == b"oops"
    streams.close()


def test_closing_output_that_nobody_reads() -> None:
    """A container that writes more than a pipe holds keeps nobody from tearing down."""
    ours, theirs = socket.socketpair()
    streams = OutputStreams(ours)
    theirs.setblocking(False)
    try:
        while True:
            theirs.send(frame(1, b"x" * 60000))
    except BlockingIOError:
        pass
    streams.close()
    os.close(streams.stdout)
    os.close(streams.stderr)
    theirs.close()


def test_the_user_s_settings_stay_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Credentials, headers and proxies of ~/.docker, contexts and proxy variables do not reach the client."""
    settings = {
        "auths": {"198.18.0.1:5000": {"auth": "dXNlcjpwYXNz"}},
        "HttpHeaders": {"X-Meta": "leaked"},
        "proxies": {"default": {"httpProxy": "http://proxy.invalid:1"}},
        "currentContext": "elsewhere",
    }
    (tmp_path / "config.json").write_text(json.dumps(settings))
    for name, value in {
        "DOCKER_CONFIG": str(tmp_path), "DOCKER_HOST": "tcp://192.0.2.1:1", "DOCKER_CONTEXT": "elsewhere",
        "ALL_PROXY": "http://proxy.invalid:1", "HTTP_PROXY": "http://proxy.invalid:1",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    asked: list[bytes] = []
    path = str(tmp_path / "docker.sock")
    server = socket.socket(socket.AF_UNIX)
    server.bind(path)
    server.listen()

    def answer() -> None:
        connection, _ = server.accept()
        asked.append(connection.recv(65536))
        body = b'{"ApiVersion": "1.41"}'
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        connection.close()

    import threading

    thread = threading.Thread(target=answer)
    thread.start()
    made: Any = client.connect(path, timeout_s=5.0)
    thread.join()
    server.close()
    assert asked[0].startswith(b"GET /version")
    assert b"X-Meta" not in asked[0]
    assert not made._proxy_configs.get_environment()
    assert not made._auth_configs.auths
    assert client.auth_config({}) == {}
    assert client.auth_config({"user": "u", "secret": "s"}) == {"username": "u", "password": "s"}
    made.close()
