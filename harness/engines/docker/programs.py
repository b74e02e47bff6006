"""This module finds which Docker there is on this host, and says whether it can do what a case asks of it.

Any dockerd will do: the distribution's, Docker's own package, one built by hand. The containerd and the shim that go
with it are looked for beside it first, because a dockerd brings its own along.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.engines.build.programs import built
from harness.engines.programs import find_program, version_numbers
from harness.engines.protocol import Availability, Program

if TYPE_CHECKING:
    from harness.model.engine import DockerChoice

VARIABLE = "COLDBENCH_DOCKERD"
"""This environment variable names the dockerd to run, for all scenarios that name none."""

_LEAST = (20, 10)
_LEAST_CONTAINERD_STORE = (24,)
"""The first Docker Engine whose images may lie in containerd's store (release notes of 24.0)."""

_INSTALL = f"install it (apt-get install docker.io), or name one: {VARIABLE}=PATH, or dockerd in [engines.docker]"


@dataclass(frozen=True, slots=True)
class DockerPrograms:
    """Holds the programs of one Docker; each path is empty where the program was not found."""

    dockerd: Program
    containerd: Program
    shim: Program
    runc: Program

    @property
    def all(self) -> tuple[Program, ...]:
        return (self.dockerd, self.containerd, self.shim, self.runc)

    @property
    def search_path(self) -> str:
        """Returns the PATH that daemons get: the directories of these programs, then the system's."""
        directories = [os.path.dirname(program.path) for program in self.all]
        return ":".join(dict.fromkeys([*directories, "/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin",
                                       "/sbin", "/bin"]))  # fmt: skip

    @property
    def version(self) -> tuple[int, ...]:
        return version_numbers(self.dockerd.version)


def find(choice: DockerChoice) -> DockerPrograms:
    """Finds the dockerd that the scenario names, else the environment, else the PATH's, else the one built by ``nox -s
    engines``; and what goes with it.
    """
    named = choice.dockerd or os.environ.get(VARIABLE, "")
    dockerd = find_program("dockerd", named or ("" if shutil.which("dockerd") else built("dockerd")))
    beside = os.path.dirname(os.path.realpath(dockerd.path)) if dockerd.path else ""
    ours = built("containerd") if dockerd.path and dockerd.path == built("dockerd") else ""
    containerd = find_program("containerd", choice.containerd or _beside(beside, "containerd") or ours)
    near = os.path.dirname(os.path.realpath(containerd.path)) if containerd.path else beside
    shim = find_program("containerd-shim-runc-v2", _beside(near, "containerd-shim-runc-v2"), "-v")
    return DockerPrograms(dockerd, containerd, shim, find_program("runc", _beside(beside, "runc")))


def _beside(directory: str, name: str) -> str:
    """The path of a program in that directory, empty where there is none."""
    path = os.path.join(directory, name)
    return path if directory and os.access(path, os.X_OK) else ""


def availability(programs: DockerPrograms, choice: DockerChoice, *, containerd_store: bool) -> Availability:
    """Says whether these programs can run a trial, with images in containerd's store where that is asked for."""
    found = programs.dockerd
    named = choice.dockerd or os.environ.get(VARIABLE, "")
    reason = ""
    if not found.path:
        where = f"there is no program {named}" if named else "no dockerd on the PATH"
        reason = f"{where}; {_INSTALL}"
    elif not programs.version:
        reason = f"{found.path} does not tell its version (--version), so it is no dockerd; {_INSTALL}"
    elif programs.version < _LEAST:
        reason = f"dockerd {found.version} is too old: 20.10 or newer is wanted; {_INSTALL}"
    elif containerd_store and programs.version < _LEAST_CONTAINERD_STORE:
        reason = (
            f"dockerd {found.version} keeps no images in containerd's store: preset containerd-store wants 24.0 or "
            f"newer; take preset overlay2, or name a newer dockerd ({VARIABLE}=PATH)"
        )
    else:
        missing = [program.name for program in programs.all if not program.path]
        if missing:
            reason = f"dockerd {found.version} needs {' and '.join(missing)}; install containerd and runc beside it"
    return Availability(programs.all, reason)
