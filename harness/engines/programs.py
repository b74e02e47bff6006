"""This module finds programs of engines on this host: where they are, and which version they say they are."""

from __future__ import annotations

import os
import re
import shutil
import subprocess

from harness.engines.protocol import Program

_TIMEOUT_S = 10.0
_SYSTEM = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_VERSION = re.compile(r"\bv?(\d+\.\d+(?:\.\d+)?[^\s,]*)")


def find_program(name: str, path: str = "", argument: str = "--version") -> Program:
    """Finds the program at ``path``, else the first of that name on the PATH or where the system keeps its daemons.

    ``Program.path`` is empty when there is none (or it cannot be executed), ``version`` when it does not tell.
    """
    if path:
        found = os.path.abspath(path) if os.path.isfile(path) and os.access(path, os.X_OK) else None
    else:
        found = shutil.which(name) or shutil.which(name, path=_SYSTEM)
    return Program(name, found or "", _version(found, argument) if found else "")


def _version(path: str, argument: str) -> str:
    try:
        told = subprocess.run(
            [path, argument], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return ""
    match = _VERSION.search(told.stdout or told.stderr)
    return match[1] if match else ""


def version_numbers(version: str) -> tuple[int, ...]:
    """Reads ``20.10.24+dfsg1`` as ``(20, 10, 24)``, for comparing; empty when there is no number."""
    match = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(int(part) for part in match[0].split(".")) if match else ()
