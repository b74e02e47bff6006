"""Images that attack: one program that tries what it is told, device nodes, set-user-ID files."""

from __future__ import annotations

import functools
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import Any

from tests.engines.support import directory, tar_bytes

PROGRAM = "/bin/attacker"
CONTAINER_CAPABILITIES = "00000000a80425fb"
"""What `docker run … grep CapEff /proc/self/status` prints."""


@functools.cache
def attacker() -> bytes:
    """The static program, compiled once."""
    with tempfile.TemporaryDirectory() as place:
        out = Path(place) / "attacker"
        source = Path(__file__).with_name("attacker.c")
        subprocess.run(["cc", "-Os", "-s", "-static", "-w", "-o", out, source], check=True)
        return out.read_bytes()


def node(kind: bytes, major: int, minor: int) -> dict[str, Any]:
    return {"type": kind, "devmajor": major, "devminor": minor, "mode": 0o666}


def hostile_layer() -> bytes:
    """The program (once more with the set-user-ID bit), nodes of the host's disks and memory, and some files."""
    files = [(f"srv/file{number}", {"data": bytes([number]) * 5000, "mode": 0o644}) for number in range(12)]
    return tar_bytes(
        [
            ("bin", directory()),
            ("bin/attacker", {"data": attacker(), "mode": 0o755}),
            ("bin/root", {"data": attacker(), "mode": 0o4755}),
            ("dev", directory()),
            ("etc", directory()),
            ("etc/passwd", {"data": b"root:x:0:0::/:/bin/sh\nuser:x:1000:1000::/:/bin/sh\n", "mode": 0o644}),
            ("nodes", directory()),
            ("nodes/block", node(tarfile.BLKTYPE, 254, 0)),
            ("nodes/loop", node(tarfile.BLKTYPE, 7, 0)),
            ("nodes/mem", node(tarfile.CHRTYPE, 1, 1)),
            ("nodes/fuse", node(tarfile.CHRTYPE, 10, 229)),
            ("nodes/null", node(tarfile.CHRTYPE, 1, 3)),
            ("proc", directory()),
            ("srv", directory()),
            *files,
            ("sys", directory()),
            ("tmp", directory(0o1777)),
        ]
    )


def results(text: str) -> dict[str, str]:
    """The program's lines: name to result."""
    return dict(line.strip().partition(" ")[::2] for line in text.splitlines() if line.strip())
