"""Faults of ``coldbench run`` as a user meets them: one line, the right exit code, failed trials, nothing left."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from harness.cli.main import app, load_commands
from harness.errors import NotRoot
from harness.session.store import load
from tests.engines.support import base_layer, run_registry, tar_bytes
from tests.session.elsewhere import registry_with_parts_elsewhere
from tests.session.support import SCENARIO, write_layout

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from harness.model.observation import Failure
    from tests.engines.support import Member, TestRegistry


class Bench:
    """The command with a cache and a registry of its own; every run has a new session directory."""

    def __init__(self, place: Path, registry: TestRegistry) -> None:
        self.place, self.registry = place, registry
        self.environment = {**os.environ, "COLDBENCH_CACHE": str(place / "cache")}
        self.runs = 0

    def layout(self, name: str, upper: list[Member] | None = None, media_type: str = "") -> str:
        """The tiny image, with another layer on top of it; its name as ``image.layout`` takes it."""
        layers = [base_layer()] if upper is None else [base_layer(), tar_bytes(upper)]
        return write_layout(self.place / name, layers, media_type)

    def run(
        self,
        layout: str,
        *modes: str,
        shape: str = "cpu=1,memory=128M",
        registry: str = "",
        prefix: tuple[str, ...] = (),
    ) -> tuple[int, str, list[Failure]]:
        """Exit code, the last line of stderr, and the recorded failures."""
        text = SCENARIO.format(layout=layout, command='["/bin/probe", "exit"]', readiness='{ kind = "exit" }')
        text = text.replace('["cpu=0.5,memory=128M"]', json.dumps([shape]))
        text = text.replace('["overlay2"]', json.dumps(modes or ["overlay2"])).replace("blocks = 2", "blocks = 1")
        (self.place / "tiny.toml").write_text(text, "utf-8")
        self.runs += 1
        out = self.place / f"session{self.runs}"
        command = [sys.executable, "-m", "harness", "run", "tiny.toml", "--out", str(out)]
        command += ["--registry", registry or f"http://{self.registry.host}"]
        done = subprocess.run(
            [*prefix, *command], cwd=self.place, env=self.environment, capture_output=True, text=True, check=False
        )
        assert "Traceback" not in done.stderr
        # What is refused before anything runs leaves no session.
        seen = load(out)[1] if (out / "session.json").exists() else []
        failures = [o.failure for o in seen if o.failure is not None]
        return done.returncode, done.stderr.splitlines()[-1], failures


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """At the end nothing of the runs is left on this host."""
    place = tmp_path_factory.mktemp("faults")
    with run_registry("127.0.0.1", place / "registry") as registry:
        yield Bench(place, registry)
    said = subprocess.run(
        [sys.executable, "-m", "harness", "clean", "--dry-run"], capture_output=True, text=True, check=True
    )
    assert said.stdout == "nothing was left behind\n"


@pytest.mark.root
def test_changed_layer(bench: Bench) -> None:
    """A blob that was changed in the registry fails every mode that reads it, for its digest."""
    layout = bench.layout("changed")
    assert bench.run(layout)[0] == 0
    (digest,) = {path.parent.name for path in bench.registry.storage.rglob("data") if path.stat().st_size > 100_000}
    path = bench.registry.blob_file(f"sha256:{digest}")
    good = path.read_bytes()
    path.write_bytes(good[:1000] + bytes([good[1000] ^ 1]) + good[1001:])
    code, _line, failures = bench.run(layout, "overlay2:sequential", "soci", "erofs")
    path.write_bytes(good)
    assert code == 5
    assert len(failures) == 3
    assert {f.kind for f in failures} == {"DigestMismatch", "ContentError"}
    assert all("digest" in f.message for f in failures), failures


@pytest.mark.root
@pytest.mark.parametrize(
    ("upper", "media_type", "kind", "says"),
    [
        ([("../../escaped", {"data": b"x"})], "", "UnsafePath", "escaped"),
        (None, "application/vnd.example.layer+br", "UnsupportedMediaType", "layer+br"),
    ],
)  # fmt: skip
def test_images_that_cannot_be_prepared(
    bench: Bench, upper: list[Member] | None, media_type: str, kind: str, says: str
) -> None:
    """The run ends with the reason in one line, and the trials that were planned are recorded as failed for it."""
    layout = bench.layout(f"bad{bench.runs}", upper, media_type)
    code, line, failures = bench.run(layout, "overlay2", "soci")
    assert code == 5
    assert line.startswith("coldbench: ")
    assert says in line
    assert [(f.kind, f.phase) for f in failures] == [(kind, "preparation")] * 2


@pytest.mark.root
def test_unknown_image_and_unreachable_registry(bench: Bench) -> None:
    """Neither is there; the trial says so."""
    code, line, failures = bench.run("/nowhere:latest")
    assert (code, [f.phase for f in failures]) == (5, ["preparation"])
    assert "/nowhere" in line
    code, line, failures = bench.run(bench.layout("fine"), registry="http://127.0.0.1:9")
    assert (code, [f.kind for f in failures]) == (5, ["RegistryError"])
    assert "http://127.0.0.1:9: Failed to connect" in line


@pytest.mark.root
def test_tokens_and_blobs_elsewhere(bench: Bench) -> None:
    """A registry whose token server and blob store are other hosts works from inside the machine, at its distance."""
    with registry_with_parts_elsewhere(bench.registry.host) as servers:
        shape = "cpu=1,memory=128M,rtt=2ms"
        modes = ("overlay2:tuned", "estargz", "erofs")
        code, line, failures = bench.run(
            bench.layout("elsewhere"), *modes, shape=shape, registry=f"http://{servers.registry.host}"
        )
    assert (code, failures) == (0, []), line
    assert len(servers.tokens.requests) >= 3, "the harness's, and each trial's"
    for seen in load(bench.place / f"session{bench.runs}")[1]:
        assert (seen.wire_before_ready.received_bytes or 0) > 100_000, "over the machine's own link"


@pytest.mark.root
def test_full_disk(bench: Bench) -> None:
    """An image that is larger than the machine's disk; the message says what to change."""
    layout = bench.layout("large", [("big", {"data": bytes(80 << 20)})])
    modes = ("overlay2:sequential", "overlay2:tuned")
    code, _line, failures = bench.run(layout, *modes, shape="cpu=1,memory=256M,disk-size=48M")
    assert (code, [f.kind for f in failures]) == (5, ["DiskFull"] * 2)
    assert all("disk-size=" in f.message for f in failures)


@pytest.mark.root
def test_missing_tool(bench: Bench) -> None:
    """Without a container runtime the run ends with what to install; no trial is to blame."""
    hide = 'for f in /usr/bin/crun /usr/sbin/runc; do test ! -e $f || mount --bind /dev/null $f; done; exec "$@"'
    code, line, failures = bench.run(bench.layout("fine2"), prefix=("unshare", "--mount", "sh", "-c", hide, "sh"))
    assert (code, failures) == (4, [])
    assert (
        line == "coldbench: engine embedded: neither crun nor runc is installed; install one with: apt-get install crun"
    )


def test_not_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Said before anything is made."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("COLDBENCH_CACHE", str(tmp_path / "cache"))
    load_commands()
    result = CliRunner().invoke(app, ["run", "quickstart", "--out", "s"])
    assert isinstance(result.exception, NotRoot)
    assert result.exception.exit_code == 4
    assert list(tmp_path.iterdir()) == []
