"""The odd images through ``coldbench run``: a container sees the expected tree, or the run refuses.

Each image goes through two of the modes in turn (the odd forms of an image through one), so that every mode has some of
each kind; all images in all modes are shown by the same providers in ``test_faults``, without a machine around them.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from harness.oci.descriptor import digest_bytes
from harness.oci.layout import LayoutStore
from harness.session.store import load
from tests.engines.support import run_registry
from tests.faults import forms
from tests.faults.cases import DIRECTORY, FAULTS, Fault, Shown, Stored
from tests.faults.entries import file, gzipped, tar_of
from tests.lazyfs.support import need_root
from tests.session.support import SCENARIO
from tests.support.images import Layer, put_image

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from harness.model.observation import Observation

MODES = ("overlay2:sequential", "overlay2:tuned", "estargz", "soci", "erofs", "erofs:eager")
THROUGH_RUN = (
    "usrmerge", "usrmerge-outside", "usrmerge-through-nothing", "whiteout-and-new", "replaced-twice", "absolute",
    "link-to-lower", "opaque-attribute", "aufs-plnk", "gzip-of-nothing", "empty-member-first", "gzip-padded",
    "gzip-called-tar", "tar-called-gzip", "zstd-called-gzip",
)  # fmt: skip
REFUSED_BY_RUN = ("uid-minus-two", "zstd-cut", "another-diff-id", "link-to-nothing", "climbing")


def _modes(number: int) -> tuple[str, str]:
    return MODES[number % 6], MODES[(number + 3) % 6]


def _fnv(data: bytes, value: int = 14695981039346656037) -> int:
    for byte in data:
        value = (value ^ byte) * 1099511628211 & (1 << 64) - 1
    return value


def _number(tree: dict[str, Shown]) -> str:
    """What ``walk.c`` prints of this tree."""
    total = 0
    for path, shown in tree.items():
        if isinstance(shown, bytes):
            what = b"f" + shown
        else:
            what = b"d" if shown == DIRECTORY else b"l" + shown.removeprefix("-> ").encode()
        if (path, shown) != ("etc", DIRECTORY):
            total += _fnv(b"/" + path.encode() + b"\0" + what)
    return f"shown {total & (1 << 64) - 1:016x}"


def _walker(place: Path) -> bytes:
    """The tar of a layer with the program that walks over its root."""
    walker = place / "walk"
    source = os.path.join(os.path.dirname(__file__), "walk.c")
    subprocess.run(["cc", "-Os", "-s", "-static", "-o", walker, source], check=True)
    return tar_of(file(b".walk", walker.read_bytes(), mode=0o755))


def _layouts(faults: Sequence[Fault], place: Path) -> dict[str, tuple[str, dict[str, Shown]]]:
    """A layout for each image: by name, its place as a scenario says it and the tree."""
    top = _walker(place)
    made = {}
    for fault in faults:
        layers = [*fault.layers, Stored(top, gzipped(top))]
        layout = LayoutStore(place / fault.name, "latest", create=True)
        stored = [Layer(it.blob, it.media_type, digest_bytes(it.tar)) for it in layers]
        put_image(layout, "latest", stored, config={"Entrypoint": ["/.walk"]})
        made[fault.name] = f'layout = "{place / fault.name}:latest"', fault.tree
    return made


def _run(images: dict[str, tuple[str, dict[str, Shown]]], place: Path, modes: int = 2) -> tuple[int, list[Observation]]:
    """One session with a scenario per image, each in so many modes: exit code and observations."""
    for number, (name, (image, tree)) in enumerate(images.items()):
        ready = f'{{ kind = "stdout", pattern = "^{_number(tree)}$" }}' if tree else '{ kind = "exit" }'
        text = SCENARIO.format(layout="", command='["/.walk"]', readiness=ready).replace('layout = ""', image)
        text = text.replace('"tiny"', f'"{name}"').replace("blocks = 2", "blocks = 1")
        text = text.replace('["overlay2"]', json.dumps(_modes(number)[:modes])).replace(
            "cpu=0.5,memory=128M", "memory=256M"
        )
        (place / f"{name}.toml").write_text(text, "utf-8")
    files = [f"{name}.toml" for name in images]
    with run_registry("127.0.0.1", place / "registry") as registry:
        command = [sys.executable, "-m", "harness", "run", *files, "--out", str(place / "session"), "--keep-going"]
        done = subprocess.run(
            [*command, "--no-workloads", "--registry", f"http://{registry.host}"],
            cwd=place, env={**os.environ, "COLDBENCH_CACHE": str(place / "cache")},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, load(place / "session")[1]


def _of(names: Sequence[str]) -> list[Fault]:
    known = {fault.name: fault for fault in FAULTS}
    return [known[name] for name in names]


@pytest.mark.root
def test_containers_see_the_expected_tree(tmp_path: Path) -> None:
    """The container's own walk over its root gives the number of the expected tree."""
    need_root()
    code, seen = _run(_layouts(_of(THROUGH_RUN), tmp_path), tmp_path)
    wrong = {(o.case.scenario, o.case.label): o.failure for o in seen if o.status != "ok"}
    assert (code, wrong) == (0, {})
    assert len(seen) == 2 * len(THROUGH_RUN)


@pytest.mark.root
def test_containers_start_from_images_as_people_have_them(tmp_path: Path) -> None:
    """A foreign layer, an index with gaps or without platforms, what Docker 25 saved: each starts, in another mode."""
    need_root()
    written = forms.write(tmp_path, _walker(tmp_path), ["/.walk"])
    images = {name: (image, forms.TREE) for name, image in written.items()}
    code, seen = _run(images, tmp_path, modes=1)
    wrong = {(o.case.scenario, o.case.label): o.failure for o in seen if o.status != "ok"}
    assert (code, wrong) == (0, {})
    assert len(seen) == len(images) == len(MODES)


@pytest.mark.root
def test_run_refuses_what_no_mode_shows(tmp_path: Path) -> None:
    """Every trial of an image that no mode can show is recorded as failed, for what is wrong with which layer."""
    need_root()
    code, seen = _run(_layouts(_of(REFUSED_BY_RUN), tmp_path), tmp_path)
    refusals = {fault.name: fault.refusal for fault in FAULTS}
    assert code == 5
    assert len(seen) == 2 * len(REFUSED_BY_RUN)
    for observation in seen:
        said = observation.failure.message if observation.failure else ""
        assert re.search(refusals[observation.case.scenario], said), (observation.case, said)
        assert re.search(r"layer (\d+|sha256:[0-9a-f]{8,})", said), (observation.case, said)
