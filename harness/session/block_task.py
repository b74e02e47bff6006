"""This module is what a worker of a campaign runs: it runs one block in a process of its own, and sends each
observation as soon as it is there.

Only plain values cross the wire: the header and observations as JSON text, in the stored form that a session on disk
has.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

#: How often a running block's files are looked at.
LOOK_S = 0.2
#: After SIGTERM a block has so long to take its machine away.
GRACE_S = 90.0


@dataclass(frozen=True, slots=True)
class BlockResult:
    """Holds what one block gave: stored lines, and why it ended early (empty where it did not)."""

    block: int
    token: str
    host: str
    facts: str
    """Holds facts of the host as JSON."""
    lines: tuple[str, ...]
    preparations: tuple[str, ...]
    inventories: tuple[tuple[str, bytes], ...]
    error: str = ""
    exit_code: int = 0


def run_block(
    header: str, block: int, token: str, *, tell: Callable[[str], None], stopped: Callable[[], bool]
) -> BlockResult:
    """Runs a block of the session that ``header`` describes. ``tell`` gets every observation's line as it is written;
    when ``stopped`` says so the trial is ended and the machine taken away.
    """
    from harness.machine.host import collect
    from harness.machine.records import recorded_directory
    from harness.session.hosts import HOSTS
    from harness.session.inventory import DIRECTORY
    from harness.session.store import HEADER, OBSERVATIONS, PREPARATIONS

    facts = collect().model_dump(mode="json")
    with recorded_directory("block", Path(tempfile.gettempdir())) as directory:
        (directory / HEADER).write_text(header)
        # With it observations carry the host's name.
        (directory / HOSTS).write_text(json.dumps(facts) + "\n")
        with open(directory / "log", "w+") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "harness", "run-block", str(directory), str(block), str(os.getpid())],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
            sent = 0
            try:
                while process.poll() is None:
                    sent = _tell_new(directory / OBSERVATIONS, sent, tell)
                    if stopped():
                        break
                    time.sleep(LOOK_S)
            finally:
                _end(process)
            log.seek(0)
            said = [line for line in log.read().splitlines() if line.startswith("coldbench:")]
        lines = _lines(directory / OBSERVATIONS)
        inventories = tuple(
            (path.name, path.read_bytes()) for path in sorted((directory / DIRECTORY).glob("*.json.gz"))
        )
        code = process.returncode
        error = "" if code == 0 else (said[-1].removeprefix("coldbench: ") if said else f"the block ended with {code}")
        return BlockResult(
            block, token, str(facts["name"]), json.dumps(facts), tuple(lines), tuple(_lines(directory / PREPARATIONS)),
            inventories, error, code,
        )  # fmt: skip


def _lines(path: Path) -> list[str]:
    """Returns the complete lines; a torn last one is left out."""
    return path.read_text("utf-8").split("\n")[:-1] if path.exists() else []


def _tell_new(path: Path, sent: int, tell: Callable[[str], None]) -> int:
    lines = _lines(path)
    for line in lines[sent:]:
        tell(line)
    return len(lines)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends the block as Ctrl-C would; the next start finds what it left if it was killed after ``GRACE_S``."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            process.kill()
    process.wait()
