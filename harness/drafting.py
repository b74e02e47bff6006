"""This module writes a scenario file, which can be run and edited, from an image that somebody wants to try.

What a person did not say is guessed from the image, and every guess is said in words: readiness from the ports and the
command of its configuration, run-time workloads from the programs that are in it.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from harness.errors import UsageError
from harness.model import modes
from harness.oci.reference import canonical_name, parse_reference

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

READY_FORMS = "exit, tcp:PORT, http:PORT/PATH, stdout:REGEX or stderr:REGEX"
#: Ports at which a web server answers more often than not.
_WEB_PORTS = frozenset({80, 3000, 5000, 8000, 8080})
#: What a person means as a path: no image's name begins or ends like this.
_PATH = re.compile(r"^(?:\.{0,2}/)|^[^:]*\.(?:tar|tgz|tar\.gz)$")
_PROGRAM_DIRECTORIES = ("/usr/local/bin/", "/usr/bin/", "/bin/", "/opt/java/openjdk/bin/")
#: A start of the language itself, which touches its library as a program does, by the program's name.
_LANGUAGES = (
    ("python3", ("python3", "-c", "import json, email, urllib.request")),
    ("python", ("python", "-c", "import json, email, urllib.request")),
    ("node", ("node", "-e", "require('http'); require('crypto')")),
    ("java", ("java", "-version")),
)


@dataclass(frozen=True, slots=True)
class Wish:
    """Describes what a person asks for on the command line; a field is empty where the program is to guess."""

    image: str
    command: tuple[str, ...] = ()
    shape: str = "gcp-e2-micro"
    ready: str = ""
    quick: bool = False
    blocks: int = 12


@dataclass(frozen=True, slots=True)
class Draft:
    """Holds a scenario file's text, its name, and what was guessed, a sentence each."""

    name: str
    text: str
    blocks: int
    guesses: tuple[str, ...]


def image_source(name: str) -> dict[str, str]:
    """Returns the scenario's ``image`` table for a name as skopeo writes it, or as Docker does (``nginx:1.27``).

    Raises:
        UsageError: the name is none of these.
    """
    if os.path.isfile(name):
        return {"archive": os.path.abspath(name)}
    if os.path.isdir(name.partition(":")[0]):
        name = f"oci:{name}"
    if _PATH.search(name):
        raise UsageError(f"{name}: there is no such file or directory")
    transport, colon, _ = name.partition(":")
    if not colon or transport not in {"docker", "oci", "oci-archive", "docker-archive"}:
        name = f"docker://{canonical_name(name)}"
    reference = parse_reference(name)
    if reference.transport == "docker":
        return {"ref": str(reference).removeprefix("docker://")}
    if reference.transport == "oci":
        return {"layout": str(replace(reference, path=os.path.abspath(reference.path))).removeprefix("oci:")}
    return {"archive": str(replace(reference, path=os.path.abspath(reference.path)))}


def scenario_name(image: str) -> str:
    """Makes a scenario's name out of an image's: its last part, without what a name cannot hold."""
    last = re.split(r"[/]", image.split("@", maxsplit=1)[0].rstrip("/"))[-1]
    plain = re.sub(r"\.(tar|tgz|tar\.gz|oci)$", "", last.lower())
    return re.sub(r"[^a-z0-9._-]+", "-", plain).strip("-._")[:60] or "image"


def parse_ready(text: str) -> dict[str, Any]:
    """Returns the ``readiness`` table for ``--ready``; raises UsageError, which names the forms."""
    kind, _, rest = text.partition(":")
    if kind == "exit" and not rest:
        return {"kind": "exit"}
    if kind == "tcp" and rest.isdecimal():
        return {"kind": "tcp", "port": int(rest)}
    if kind == "http":
        found = re.fullmatch(r"(\d+)(/.*)?", rest)
        if found:
            return {"kind": "http", "port": int(found[1]), "path": found[2] or "/"}
    if kind in {"stdout", "stderr"} and rest:
        return {"kind": kind, "pattern": rest}
    raise UsageError(f"--ready {text}: expected {READY_FORMS}")


