"""This module runs a campaign: the blocks of one plan on the workers of a Dask scheduler; the client keeps the session.

A block is one task and stays on one host (``--resources coldbench=1 --nthreads 1``). Observations come back as they
happen and are appended here, so that a session on disk is always as far as its trials are. A block whose worker was
lost is run again whole elsewhere: each attempt has a token, and lines of an attempt that is not the latest are dropped.
When the scheduler itself goes away the client waits for it and hands out again what is left.
"""

from __future__ import annotations

import signal
import threading
import time
import uuid
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from harness.errors import ColdbenchError, HostUnfit, Interrupted, MissingTool, UsageError
from harness.session import block_task, workers
from harness.session.incoming import Incoming
from harness.session.run import Outcome, outcome_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from harness.model.session import SessionHeader
    from harness.session.block_task import BlockResult
    from harness.session.progress import Progress
    from harness.session.store import Store

#: So often is a block given to another worker before its trials count as failed.
ATTEMPTS = 4
#: So long the client waits for a scheduler that went away.
SCHEDULER_WAIT_S = 300.0


@dataclass
class Campaign:
    """Runs what is left of a session on a scheduler's workers. ``say`` gets a line for people now and then."""

    address: str
    store: Store
    progress: Progress
    say: Callable[[str], None] = lambda _text: None
    wait_s: float = SCHEDULER_WAIT_S
    task: Callable[[str, int, str, str], BlockResult] = workers.run_on_worker
    """Runs on a worker with header, block, token and stop variable; it is simulated where only the load is measured."""
    _attempts: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    _incoming: Incoming = field(init=False)
    _stop_name: str = field(default_factory=lambda: f"coldbench-stop-{uuid.uuid4().hex}")

    def __post_init__(self) -> None:
        self._incoming = Incoming(self.store, self.progress, self.say)

    def run(self) -> Outcome:
        """Hands out every unfinished block, and waits for all.

        Raises:
            MissingTool: the extra ``dask`` is not installed.
            HostUnfit: no scheduler there, or it did not come back.
            UsageError: a worker has another version of coldbench.
            Interrupted: Ctrl-C or SIGTERM; trials were ended and hosts cleaned.
        """
        try:
            import distributed
        except ImportError:
            raise MissingTool("--scheduler needs Dask; install it with: pip install 'coldbench[dask]'") from None
        del distributed
        header = self.store.header
        todo = self._incoming.unfinished()
        self.progress.session(header.plan, len(self.store.finished), 0.0)
        keeper = threading.Thread(target=self._incoming.keep_messages, daemon=True)
        keeper.start()
        previous = {n: signal.signal(n, _interrupt) for n in (signal.SIGINT, signal.SIGTERM)}
        try:
            while todo:
                client = self._connect()
                try:
                    todo = self._hand_out(client, todo)
                finally:
                    _close(client)
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
            self._incoming.end()
            keeper.join()
        return outcome_of(self.store.observations)

    # -- the scheduler

    def _connect(self) -> Any:
        from distributed import Client

        end = time.monotonic() + self.wait_s
        waiting = False
        while True:
            try:
                client = Client(self.address, timeout=5, set_as_default=False)
                break
            except (OSError, TimeoutError, ValueError) as error:
                if isinstance(error, ValueError):
                    raise UsageError(f"--scheduler {self.address}: expected an address as tcp://HOST:8786") from None
                if time.monotonic() > end or not self.store.finished:
                    raise HostUnfit(
                        f"no Dask scheduler answers at {self.address}; start one (dask scheduler), then go on with: "
                        f"coldbench run --resume --out {self.store.directory} --scheduler {self.address}"
                    ) from None
                if not waiting:
                    self.say(f"the scheduler at {self.address} does not answer; waiting up to {self.wait_s:.0f} s")
                    waiting = True
        return client

    def _hand_out(self, client: Any, todo: list[int]) -> list[int]:
        """Submits blocks and takes results; returns the blocks that are left when the scheduler went away."""
        from distributed import CancelledError, Variable, as_completed
        from distributed.comm import CommClosedError
        from distributed.scheduler import KilledWorker

        workers.check(client, self.address, self.say)
        Variable(self._stop_name, client=client).set(value=False)
        client.subscribe_topic(workers.TOPIC, self._incoming.on_event)
        left = set(todo)
        futures: dict[Any, int] = {}

        def submit(block: int) -> Any:
            token = self._incoming.begin(block)
            self._attempts[block] += 1
            text = header_of_block(self.store.header, block)
            future = client.submit(
                self.task, text, block, token, self._stop_name, key=f"coldbench-block-{block}-{token}",
                resources={workers.RESOURCE: 1}, pure=False, retries=0, priority=-block,
            )  # fmt: skip
            futures[future] = block
            return future

        try:
            results = as_completed([submit(block) for block in todo], loop=client.loop)
            for future in results:
                block = futures.pop(future)
                try:
                    result: BlockResult = future.result(timeout=60)
                except KilledWorker:
                    self._again(block, "its worker was lost", results, submit)
                    continue
                except (CancelledError, CommClosedError, TimeoutError, OSError):
                    return sorted(left)
                if result.error and self._lost(result):
                    self._again(block, result.error, results, submit)
                    continue
                self._incoming.take(result)
                left.discard(block)
        except (CommClosedError, CancelledError, TimeoutError):
            return sorted(left)
        except Interrupted:
            self._stop(client, list(futures))
            raise
        return sorted(left)

    def _again(self, block: int, why: str, results: Any, submit: Callable[[int], Any]) -> None:
        if self._attempts[block] >= ATTEMPTS:
            raise ColdbenchError(f"block {block} could not be run on {ATTEMPTS} workers; the last time {why}")
        self.say(f"block {block} is run again whole: {why}")
        results.add(submit(block))

    @staticmethod
    def _lost(result: BlockResult) -> bool:
        """Says whether a block ended because its worker was told to end, and not because of the block."""
        return result.exit_code in {130, -signal.SIGTERM, -signal.SIGKILL}

    def _stop(self, client: Any, futures: list[Any]) -> None:
        """Ends running trials: workers see the variable within a second, end their block and take its machine away."""
        from distributed import CancelledError, Variable

        self.say("ending the trials that run, and cleaning their hosts")
        try:
            Variable(self._stop_name, client=client).set(value=True)
            running = [future for future in futures if future.key in self._running(client)]
            client.cancel([future for future in futures if future not in running])
            for future in running:
                future.exception(timeout=block_task.GRACE_S + 10)
        except (OSError, TimeoutError, CancelledError):
            self.say("the scheduler does not answer; workers end their blocks when they are stopped")

    @staticmethod
    def _running(client: Any) -> set[str]:
        return {str(key) for keys in client.processing().values() for key in keys}


def header_of_block(header: SessionHeader, block: int) -> str:
    """Returns the header of a block's own session as JSON: the plan's trials are those of the block alone.

    Scheduler and client keep every task until it has run; with the whole plan in each, 900 blocks took 0.8 GB.
    """
    trials = tuple(trial for trial in header.plan.trials if trial.block == block)
    plan = header.plan.model_copy(update={"trials": trials})
    return header.model_copy(update={"plan": plan}).model_dump_json()


def _interrupt(number: int, _frame: object) -> None:
    raise Interrupted(f"interrupted by {signal.Signals(number).name}")


def _close(client: Any) -> None:
    try:
        client.close(timeout=5)
    except (OSError, TimeoutError):
        pass
