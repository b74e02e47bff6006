"""Every command's help, and every option's wrong value: exit code 2, one message that names it, and nothing begun."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from harness.cli.main import app, load_commands
from harness.errors import ColdbenchError
from harness.session.store import OBSERVATIONS
from tests.gate import sessions
from tests.oci.samples import sample_layout
from tests.report.observations import write_session
from tests.test_scenarios import GOOD

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.files
load_commands()


class Answer(NamedTuple):
    """How a command ended, and what it said about it."""

    code: int
    message: str
    output: str


def ask(*arguments: str) -> Answer:
    """Run a command in this process; a bug of ours comes out of it as it is."""
    done = CliRunner().invoke(app, arguments, env={"COLUMNS": "200"})
    if isinstance(done.exception, ColdbenchError):
        return Answer(done.exception.exit_code, str(done.exception), done.output)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return Answer(done.exit_code, done.stderr, done.output)


def commands(group: Any = None, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command and group that people may call, with the words that call it."""
    group = group or get_command(app)
    if not group.hidden:
        yield path, group
    for name, command in getattr(group, "commands", {}).items():
        yield from commands(command, (*path, name))


def options(command: Any) -> list[Any]:
    return [p for p in command.params if p.param_type_name == "option" and "--help" not in p.opts]


EVERY = dict(commands())

