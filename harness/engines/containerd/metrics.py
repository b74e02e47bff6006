"""This module reads the snapshotters' own counters from their Prometheus end points in the machine
(text format 0.0.4).
"""

from __future__ import annotations

import http.client
import os
import re
import threading
from contextlib import suppress

from harness.kernel import syscalls

_TIMEOUT_S = 5.0
_SAMPLE = re.compile(r"^(?P<name>[a-zA-Z_:][\w:]*)(?:\{(?P<labels>[^}]*)\})?\s+(?P<value>\S+)")
_OPERATION = re.compile(r'operation_type="([^"]*)"')
_PREFIXES = ("stargz_fs_", "soci_fs_")


def parse(text: str) -> dict[str, float]:
    """Reads the snapshotters' counters, summed over layers and images.

    A name is ``operation_count.TYPE`` or ``operation_duration_milliseconds_sum.TYPE`` as the snapshotters name them,
    without their prefix; buckets of histograms are left out.
    """
    found: dict[str, float] = {}
    for line in text.splitlines():
        sample = _SAMPLE.match(line)
        if sample is None or sample["name"].endswith("_bucket"):
            continue
        prefix = next((p for p in _PREFIXES if sample["name"].startswith(p)), None)
        if prefix is None:
            continue
        name = sample["name"].removeprefix(prefix)
        operation = _OPERATION.search(sample["labels"] or "")
        key = f"{name}.{operation.group(1)}" if operation else name
        with suppress(ValueError):
            found[key] = found.get(key, 0.0) + float(sample["value"])
    return found


def read(namespace_pid: int, port: int) -> dict[str, float]:
    """Asks an end point on the loopback interface of a network namespace; empty when it does not answer.

    Network namespaces are per thread (setns(2)), so a thread of its own asks, outside the machine's CPU quota.
    """
    answer: list[str] = []

    def ask() -> None:
        with suppress(OSError, http.client.HTTPException):
            namespace = os.open(f"/proc/{namespace_pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            try:
                syscalls.setns(namespace, syscalls.CLONE_NEWNET)
            finally:
                os.close(namespace)
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_TIMEOUT_S)
            try:
                connection.request("GET", "/metrics")
                answer.append(connection.getresponse().read().decode("utf-8", "replace"))
            finally:
                connection.close()

    thread = threading.Thread(target=ask, name="metrics", daemon=True)
    thread.start()
    thread.join(2 * _TIMEOUT_S)
    return parse(answer[0]) if answer else {}
