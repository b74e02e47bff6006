"""What the scheduler and the client of a campaign must bear: simulated workers that send real-sized observations.

    python tools/campaign_load.py --workers 300

Workers are real Dask workers (many in one process), their blocks are not run: each sends the lines of a block as it
would if trials took no time. Printed: lines appended (each synced to disk) per second, and the memory of scheduler
and client. What a real campaign asks for is one line per host and trial, that is about one in ten seconds from each.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import AsyncExitStack
from pathlib import Path

import psutil

from harness.model.observation import Observation, PhaseUsage, Wire
from harness.model.session import SessionHeader
from harness.session.block_task import BlockResult
from harness.session.campaign import Campaign
from harness.session.headers import new_header
from harness.session.progress import Silent
from harness.session.store import OBSERVATIONS, Store
from harness.session.workers import RESOURCE, TOPIC

PER_PROCESS = 100


def simulated(header: str, block: int, token: str, _stop: str) -> BlockResult:
    """A block whose trials take no time: the lines of all its trials, sent one by one."""
    from distributed import get_worker

    worker = get_worker()
    session = SessionHeader.model_validate_json(header)
    host = f"host-{worker.port}"
    worker.log_event(TOPIC, {"token": token, "block": block, "begins": True})
    lines = []
    for trial in session.plan.trials:
        if trial.block == block:
            usage = PhaseUsage(phase="start", wall_s=1, cpu_user_s=1, cpu_system_s=1, throttled_s=0, nr_periods=1,
                               nr_throttled=0)  # fmt: skip
            observation = Observation(
                coldbench_version="0", session=session.session, trial=trial.trial, block=block, host=host,
                case=session.plan.case_of(trial).case, started_at="2026-01-01T00:00:00+00:00", status="ok",
                time_to_ready_s=1.0, phases=(usage,), wire=Wire(), output_tail="x" * 6000,
            )  # fmt: skip
            lines.append(observation.model_dump_json())
            worker.log_event(TOPIC, {"token": token, "block": block, "line": lines[-1]})
    facts = json.dumps({"name": host, "kernel": "0"})
    return BlockResult(block, token, host, facts, tuple(lines), (), ())


async def serve(address: str, count: int) -> None:
    """Be so many workers until the scheduler goes away."""
    from distributed import Worker

    async with AsyncExitStack() as stack:
        workers = [
            await stack.enter_async_context(
                Worker(address, nthreads=1, resources={RESOURCE: 1}, memory_limit=0, dashboard=False)
            )
            for _ in range(count)
        ]
        await asyncio.gather(*(worker.finished() for worker in workers))


def main() -> None:
    """Measure and print one line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=300)
    parser.add_argument("--blocks", type=int, default=0, help="default: three for each worker")
    parser.add_argument("--serve", nargs=2, metavar=("ADDRESS", "COUNT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        asyncio.run(serve(options.serve[0], int(options.serve[1])))
        return
    from harness import scenarios

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"tcp://127.0.0.1:{port}"
    dask = str(Path(sys.executable).parent / "dask")
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    scheduler = subprocess.Popen([dask, "scheduler", "--port", str(port), "--no-dashboard"], **quiet)  # type: ignore[call-overload]
    counts = [min(PER_PROCESS, options.workers - at) for at in range(0, options.workers, PER_PROCESS)]
    processes = [
        subprocess.Popen([sys.executable, __file__, "--serve", address, str(count)], env=os.environ) for count in counts
    ]
    try:
        from distributed import Client

        with Client(address, timeout=60) as client:
            client.wait_for_workers(options.workers, timeout=300)
        peak = [0]

        def watch() -> None:
            seen = psutil.Process(scheduler.pid)
            while scheduler.poll() is None:
                peak[0] = max(peak[0], seen.memory_info().rss)
                time.sleep(0.2)

        threading.Thread(target=watch, daemon=True).start()
        blocks = options.blocks or 3 * options.workers
        scenario = scenarios.load(scenarios.find("quickstart")).model_copy(update={"blocks": blocks})
        header = new_header([scenario], {}, 1)
        with tempfile.TemporaryDirectory() as directory, Store.create(Path(directory) / "s", header) as store:
            began, cpu = time.monotonic(), time.process_time()
            Campaign(address, store, Silent(), task=simulated).run()
            wall, cpu = time.monotonic() - began, time.process_time() - cpu
            lines = sum(1 for _ in (Path(directory) / "s" / OBSERVATIONS).open("rb"))
            size = (Path(directory) / "s" / OBSERVATIONS).stat().st_size
        own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(
            f"{options.workers} workers, {blocks} blocks: {lines} lines of {size / lines / 1e3:.1f} kB in {wall:.1f} s"
        )
        print(f"{lines / wall:.0f} lines a second; client {cpu:.1f} CPU s, {own / 1e3:.0f} MB")
        print(f"scheduler: {peak[0] / 1e6:.0f} MB")
    finally:
        for process in (*processes, scheduler):
            process.terminate()
        for process in (*processes, scheduler):
            process.wait(30)


if __name__ == "__main__":
    main()
