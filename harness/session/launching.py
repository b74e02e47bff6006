"""This module starts sessions: it makes what a stored plan needs to run on this host, for one session or more.

``coldbench run`` starts one session, ``gate`` up to two, ``aa`` one, a worker of a campaign one per block; all of them
go through here, so that they measure alike.
"""

from __future__ import annotations

import secrets
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from harness.machine import rates
from harness.machine.host import collect, require_root, usable_cores
from harness.oci.cache import Cache
from harness.session import hosts, inventory
from harness.session.bounds import Bounder
from harness.session.interrupts import Interrupts
from harness.session.preparation import Preparer, pinned_digests
from harness.session.registry import named_endpoint, own_endpoint
from harness.session.run import SessionRun
from harness.session.setups import Setups

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from harness.model.observation import Observation
    from harness.model.plan import PlannedTrial
    from harness.model.scenario import Scenario
    from harness.session.progress import Progress
    from harness.session.registry import Endpoint
    from harness.session.run import Outcome
    from harness.session.store import Store


@dataclass
class Launcher:
    """Runs sessions while entered; the registry it started is there until it is left.

    ``registry`` is the URL of the user's registry, empty for one of our own. ``ask`` brings Ctrl-C and SIGTERM to the
    trials; a thread cannot have that, and leaves it to its process.
    """

    progress: Progress
    cache: Cache = field(default_factory=Cache.default)
    interrupts: Interrupts = field(default_factory=Interrupts)
    ask: bool = True
    trace_starts: bool = False
    offline: bool = False
    """Says whether images are taken as they are in the cache, and no registry is asked what their tags mean now."""
    _stack: ExitStack = field(default_factory=ExitStack)
    _endpoints: dict[str, Endpoint] = field(default_factory=dict)

    def __enter__(self) -> Launcher:
        require_root("running a scenario")
        if self.ask:
            self._stack.enter_context(self.interrupts)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def run(
        self,
        store: Store,
        *,
        keep_going: bool = False,
        takes: Callable[[PlannedTrial], bool] | None = None,
        goes_on: Callable[[int, tuple[Observation, ...]], bool] | None = None,
    ) -> Outcome:
        """Runs what is left of a stored session.

        ``takes`` says which trials are this run's; ``goes_on`` is asked before each block after the first, with what is
        recorded so far, and ends the run by saying no. Raises what ``SessionRun.run`` raises.
        """
        header = store.header
        endpoint = self.endpoint(header.registry)
        preparer = Preparer(
            self.cache, endpoint.host, endpoint.prefix, store.append_preparation, self.progress,
            offline=self.offline, pinned=pinned_digests(store.directory),
        )  # fmt: skip
        setups = Setups(
            session=header.session,
            seed=header.seed,
            scenarios=header.scenarios,
            preparer=preparer,
            endpoint=endpoint,
            interrupts=self.interrupts,
            progress=self.progress,
            bounder=Bounder(rates.ensure(), usable_cores()),
            with_workloads=header.workloads,
            trace_starts=self.trace_starts,
            keep_inventory=lambda found: inventory.save(store.directory, found),
        )
        run = SessionRun(store, setups, self.interrupts, self.progress, keep_going)
        known = hosts.load(store.directory)
        if known:
            facts = collect().model_dump(mode="json")
            hosts.append(store.directory, facts)
            run.host = str(facts["name"])
        if takes is not None:
            run.takes = takes
        if goes_on is not None:
            run.goes_on = goes_on
        return run.run()

    def side_setups(self, scenario: Scenario, registry: str = "") -> Setups:
        """Makes trials of one scenario that belong to no session: nothing is recorded, no bound is computed."""
        endpoint = self.endpoint(registry)
        return Setups(
            session="side",
            seed=secrets.randbelow(1 << 31),
            scenarios={scenario.name: scenario},
            preparer=Preparer(
                self.cache, endpoint.host, endpoint.prefix, lambda _made: None, self.progress, offline=self.offline
            ),
            endpoint=endpoint,
            interrupts=self.interrupts,
            progress=self.progress,
        )

    def endpoint(self, registry: str) -> Endpoint:
        """Returns the registry of this URL, looked at once; our own is started when it is first asked for."""
        if registry not in self._endpoints:
            self._endpoints[registry] = (
                named_endpoint(registry) if registry else own_endpoint(self._stack, self.cache.registry)
            )
        return self._endpoints[registry]
