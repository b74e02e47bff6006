"""What options of commands do that work on stored sessions and on images, as their output shows it."""

from __future__ import annotations

import io
import json
import re
from typing import TYPE_CHECKING, Any

import pandas as pd
import pytest
from rich.console import Console

from harness import __version__
from harness.cli import trace
from harness.cli.advice_tables import show
from harness.formats.sniff import compression_of
from harness.formats.soci.index import DISABLE_XATTRS
from harness.model.forms import Form
from harness.oci.descriptor import OCI_INDEX, OCI_MANIFEST, Descriptor, Platform, go_json
from harness.oci.layout import LayoutStore
from harness.oci.location import open_source
from harness.report import dictionary
from harness.report.advice import Advice
from harness.report.contents import Contents, LayerUse, Unread
from harness.report.worth import Worth
from harness.session.reads import Part
from harness.session.store import load
from tests.cli.test_options import Answer, ask
from tests.gate import sessions
from tests.gate.test_aa import aa_side
from tests.gate.test_compare import stored
from tests.gate.test_history import days
from tests.oci.samples import artefact, make_tar, sample_layout
from tests.report.observations import write_session
from tests.support.images import Layer, put_image
from tests.test_scenarios import GOOD

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.files


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and a working directory of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLDBENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def good(*arguments: str) -> str:
    """What a command prints that ends in 0."""
    answer = ask(*arguments)
    assert answer.code == 0, answer
    return answer.output


def data(*arguments: str) -> Any:
    """What a command prints with ``--json``, its progress left out."""
    text = good(*arguments, "--json")
    return json.loads(text[re.search(r"^[\[{]", text, re.MULTILINE).start() :])  # type: ignore[union-attr]


def test_the_version() -> None:
    """``--version`` prints it and does nothing else."""
    assert ask("--version") == Answer(0, "", f"coldbench {__version__}\n")


# Sessions


def test_margin_says_what_matters(tmp_path: Path) -> None:
    """The same difference is a regression beyond a small margin and none within a large one."""
    one, other = stored(tmp_path, "a"), stored(tmp_path, "b", slower={"app": 1.2})

    def verdicts(margin: str) -> set[str]:
        lines = data("compare", one, other, "--margin", margin)["lines"]
        return {line["verdict"] for line in lines if line["metric"] == "time-to-ready"}

    assert verdicts("0.02") == {"regression"}
    assert "regression" not in verdicts("0.9")


def test_change_points_can_be_left_out_and_be_stricter(tmp_path: Path) -> None:
    """Without them the lines are there all the same; with a p-value of nothing no change is one."""
    paths = [str(path) for path in days(tmp_path, [1.0] * 8 + [1.5] * 8)]

    def changes(*options: str) -> list[int]:
        found = data("history", *paths, "--metric", "time-to-ready", "--case", "erofs", *options)["trends"]
        return [len(trend["changes"]) for trend in found]

    assert changes("--change-points") == [1]
    assert changes("--no-change-points") == [0]
    assert changes("--p-value", "0") == [0]


def test_gate_blocks_are_those_of_the_drawn_gates(tmp_path: Path) -> None:
    """A stored A/A session is analysed again for gates of so many blocks."""
    side = aa_side(tmp_path, blocks=8)
    assert side.directory is not None
    assert data("aa", str(side.directory), "--gate-blocks", "6")["gate_blocks"] == 6


def test_advice_counts_starts_and_builds(tmp_path: Path) -> None:
    """Starts and builds a day are those that the table of worth is for, and each machine asked about has a line."""
    head = sessions.header()
    sessions.write(tmp_path / "s", head, sessions.trials(head.plan))
    said = " ".join(good("advise", "s", "--no-trace", "--starts", "500", "--builds", "2", "--rows", "1").split())
    assert "the image is not here" in said
    assert "gcp-e2-small" in said
    (advice,) = data("advise", "s", "--no-trace", "--shape", "gcp-e2-micro")
    assert [choice["shape"] for choice in advice["choices"] if not choice["measured"]] == ["gcp-e2-micro:drained"]


def test_tables_of_advice_are_as_long_as_asked() -> None:
    """What is beyond ``--rows`` is one line with its sum; worth is for the starts and builds that were asked."""
    unread = tuple(Unread(f"/d{number}", "files", 2, 1_000_000, 0) for number in range(5))
    contents = Contents(10, 9_000_000, 1, 1_000_000, (), unread, (LayerUse(0, 10, 9_000_000, 1_000_000),))
    worth = Worth("erofs:tuned", Form.EROFS, 100_000_000, 5_000_000, 20.0, 3.0)
    advice = Advice("app", (), "", contents, "a start", None, (worth,), ())
    out = io.StringIO()
    show(Console(file=out, width=160), advice, starts=10.0, builds=3.0, rows=2)
    said = [line.split() for line in out.getvalue().splitlines()]
    assert [line[0] for line in said if line and line[0].startswith("/d")] == ["/d0", "/d1"]
    assert [line for line in said if line[:1] == ["…"]] == [["…", "3", "more", "3", "MB", "6"]]
    assert "at 10 starts and 3 builds a day" in out.getvalue()
    (row,) = (line for line in said if line[:1] == ["erofs:tuned"])
    assert row[-2:] == ["-30.0", "s"]  # 10 starts save 30 s, 3 builds cost 60 s


