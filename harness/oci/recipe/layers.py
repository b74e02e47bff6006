"""This module does to the tree what each kind of recipe layer asks: Debian, Python and Node packages, inline files."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import struct
import sys
from typing import TYPE_CHECKING

from harness.errors import ContentError, HostUnfit, MissingTool
from harness.oci.recipe.build_root import BuildRoot, need_root, need_tool, plain_environment, run, run_contained
from harness.oci.recipe.contained import FIRST_USER, ROOM
from harness.oci.recipe.debian_sources import read_sources, sources_for
from harness.oci.recipe.layer_tar import walk

if TYPE_CHECKING:
    from pathlib import Path

    from harness.model.image import DebianLayer, FilesLayer, Layer, NpmLayer, PipLayer

_SLIM = (
    "path-exclude=/usr/share/doc/*",
    "path-include=/usr/share/doc/*/copyright",
    "path-exclude=/usr/share/man/*",
    "path-exclude=/usr/share/info/*",
    "path-exclude=/usr/share/locale/*",
)
_WRAPPERS = "/run/coldbench"
_DPKG_WITHOUT_NETWORK = (
    f'mkdir -p "$1{_WRAPPERS}" && '
    """printf '#!/bin/sh\\nexec unshare --net /usr/bin/dpkg "$@"\\n' """
    f'> "$1{_WRAPPERS}/dpkg" && chmod 755 "$1{_WRAPPERS}/dpkg"'
)
_CHROOT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_LITTER = ("tmp", "run", "var/cache/apt", "var/lib/apt/lists", "root/.cache", "root/.npm", "var/cache/ldconfig")
_OLDEST_GLIBC, _NEWEST_GLIBC = 5, 36


def build_layer(layer: Layer, root: BuildRoot, epoch_s: int) -> None:
    """Makes one layer in ``root.upper``; ContentError when a package manager refuses, HostUnfit when it is missing."""
    need_root("building an image from a recipe")
    if layer.kind == "debian":
        if root.lowers:
            _add_debian(layer, root, epoch_s)
        else:
            _make_debian(layer, root, epoch_s)
    elif layer.kind == "pip":
        _add_pip(layer, root, epoch_s)
    elif layer.kind == "npm":
        _add_npm(layer, root, epoch_s)
    else:
        _add_files(layer, root, epoch_s)
    _clean(root)
    fix_bytecode_times(root, epoch_s)


def _make_debian(layer: DebianLayer, root: BuildRoot, epoch_s: int) -> None:
    """Lets mmdebstrap make the base system in a user name space, as a tar, which is unpacked here.

    Its packages' scripts run without network: dpkg is found first where a hook puts one that has none.
    """
    tool = need_tool("mmdebstrap", "mmdebstrap")
    argv = [tool, "--mode=root", "--format=tar", f"--variant={layer.variant}", "--quiet"]
    argv.append(f"--extract-hook={_DPKG_WITHOUT_NETWORK}")
    if layer.packages:
        argv.append(f"--include={','.join(layer.packages)}")
    if layer.slim:
        argv += [f"--dpkgopt={option}" for option in _SLIM]
    argv += [layer.suite, f"{ROOM}/made.tar"]
    room = root.scratch / "room"
    room.mkdir()
    sources = sources_for(layer.suite, read_sources())
    if sources:
        (room / "debian.sources").write_text(sources)
        argv.append(f"{ROOM}/debian.sources")
    for name in (".", "tmp"):
        (room / name).mkdir(exist_ok=True)
        os.chown(room / name, FIRST_USER, FIRST_USER)
    env = plain_environment(epoch_s)
    path = f"{_WRAPPERS}:{env.get('PATH', _CHROOT_PATH)}"
    env |= {"TMPDIR": f"{ROOM}/tmp", "HOME": f"{ROOM}/tmp", "PATH": path}
    request = {"where": "users", "room": str(room), "network": True, "command": argv}
    run_contained(request, env, f"mmdebstrap of {layer.suite}")
    unpack = ["tar", "-xpf", str(room / "made.tar"), "-C", str(root.upper), "--numeric-owner"]
    run([*unpack, "--xattrs", "--xattrs-include=*"], what="unpacking the base system")
    shutil.rmtree(room)


def _add_debian(layer: DebianLayer, root: BuildRoot, epoch_s: int) -> None:
    env = {"PATH": _CHROOT_PATH, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8", "HOME": "/root"}
    env |= {key: value for key, value in os.environ.items() if key.lower().endswith("_proxy")}
    env["SOURCE_DATE_EPOCH"] = str(epoch_s)
    options = "-y -qq -o Dpkg::Use-Pty=0 -o Acquire::Check-Date=false --no-install-recommends"
    slim = "".join(f" -o Dpkg::Options::=--{option}" for option in _SLIM) if layer.slim else ""
    install = f"apt-get {options}{slim} install {' '.join(layer.packages)}"
    names = ", ".join(layer.packages)
    # Scripts of packages run in the second step, which has no network.
    fetch = f"apt-get -qq update && {install} --download-only"
    root.run(["sh", "-c", fetch], env=env, chroot=True, what=f"apt-get download of {names}", network=True)
    root.run(["sh", "-c", f"{install} --no-download"], env=env, chroot=True, what=f"apt-get install of {names}")
    for log in ("var/log/apt", "var/log/dpkg.log", "var/log/alternatives.log"):
        _remove(root.upper / log)


def _add_pip(layer: PipLayer, root: BuildRoot, epoch_s: int) -> None:
    version = python_version(root)
    if importlib.util.find_spec("pip") is None:
        raise MissingTool(f"pip is not installed for {sys.executable}; run: {sys.executable} -m ensurepip")
    target = f"usr/local/lib/python{version}/dist-packages"
    argv = [sys.executable, "-m", "pip", "install", "--quiet", "--no-compile", "--no-warn-conflicts"]
    argv += ["--disable-pip-version-check", "--root-user-action=ignore", "--only-binary=:all:"]
    argv += ["--python-version", version, "--implementation", "cp", "--target", str(root.merged / target)]
    for platform in wheel_platforms(os.uname().machine):
        argv += ["--platform", platform]
    env = plain_environment(epoch_s)
    what = f"pip install for python{version}"
    root.run([*argv, *layer.requirements], env=env, chroot=False, what=what, network=True)
    _move_scripts(root.upper / target / "bin", root.upper / "usr/local/bin")
    _fix_modes(root.upper / "usr/local")
    if layer.compile:
        # As pip does: files that do not compile (tests of other Python versions) are passed over.
        script = f"python{version} -m compileall -q --invalidation-mode timestamp /{target} >/dev/null 2>&1 || :"
        inner = {"PATH": _CHROOT_PATH, "LC_ALL": "C.UTF-8", "PYTHONHASHSEED": "0"}
        root.run(["sh", "-c", script], env=inner, chroot=True, what="compileall")


def _add_npm(layer: NpmLayer, root: BuildRoot, epoch_s: int) -> None:
    directory = layer.directory.lstrip("/")
    argv = ["install", "--no-audit", "--no-fund", "--ignore-scripts", "--omit=dev", "--loglevel=error"]
    what = "npm install of " + ", ".join(layer.packages)
    (root.upper / directory).mkdir(parents=True, exist_ok=True)
    host = shutil.which("npm")
    if host is not None:
        # The host's npm: it knows its registry, proxy and certificates, and its cache makes this quick.
        prefix = str(root.merged / directory)
        root.run(
            [host, *argv, "--prefix", prefix, *layer.packages],
            env=plain_environment(epoch_s),
            chroot=False,
            what=what,
            network=True,
        )
    elif root.find("usr/bin/npm") is not None:
        env = {key: value for key, value in os.environ.items() if key.lower().startswith("npm_config_")}
        env |= {key: value for key, value in os.environ.items() if key.lower().endswith("_proxy")}
        env |= {"PATH": _CHROOT_PATH, "HOME": "/tmp", "npm_config_cache": "/tmp/npm"}
        inner = ["npm", *argv, "--prefix", f"/{directory}", *layer.packages]
        root.run(inner, env=env, chroot=True, what=what, network=True)
    else:
        raise MissingTool("npm is neither on this host nor in the image; install it with: apt-get install npm")
    _fix_modes(root.upper / directory)


def _add_files(layer: FilesLayer, root: BuildRoot, epoch_s: int) -> None:
    for file in layer.files:
        path = root.upper / file.path.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(file.text)
        os.chown(path, file.uid, file.gid)
        path.chmod(int(file.mode, 8))
        os.utime(path, (epoch_s, epoch_s))
    # A directory that a lower layer has keeps that layer's mode and owner.
    for path_text, name, _ in list(walk(root.upper)):
        if os.path.isdir(path_text) and not os.path.islink(path_text):
            below = next((p for low in reversed(root.lowers) if (p := low / name).is_dir()), None)
            if below is not None:
                status = below.stat()
                os.chown(path_text, status.st_uid, status.st_gid)
                os.chmod(path_text, status.st_mode & 0o7777)


def python_version(root: BuildRoot) -> str:
    """Returns ``3.N`` of the image's own python3, told by what /usr/bin/python3 points at."""
    for name in ("usr/bin/python3", "usr/local/bin/python3"):
        path = root.find(name)
        if path is not None and path.is_symlink():
            match = re.search(r"python(3\.\d+)\Z", os.readlink(path))
            if match:
                return match[1]
    raise ContentError("the image has no python3 for its pip layer; add python3 to the packages of a layer below")


