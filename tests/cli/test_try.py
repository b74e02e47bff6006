"""``coldbench try``: from an image to an answer, with the scenario kept; bad input in one line."""

from __future__ import annotations

import http.server
import json
import os
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest

from harness import scenarios
from harness.oci.descriptor import Platform
from harness.oci.layout import LayoutStore
from tests.engines.support import base_layer
from tests.session.support import write_layout
from tests.support.images import Layer, put_image

if TYPE_CHECKING:
    from pathlib import Path


def run_try(place: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run_coldbench(place, "try", *arguments)


def run_coldbench(place: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "harness", *arguments],
        cwd=place,
        env={**os.environ, "COLDBENCH_CACHE": str(place / "cache")},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.root
def test_an_answer_without_a_scenario_file(tmp_path: Path) -> None:
    """The image is started in four modes; the answer, the report and a scenario that loads are there."""
    layout = write_layout(tmp_path / "tiny", [base_layer()])
    shape = "cpu=1,memory=128M"
    done = run_try(
        tmp_path,
        f"oci:{layout}",
        "--shape",
        shape,
        "--quick",
        "--minutes",
        "0.1",
        "--out",
        "r",
        "--",
        "/bin/probe",
        "exit",
    )
    assert done.returncode == 0, done.stderr
    assert "1 block: no verdict" in done.stdout
    assert "so far: " in done.stderr
    assert "guessed: ready when the process has ended" in done.stderr
    assert (tmp_path / "r" / "report.html").exists()
    kept = scenarios.load(tmp_path / "r.toml")
    assert kept.workload.command == ("/bin/probe", "exit")
    assert "coldbench run r.toml" in done.stdout
    advised = run_coldbench(tmp_path, "advise", "r", "--shape", shape, "--shape", "cpu=0.25,memory=128M", "--json")
    assert advised.returncode == 0, advised.stderr
    (advice,) = json.loads(advised.stdout)
    assert [(choice["measured"], choice["shape"]) for choice in advice["choices"]] == [
        (True, shape),
        (False, "cpu=0.25,memory=128M"),
    ]
    assert advice["choices"][1]["ready_s"] > 0
    assert advice["contents"]["files_read"] >= 1
    assert advice["read_in"] == "a start"


@pytest.mark.files
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("shop.tar",), "shop.tar: there is no such file or directory"),
        (("./shop", "--quick"), "./shop: there is no such file or directory"),
        (("nothing.tar.gz.d/x",), "--"),
        (("nginx:1.27", "--ready", "listen:80"), "expected exit, tcp:PORT"),
        (("docker:nginx",), "docker://"),
        (("oci:none:1", "--ready", "exit"), "not an OCI layout"),
    ],
)
def test_bad_input_is_one_line(tmp_path: Path, arguments: tuple[str, ...], said: str) -> None:
    """What cannot be tried is refused before anything runs, in words, and nothing is left in the directory."""
    if arguments[0].startswith("nothing"):
        arguments = (f"oci:{write_layout(tmp_path / 'tiny', [base_layer()])}", "--quick", "--shape", "cpu=nope")
        said = "cpu"
    done = run_try(tmp_path, *arguments)
    assert done.returncode in {2, 5}
    assert "Traceback" not in done.stderr
    assert said in done.stderr
    assert not (tmp_path / "results").exists() or not list((tmp_path / "results").iterdir())


@pytest.mark.files
@pytest.mark.parametrize("platform", [Platform("windows", "amd64"), Platform("linux", "mips64")], ids=str)
def test_an_image_of_another_platform_is_refused(tmp_path: Path, platform: Platform) -> None:
    """A name that leads to one manifest says nothing of platforms: its configuration does, before anything starts."""
    store = LayoutStore(tmp_path / "image", "t", create=True)
    put_image(store, "t", [Layer.of_tar(base_layer())], platform=platform, config={"Cmd": ["sh"]})
    store.close()
    done = run_try(tmp_path, "oci:image:t", "--quick")
    assert done.returncode == 2
    assert f"the image is for {platform}, and this host runs" in done.stderr


@pytest.mark.files
def test_a_registry_that_wants_a_login_says_where(tmp_path: Path) -> None:
    """The message names the registry and the command that logs in."""
    with http.server.HTTPServer(("127.0.0.1", 0), _WantsLogin) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        host = f"127.0.0.1:{server.server_address[1]}"
        done = run_try(tmp_path, f"docker://{host}/shop:1")
        server.shutdown()
        thread.join()
    assert done.returncode == 5
    assert f"{host}: needs a login; run docker login {host}" in done.stderr


class _WantsLogin(http.server.BaseHTTPRequestHandler):
    """Answers everything with 401."""

    def do_GET(self) -> None:
        self.send_response(401)
        self.send_header("WWW-Authenticate", 'Basic realm="shop"')
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET  # noqa: N815 - http.server finds it by this name

    def log_message(self, *_: object) -> None:
        """Says nothing."""
