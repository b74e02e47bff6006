"""Whole runs of the command on a tiny real image: results, failures, interrupts, kill -9 and resume."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import jsonschema  # type: ignore[import-untyped]
import pytest

from harness.gate.schemas import schema
from harness.session.store import load, load_preparations
from tests.engines.support import run_registry
from tests.session.support import write_scenario

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from harness.model.observation import Observation

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache directory for all runs of this module (rates and the registry's storage are made once)."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a registry on loopback."""
    with run_registry("127.0.0.1", tmp_path_factory.mktemp("registry")) as it:
        yield f"http://{it.host}"


class Command:
    """``coldbench`` as a process."""

    def __init__(self, cache: Path, directory: Path) -> None:
        self.environment = {**os.environ, "XDG_CACHE_HOME": str(cache), "COLDBENCH_CACHE": str(cache / "coldbench")}
        self.directory = directory

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "harness", *arguments],
            env=self.environment, cwd=self.directory, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def run(self, *arguments: str, timeout_s: float = 120) -> tuple[int, str, str]:
        """Exit code, stdout and stderr."""
        process = self.start(*arguments)
        out, err = process.communicate(timeout=timeout_s)
        return process.returncode, out, err


@pytest.fixture
def command(cache: Path, tmp_path: Path) -> Command:
    return Command(cache, tmp_path)


def undisturbed(observation: Observation) -> bool:
    """Whether a trial broke no rule but the one about the host, which a test does not choose."""
    return {i.rule for i in observation.invalid} <= {"host-stolen"}


def wait_for_first_trial(process: subprocess.Popen[str]) -> None:
    """Read progress lines until a trial has ended; the next one begins at that moment."""
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("["):
            return
    raise AssertionError("the run ended before its first trial")


def test_bench_prints_the_comparison(command: Command, tmp_path: Path) -> None:
    """``bench --json``: the document alone on stdout, by its schema; the report stands where it says."""
    scenario = write_scenario(tmp_path, ["/bin/probe", "exit"])
    code, out, err = command.run("bench", str(scenario), "--blocks", "1", "--out", "s", "--no-workloads", "--json")
    assert code == 0, err
    document = json.loads(out)
    jsonschema.validate(document, schema("comparison"))
    assert [line["label"] for line in document["groups"][0]["lines"]] == ["overlay2:sequential"]
    assert (tmp_path / document["report"]).is_file()


def test_whole_run(command: Command, tmp_path: Path) -> None:
    """Two presets, two blocks: four valid trials with timeline, phases, wire and bound, in the planned order."""
    scenario = write_scenario(tmp_path, ["/bin/probe", "exit"])
    arguments = (
        "--mode",
        "overlay2",
        "--preset",
        "sequential",
        "--preset",
        "tuned",
        "--seed",
        "5",
        "--out",
        "s",
        "--json",
    )
    code, out, err = command.run("run", str(scenario), *arguments)
    assert code == 0, err
    document: dict[str, Any] = json.loads(out)
    assert document["ok"] + document["invalid"] == 4
    assert {k: document[k] for k in ("session", "trials", "recorded", "failed")} == {
        "session": "s", "trials": 4, "recorded": 4, "failed": 0,
    }  # fmt: skip
    header, seen = load(tmp_path / "s")
    assert [o.case.key for o in seen] == [t.case for t in header.plan.trials]
    assert header.host["kernel"] == os.uname().release
    for observation in seen:
        assert observation.status == "ok"
        assert undisturbed(observation)
        assert [p.phase for p in observation.phases] == ["pull", "create", "start"]
        assert {"resolve", "fetch", "unpack", "mount", "create", "start", "ready"} <= {
            s.name for s in observation.timeline
        }
        assert (observation.wire_before_ready.received_bytes or 0) > 300_000
        assert (observation.wire_before_ready.requests or 0) >= 3, "manifest, config, layer"
        assert observation.bound is not None
        assert "leaving with 0" in observation.output_tail
    assert [p.form for p in load_preparations(tmp_path / "s")] == ["image", "application"]
    assert 0 < (observation.details.cpu_from_start_s or 0) < 1
    assert "[4/4]" in err


def test_a_workload_that_fails_by_itself_ends_the_run(command: Command, tmp_path: Path, registry: str) -> None:
    """The rehearsal on a machine without limits shows it: no trial runs, and the end of the output says why."""
    scenario = write_scenario(tmp_path, ["/bin/probe", "exit", "3"])
    code, _out, err = command.run("run", str(scenario), "--out", str(tmp_path / "s"), "--registry", registry)
    assert code == 5
    assert "tiny: the workload fails by itself, on a machine without limits" in err
    assert "exit code 3 instead of 0; the end of its output:\n    leaving with 3" in err
    assert load(tmp_path / "s")[1] == []


