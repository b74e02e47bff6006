"""This module measures the rates for the lower bound, on this host once, and keeps them in the cache directory.

Each rate is the best of several short runs in CPU seconds of this process, with the fastest code there is: a bound has
to lie below every honest result. They hold for one CPU model and kernel, and are measured anew on another.
"""

from __future__ import annotations

import hashlib
import os
import socket
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from harness.machine.records import recorded_directory
from harness.model.bound import Rates

if TYPE_CHECKING:
    from collections.abc import Callable

SAFETY = 0.8
"""Measured costs are taken at four fifths: a quiet moment later may be faster than the best one seen."""

_SAMPLE_BYTES = 8 << 20
_RUNS = 5
_FILES = 2000


def cache_file() -> Path:
    """Returns where they are kept: ``rates.json`` in the cache directory."""
    from harness.oci.cache import cache_root

    return cache_root() / "rates.json"


def host_key() -> str:
    """Returns what the rates hold for."""
    from harness.machine.host import cpu_model

    return f"{cpu_model()}, Linux {os.uname().release}"


def load() -> Rates | None:
    """Returns the stored rates, if they were measured on this CPU model and kernel."""
    try:
        rates = Rates.model_validate_json(cache_file().read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return rates if rates.host == host_key() else None


def ensure() -> Rates:
    """Returns the stored rates; it measures them now (about three seconds) if there are none."""
    return load() or measure()


def measure() -> Rates:
    """Measures and stores them. A repetition can only make them better: the best ever seen on this host stays."""
    sample = _sample()
    old = load()
    rates = Rates(
        inflate_bytes_s=len(sample) / _inflate_core_s(sample),
        inflate_zstd_bytes_s=len(sample) / _inflate_zstd_core_s(sample),
        hash_bytes_s=len(sample) / _best(lambda: hashlib.sha256(sample).digest()),
        receive_core_s_per_byte=_receive_core_s(sample) / len(sample),
        write_core_s_per_byte=_write_core_s(sample) / len(sample),
        create_core_s=_create_core_s(),
        # A request costs at least a read and a write of its device; what the daemon does comes on top.
        fuse_request_core_s=_best(_system_calls) / 1000,
        measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
        host=host_key(),
    )
    if old is not None:
        rates = _better(old, rates)
    path = cache_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(rates.model_dump_json(indent=2), "utf-8")
    temporary.rename(path)
    return rates


def _better(old: Rates, new: Rates) -> Rates:
    best: dict[str, float] = {}
    for name, value in new.model_dump().items():
        if isinstance(value, float):
            choose = max if name.endswith("_bytes_s") else min
            best[name] = choose(value, getattr(old, name))
    return new.model_copy(update=best)


def _best(action: Callable[[], object], runs: int = _RUNS) -> float:
    """Returns the CPU seconds of the cheapest run, with the safety margin."""
    costs = []
    for _run in range(runs):
        start = time.thread_time()
        action()
        costs.append(time.thread_time() - start)
    return max(min(costs), 1e-9) * SAFETY


def _sample() -> bytes:
    """Returns bytes that compress about three to one, as layers do: the standard library's own text."""
    pieces: list[bytes] = []
    size = 0
    for path in sorted(Path(os.__file__).parent.rglob("*.py")):
        try:
            pieces.append(path.read_bytes())
        except OSError:
            continue
        size += len(pieces[-1])
        if size >= _SAMPLE_BYTES:
            break
    return b"".join(pieces)[:_SAMPLE_BYTES]


def _inflate_core_s(sample: bytes) -> float:
    import zlib

    from isal import isal_zlib

    packed = zlib.compress(sample, 6)
    return min(
        _best(lambda: isal_zlib.decompress(packed, bufsize=len(sample))),
        _best(lambda: zlib.decompress(packed, bufsize=len(sample))),
    )


def _inflate_zstd_core_s(sample: bytes) -> float:
    import zstandard

    packed = zstandard.compress(sample, 3)
    decompressor = zstandard.ZstdDecompressor()
    return _best(lambda: decompressor.decompress(packed))


def _receive_core_s(sample: bytes) -> float:
    """Returns the CPU seconds that the receiving side of a loopback connection spends."""
    buffer = bytearray(1 << 20)

    def receive() -> float:
        with socket.create_server(("127.0.0.1", 0)) as server:
            sender = socket.create_connection(server.getsockname())
            receiver, _address = server.accept()
            thread = threading.Thread(target=_send, args=(sender, sample), daemon=True)
            with receiver:
                thread.start()
                start = time.thread_time()
                while receiver.recv_into(buffer):
                    pass
                spent = time.thread_time() - start
            thread.join()
            return spent

    return min(receive() for _run in range(_RUNS)) * SAFETY


def _send(sender: socket.socket, data: bytes) -> None:
    with sender:
        sender.sendall(data)


def _write_core_s(sample: bytes) -> float:
    """Returns the CPU seconds of writing ``sample`` into an empty file.

    Each run gives its pages back before the next. Pages of a virtual machine that nobody has used since it booted cost
    a fault on the host, too: with fresh ones each time the rate was a tenth of what trials reached later.
    """
    with recorded_directory("rates") as directory:
        descriptor = os.open(directory / "file", os.O_WRONLY | os.O_CREAT)

        def write() -> float:
            os.ftruncate(descriptor, 0)
            os.lseek(descriptor, 0, os.SEEK_SET)
            start = time.thread_time()
            for begin in range(0, len(sample), 1 << 20):
                os.write(descriptor, memoryview(sample)[begin : begin + (1 << 20)])
            return time.thread_time() - start

        try:
            return min(write() for _run in range(_RUNS)) * SAFETY
        finally:
            os.close(descriptor)


def _create_core_s() -> float:
    """Returns the CPU seconds of making one file, in a directory that is open already."""
    with recorded_directory("rates") as directory:
        top = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        rounds = iter(range(_RUNS))

        def create() -> None:
            mark = next(rounds)
            for number in range(_FILES):
                descriptor = os.open(f"{mark}-{number}", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644, dir_fd=top)
                os.write(descriptor, b"x")
                os.close(descriptor)

        try:
            return _best(create) / _FILES
        finally:
            os.close(top)


def _system_calls() -> None:
    """Makes a thousand pairs of read and write."""
    source = os.open("/dev/zero", os.O_RDWR)
    try:
        for _pair in range(1000):
            os.read(source, 64)
            os.write(source, b"x")
    finally:
        os.close(source)
