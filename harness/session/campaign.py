"""A campaign: the blocks of one plan on the workers of a Dask scheduler; the client keeps the session.

A block is one task and stays on one host (``--resources coldbench=1 --nthreads 1``). Observations come back as they
happen and are appended here, so that a session on disk is always as far as its trials are. A block whose worker was
lost is run again whole elsewhere: each attempt has a token, and lines of an attempt that is not the latest are
dropped. When the scheduler itself goes away the client waits for it and hands out again what is left.
"""

from __future__ import annotations

import json
import queue
import signal
import threading
import time
import uuid
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict

from harness import __version__
from harness.errors import ColdbenchError, HostUnfit, Interrupted, MissingTool, UsageError
from harness.model.observation import Observation
from harness.model.session import Preparation
from harness.session import block_task, hosts
from harness.session.inventory import DIRECTORY
from harness.session.run import Outcome, outcome_of
from harness.session.store import write_atomically

if TYPE_CHECKING:
    from collections.abc import Callable

    from harness.session.block_task import BlockResult
    from harness.session.progress import Progress
    from harness.session.store import Store

RESOURCE = "coldbench"
#: So often is a block given to another worker before its trials count as failed.
ATTEMPTS = 4
#: So long the client waits for a scheduler that went away.
SCHEDULER_WAIT_S = 300.0
TOPIC = "coldbench"


class Told(TypedDict):
    """What a worker tells of a block while it runs: that it ``begins``, or the line of an observation."""

    token: str
    """Which attempt at the block this is."""
    block: int
    begins: NotRequired[bool]
    line: NotRequired[str]


def _run_on_worker(header: str, block: int, token: str, stop_name: str) -> BlockResult:
    """The task: runs on a worker, tells the client through the scheduler's event log."""
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


@dataclass
class Campaign:
    """Runs what is left of a session on a scheduler's workers. ``say`` gets a line for people now and then."""

    address: str
    store: Store
    progress: Progress
    say: Callable[[str], None] = lambda _text: None
    wait_s: float = SCHEDULER_WAIT_S
    task: Callable[[str, int, str, str], BlockResult] = _run_on_worker
    """What a worker does with header, block, token and stop variable; simulated where only the load is measured."""
    _lock: threading.RLock = field(default_factory=threading.RLock)
    _token: dict[int, str] = field(default_factory=dict)
    _begun: dict[str, str] = field(default_factory=dict)
    _attempts: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    _appended: dict[str, set[int]] = field(default_factory=lambda: defaultdict(set))
    _stop_name: str = field(default_factory=lambda: f"coldbench-stop-{uuid.uuid4().hex}")
    _messages: queue.Queue[Told | None] = field(default_factory=queue.Queue)

    def run(self) -> Outcome:
        """Hand out every unfinished block, and wait for all.

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
        todo = self.unfinished()
        self.progress.session(header.plan, len(self.store.finished), 0.0)
        keeper = threading.Thread(target=self._keep_messages, daemon=True)
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
            self._messages.put(None)
            keeper.join()
        return outcome_of(self.store.observations)

    def unfinished(self) -> list[int]:
        """Blocks that lack a trial, or whose trials are from more than one host: those are run whole."""
        finished = self.store.finished
        by_block: dict[int, set[str]] = defaultdict(set)
        for o in {o.trial: o for o in self.store.observations}.values():
            by_block[o.block].add(o.host)
        lacking = {t.block for t in self.store.header.plan.trials if t.trial not in finished}
        mixed = {block for block, names in by_block.items() if len(names) > 1}
        return sorted(lacking | mixed)

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
        """Submit blocks and take results; the blocks that are left when the scheduler went away."""
        from distributed import CancelledError, Variable, as_completed
        from distributed.comm import CommClosedError
        from distributed.scheduler import KilledWorker

        self._check_workers(client)
        Variable(self._stop_name, client=client).set(value=False)
        client.subscribe_topic(TOPIC, self._on_event)
        text = self.store.header.model_dump_json()
        left = set(todo)
        futures: dict[Any, int] = {}

        def submit(block: int) -> Any:
            token = uuid.uuid4().hex
            self._token[block] = token
            self._attempts[block] += 1
            future = client.submit(
                self.task, text, block, token, self._stop_name, key=f"coldbench-block-{block}-{token}",
                resources={RESOURCE: 1}, pure=False, retries=0, priority=-block,
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
                self._take(result)
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
        """Whether a block ended because its worker was told to, not because of the block."""
        return result.exit_code in {130, -signal.SIGTERM, -signal.SIGKILL}

    def _check_workers(self, client: Any) -> None:
        """Wait for a worker that takes blocks, and refuse another version of coldbench."""
        said = False
        while True:
            workers: dict[str, Any] = client.scheduler_info(n_workers=-1)["workers"]
            able = [name for name, facts in workers.items() if facts.get("resources", {}).get(RESOURCE)]
            if able:
                break
            if not said:
                self.say(f"waiting for a worker; start one with: dask worker {self.address} --resources {RESOURCE}=1 "
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

    def _stop(self, client: Any, futures: list[Any]) -> None:
        """End running trials: workers see the variable within a second, end their block and take its machine away."""
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

    # -- what comes back

    def _on_event(self, event: tuple[float, Told]) -> None:
        # The client's own loop calls this: waiting for the disk here would hold up results and heartbeats.
        self._messages.put(event[1])

    def _keep_messages(self) -> None:
        """Append what workers tell, in a thread of its own, until None is told."""
        while (message := self._messages.get()) is not None:
            self._keep(message)

    def _keep(self, message: Told) -> None:
        with self._lock:
            if self._token.get(message["block"]) != message["token"]:
                return  # of an attempt that was given up
            if message.get("begins"):
                # The scheduler may have moved the task to another worker: what the first one sent counts no more.
                self._appended[message["token"]].clear()
            elif "line" in message:
                self._append(message["token"], message["line"])

    def _append(self, token: str, line: str) -> None:
        observation = Observation.model_validate_json(line)
        if observation.trial in self._appended[token]:
            return
        self._appended[token].add(observation.trial)
        self.store.append(observation)
        planned = next(t for t in self.store.header.plan.trials if t.trial == observation.trial)
        self.progress.trial(planned, len(self.store.finished), 0.0)
        self.progress.ended(observation, 0.0)

    def _take(self, result: BlockResult) -> None:
        with self._lock:
            self._token[result.block] = ""  # what is still on its way is in the result
            hosts.append(self.store.directory, json.loads(result.facts))
            # The lines of the worker that finished are what counts, also where a first one had sent some of its own.
            latest = {o.trial: o.host for o in self.store.observations}
            for line in result.lines:
                observation = Observation.model_validate_json(line)
                if latest.get(observation.trial) != observation.host:
                    self._appended[result.token].discard(observation.trial)
                self._append(result.token, line)
            for line in result.preparations:
                self.store.append_preparation(Preparation.model_validate_json(line))
            for name, content in result.inventories:
                path = self.store.directory / DIRECTORY / name
                path.parent.mkdir(exist_ok=True)
                if not path.exists():
                    write_atomically(path, content)
        if result.error:
            self.say(f"block {result.block} on {result.host}: {result.error}")
            if not result.lines:
                raise ColdbenchError(f"block {result.block} on {result.host}: {result.error}")


def _version() -> str:
    return __version__


def _interrupt(number: int, _frame: object) -> None:
    raise Interrupted(f"interrupted by {signal.Signals(number).name}")


def _close(client: Any) -> None:
    try:
        client.close(timeout=5)
    except (OSError, TimeoutError):
        pass
