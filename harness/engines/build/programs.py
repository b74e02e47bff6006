"""This module says which programs are built from which Go module, and where the finished ones are found.

A *kit* is one Go module of ours: its ``go.mod`` and ``go.sum`` pin everything by version and digest, so two builds of
one kit hold the same code. A finished kit lies in the cache directory under a name that changes with any of its files:
a new version is built anew, an old one stays usable for an older checkout.
"""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from harness.oci.cache import cache_root

if TYPE_CHECKING:
    from collections.abc import Mapping

_ENGINES = Path(__file__).parent.parent


@dataclass(frozen=True)
class Kit:
    """Names a Go module and the programs made from it: file name to Go package."""

    name: str
    version: str
    module: Path
    packages: Mapping[str, str]
    flags: tuple[str, ...] = ()
    needs_libz: bool = False
    """Says whether it links the static libz (Debian: zlib1g-dev)."""

    @property
    def key(self) -> str:
        """Returns what the finished kit is named by: every file of the module, the programs and the flags."""
        state = hashlib.sha256(repr((sorted(self.packages.items()), self.flags)).encode())
        for path in sorted(self.module.rglob("*")):
            if path.suffix in {".go", ".mod", ".sum"}:
                state.update(f"{path.relative_to(self.module)}\0".encode() + path.read_bytes())
        return f"{self.name}-{self.version}-{state.hexdigest()[:12]}"

    @property
    def place(self) -> Path:
        """Returns the directory of the finished programs; it may not exist yet."""
        return cache_root() / "engines" / self.key

    @property
    def built(self) -> bool:
        return all((self.place / program).is_file() for program in self.packages)


_CONTAINERD = "github.com/containerd/containerd/v2/cmd"
_SOCI = "github.com/awslabs/soci-snapshotter/cmd"
_CONTAINERD_VERSION = "2.4.2"
_DOCKER_VERSION = "28.5.2"

KITS = (
    Kit(
        "containerd",
        _CONTAINERD_VERSION,
        _ENGINES / "containerd" / "helper",
        {
            "containerd": f"{_CONTAINERD}/containerd",
            "containerd-shim-runc-v2": f"{_CONTAINERD}/containerd-shim-runc-v2",
            "coldbench-containerd-helper": ".",
            "coldbench-stargz": "./stargz",
        },
        ("-ldflags", f"-X github.com/containerd/containerd/v2/version.Version={_CONTAINERD_VERSION}"),
    ),
    Kit(
        "soci",
        "0.16.1",
        _ENGINES / "build" / "soci",
        {"soci": f"{_SOCI}/soci", "soci-snapshotter-grpc": f"{_SOCI}/soci-snapshotter-grpc"},
        ("-ldflags", "-X github.com/awslabs/soci-snapshotter/version.Version=0.16.1"),
        needs_libz=True,
    ),
    Kit(
        "stargz",
        "0.19.1",
        _ENGINES / "build" / "stargz",
        {"coldbench-estargz-convert": "."},
    ),
    Kit(
        "docker",
        _DOCKER_VERSION,
        _ENGINES / "build" / "docker",
        {"dockerd": "github.com/docker/docker/cmd/dockerd"},
        (
            "-tags", "exclude_graphdriver_btrfs exclude_graphdriver_zfs no_systemd",
            "-ldflags", f"-X github.com/docker/docker/dockerversion.Version={_DOCKER_VERSION}",
        ),
    ),
)  # fmt: skip


def built(program: str) -> str:
    """Returns the path of a program that ``nox -s engines`` has built, empty when it has not."""
    for kit in KITS:
        if program in kit.packages and (kit.place / program).is_file():
            return str(kit.place / program)
    return ""


def find(program: str, named: str = "") -> str:
    """Finds the path of a program: the one the user named, else the one we built, else one on the
    PATH; empty for none.
    """
    return shutil.which(named) or "" if named else built(program) or shutil.which(program) or ""
