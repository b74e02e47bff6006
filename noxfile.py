"""Sessions: ``nox -s bench`` runs the main job; tests, lint, typecheck, docs, microbench, engines,
credibility, reference, notebooks, fuzz, interop, equality, soak, lock.

Started by ``./dev`` they share the environment it made; started by a nox of your own each makes its own.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import nox

if TYPE_CHECKING:
    from collections.abc import Iterator

nox.options.sessions = ["tests", "lint", "typecheck"]
nox.options.reuse_existing_virtualenvs = True

BACKEND = "none" if os.environ.get("COLDBENCH_VENV") else None
ROOT = Path(__file__).parent
#: Not part of the three levels: micro-benchmarks and fuzzing run once more below, interop needs foreign tools,
#: equality and soak take long.
OUTSIDE = [f"--ignore=tests/{name}" for name in ("microbench", "fuzz", "interop", "equality", "soak")]


def _install(session: nox.Session) -> None:
    """Install the package and its tools, pinned, unless ``./dev`` already did."""
    if BACKEND is None:
        hashed = ("--require-hashes", "--requirement", "constraints.txt")
        session.install(*hashed, env={"PIP_CONSTRAINT": "constraints.txt"})
        apart = ("--no-deps", "--no-build-isolation", "--require-hashes")  # why: see ./dev
        session.install(*apart, "--requirement", "constraints-apart.txt")
        session.install("--no-deps", "--no-build-isolation", "--editable", ".")


@nox.session(venv_backend=BACKEND)
def bench(session: nox.Session) -> None:
    """The main job: cold starts of the quickstart scenario in every mode, then the table and the report's place."""
    _install(session)
    arguments = session.posargs or ["quickstart"]
    session.run("coldbench", "bench", *arguments)


@nox.session(venv_backend=BACKEND)
def tests(session: nox.Session) -> None:
    """All three levels: pure first, then with files and a local registry beside as root with mounts and containers."""
    _install(session)
    if session.posargs:
        session.run("pytest", *session.posargs)
        return
    level = ["pytest", "-q", "--durations=15", *OUTSIDE, "-m"]
    session.log("level: pure")
    session.run(*level, "not files and not root")
    # Tests with files keep one core busy, those as root wait most of the time: the two run beside each other.
    with _beside(session, "files", [*level, "files and not root"]):
        session.log("level: root")
        session.run(*level, "root")
    session.run("pytest", "-q", "tests/microbench", "tests/fuzz")


@contextmanager
def _beside(session: nox.Session, name: str, command: list[str]) -> Iterator[None]:
    """Runs a level beside the block, with directories of its own; then shows what it said, and fails if it failed."""
    with tempfile.TemporaryDirectory(prefix="coldbench-tests-") as own, tempfile.TemporaryFile("w+") as said:
        path = os.pathsep.join([*(session.bin_paths or []), os.environ["PATH"]])
        apart = [f"--basetemp={own}/{name}", "-o", f"cache_dir={own}/cache"]
        level = subprocess.Popen(
            [*command, *apart], stdout=said, stderr=subprocess.STDOUT, env={**os.environ, "PATH": path}
        )
        try:
            yield
        finally:
            failed = level.wait()
            session.log(f"level: {name}")
            said.seek(0)
            print(said.read(), flush=True)
        if failed:
            session.error(f"level {name}: pytest ended with {failed}")


@nox.session(venv_backend=BACKEND)
def lint(session: nox.Session) -> None:
    """Ruff: rules and format."""
    _install(session)
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session(venv_backend=BACKEND)
def typecheck(session: nox.Session) -> None:
    """mypy --strict on package and tests."""
    _install(session)
    session.run("mypy")


@nox.session(venv_backend=BACKEND)
def docs(session: nox.Session) -> None:
    """The documents' links and commands hold, the JSON Schemas are current, and the site builds without a warning.

    ``-- site``: only the site, for whoever runs all tests beside.
    """
    _install(session)
    if "site" not in session.posargs:
        session.run("pytest", "-q", "tests/docs")
    session.run("mkdocs", "build", "--strict", "--quiet", env={"NO_MKDOCS_2_WARNING": "1"})


@nox.session(venv_backend=BACKEND)
def notebooks(session: nox.Session) -> None:
    """Execute every notebook in a kernel of its own, on the reference session (or COLDBENCH_RESULTS)."""
    _install(session)
    where = os.environ.get("COLDBENCH_RESULTS", str(ROOT / "results" / "reference"))
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        session.run("jupyter", "execute", str(path), "--kernel_name=python3", env={"COLDBENCH_RESULTS": where})


@nox.session(venv_backend=BACKEND)
def notebook(session: nox.Session) -> None:
    """Open JupyterLab on the notebooks; installs what it needs first."""
    hashed = ("--require-hashes", "--requirement", "constraints-notebook.txt")
    session.run_install("python", "-m", "pip", "install", "--quiet", *hashed, env={"PIP_CONSTRAINT": hashed[-1]})
    package = ("--no-deps", "--no-build-isolation", "--editable", ".")
    session.run_install("python", "-m", "pip", "install", "--quiet", *package)
    session.run("jupyter", "lab", "--notebook-dir", str(ROOT / "notebooks"), *session.posargs)


