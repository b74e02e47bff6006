"""This module writes an OCI bundle for crun: the image's configuration and the request's overrides as a config.json.

The container gets what Docker gives by default (mounts, and ``harness.engines.confinement``) and its own pid, ipc, uts,
mount and cgroup namespaces; network and control group are the machine's, so that everything it does is charged there.

Sources: OCI runtime spec 1.0; OCI image spec 1.1, conversion.md; Docker's defaults (moby, oci/defaults.go); crun(1),
"Extensions to OCI".
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

from harness.engines.confinement import Confinement
from harness.engines.embedded.directories import DirectoryTree
from harness.engines.embedded.users import Identity, resolve_user
from harness.errors import FormatError, UnsafePath

if TYPE_CHECKING:
    from collections.abc import Mapping

    from harness.engines.protocol import Process

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
HOSTNAME = "coldbench"

#: With it, crun does not translate the profile at each start; a runtime that does not know it goes by the profile.
_PROGRAM = "run.oci.seccomp_bpf_data"
_NOSUID = ["nosuid", "noexec", "nodev"]


def _mount(target: str, kind: str, options: list[str], source: str = "") -> dict[str, Any]:
    return {"destination": target, "type": kind, "source": source or kind, "options": options}


_MOUNTS = [
    _mount("/proc", "proc", _NOSUID),
    _mount("/dev", "tmpfs", ["nosuid", "strictatime", "mode=755", "size=65536k"]),
    _mount("/dev/pts", "devpts", ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
    _mount("/dev/mqueue", "mqueue", _NOSUID),
    _mount("/dev/shm", "tmpfs", [*_NOSUID, "mode=1777", "size=67108864"], "shm"),
]


def process_of(
    image_config: Mapping[str, Any], override: Process, root: str, confinement: Confinement | None = None
) -> dict[str, Any]:
    """Makes the ``process`` object. ``override``'s args replace the image's whole command line (entrypoint and
    arguments).

    Raises FormatError when nothing says what to run.
    """
    config = image_config.get("config") or {}
    args = list(override.args) or [*(config.get("Entrypoint") or ()), *(config.get("Cmd") or ())]
    if not args or not all(isinstance(arg, str) for arg in args):
        raise FormatError("image config", "neither Entrypoint nor Cmd, and the scenario gives no command")
    cwd = override.cwd or config.get("WorkingDir") or "/"
    if not cwd.startswith("/"):
        cwd = "/" + cwd
    identity = resolve_user(root, str(override.user or config.get("User") or ""))
    confinement = confinement or Confinement.of(override)
    bounding = list(confinement.all_capabilities)
    capabilities = bounding if identity.uid == 0 else []
    return {
        "terminal": False,
        "user": {"uid": identity.uid, "gid": identity.gid, "additionalGids": list(identity.additional_gids)},
        "args": args,
        "env": _environment(config.get("Env") or (), override.env, identity),
        "cwd": cwd,
        "capabilities": {
            "bounding": bounding,
            "permitted": capabilities,
            "effective": capabilities,
        },
        "noNewPrivileges": confinement.no_new_privileges,
    }


def _environment(image: Any, override: Mapping[str, str], identity: Identity) -> list[str]:
    values = {"PATH": DEFAULT_PATH, "HOSTNAME": HOSTNAME, "HOME": identity.home}
    for item in image:
        key, _, value = str(item).partition("=")
        values[key] = value
    values.update(override)
    return [f"{key}={value}" for key, value in values.items()]


def write_bundle(
    directory: str,
    root: str,
    image_config: Mapping[str, Any],
    override: Process,
    *,
    cgroup: str = "",
    system_calls: str = "",
) -> dict[str, Any]:
    """Writes ``config.json`` (and the files it binds) into ``directory`` for the mounted ``root``; returns the config.

    ``cgroup`` is the container's control group, for a runtime that needs one of its own. ``system_calls`` is the
    seccomp profile as a program in base64 (``harness.kernel.seccomp``), for a runtime that takes it.
    """
    os.makedirs(directory, exist_ok=True)
    confinement = Confinement.of(override)
    process = process_of(image_config, override, root, confinement)
    _ensure_directory(root, process["cwd"])
    files = {
        "hosts": f"127.0.0.1\tlocalhost {HOSTNAME}\n::1\tlocalhost\n",
        "hostname": f"{HOSTNAME}\n",
        "resolv.conf": "",
    }
    mounts = [*_MOUNTS, _mount("/sys", "sysfs", [*_NOSUID, *([] if confinement.privileged else ["ro"])])]
    for name, content in files.items():
        path = os.path.join(directory, name)
        with open(path, "w") as file:
            file.write(content)
        mounts.append(_mount(f"/etc/{name}", "bind", ["rbind", "rprivate", "nosuid", "nodev"], path))
    config: dict[str, Any] = {
        "ociVersion": "1.0.2",
        "process": process,
        "root": {"path": root, "readonly": False},
        "hostname": HOSTNAME,
        "mounts": mounts,
        "linux": {
            "namespaces": [{"type": kind} for kind in ("pid", "ipc", "uts", "mount", "cgroup")],
            "maskedPaths": list(confinement.masked_paths),
            "readonlyPaths": list(confinement.read_only_paths),
            "devices": confinement.device_nodes(),
        },
    }
    profile = confinement.seccomp()
    if profile is not None:
        config["linux"]["seccomp"] = profile
        if system_calls:
            config["annotations"] = {_PROGRAM: system_calls}
    if cgroup:
        config["linux"]["cgroupsPath"] = cgroup
        config["linux"]["resources"] = {"devices": _device_list(confinement)}
    with open(os.path.join(directory, "config.json"), "w") as file:
        json.dump(config, file)
    return config


def _device_list(confinement: Confinement) -> list[dict[str, Any]]:
    """The list for a runtime that makes a control group of its own."""
    rules = confinement.device_rules()
    if rules is None:
        return [{"allow": True, "access": "rwm"}]
    listed: list[dict[str, Any]] = [{"allow": False, "access": "rwm"}]
    for rule in rules:
        numbers = {"major": rule.major, "minor": rule.minor}
        named = {key: number for key, number in numbers.items() if number is not None}
        listed.append({"allow": True, "type": rule.kind, **named, "access": rule.access})
    return listed


def _ensure_directory(root: str, path: str) -> None:
    """Make the working directory where the image has none, as Docker does; never outside ``root``."""
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise UnsafePath(path, "the working directory holds ..")
    tree = DirectoryTree(root)
    try:
        tree.descriptor(os.fsencode("/".join(parts)))
    except UnsafePath:
        pass  # a symlink of the image on the way: the runtime resolves it inside the root
    finally:
        tree.close()
