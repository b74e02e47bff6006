"""This module opens a session, new or stored; ``run`` and ``bench`` say with the same options what they want."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import Interrupted, UsageError
from harness.model.plan import Selection
from harness.session import shards
from harness.session.headers import make_header
from harness.session.launching import Launcher
from harness.session.store import Store

if TYPE_CHECKING:
    from collections.abc import Iterator

    from harness.model.plan import PlannedTrial
    from harness.model.session import SessionHeader
    from harness.session.progress import Progress
    from harness.session.run import Outcome

RESULTS = Path("results")


@dataclass(frozen=True, slots=True)
class RunOptions:
    """Says what is wanted of a run: a new session of some scenarios, or the rest of a stored one."""

    scenarios: tuple[str, ...] = ()
    """Lists names or files; it is empty where a session is resumed."""
    selection: Selection = field(default_factory=Selection)
    seed: int | None = None
    out: Path | None = None
    """Names the session's directory; ``results/TIME-NAME`` where none is given."""
    resume: bool = False
    retry_failed: bool = False
    registry: str = ""
    keep_going: bool = False
    workloads: bool = True
    faults: bool = True
    """Says whether the trials of what fails after ready run, where a scenario names any."""
    offline: bool = False
    command: str = ""
    """Holds the command line that says all this."""
    shard: str = ""
    """Names a part of the plan: ``2/5`` is the second of five."""

    def check(self) -> None:
        """Refuses options that contradict each other. Raises UsageError, which says how to put it."""
        if self.retry_failed and not self.resume:
            raise UsageError("--retry-failed goes with --resume --out DIR")
        changes = (self.scenarios, self.selection != Selection(), self.seed is not None, self.registry)
        if self.resume and (any(changes) or not self.workloads or not self.faults):
            raise UsageError(
                "--resume continues a session as it was planned: give --out DIR and nothing that changes the plan"
            )
        if self.shard and (self.resume or self.seed is None):
            raise UsageError(
                "--shard needs --seed, the same on every machine, and starts a session (--resume knows its shard)"
            )
        if self.resume and self.out is None:
            raise UsageError("--resume needs --out DIR, the directory of the session to continue")
        if not self.resume and not self.scenarios:
            raise UsageError("name a scenario (`coldbench scenarios` lists them)")

    def header(self) -> SessionHeader | None:
        """Makes the header of a new session; None where a stored one goes on. Raises UsageError, ScenarioError."""
        self.check()
        if self.resume:
            return None
        header = make_header(
            self.scenarios, self.selection, seed=self.seed, registry=self.registry, workloads=self.workloads,
            command=self.command,
            faults=self.faults,
        )  # fmt: skip
        if not self.shard:
            return header
        shards.check(shards.parse(self.shard), header.plan)
        name = f"{header.session}-{self.shard.replace('/', '-of-')}"
        return header.model_copy(update={"shard": self.shard, "session": name})

    def open_store(self, header: SessionHeader | None) -> Store:
        """Opens the session on disk, locked for this process: a new one with this header, or the stored one."""
        if header is None:
            assert self.out is not None
            return Store.resume(self.out, self.retry_failed)
        return Store.create(self.out or RESULTS / header.session, header)


@dataclass(frozen=True, slots=True)
class OpenSession:
    """Holds a session that this process may write, with what it takes to run it."""

    launcher: Launcher
    store: Store
    options: RunOptions

    @property
    def directory(self) -> Path:
        return self.store.directory

    @property
    def total(self) -> int:
        """Counts the trials that this session runs: those of its shard."""
        return sum(self._takes(trial) for trial in self.store.header.plan.trials)

    def _takes(self, trial: PlannedTrial) -> bool:
        shard = self.store.header.shard
        return not shard or shards.parse(shard).takes(trial)

    def run(self) -> Outcome:
        """Runs what is left of it.

        Raises:
            Interrupted: stopped by a signal; the message says how to go on.
            ColdbenchError: see ``SessionRun.run``.
        """
        try:
            return self.launcher.run(self.store, keep_going=self.options.keep_going, takes=self._takes)
        except Interrupted as error:
            done, total = len(self.store.finished), self.total
            raise Interrupted(
                f"{error}\n{done} of {total} trials are recorded; "
                f"go on with: coldbench run --resume --out {self.directory}"
            ) from None


@contextmanager
def open_session(options: RunOptions, progress: Progress) -> Iterator[OpenSession]:
    """Opens and locks the session that ``options`` ask for; registry and signal handlers go when it is left.

    Raises:
        UsageError: the options contradict each other, the directory is taken, or a scenario cannot be loaded.
        NotRoot: this user cannot make machines.
        RegistryError: the user's registry is not there.
    """
    header = options.header()
    with ExitStack() as stack:
        launcher = stack.enter_context(Launcher(progress, offline=options.offline))
        if header is not None and options.registry:
            launcher.endpoint(options.registry)  # before a directory is made: it may not be there at all
        store = options.open_store(header)
        yield OpenSession(launcher, stack.enter_context(store), options)
