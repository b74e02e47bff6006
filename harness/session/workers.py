"""This module says what a worker of a campaign does with a block, what it tells meanwhile, and which workers are
taken.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict

from harness import __version__
from harness.errors import UsageError
from harness.session import block_task

if TYPE_CHECKING:
    from collections.abc import Callable

    from harness.session.block_task import BlockResult

#: Workers that take blocks offer so named a resource.
RESOURCE = "coldbench"
#: Workers tell what happens under this name in the scheduler's event log.
TOPIC = "coldbench"


class Told(TypedDict):
    """Holds what a worker tells of a block while it runs: that it ``begins``, or the line of an observation."""

    token: str
    """Names the attempt at the block."""
    block: int
    begins: NotRequired[bool]
    line: NotRequired[str]


def run_on_worker(header: str, block: int, token: str, stop_name: str) -> BlockResult:
    """Runs a block as the task of a worker, and tells the client through the scheduler's event log."""
    from distributed import Variable, get_worker

    worker = get_worker()
    stop = Variable(stop_name)
    looked = [0.0]

    def stopped() -> bool:
        if time.monotonic() - looked[0] < 1.0:
            return False
        looked[0] = time.monotonic()
        try:
            return bool(stop.get(timeout=1))
        except (TimeoutError, OSError):
            return False  # the scheduler is away; if it stays so, the worker ends and takes its block along

    def say(told: Told) -> None:
        worker.log_event(TOPIC, told)

    say({"token": token, "block": block, "begins": True})

    def tell(line: str) -> None:
        say({"token": token, "block": block, "line": line})

    return block_task.run_block(header, block, token, tell=tell, stopped=stopped)


def check(client: Any, address: str, say: Callable[[str], None]) -> None:
    """Waits for a worker that takes blocks. Raises UsageError where one has another version of coldbench."""
    said = False
    while True:
        workers: dict[str, Any] = client.scheduler_info(n_workers=-1)["workers"]
        able = [name for name, facts in workers.items() if facts.get("resources", {}).get(RESOURCE)]
        if able:
            break
        if not said:
            say(f"waiting for a worker; start one with: dask worker {address} --resources {RESOURCE}=1 "
                     "--nthreads 1 --no-nanny")  # fmt: skip
            said = True
        time.sleep(1.0)
    versions: dict[str, str] = client.run(_version, workers=able)
    other = {name: version for name, version in versions.items() if version != __version__}
    if other:
        name, version = next(iter(other.items()))
        raise UsageError(
            f"worker {name} has coldbench {version}, this is {__version__}; install one version everywhere"
        )


def _version() -> str:
    return __version__
