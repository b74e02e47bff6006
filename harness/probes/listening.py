"""This module says on which TCP ports something listens in a machine, for the message when readiness never comes."""

from __future__ import annotations

import socket
import struct
from pathlib import Path

_LISTEN = "0A"
#: Named in a message; a machine with more of them is no longer explained by a list.
_SHOWN = 8


def listeners(pid: int) -> list[str]:
    """Returns ``127.0.0.1:8080`` and ``[::]:80``, by port, of the network namespace of a process; empty where none can
    be read.

    Source: Linux Documentation/networking/proc_net_tcp.rst.
    """
    found = set()
    for name in ("tcp", "tcp6"):
        try:
            lines = Path(f"/proc/{pid}/net/{name}").read_text("ascii").splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            if len(fields) > 3 and fields[3] == _LISTEN:
                found.add(_address(fields[1]))
    return [text for _, text in sorted(found)]


def _address(field: str) -> tuple[int, str]:
    """Returns port and text of a local address, whose 32-bit words the kernel prints in the host's byte order."""
    address, _, port = field.partition(":")
    words = [int(address[at : at + 8], 16) for at in range(0, len(address), 8)]
    packed = struct.pack(f"={len(words)}I", *words)
    number = int(port, 16)
    if len(packed) == 4:
        return number, f"{socket.inet_ntop(socket.AF_INET, packed)}:{number}"
    return number, f"[{socket.inet_ntop(socket.AF_INET6, packed)}]:{number}"


def described(found: list[str]) -> str:
    """Describes the listeners as a part of a sentence."""
    if not found:
        return "nothing listens inside"
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return f"inside listen: {', '.join(found[:_SHOWN])}{more}"
