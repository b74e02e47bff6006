"""This module takes what comes back from the workers of a campaign, and gets it into the session once and whole.

Each attempt at a block has a token. Lines of an attempt that is not the latest are dropped, and the lines of the worker
that finished a block are what counts.
"""

from __future__ import annotations

import json
import queue
import threading
import uuid
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from harness.errors import ColdbenchError
from harness.model.observation import Observation
from harness.model.session import Preparation
from harness.session import hosts
from harness.session.inventory import DIRECTORY
from harness.session.store import write_atomically

if TYPE_CHECKING:
    from collections.abc import Callable

    from harness.session.block_task import BlockResult
    from harness.session.progress import Progress
    from harness.session.store import Store
    from harness.session.workers import Told


@dataclass
class Incoming:
    """Appends to the session what workers tell and return."""

    store: Store
    progress: Progress
    say: Callable[[str], None]
    _lock: threading.RLock = field(default_factory=threading.RLock)
    _token: dict[int, str] = field(default_factory=dict)
    _appended: dict[str, set[int]] = field(default_factory=lambda: defaultdict(set))
    _messages: queue.Queue[Told | None] = field(default_factory=queue.Queue)

    def unfinished(self) -> list[int]:
        """Returns blocks that lack a trial, or whose trials are from more than one host: those are run whole."""
        finished = self.store.finished
        by_block: dict[int, set[str]] = defaultdict(set)
        for o in {o.trial: o for o in self.store.observations}.values():
            by_block[o.block].add(o.host)
        lacking = {t.block for t in self.store.header.plan.trials if t.trial not in finished}
        mixed = {block for block, names in by_block.items() if len(names) > 1}
        return sorted(lacking | mixed)

    def begin(self, block: int) -> str:
        """Returns the token of a new attempt at this block; what older ones still tell is dropped."""
        token = self._token[block] = uuid.uuid4().hex
        return token

    def end(self) -> None:
        """Lets ``keep_messages`` return when all that was told until now is kept."""
        self._messages.put(None)

    def on_event(self, event: tuple[float, Told]) -> None:
        # The client's own loop calls this: waiting for the disk here would hold up results and heartbeats.
        self._messages.put(event[1])

    def keep_messages(self) -> None:
        """Appends what workers tell, in a thread of its own, until None is told."""
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

    def take(self, result: BlockResult) -> None:
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