def test_tables_of_a_trace_are_as_long_as_asked() -> None:
    """The same of the reads of a start."""
    parts = [Part(f"p{number}", 4, 1_000_000, 1, 500_000) for number in range(4)]
    out = io.StringIO()
    trace._table(Console(file=out, width=120), "read most", parts, 1)
    said = [line.split() for line in out.getvalue().splitlines()]
    assert said[1:] == [
        ["p0", "4", "1.0", "1", "0.5", "50", "%"],
        ["…", "3", "more", "12", "3.0", "3", "1.5", "50", "%"],
    ]


@pytest.mark.parametrize("kind", ["csv", "parquet", "pytest-benchmark"])
def test_export_writes_where_it_is_told(tmp_path: Path, kind: str) -> None:
    """Each file that is printed is there, and no other; a session of failures alone is no benchmark."""
    write_session(tmp_path / "s")
    printed = good("export", "s", "--out", "out", "--format", kind).split()
    assert sorted(printed) == sorted(str(path.relative_to(tmp_path)) for path in (tmp_path / "out").iterdir())
    if kind == "pytest-benchmark":
        assert printed == ["out/benchmarks.json"]
    else:
        assert printed == [f"out/{name}.{kind}" for name in dictionary.FRAMES]
        read = pd.read_csv if kind == "csv" else pd.read_parquet
        assert list(read(f"out/trials.{kind}").prefetch.unique()) == ["none"]


def test_export_of_what_is_no_session(tmp_path: Path) -> None:
    """A pattern that finds nothing ends in 2, with what was looked for."""
    assert ask("export", str(tmp_path / "*")).code == 2


def test_figures_are_written_and_named(tmp_path: Path) -> None:
    """Each figure is an SVG in the directory that was asked for, and its place is printed."""
    write_session(tmp_path / "s")
    said = good("report", "s", "--figures", "drawn")
    drawn = sorted(path.name for path in (tmp_path / "drawn").iterdir())
    assert drawn
    assert sorted(re.findall(r"^Figure: drawn/(.*)$", said, re.MULTILINE)) == drawn
    assert all("<svg" in (tmp_path / "drawn" / name).read_text() for name in drawn)


def test_a_plan_holds_what_was_left(tmp_path: Path) -> None:
    """Workloads, temperatures, faults and waits that the command line leaves out are not in the session it begins."""
    (tmp_path / "web.toml").write_text(GOOD + '[faults]\nwhich = ["registry-refuses"]\n', "utf-8")
    nobody = ("--scheduler", "nonsense")
    assert "add --no-faults" in ask("run", "web.toml", *nobody, "--out", "a").message
    chosen = ("--workload", "stat-walk", "--temperature", "warm", "--temperature", "cold", "--no-faults",
              "--no-background")  # fmt: skip
    said = ask("run", "web.toml", *chosen, *nobody, "--out", "b")
    assert (said.code, "expected an address" in said.message) == (2, True)
    header = load("b")[0]
    (scenario,) = header.scenarios.values()
    assert [(w.name, set(w.temperatures)) for w in scenario.runtime.workloads] == [("stat-walk", {"cold", "warm"})]
    assert scenario.timeouts.background_s == 0
    assert header.plan.trials
    assert not any(trial.fault for trial in header.plan.trials)


def scenario_without_image(directory: Path) -> None:
    """Put app.toml there, whose image is a layout that does not exist: what begins does not get far."""
    (directory / "app.toml").write_text(
        sessions.SCENARIO.replace('ref = "docker://registry.example/app:1"', 'layout = "/none:1"')
    )


def test_a_baseline_of_another_host_is_refused_unless_anyway(tmp_path: Path) -> None:
    """A gate against a session that is not comparable ends in 2 and says why; --anyway goes on to the image."""
    stored(tmp_path, "a")
    scenario_without_image(tmp_path)
    refused = ask("gate", "app.toml", "--baseline", "a")
    assert refused.code == 2
    assert "a is no baseline for this host and scenario: " in refused.message
    assert "cpu model: " in refused.message
    gone_on = ask("gate", "app.toml", "--baseline", "a", "--anyway")
    assert gone_on.code in {4, 5}  # not root, or no such image
    assert "no baseline" not in gone_on.message


@pytest.mark.parametrize("command", [("aa",), ("gate", "--baseline", "a", "--anyway")], ids=lambda words: words[0])
def test_a_gate_does_not_wait_for_the_background_where_told(tmp_path: Path, command: tuple[str, ...]) -> None:
    """Large images take minutes to fetch after ready, and neither an A/A nor a gate needs that."""
    stored(tmp_path, "a")
    scenario_without_image(tmp_path)
    said = ask(command[0], "app.toml", *command[1:], "--no-background", "--out", "begun")
    assert said.code in {4, 5}  # not root, or no such image
    assert next(iter(load("begun")[0].scenarios.values())).timeouts.background_s == 0.0


