"""The machines of trials that run out of band."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from harness.formats.soci import image as soci_image
from harness.lazyfs.plan import plan_layers
from harness.model.modes import tracer
from harness.oci.cache import Cache
from harness.scenarios import parse
from harness.session import application, traces
from harness.session.materials import Material, recorded_scenario, roomy_shape
from harness.session.preparation import Cost
from harness.session.progress import Silent
from harness.session.setups import Setups
from harness.session.side_trials import SideTrials
from tests.lazyfs.support import File, convert, noise, tar_of, write_image
from tests.session.test_store import observation

if TYPE_CHECKING:
    from pathlib import Path

    from harness.model.observation import Observation
    from harness.model.plan import PlannedCase
    from harness.model.scenario import Scenario
    from harness.model.session import Preparation


def web() -> Scenario:
    return parse(
        'name = "web"\nimage = { ref = "docker://registry.example/web:1" }\n'
        'workload = { command = ["serve"], readiness = { kind = "tcp", port = 80 } }\n',
        "web.toml",
    )


def test_out_of_band_trials_leave_the_host_memory() -> None:
    """Nothing slows them down, but a workload that eats all memory is stopped long before the host is."""
    shape = roomy_shape()
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert shape.memory_bytes == physical // 2
    assert (shape.baseline_cores, shape.network, shape.disk, shape.label) == (None, None, None, "unlimited")


@pytest.mark.files
def test_a_trace_sees_what_is_read_of_small_layers(tmp_path: Path) -> None:
    """The mode that traces serves every layer; soci unpacks those without an index, unseen."""
    least = soci_image.Options().min_layer_bytes
    source = write_image(tmp_path / "image", [tar_of(File("large", noise(least + 1000))), tar_of(File("small", b"x"))])
    unpacked = {}
    for mode in ("soci", tracer().name):
        options = {"min_layer_bytes": least} if mode == "soci" else {}
        converted = convert(source, tmp_path / mode, mode, **options)
        unpacked[mode] = plan_layers(converted, converted.resolve(), mode).unpack
    assert unpacked == {"soci": (1,), tracer().name: ()}


def test_what_is_recorded_in_place_of_the_workload() -> None:
    """The same image, another command that is ready when it has ended; without one the scenario itself."""
    scenario = web()
    assert recorded_scenario(scenario, ()) is scenario
    other = recorded_scenario(scenario, ["true", "x"])
    assert (other.name, other.image) == (scenario.name, scenario.image)
    assert other.workload.command == ("true", "x")
    assert other.workload.readiness.kind == "exit"
    assert traces.key_of("sha256:1", other.workload) != traces.key_of("sha256:1", scenario.workload)


class Written(Setups):
    """Writes down what is done instead of doing it."""

    done: ClassVar[list[str]] = []

    def __post_init__(self) -> None:
        super().__post_init__()
        self.side = WrittenTrials(self)

    def publish(self, case: PlannedCase) -> None:
        self.done.append(f"publish {case.form}")

    def material(self, scenario: Scenario) -> Material:
        return Material(digest=f"sha256:{len(scenario.name)}", compressed_bytes=1)


class WrittenTrials(SideTrials):
    """Writes down which trials would run."""

    def run(self, case: PlannedCase, what: str, *_more: object, **_others: object) -> Observation:
        Written.done.append(what)
        return observation(0, details={"cpu_from_start_s": 0.5})


@pytest.mark.files
@pytest.mark.parametrize(
    ("what", "form", "trials"),
    [("start_reads", "estargz", 1), ("recording", "erofs", 1), ("calibration", "image", application.TRIALS)],
)
def test_a_form_that_a_side_trial_needs_is_no_cost_of_its_own(
    what: str, form: str, trials: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Making a form is a preparation, and counted there: a recorded start of a large image is seconds, not minutes."""
    scenario = web()
    noted: list[Preparation] = []
    local = SimpleNamespace(image=SimpleNamespace(layers=()))
    preparer = SimpleNamespace(cache=Cache(tmp_path), record=noted.append, local=lambda _scenario: local)
    bounder = SimpleNamespace(rates=SimpleNamespace(host="here"))
    them: Any = (preparer, None, None, Silent(), bounder)
    setups = Written("s", 1, {"web": scenario}, *them)
    Written.done.clear()

    class Counted(Cost):
        def __init__(self) -> None:
            super().__init__()
            Written.done.append("cost begins")

    monkeypatch.setattr("harness.session.rehearsals.Cost", Counted)
    getattr(setups.rehearsals, what)(scenario, setups.material(scenario))
    published, begins, *rest = Written.done
    assert (published, begins) == (f"publish {form}", "cost begins")
    assert len([done for done in rest if not done.startswith("publish")]) == trials
    assert [preparation.cached for preparation in noted] == [False]
