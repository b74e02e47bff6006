"""Opens a session, new or stored, for whoever runs one: ``run`` and ``bench`` say what they want in the same words."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import Interrupted, UsageError
from harness.model.plan import Selection
from harness.session.headers import make_header
from harness.session.launching import Launcher
from harness.session.store import Store

if TYPE_CHECKING:
    from collections.abc import Iterator

    from harness.model.session import SessionHeader
    from harness.session.progress import Progress
    from harness.session.run import Outcome

RESULTS = Path("results")


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What is wanted of a run: a new session of some scenarios, or the rest of a stored one."""

    scenarios: tuple[str, ...] = ()
    """Names or files; empty where a session is resumed."""
    selection: Selection = field(default_factory=Selection)
    seed: int | None = None
    out: Path | None = None
    """The session's directory; ``results/TIME-NAME`` where none is given."""
    resume: bool = False
    retry_failed: bool = False
    registry: str = ""
    keep_going: bool = False
    workloads: bool = True
    offline: bool = False

    def check(self) -> None:
        """Refuse what contradicts itself. Raises UsageError, which says how to put it."""
        if self.retry_failed and not self.resume:
            raise UsageError("--retry-failed goes with --resume --out DIR")
        changes = (self.scenarios, self.selection != Selection(), self.seed is not None, self.registry)
        if self.resume and (any(changes) or not self.workloads):
            raise UsageError(
                "--resume continues a session as it was planned: give --out DIR and nothing that changes the plan"
            )
        if self.resume and self.out is None:
            raise UsageError("--resume needs --out DIR, the directory of the session to continue")
        if not self.resume and not self.scenarios:
            raise UsageError("name a scenario (`coldbench scenarios` lists them)")

    def header(self) -> SessionHeader | None:
        """The header of a new session; None where a stored one goes on. Raises UsageError, ScenarioError."""
        self.check()
        if self.resume:
            return None
        return make_header(
            self.scenarios, self.selection, seed=self.seed, registry=self.registry, workloads=self.workloads
        )


@dataclass(frozen=True, slots=True)
class OpenSession:
    """A session that this process may write, with what it takes to run it."""

    launcher: Launcher
    store: Store
    options: RunOptions

    @property
    def directory(self) -> Path:
        return self.store.directory

    def run(self) -> Outcome:
        """Run what is left of it.

        Raises:
            Interrupted: stopped by a signal; the message says how to go on.
            ColdbenchError: see ``SessionRun.run``.
        """
        try:
            return self.launcher.run(self.store, keep_going=self.options.keep_going)
        except Interrupted as error:
            done, total = len(self.store.finished), len(self.store.header.plan.trials)
            raise Interrupted(
                f"{error}\n{done} of {total} trials are recorded; "
                f"go on with: coldbench run --resume --out {self.directory}"
            ) from None


@contextmanager
def open_session(options: RunOptions, progress: Progress) -> Iterator[OpenSession]:
    """The session that ``options`` ask for, open and locked; registry and signal handlers go when it is left.

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
        if header is None:
            assert options.out is not None
            store = Store.resume(options.out, options.retry_failed)
        else:
            store = Store.create(options.out or RESULTS / header.session, header)
        yield OpenSession(launcher, stack.enter_context(store), options)