def wheel_platforms(machine: str) -> list[str]:
    """Returns wheel platform tags that run on the image, newest first (PEP 600; the image has glibc 2.36 or newer)."""
    if machine not in {"x86_64", "aarch64"}:
        raise HostUnfit(f"pip layers are built on x86_64 and aarch64, not on {machine}")
    tags = [f"manylinux_2_{minor}_{machine}" for minor in range(_NEWEST_GLIBC, _OLDEST_GLIBC - 1, -1)]
    return [*tags, f"manylinux2014_{machine}", f"manylinux2010_{machine}", f"manylinux1_{machine}", f"linux_{machine}"]


def fix_bytecode_times(root: BuildRoot, epoch_s: int) -> None:
    """Writes the source's time, as the layer will state it, into each .pyc that is checked by time (PEP 552).

    Without this, cutting a source's time to the epoch would make its bytecode stale, and every start would compile.
    """
    for path_text, name, _ in walk(root.upper):
        if not name.endswith(".pyc") or "__pycache__" not in name:
            continue
        directory, _, base = name.rpartition("/__pycache__/")
        source = root.find(f"{directory}/{base.split('.cpython-')[0]}.py")
        if source is None or source.is_symlink():
            continue
        with open(path_text, "r+b", buffering=0) as file:
            header = file.read(16)
            if len(header) < 16 or header[4:8] != bytes(4):
                continue
            file.seek(8)
            file.write(struct.pack("<I", min(int(source.stat().st_mtime), epoch_s) & 0xFFFFFFFF))