@nox.session(venv_backend=BACKEND)
def microbench(session: nox.Session) -> None:
    """Micro-benchmarks of parsers and data paths; results as pytest-benchmark's JSON. They carry no limits."""
    _install(session)
    out = ROOT / "results" / "microbench.json"
    session.run("pytest", "-q", "tests/microbench", "--benchmark-enable", f"--benchmark-json={out}", *session.posargs)


@nox.session(venv_backend=BACKEND)
def engines(session: nox.Session) -> None:
    """Build the real engines (containerd, stargz, SOCI, Docker) from pinned Go modules; minutes once, then kept."""
    _install(session)
    session.run("python", "-m", "harness.engines.build", *session.posargs)


def _newest_docker(session: nox.Session) -> dict[str, str]:
    """The environment that names the Docker which `nox -s engines` built, where it is there and no other is named."""
    built = str(session.run("python", "-m", "harness.engines.build", "--where", "dockerd", silent=True)).strip()
    return {"COLDBENCH_DOCKERD": built} if built and "COLDBENCH_DOCKERD" not in os.environ else {}


@nox.session(venv_backend=BACKEND)
def credibility(session: nox.Session) -> None:
    """Each preset that claims to do as a real program does, beside it; writes docs/credibility.md. Root, an hour."""
    _install(session)
    env = _newest_docker(session)
    found = []
    for path in sorted((ROOT / "scenarios" / "credibility").glob("*.toml")):
        out = ROOT / "results" / "credibility" / path.stem
        planned = ["--resume"] if out.exists() else [str(path)]
        session.run("coldbench", "run", *planned, "--out", str(out), env=env)
        found.append(str(out))
    page = session.run("python", "-m", "harness.report.credibility", *found, silent=True)
    page += "\n" + session.run("python", "-m", "harness.engines.build.conversions", silent=True)
    (ROOT / "docs" / "credibility.md").write_text(page, encoding="utf-8")


@nox.session(venv_backend=BACKEND)
def reference(session: nox.Session) -> None:
    """Record results/reference and write the documents' figures and tables: root, an hour. `-- write`: only write."""
    _install(session)
    session.run("python", "tools/reference.py", *(session.posargs or ["record"]), env=_newest_docker(session))


@nox.session(venv_backend=BACKEND)
def fuzz(session: nox.Session) -> None:
    """Every parser against hostile bytes, for a bounded time: ``nox -s fuzz -- --fuzz-seconds 600``."""
    _install(session)
    session.run("pytest", "-q", "tests/fuzz", *(session.posargs or ["--fuzz-seconds", "60"]))


@nox.session(venv_backend=BACKEND)
def interop(session: nox.Session) -> None:
    """Our images through the real snapshotters; by hand, needs root and COLDBENCH_REFERENCE_TOOLS (docs/formats.md)."""
    _install(session)
    session.run("pytest", "-q", "-s", "tests/interop", *session.posargs)


@nox.session(venv_backend=BACKEND)
def soak(session: nox.Session) -> None:
    """Daemons killed a hundred times in each mode, and SOAK_STARTS (200) starts with random faults; by hand, root."""
    _install(session)
    session.run("pytest", "-q", "-s", "tests/soak", *session.posargs)


@nox.session(venv_backend=BACKEND)
def equality(session: nox.Session) -> None:
    """Every shipped scenario, served lazily in every mode, against its unpacked image; by hand, needs root; slow."""
    _install(session)
    # Whole images are unpacked below the temporary directory: nothing of them is kept.
    retention = ("-o", "tmp_path_retention_policy=none")
    session.run("pytest", "-q", "-s", *retention, "tests/equality", *session.posargs)


@nox.session(venv_backend=BACKEND)
def lock(session: nox.Session) -> None:
    """Rewrite constraints*.txt, versions and hashes, from pyproject.toml: ``nox -s lock``.

    What is pinned already stays, unless pyproject.toml or ``-- --upgrade`` asks for another version.
    """
    _install(session)
    form = ("--universal", "--python-version", "3.11", "--generate-hashes", "--no-header", "--no-annotate")
    compiled = ("uv", "pip", "compile", "--quiet", *form, *session.posargs)
    together = ("--no-emit-package", "pyfuse3")
    session.run(*compiled, *together, "--extra", "dev", "--output-file", "constraints.txt", "pyproject.toml")
    # The same versions, and what JupyterLab needs beside them.
    extras = ("--extra", "dev", "--extra", "notebook", "--constraint", "constraints.txt")
    session.run(*compiled, *together, *extras, "--output-file", "constraints-notebook.txt", "pyproject.toml")
    # What the program itself needs, and what builds it: for its container, and for any host that wants no more.
    building = Path(session.create_tmp()) / "build.in"
    building.write_text("hatchling>=1.24\n")
    only = ("--constraint", "constraints.txt", "--output-file", "constraints-run.txt")
    session.run(*compiled, *only, "pyproject.toml", str(building))
    apart = Path(session.create_tmp()) / "apart.in"
    apart.write_text("apache-otava==0.8.0\npyfuse3>=3.5\n")
    session.run(*compiled, "--no-deps", "--output-file", "constraints-apart.txt", str(apart))