#: What each option refuses, by command: arguments before it, its value, and what the message says.
IMAGE = ("oci:image:one", "oci:made:one")
WRONG: dict[str, dict[str, tuple[tuple[str, ...], str, str]]] = {
    "aa": {
        "--inject": (("web.toml",), "10 percent", "expected a share as 5% or 0.05"),
        "--mode": (("web.toml",), "overlay", "--mode overlay: expected a mode"),
        "--shape": (("web.toml",), "gcp-e2-mico", "did you mean gcp-e2-micro"),
        "--blocks": (("web.toml",), "5", "greater than or equal to 6"),
        "--gate-blocks": (("web.toml",), "5", "greater than or equal to 6"),
        "--seed": (("web.toml",), "x", "valid integer"),
        "--registry": (("web.toml",), "ftp://x", "expected https://HOST"),
    },
    "advise": {
        "--shape": (("report",), "gcp-e2-mico", "did you mean gcp-e2-micro"),
        "--starts": (("report",), "-1", "greater than or equal to 0"),
        "--builds": (("report",), "-1", "greater than or equal to 0"),
        "--rows": (("report",), "0", "greater than or equal to 1"),
    },
    "bench": {
        "--mode": (("web.toml",), "overlay", "--mode overlay: expected a mode"),
        "--engine": (("web.toml",), "dokcer", "did you mean 'docker'"),
        "--shape": (("web.toml",), "gcp-e2-mico", "did you mean gcp-e2-micro"),
        "--blocks": (("web.toml",), "0", "greater than or equal to 1"),
        "--seed": (("web.toml",), "x", "valid integer"),
        "--registry": (("web.toml",), "ftp://x", "expected https://HOST"),
    },
    "compare": {"--margin": (("gate", "gate"), "1.5", "less than or equal to 1")},
    "export": {"--format": (("report",), "xlsx", "'parquet', 'csv', 'pytest-benchmark'")},
    "gate": {
        "--baseline-image": (("web.toml",), "debian:12", "expected docker://"),
        "--baseline-mode": (("web.toml",), "overlay", "--baseline-mode overlay: expected a mode"),
        "--baseline-engine": (("web.toml",), "dokcer", "did you mean 'docker'"),
        "--baseline": (("web.toml",), "nowhere", "no session.json"),
        "--mode": (("web.toml", "--baseline-mode", "soci"), "overlay", "--mode overlay: expected a mode"),
        "--shape": (("web.toml", "--baseline-mode", "soci"), "gcp-e2-mico", "did you mean gcp-e2-micro"),
        "--blocks": (("web.toml", "--baseline-mode", "soci"), "5", "greater than or equal to 6"),
        "--max-blocks": (("web.toml", "--baseline-mode", "soci"), "3", "--max-blocks 3 is below the 6 blocks"),
        "--seed": (("web.toml",), "x", "valid integer"),
        "--registry": (("web.toml", "--baseline-mode", "soci"), "ftp://x", "expected https://HOST"),
    },
    "history": {
        "--metric": (("gate",), "time-to-redy", "did you mean 'time-to-ready'"),
        "--p-value": (("gate",), "2", "less than or equal to 1"),
    },
    "mount": {
        "--mode": (("oci:image:one", "here"), "overlay2", "expected one of"),
        "--preset": (("oci:image:one", "here"), "tunde", "did you mean 'tuned'"),
        "--platform": (("oci:image:one", "here"), "vax", "os/architecture"),
    },
    "plan": {"--detect": (("gate",), "5 percent", "expected a share as 5% or 0.05")},
    "run": {
        "--mode": (("web.toml",), "overlay", "--mode overlay: expected a mode"),
        "--preset": (("web.toml",), "tunde", "did you mean 'tuned'"),
        "--engine": (("web.toml",), "dokcer", "did you mean 'docker'"),
        "--shape": (("web.toml",), "gcp-e2-mico", "did you mean gcp-e2-micro"),
        "--distance": (("web.toml",), "farr", "did you mean far"),
        "--blocks": (("web.toml",), "0", "greater than or equal to 1"),
        "--seed": (("web.toml",), "x", "valid integer"),
        "--registry": (("web.toml",), "ftp://x", "expected https://HOST"),
        "--workload": (("web.toml",), "stat-wlak", "did you mean 'stat-walk'"),
        "--temperature": (("web.toml",), "wram", "did you mean 'warm'"),
        "--shard": (("web.toml", "--seed", "1"), "3/2", "--shard 3/2"),
        "--scheduler": (("web.toml",), "nonsense", "--scheduler nonsense"),
    },
    "trace": {
        "--mode": (("web.toml",), "overlay2", "no mode whose reads can be seen"),
        "--shape": (("web.toml",), "gcp-e2-mico", "did you mean gcp-e2-micro"),
        "--out": (("web.toml",), "nowhere/list", "there is no directory nowhere"),
        "--pack": (("web.toml",), "nowhere/pack", "there is no directory nowhere"),
        "--rows": (("web.toml",), "0", "greater than or equal to 1"),
        "--registry": (("web.toml",), "ftp://x", "expected https://HOST"),
    },
    "try": {
        "--shape": (("oci:image:one",), "gcp-e2-mico", "did you mean gcp-e2-micro"),
        "--ready": (("oci:image:one",), "htp:80", "--ready htp:80"),
        "--minutes": (("oci:image:one",), "0", "greater than or equal to 0.1"),
    },
    "verify": {"--platform": (("oci:image:one",), "vax", "os/architecture")},
    "image inspect": {"--platform": (("oci:image:one",), "vax", "os/architecture")},
    "convert estargz": {
        "--prioritize": (IMAGE, "nowhere", "--prioritize nowhere"),
        "--chunk-size": (IMAGE, "0", "chunk"),
        "--min-chunk-size": (IMAGE, "-1", "chunk"),
        "--platform": (IMAGE, "vax", "os/architecture"),
    },
    "convert layers": {
        "--compression": (IMAGE, "gzpi", "--compression gzpi"),
        "--level": ((*IMAGE, "--compression", "gzip"), "10", "--compression gzip:10"),
        "--platform": ((*IMAGE, "--compression", "gzip"), "vax", "os/architecture"),
    },
    "index soci": {
        "--span-size": (IMAGE, "0", "span"),
        "--min-layer-size": (IMAGE, "x", "valid integer"),
        "--platform": (IMAGE, "vax", "os/architecture"),
    },
    "index erofs": {
        "--span-size": (IMAGE, "0", "span"),
        "--prefetch": (IMAGE, "nowhere", "--prefetch nowhere"),
        "--record": (IMAGE, "quikstart", "did you mean 'quickstart'"),
        "--pack": (IMAGE, "nowhere", "--pack nowhere"),
        "--pack-max": (IMAGE, "0", "greater than or equal to 1"),
        "--platform": (IMAGE, "vax", "os/architecture"),
    },
}