def _move_scripts(scripts: Path, target: Path) -> None:
    """Moves scripts to their place: pip --target leaves them in its own bin/ with this host's interpreter in the first
    line.
    """
    if not scripts.is_dir():
        return
    target.mkdir(parents=True, exist_ok=True)
    for script in scripts.iterdir():
        if script.is_file():
            data = script.read_bytes()
            if data.startswith(b"#!") and b"python" in data.split(b"\n", 1)[0]:
                script.write_bytes(b"#!/usr/bin/python3\n" + data.split(b"\n", 1)[1])
        os.replace(script, target / script.name)
    scripts.rmdir()


def _fix_modes(tree: Path) -> None:
    """Makes root the owner, and modes as under umask 022, whatever the caller's umask."""
    for path, _, status in walk(tree):
        os.chown(path, 0, 0, follow_symlinks=False)
        if not os.path.islink(path):
            executable = 0o755 if status.st_mode & 0o100 else 0o644
            os.chmod(path, 0o755 if os.path.isdir(path) else executable)


def _clean(root: BuildRoot) -> None:
    """Empties what package managers leave in the tree and no image keeps; the directories themselves stay."""
    for name in _LITTER:
        directory = root.upper / name
        if not directory.is_dir():
            continue
        for entry in directory.iterdir():
            _remove(entry)
        if root.lowers and name not in {"tmp", "run"} and not any(directory.iterdir()):
            directory.rmdir()
    # This host's own, copied in by mmdebstrap; a container runtime brings the container's.
    for name in ("etc/resolv.conf", "etc/hostname"):
        if (root.upper / name).is_file():
            (root.upper / name).unlink()


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif os.path.lexists(path):
        path.unlink()
