"""This module turns containerd's words into this program's errors, so that exit codes and reports
agree on their kind.
"""

from __future__ import annotations

import re

from harness.errors import (
    AuthError,
    ColdbenchError,
    DigestMismatch,
    DiskFull,
    ImageNotFound,
    MachineError,
    RegistryError,
    UnsupportedMediaType,
    WorkloadError,
)

_UNREACHABLE = re.compile(
    r"connection refused|connection reset|no route to host|network is unreachable|i/o timeout|no such host"
    r"|unexpected EOF|failed to do request|server misbehaving|50[0-9] [A-Z]|unexpected status"
)
_CHANGED = re.compile(r"unexpected commit digest (?P<actual>\S+), expected (?P<expected>[^\s:]+:\w+)|wrong diff id")


def explain(phase: str, kind: str, message: str) -> ColdbenchError:
    """Makes the error for what the helper reported; ``kind`` is containerd's own word for it, if it had one."""
    said = f"containerd: {' '.join(message.split())}"
    if "no space left on device" in message:
        return DiskFull(f"the machine's disk is full; give the shape a larger one ({said})")
    if changed := _CHANGED.search(message):
        if changed["actual"]:
            return DigestMismatch("a blob of the image", changed["expected"], changed["actual"])
        return DigestMismatch("a layer of the image", "the one of its config", "another")
    if phase == "pull":
        if "no match for platform" in message or "mismatched image rootfs" in message or "no processor for" in message:
            return UnsupportedMediaType(said)
        if kind == "denied" or "401 Unauthorized" in message or "403 Forbidden" in message:
            return AuthError(said)
        if _UNREACHABLE.search(message):
            return RegistryError(said)
        if kind == "not-found" or "not found" in message:
            return ImageNotFound(said)
    if phase in {"create", "start"} and ("exec:" in message or "executable file not found" in message):
        return WorkloadError(said)
    return MachineError(said)