#: Options that take any text: places to write to, and words to look for or to write down.
FREE = {
    ("aa", "--out"), ("bench", "--out"), ("export", "--out"), ("gate", "--out"),
    ("history", "--case"), ("history", "--figure"), ("merge", "--out"), ("report", "--figures"), ("report", "--out"),
    ("run", "--out"), ("try", "--out"), ("index soci", "--build-tool"), ("index soci", "--prefetch-file"),
}  # fmt: skip
CASES = [(command, option) for command, of in WRONG.items() for option in of]


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with what arguments name: a scenario file, an image, a session, a session to compare."""
    made = tmp_path_factory.mktemp("material")
    (made / "web.toml").write_text(GOOD, "utf-8")
    sample_layout(made / "image")
    write_session(made / "report")
    head = sessions.header()
    sessions.write(made / "gate", head, sessions.trials(head.plan))
    return made


@pytest.fixture(autouse=True)
def directory(material: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory; the cache is an empty one."""
    monkeypatch.chdir(material)
    monkeypatch.setenv("COLDBENCH_CACHE", str(tmp_path / "cache"))
    return material


@pytest.mark.parametrize("path", EVERY, ids=" ".join)
def test_help_names_every_argument_and_option(path: tuple[str, ...]) -> None:
    """``--help`` and ``-h`` end in 0 and say what the command does, with all that it takes."""
    said = ask(*path, "--help")
    assert said.code == 0
    assert said == ask(*path, "-h")
    command = EVERY[path]
    first = re.split(r"[.:;]", command.help)[0].split()
    assert " ".join(first) in " ".join(said.output.split())
    for option in options(command):
        assert option.hidden or any(name in said.output for name in option.opts), option.opts
    for name in getattr(command, "commands", {}):
        assert (name in said.output) != command.commands[name].hidden


@pytest.mark.parametrize("path", EVERY, ids=" ".join)
def test_an_unknown_option_is_refused(path: tuple[str, ...]) -> None:
    """Any command ends in 2 for an option that it does not have, and names it."""
    said = ask(*path, "--no-such-option")
    assert said.code == 2
    assert "No such option: --no-such-option" in said.message


@pytest.mark.parametrize(("command", "option"), CASES, ids=[" ".join(case) for case in CASES])
def test_a_wrong_value_is_refused(directory: Path, command: str, option: str) -> None:
    """Exit code 2 and what was expected, before an image is fetched; what the program itself says is one line."""
    before, value, message = WRONG[command][option]
    said = ask(*command.split(), *before, option, value)
    assert said.code == 2, said.message
    plain = " ".join(said.message.replace("\u2502", " ").split())
    assert message in plain
    if "Usage:" in said.message:
        assert f"Invalid value for '{option}'" in plain
    else:
        assert "\n" not in said.message
    assert not list(directory.glob("made/blobs/*/*"))
    assert not list(directory.glob(f"results/*/{OBSERVATIONS}"))


def test_every_option_with_a_value_is_among_them() -> None:
    """A new option comes with the values that it refuses, or is said to take any text; none is listed in vain."""
    taking = {
        (" ".join(path), name)
        for path, command in EVERY.items()
        for option in options(command)
        if not option.is_flag
        for name in option.opts
        if name.startswith("--")
    }
    shell = {("", "--install-completion"), ("", "--show-completion")}
    assert taking - shell == set(CASES) | FREE
    assert not set(CASES) & FREE
