"""A hostile image in every mode of every engine, as a whole session with run-time workloads. Needs root."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from harness.engines import make_engine
from harness.model.engine import default_choice
from harness.model.modes import DOCKER, EMBEDDED, ENGINES, engine_modes
from harness.oci.cache import cache_root
from harness.session.store import load
from tests.hostile.images import PROGRAM, hostile_layer, results
from tests.hostile.test_containment import EVERYTHING, check_everything
from tests.session.support import write_layout

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.root

SCENARIO = """\
name = "hostile"
image = {{ layout = "{layout}" }}
shapes = ["memory=1G"]
engines = ["{engine}"]
modes = {modes}
blocks = 1

[timeouts]
background_s = 1

[workload]
command = {command}
readiness = {{ kind = "exit" }}

[runtime]
temperatures = ["cold"]
workloads = [{{ name = "attack", argv = {attack} }}]
"""


def presets(engine: str) -> list[str]:
    """Each mode of an engine that can run here, in the preset that counts; the test is skipped where none can."""
    one = make_engine(default_choice(engine))
    found, reasons = [], []
    for mode in engine_modes(engine):
        preset = mode.best if engine == EMBEDDED else mode.preset("")
        reason = one.available(mode.name, preset.name).reason
        reasons += [reason] if reason else []
        found += [] if reason else [f"{mode.name}:{preset.name}"]
    if not found:
        pytest.skip(f"engine {engine}: {reasons[0]}")
    return found


@pytest.mark.parametrize("engine", list(ENGINES))
def test_every_mode_contains_it(tmp_path: Path, engine: str) -> None:
    """All modes start it, measure its workloads after it has ended, and what it says is that it is confined."""
    modes = presets(engine)
    layout = write_layout(tmp_path / "layout", [hostile_layer()])
    scenario = tmp_path / "hostile.toml"
    command, attack = [PROGRAM, *EVERYTHING], [PROGRAM, "forge", "others"]
    scenario.write_text(
        SCENARIO.format(
            layout=layout,
            engine=engine,
            modes=json.dumps(modes),
            command=json.dumps(command),
            attack=json.dumps(attack),
        ),
        "utf-8",
    )
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / "engines").symlink_to(cache_root() / "engines")
    command_line = [sys.executable, "-m", "harness", "run", str(scenario), "--out", str(tmp_path / "s")]
    done = subprocess.run(
        command_line, env={**os.environ, "COLDBENCH_CACHE": str(cache), "XDG_CACHE_HOME": str(tmp_path)},
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    seen = load(tmp_path / "s")[1]
    assert len(seen) == len(modes)
    for observation in seen:
        assert observation.status == "ok", observation.failure
        assert observation.details.privileges is None
        check_everything(results(observation.output_tail), own_filter=engine != DOCKER)
        measured = {result.workload: result for result in observation.workloads}
        assert set(measured) == {"attack"}
        assert all(result.failure is None and result.wall_s > 0 for result in measured.values())
    assert list((cache / "registry").iterdir()) == [], "the registry's storage went with the session"
