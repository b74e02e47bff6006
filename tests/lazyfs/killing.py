"""A daemon that is killed again and again while everything of its mount is read."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

from harness.lazyfs.control import serving
from tests.lazyfs.mounting.test_handover import forget_pages
from tests.lazyfs.support import File, convert, serve, tar_of, text, write_image

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.lazyfs.support import Served

MODULES = 40
LONGEST_LIFE_S = 2.5


@contextmanager
def killing(served: Served, times: int, seed: int = 1) -> Iterator[list[int]]:
    """Kill the daemon so many times while the context lasts, each some moments after it began; their pids."""
    killed: list[int] = []
    over = threading.Event()
    chance = random.Random(seed)

    def run() -> None:
        while len(killed) < times and not over.is_set():
            (pid,) = serving(served.process.pid) or (0,)
            if pid not in {0, served.process.pid, *killed[-1:]}:
                over.wait(chance.uniform(0.0, LONGEST_LIFE_S))
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)
            over.wait(0.01)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield killed
    finally:
        over.set()
        thread.join()


def read_while_killed(mode: str, times: int, place: Path) -> None:
    """Serve an image, kill its daemon so often, and meanwhile read it with tar and import from it, over and over."""
    files = {f"lib/m{n}.py": b"VALUE = %d\n# %s\n" % (n, text(3000, n)) for n in range(MODULES)}
    files |= {f"d{n % 7}/f{n}": text(9_000 + n * 997, n) for n in range(120)}
    tar = tar_of(*(File(name, data) for name, data in files.items()))
    source = convert(write_image(place / "image", [tar]), place / mode, mode)
    imports = "".join(f"import m{n}; assert m{n}.VALUE == {n}\n" for n in range(MODULES))
    with serve(source, mode, place / "s", options={"memory_bytes": 1 << 20, "handover": False}
               if mode == "erofs" else {"memory_bytes": 1 << 20}) as served:  # fmt: skip
        root = served.root if mode == "erofs" else served.root / "0"
        served.ready()
        with killing(served, times) as killed:
            while len(killed) < times:
                forget_pages()
                packed = subprocess.run(["tar", "cf", "-", "."], cwd=root, capture_output=True, check=False)
                assert (packed.returncode, packed.stderr) == (0, b"")
                forget_pages()
                assert {name: (root / name).read_bytes() for name in files} == files
                forget_pages()
                python = ["python3", "-B", "-S", "-c", imports]
                ran = subprocess.run(python, env={"PYTHONPATH": f"{root}/lib"}, capture_output=True, check=False)
                assert (ran.returncode, ran.stderr) == (0, b"")
        usage = served.usage()
        assert usage.restarts == times
        assert (usage.read_errors, usage.digest_mismatches) == (0, 0)
