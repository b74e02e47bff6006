"""An OCI bundle for crun: the image's configuration and the request's overrides as a runtime config.json.

The container gets what Docker gives by default (capabilities, mounts, masked paths) and its own pid, ipc, uts and
mount namespaces; network and cgroup are the machine's, so that everything it does is charged there.

Sources: OCI runtime spec 1.0; OCI image spec 1.1, conversion.md; Docker's defaults (moby, oci/defaults.go).
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

from harness.engines.embedded.directories import DirectoryTree
from harness.engines.embedded.users import Identity, resolve_user
from harness.errors import FormatError, UnsafePath

if TYPE_CHECKING:
    from collections.abc import Mapping

    from harness.engines.protocol import Process

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
HOSTNAME = "coldbench"

CAPABILITIES = [
    f"CAP_{name}"
    for name in (
        "CHOWN", "DAC_OVERRIDE", "FSETID", "FOWNER", "MKNOD", "NET_RAW", "SETGID", "SETUID", "SETFCAP", "SETPCAP",
        "NET_BIND_SERVICE", "SYS_CHROOT", "KILL", "AUDIT_WRITE",
    )
]  # fmt: skip

_MASKED = [
    "/proc/asound", "/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
    "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware",
]  # fmt: skip
_READONLY = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]

_NOSUID = ["nosuid", "noexec", "nodev"]


def _mount(target: str, kind: str, options: list[str], source: str = "") -> dict[str, Any]:
    return {"destination": target, "type": kind, "source": source or kind, "options": options}


_MOUNTS = [
    _mount("/proc", "proc", _NOSUID),
    _mount("/dev", "tmpfs", ["nosuid", "strictatime", "mode=755", "size=65536k"]),
    _mount("/dev/pts", "devpts", ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
    _mount("/sys", "sysfs", [*_NOSUID, "ro"]),
    _mount("/dev/mqueue", "mqueue", _NOSUID),
    _mount("/dev/shm", "tmpfs", [*_NOSUID, "mode=1777", "size=67108864"], "shm"),
]


def process_of(image_config: Mapping[str, Any], override: Process, root: str) -> dict[str, Any]:
    """The ``process`` object. ``override``'s args replace the image's whole
    command line (entrypoint and arguments). FormatError when nothing says what to run.
    """
    config = image_config.get("config") or {}
    args = list(override.args) or [*(config.get("Entrypoint") or ()), *(config.get("Cmd") or ())]
    if not args or not all(isinstance(arg, str) for arg in args):
        raise FormatError("image config", "neither Entrypoint nor Cmd, and the scenario gives no command")
    cwd = override.cwd or config.get("WorkingDir") or "/"
    if not cwd.startswith("/"):
        cwd = "/" + cwd
    identity = resolve_user(root, str(override.user or config.get("User") or ""))
    capabilities = CAPABILITIES if identity.uid == 0 else []
    return {
        "terminal": False,
        "user": {"uid": identity.uid, "gid": identity.gid, "additionalGids": list(identity.additional_gids)},
        "args": args,
        "env": _environment(config.get("Env") or (), override.env, identity),
        "cwd": cwd,
        "capabilities": {
            "bounding": CAPABILITIES,
            "permitted": capabilities,
            "effective": capabilities,
        },
        "noNewPrivileges": False,
    }


def _environment(image: Any, override: Mapping[str, str], identity: Identity) -> list[str]:
    values = {"PATH": DEFAULT_PATH, "HOSTNAME": HOSTNAME, "HOME": identity.home}
    for item in image:
        key, _, value = str(item).partition("=")
        values[key] = value
    values.update(override)
    return [f"{key}={value}" for key, value in values.items()]


def write_bundle(
    directory: str, root: str, image_config: Mapping[str, Any], override: Process, cgroup: str = ""
) -> dict[str, Any]:
    """Write ``config.json`` (and the files it binds) into ``directory`` for the mounted ``root``; the config.

    ``cgroup`` is the container's control group, for a runtime that needs one of its own.
    """
    os.makedirs(directory, exist_ok=True)
    process = process_of(image_config, override, root)
    _ensure_directory(root, process["cwd"])
    files = {
        "hosts": f"127.0.0.1\tlocalhost {HOSTNAME}\n::1\tlocalhost\n",
        "hostname": f"{HOSTNAME}\n",
        "resolv.conf": "",
    }
    mounts = list(_MOUNTS)
    for name, content in files.items():
        path = os.path.join(directory, name)
        with open(path, "w") as file:
            file.write(content)
        mounts.append(_mount(f"/etc/{name}", "bind", ["rbind", "rprivate"], path))
    config: dict[str, Any] = {
        "ociVersion": "1.0.2",
        "process": process,
        "root": {"path": root, "readonly": False},
        "hostname": HOSTNAME,
        "mounts": mounts,
        "linux": {
            "namespaces": [{"type": kind} for kind in ("pid", "ipc", "uts", "mount")],
            "maskedPaths": _MASKED,
            "readonlyPaths": _READONLY,
        },
    }
    if cgroup:
        config["linux"]["cgroupsPath"] = cgroup
    with open(os.path.join(directory, "config.json"), "w") as file:
        json.dump(config, file)
    return config


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