def test_failed_trials_are_recorded(command: Command, tmp_path: Path, registry: str) -> None:
    """A workload that ends with another code fails its trial, the run goes on, and the exit code is 5."""
    scenario = write_scenario(tmp_path, ["/bin/probe", "exit", "3"])
    code, out, err = command.run("run", str(scenario), "--keep-going", "--out", "s", "--registry", registry)
    assert code == 5, err
    assert "2 failed" in out
    assert "failed in start: WorkloadExited" in err
    _header, seen = load(tmp_path / "s")
    assert [o.failure.phase for o in seen if o.failure] == ["start", "start"]
    assert seen[0].time_to_ready_s is None


def test_interrupt_kill_and_resume(command: Command, tmp_path: Path, registry: str) -> None:
    """Ctrl-C ends with 130 and leaves nothing; kill -9 leaves what ``clean`` removes; both can be resumed."""
    scenario = write_scenario(tmp_path, ["/bin/probe", "exit"])
    process = command.start("run", str(scenario), "--blocks", "3", "--out", "s", "--registry", registry)
    wait_for_first_trial(process)
    process.send_signal(signal.SIGINT)
    _out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "1 of 3 trials are recorded; go on with: coldbench run --resume --out s" in err
    assert command.run("clean", "--dry-run")[1] == "nothing was left behind\n"

    process = command.start("run", "--resume", "--out", "s")
    wait_for_first_trial(process)
    process.kill()
    process.communicate(timeout=60)
    code, _out, err = command.run("clean")
    assert code == 0, err
    assert command.run("clean", "--dry-run")[1] == "nothing was left behind\n"

    code, out, err = command.run("run", "--resume", "--out", "s")
    assert code == 0, err
    assert "0 failed" in out, err
    seen = load(tmp_path / "s")[1]
    assert [o.trial for o in seen] == [0, 1, 2]
    assert all(undisturbed(o) for o in seen), [o.invalid for o in seen]


def test_named_registry_with_tls(command: Command, tmp_path: Path) -> None:
    """A registry with TLS is reached under its own name, from outside and from inside the machine."""
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=registry.test",
         "-addext", "subjectAltName=DNS:registry.test", "-keyout", "key.pem", "-out", "cert.pem"],
        cwd=tmp_path, check=True, capture_output=True,
    )  # fmt: skip
    (tmp_path / "hosts").write_text("127.0.0.1 localhost registry.test\n", "utf-8")
    (tmp_path / "docker").mkdir()
    with run_registry("127.0.0.1", tmp_path / "registry", tls=(tmp_path / "cert.pem", tmp_path / "key.pem")) as it:
        command.environment |= {"SSL_CERT_FILE": str(tmp_path / "cert.pem"), "DOCKER_CONFIG": str(tmp_path / "docker")}
        scenario = write_scenario(tmp_path, ["/bin/probe", "exit"])
        line = f"run {scenario} --blocks 1 --mode overlay2:tuned --mode soci --out s"
        line += f" --registry https://registry.test:{it.port}/team"
        inner = f"mount --bind {tmp_path}/hosts /etc/hosts && exec {sys.executable} -m harness {line}"
        done = subprocess.run(
            ["unshare", "--mount", "--propagation", "slave", "sh", "-c", inner],
            env=command.environment, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "0 failed" in done.stdout
    seen = load(tmp_path / "s")[1]
    assert all(undisturbed(o) for o in seen)
    assert all((o.wire_before_ready.requests or 0) >= 3 for o in seen), "counted by the clients: the log is not ours"


def test_trace(command: Command, tmp_path: Path, registry: str) -> None:
    """A start's reads are listed, shown and kept as a prefetch list that the indexing commands take."""
    scenario = write_scenario(tmp_path, ["/bin/probe", "exit"])
    for mode in ("soci", "erofs"):
        code, out, err = command.run("trace", str(scenario), "--mode", mode, "--json", "--registry", registry)
        assert code == 0, err
        document = json.loads(out)
        # Finding the user reads two more; EROFS sees blocks, in which they are neighbours.
        assert {"/bin/probe"} <= {t["path"] for t in document["first_touches"]} <= {
            "/bin/probe", "/etc/passwd", "/etc/group",
        }, mode  # fmt: skip
        assert 1 <= document["image"]["files_read"] <= document["image"]["files"]
        assert document["layers"][0]["bytes_read"] > 0
    code, out, err = command.run("trace", str(scenario), "--out", "list", "--registry", registry)
    assert code == 0, err
    assert (tmp_path / "list").read_text("utf-8").splitlines()[-1] == "/bin/probe"
    assert "files touched" in out
    layout = f"oci:{tmp_path}/layout:latest"
    code, out, err = command.run("index", "erofs", layout, f"oci:{tmp_path}/indexed:latest", "--prefetch", "list")
    assert code == 0, err
    assert "has no file" not in err
    code, _out, err = command.run("trace", str(scenario), "--mode", "overlay2")
    assert code == 2
    assert "no mode whose reads can be seen" in err
