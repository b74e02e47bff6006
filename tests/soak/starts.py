"""Lazy starts with a fault of a random kind at a random time each, and every byte that is read compared.

A read may fail while the registry or the disk lies to us or is away; it must never give a wrong byte, and a daemon that
dies must not make it fail. When the fault is over, every file has to be readable again, and when the start is over
nothing may be left.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from harness.kernel.overlay import mount, unmount
from harness.lazyfs.control import serving
from harness.lazyfs.mounting.mounts import mount_device
from tests.lazyfs.support import MODES, File, blob_server, convert, noise, registry, serve, tar_of, text, write_image
from tests.oci.registry.fault_server import Answer, Request, serve_range

if TYPE_CHECKING:
    from harness.oci.store import ImageSource
    from tests.lazyfs.support import Served

FILES = {f"d{n % 5}/f{n}": text(4_000 + n * 1_531, n) for n in range(60)} | {
    "noise": noise(400_000),
    "big": text(900_000),
}
PATIENT_S = 60.0
READERS = 4
FAULTS = (
    "nothing", "daemon killed", "daemon killed twice", "daemon stopped", "registry 503", "registry slow",
    "registry lies", "disk full", "cache changed", "daemon killed, registry 503",
)  # fmt: skip
HARMLESS = frozenset(
    {"nothing", "daemon killed", "daemon killed twice", "daemon stopped", "disk full", "cache changed"}
)
"""Faults under which no read may fail."""


@dataclass
class Tally:
    """What came of all starts."""

    starts: Counter[str] = field(default_factory=Counter)
    reads: int = 0
    bytes: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    restarts: int = 0
    handed_over: int = 0
    wrong: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)


@dataclass
class Soak:
    """Images in all forms, and what came of the starts so far."""

    place: Path
    chance: random.Random
    tally: Tally = field(default_factory=Tally)
    images: dict[str, ImageSource] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def image(self, mode: str) -> ImageSource:
        if mode not in self.images:
            names = list(FILES)
            tars = [tar_of(*(File(name, FILES[name]) for name in names[part::3])) for part in range(3)]
            self.images[mode] = convert(write_image(self.place / f"plain-{mode}", tars), self.place / mode, mode)
        return self.images[mode]

    def start(self, number: int) -> None:
        """One start with one fault."""
        chance = self.chance
        mode, fault = chance.choice(MODES), chance.choice(FAULTS)
        self.tally.starts[fault] += 1
        away, lies, slow = threading.Event(), threading.Event(), threading.Event()

        def answer(request: Request, data: bytes) -> Answer | None:
            if away.is_set():
                return Answer(503)
            if slow.is_set():
                time.sleep(0.3)
            if lies.is_set():
                right = serve_range(request, data)
                body = bytearray(right.body)
                body[len(body) // 2] ^= 1
                return Answer(right.status, bytes(body), right.headers)
            return None

        place = self.place / f"start-{number}"
        disk = place / "disk"
        disk.mkdir(parents=True)
        mount("tmpfs", str(disk), "tmpfs", "size=512k" if fault == "disk full" else "size=64m")
        options = {
            "attempts": 2, "retry_first_s": 0.01, "background_after_s": chance.uniform(0.0, 4.0),
            "background_retry_s": 0.2, "background_interval_s": chance.choice([0.0, 0.1]), "memory_bytes": 1 << 20,
        }  # fmt: skip
        switches = {"registry 503": away, "registry slow": slow, "registry lies": lies}
        switches["daemon killed, registry 503"] = away
        try:
            with blob_server(self.image(mode), answer) as server:
                store = registry(server)
                with serve(
                    self.image(mode), mode, place / "s", store=store, options=options, scratch=str(disk)
                ) as served:
                    self._read_all(served, mode, fault, switches)
                    usage = served.usage()
                    self.tally.restarts += usage.restarts or 0
                    self.tally.handed_over += usage.handed_over
        finally:
            unmount(str(disk))
        self._look_behind(place, served)

    def _read_all(self, served: Served, mode: str, fault: str, switches: dict[str, threading.Event]) -> None:
        over = threading.Event()
        roots = [served.root] if mode == "erofs" else [served.root / str(number) for number in served.layers]
        paths = {name: next(r / name for r in roots if (r / name).exists()) for name in FILES}
        threads = [
            threading.Thread(target=self._reader, args=(paths, fault, over, self.chance.random()))
            for _ in range(READERS)
        ]
        for thread in threads:
            thread.start()
        try:
            time.sleep(self.chance.uniform(0.0, 0.5))
            served.ready()
            time.sleep(self.chance.uniform(0.0, 0.8))
            if (switch := switches.get(fault)) is not None:
                switch.set()
            for _ in range(fault.count("killed") + fault.count("twice")):
                os.kill(served.daemon, signal.SIGKILL)
                time.sleep(self.chance.uniform(0.0, 1.0))
            if fault == "daemon stopped":
                pid = served.daemon
                os.kill(pid, signal.SIGSTOP)
                time.sleep(0.5)
                os.kill(pid, signal.SIGCONT)
            if fault == "cache changed":
                self._change_cache(served.daemon)
            time.sleep(self.chance.uniform(0.2, 0.6))
            if switch is not None:
                switch.clear()
        finally:
            over.set()
            for thread in threads:
                thread.join()
        deadline = time.monotonic() + PATIENT_S
        for name, path in paths.items():
            while not self._read(name, path, "recovery"):
                if time.monotonic() > deadline:
                    self.tally.unexpected.append(f"{mode}, {fault}: {name} does not come back")
                    return
                time.sleep(0.05)

    def _reader(self, paths: dict[str, Path], fault: str, over: threading.Event, seed: float) -> None:
        chance = random.Random(seed)
        names = list(paths)
        while not over.is_set():
            name = chance.choice(names)
            if chance.random() < 0.05:
                Path("/proc/sys/vm/drop_caches").write_text("1")
            self._read(name, paths[name], fault)

    def _read(self, name: str, path: Path, fault: str) -> bool:
        try:
            data = path.read_bytes()
        except OSError as error:
            with self.lock:
                self.tally.failed[fault] += 1
                if fault in HARMLESS:
                    self.tally.unexpected.append(f"{fault}: {name}: {error}")
            return False
        with self.lock:
            self.tally.reads += 1
            self.tally.bytes += len(data)
            if data != FILES[name]:
                self.tally.wrong.append(f"{fault}: {name}")
        return True

    @staticmethod
    def _change_cache(daemon: int) -> None:
        """Zeros over the stored bytes on disk."""
        for path in Path(f"/proc/{daemon}/fd").iterdir():
            try:
                if ".packed" in os.readlink(path) and (size := path.stat().st_size):
                    with open(path, "r+b") as file:
                        file.write(bytes(min(size, 200_000)))
            except OSError:
                continue

    def _look_behind(self, place: Path, served: Served) -> None:
        left = [p for p in (served.mountpoint, str(place / "s" / "erofs")) if mount_device(p) is not None]
        left += [f"process {pid}" for pid in serving(served.process.pid)]
        self.tally.unexpected += [f"left behind: {what}" for what in left]


def run(starts: int, seed: int, place: Path) -> Tally:
    """So many starts one after the other."""
    soak = Soak(place, random.Random(seed))
    for number in range(starts):
        soak.start(number)
    return soak.tally


def told(tally: Tally) -> str:
    """The result in words."""
    lines = [
        f"{fault}: {count} starts, {tally.failed[fault]} reads failed" for fault, count in sorted(tally.starts.items())
    ]
    lines += [
        f"{tally.reads} reads, {tally.bytes / 1e6:.0f} MB, {len(tally.wrong)} wrong",
        f"{tally.failed['recovery']} reads failed until they came back",
        f"{tally.restarts} daemons replaced, {tally.handed_over} starts handed over",
        f"unexpected: {tally.unexpected}",
    ]
    return "\n".join(lines)