def draft(wish: Wish, config: Mapping[str, Any], paths: Collection[str]) -> Draft:
    """Drafts a scenario for the image whose ``config`` object (OCI image spec, config.md) and file names these are.

    Raises:
        UsageError: there is nothing to run, or ``ready`` is in no known form.
    """
    runs = (*(config.get("Entrypoint") or ()), *(config.get("Cmd") or ()))
    if not wish.command and not runs:
        raise UsageError(f"{wish.image}: the image names no command; say what to run: coldbench try IMAGE -- COMMAND")
    guesses: list[str] = []
    readiness = parse_ready(wish.ready) if wish.ready else _guess_readiness(config, bool(wish.command), guesses)
    workloads = () if wish.quick else _guess_workloads(paths, guesses)
    name = scenario_name(wish.image)
    chosen = modes.engine_modes(modes.EMBEDDED)
    keys = tuple(f"{mode.name}:{mode.best.name}" for mode in chosen)
    if not wish.quick:
        keys = (f"{chosen[0].name}:{chosen[0].presets[0].name}", *keys)
    lines = [
        f"name = {_toml(name)}",
        f"description = {_toml(f'{wish.image}, tried')}",
        f"image = {_toml(image_source(wish.image))}",
        f"shapes = [{_toml(wish.shape)}]",
        f"modes = {_toml(keys)}",
        f"blocks = {wish.blocks}",
        "",
        "[workload]",
    ]
    if wish.command:
        lines.append(f"command = {_toml(wish.command)}")
    lines.append(f"readiness = {_toml(readiness)}")
    if workloads:
        lines += ["", "[runtime]", 'temperatures = ["cold", "warm"]', f"workloads = {_toml(workloads)}"]
    return Draft(name, "\n".join(lines) + "\n", wish.blocks, tuple(guesses))


def _guess_readiness(config: Mapping[str, Any], own_command: bool, guesses: list[str]) -> dict[str, Any]:
    exposed = config.get("ExposedPorts") or {}
    ports = sorted(int(p.partition("/")[0]) for p in exposed if re.fullmatch(r"\d+(/tcp)?", p))
    if own_command or not ports:
        why = "for a command given here" if own_command else "since the image exposes no port"
        guesses.append(f"ready when the process has ended with code 0, {why} (else say --ready {READY_FORMS})")
        return {"kind": "exit"}
    web = [port for port in ports if port in _WEB_PORTS]
    port = web[0] if web else ports[0]
    guesses.append(f"ready when port {port}, which the image exposes, accepts (stricter: --ready http:{port}/)")
    return {"kind": "tcp", "port": port}


def _guess_workloads(paths: Collection[str], guesses: list[str]) -> tuple[str | dict[str, Any], ...]:
    chosen: list[str | dict[str, Any]] = ["stat-walk", "read-small", "read-sequential"]
    present = {program: f"{place}{program}" for program, _ in _LANGUAGES for place in _PROGRAM_DIRECTORIES
               if f"{place}{program}" in paths}  # fmt: skip
    for program, argv in _LANGUAGES:
        if program in present:
            chosen.append({"name": f"start-{program}", "argv": argv})
            break
    if "/bin/sh" in paths or "/usr/bin/sh" in paths:
        chosen.append("exec-many")
    said = ", ".join(w if isinstance(w, str) else str(w["name"]) for w in chosen)
    guesses.append(f"measured after the start: {said}")
    return tuple(chosen)


def _toml(value: str | int | Mapping[str, Any] | Sequence[Any]) -> str:
    """Writes a value as TOML on one line; JSON's strings are TOML's basic strings."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, int):
        return str(value)
    if hasattr(value, "items"):
        return "{ " + ", ".join(f"{key} = {_toml(item)}" for key, item in value.items()) + " }"
    return "[" + ", ".join(_toml(item) for item in value) + "]"