# Images


def test_verify_takes_the_platform_that_it_is_told(tmp_path: Path) -> None:
    """Another platform's image of an index is the one that is checked; one that is not there is missed by name."""
    store = LayoutStore(tmp_path / "l", create=True)
    other = put_image(store, "x", [Layer.of_tar(make_tar({"a": b"1"}))], platform=Platform("linux", "s390x"))
    entry = Descriptor(OCI_MANIFEST, other.digest, other.size, platform=Platform("linux", "s390x")).to_json()
    store.put_manifest(go_json({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry]}), OCI_INDEX, "all")
    assert data("verify", "oci:l:all", "--platform", "linux/s390x")["manifest"] == other.digest
    missing = ask("verify", "oci:l:all", "--platform", "linux/riscv64")
    assert missing.code == 5
    assert "the index offers linux/s390x" in missing.message


@pytest.mark.parametrize(("option", "kept"), [("--referrers", 1), ("--no-referrers", 0)])
def test_push_takes_referrers_along_or_leaves_them(tmp_path: Path, option: str, kept: int) -> None:
    """What refers to the image is copied unless it is left out."""
    store = sample_layout(tmp_path / "l")
    with open_source("oci:l:one") as source:
        head = source.head()[0]
    store.add_referrer(head, artefact(head), OCI_MANIFEST)
    store.put_blob(Descriptor.of(b"{}", "application/vnd.oci.empty.v1+json"), b"{}")
    good("image", "push", "oci:l:one", "oci:copy:one", option)
    assert len(LayoutStore(tmp_path / "copy").referrers(head.digest)) == kept


def test_build_offline_uses_what_is_there(tmp_path: Path) -> None:
    """A tag that was never looked up is refused without asking anybody."""
    (tmp_path / "s.toml").write_text(
        'name = "s"\nimage = { ref = "docker://registry.invalid/app:1" }\n[workload]\nreadiness = { kind = "exit" }\n'
    )
    said = ask("image", "build", "s.toml", "--offline")
    assert said.code != 0
    assert "offline" in said.message
    assert "Could not resolve" not in said.message


@pytest.mark.parametrize("option", [["gzip"], ["zstd", "--level", "5"], ["none"]], ids=" ".join)
def test_layers_are_compressed_as_asked(tmp_path: Path, option: list[str]) -> None:
    """The command says what it wrote, and layers are that by their first bytes."""
    sample_layout(tmp_path / "l")
    said = data("convert", "layers", "oci:l:one", "oci:made:one", "--compression", *option)
    assert said["compression"] == {"gzip": "gzip", "zstd": "zstd:5", "none": "none"}[option[0]]
    with open_source("oci:made:one") as source:
        image = source.resolve()
        assert {compression_of(source.open_blob(layer).read_range(0, 6), "") for layer in image.layers} == {option[0]}
        assert [layer["target"]["digest"] for layer in said["layers"]] == [layer.digest for layer in image.layers]
    assert " before)" in good("convert", "layers", "oci:l:one", "oci:again:one", "--compression", *option)


def test_chunks_have_the_size_that_was_asked(tmp_path: Path) -> None:
    """A file of 10 kB has three chunks of 4096 bytes, by default one; small files may share a gzip member."""
    sample_layout(tmp_path / "l")

    def converted(*options: str) -> tuple[int, str]:
        """Chunks of the first layer, whose two files are of 10 kB and one byte, and its digest."""
        good("convert", "estargz", "oci:l:one", "oci:made:one", *options)
        assert ask("verify", "oci:made:one").code == 0
        layer = data("image", "inspect", "oci:made:one")["layers"][0]
        return layer["estargz"]["chunks"], layer["digest"]

    plain, chunked, shared = converted(), converted("--chunk-size", "4096"), converted("--min-chunk-size", "50000")
    assert (plain[0], chunked[0], shared[0]) == (2, 4, 2)
    assert len({plain[1], chunked[1], shared[1]}) == 3


def test_attributes_are_marked_where_asked(tmp_path: Path) -> None:
    """Layers without extended attributes are marked with the option alone."""
    tar = make_tar({"a": b"x" * 5000})
    put_image(LayoutStore(tmp_path / "l", create=True), "one", [Layer.of_tar(tar)])

    def written(place: str, *options: str) -> str:
        good("index", "soci", "oci:l:one", f"oci:{place}:one", "--v1", "--min-layer-size", "0", *options)
        blobs = (path.read_bytes() for path in (tmp_path / place / "blobs" / "sha256").iterdir())
        return b"".join(blob for blob in blobs if blob[:1] == b"{").decode()

    assert DISABLE_XATTRS not in written("plain", "--no-optimize-xattrs")
    assert DISABLE_XATTRS in written("marked", "--optimize-xattrs")
