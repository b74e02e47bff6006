"""This process inside the machine is told to deploy: it resolves, lets the mode bring the layers, mounts, creates,
starts.

Started before T0 with everything imported (a VM's container daemon is up, too), it then waits on its control socket.
It answers ``Deploy`` with phases, spans, ``Created`` and ``Started``, or with ``Failed``, and later says ``Exited``; it
answers ``Stop`` with ``Stopped`` (``harness.engines.embedded.messages``). The end of the socket means ``Stop``. Imports
stay light, because the process shares a small machine with the workload.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import dataclasses
import errno
import gc
import os
import socket
import threading
import time
from dataclasses import dataclass
from typing import Literal

from harness.engines.embedded.bundle import write_bundle
from harness.engines.embedded.launcher import Launcher
from harness.engines.embedded.messages import (
    TO_AGENT,
    AgentUp,
    Created,
    Deploy,
    Entered,
    Exited,
    Failed,
    Prepare,
    Prepared,
    Started,
    Stop,
    Stopped,
)
from harness.engines.embedded.modes import Context, ReportSpan, Rootfs, load, parts_of
from harness.engines.embedded.registry import connect, store_address
from harness.engines.embedded.runtime import Runtime, find_runtime, makes_groups, prepare_cgroup_view
from harness.engines.protocol import DeployRequest  # noqa: TC001 - as below
from harness.errors import BY_KIND, ColdbenchError, DiskFull, MachineError, OutOfMemory
from harness.kernel.namespaces import Namespaces
from harness.kernel.overlay import mount_overlay, unmount
from harness.kernel.syscalls import MS_NODEV
from harness.lazyfs.channel import Channel
from harness.lazyfs.control import DaemonClient
from harness.lazyfs.messages import Span
from harness.oci.descriptor import Platform
from harness.oci.image import Image  # noqa: TC001 - a dataclass's field
from harness.oci.store import ImageSource

_PR_SET_CHILD_SUBREAPER = 36
_OWN_FORM = frozenset({"FormatError", "UnsafePath", "DigestMismatch"})


def translate(error: BaseException) -> ColdbenchError:
    """Turns any exception into one of ours, on one line."""
    if isinstance(error, ColdbenchError):
        return error
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFull("the machine's disk is full; give the shape a larger one (disk-size=)")
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return OutOfMemory("the machine ran out of memory; give the shape more")
    if isinstance(error, OSError):
        return MachineError(f"{error.strerror or error}: {error.filename or 'no file named'}")
    return ColdbenchError(f"a bug in the agent: {type(error).__name__}: {error}".replace("\n", " "))


def failed(error: BaseException, phase: str) -> Failed:
    """Makes the message that tells of a failure, under the nearest class name that the other side can rebuild."""
    failure = translate(error)
    kinds = [name for cls in type(failure).__mro__ if (name := cls.__name__) in BY_KIND or name in _OWN_FORM]
    return Failed(kinds[0], str(failure), phase)


@dataclass(frozen=True, slots=True)
class Brought:
    """Holds an image that is on the machine, and what it was brought with."""

    image: Image
    rootfs: Rootfs
    context: Context

    @property
    def requests(self) -> int:
        """Counts requests sent to the registry so far."""
        return int(self.context.client.counters.requests)


def _untimed(name: str, start_ns: int, end_ns: int, layer: int | None, detail: str) -> None:
    """What happens before T0 is on no timeline."""


class Agent:
    """Holds the state of one deployment; ``scratch`` is its directory on the machine's disk."""

    def __init__(
        self,
        control: Channel,
        mode: str,
        daemon: DaemonClient | None,
        output: tuple[int, int],
        *,
        cgroup: str,
        launcher: Launcher | None = None,
    ) -> None:
        """``cgroup`` is the machine's group within each hierarchy."""
        self._control = control
        self._mode = mode
        self._daemon = daemon
        self._output = output
        self._cgroup = cgroup
        self._launcher = launcher
        self._program = find_runtime()
        prepare_cgroup_view()
        parts = parts_of(mode)
        self._provide = load(parts.provide)
        self._look_ahead = load(parts.look_ahead) if parts.look_ahead else None
        self._phase = "resolve"
        self._runtime: Runtime | None = None
        self._rootfs: Rootfs | None = None
        self._brought: Brought | None = None
        self._root = ""

    def report_span(self, name: str, start_ns: int, end_ns: int, layer: int | None = None, detail: str = "") -> None:
        self._control.send(Span(name, start_ns, end_ns, layer, detail))

    def deploy(self, told: Deploy) -> None:
        """Deploys and reports; never raises."""
        try:
            self._deploy(told)
        except BaseException as error:
            self._control.send(failed(error, self._phase))

    def prepare(self, told: Prepare) -> None:
        """Brings the image, off the timeline, and reports; never raises."""
        try:
            self._brought = self._bring(told.request, told.scratch, 0, _untimed)
            self._control.send(Prepared())
        except BaseException as error:
            self._control.send(failed(error, self._phase))

    def _bring(self, request: DeployRequest, scratch: str, t0_ns: int, report_span: ReportSpan) -> Brought:
        """Resolve the image and let the mode put its layers there."""
        os.makedirs(scratch, exist_ok=True)
        os.chdir(scratch)
        client = connect(request)
        context = Context(
            client=client,
            mode=request.mode,
            store=store_address(request),
            reference=request.reference,
            scratch=scratch,
            report_span=report_span,
            daemon=self._daemon,
            prefetch=request.prefetch,
            reads=request.reads,
            trace=request.trace,
            t0_ns=t0_ns,
            index=request.index,
        )
        with context.span("resolve"):
            platform, seen = Platform.parse(request.platform), None
            if self._look_ahead is not None:
                seen = self._look_ahead(context, platform, request.preset, request.options)
            image = ImageSource(context.client, request.reference, seen).resolve(platform)
        self._phase = "pull"
        self._rootfs = self._provide(context, image, request.preset, request.options)
        return Brought(image, self._rootfs, context)

    def _deploy(self, told: Deploy) -> None:
        request, scratch = told.request, told.scratch
        before = self._brought.requests if self._brought else 0
        brought = self._brought or self._bring(request, scratch, told.t0_ns, self.report_span)
        image, rootfs = brought.image, brought.rootfs
        context = dataclasses.replace(brought.context, report_span=self.report_span)
        self._phase = "mount"
        root = os.path.join(scratch, "root")
        with context.span("mount", detail=f"{len(rootfs.lowerdirs)} layers"):
            flags = 0 if request.process.privileged else MS_NODEV
            mount_overlay(scratch, rootfs.lowerdirs, root, flags)
            self._root = root
        self._enter("create")
        with context.span("create"):
            bundle = os.path.join(scratch, "bundle")
            cgroup = f"{self._cgroup}/container" if makes_groups(self._program) else ""
            write_bundle(bundle, root, image.config, request.process, cgroup=cgroup, system_calls=told.system_calls)
            self._runtime = Runtime(self._program, os.path.join(scratch, "crun"), cgroup, launcher=self._launcher)
            pid = self._runtime.create(bundle, *self._output)
            for descriptor in self._output:
                os.close(descriptor)
        details = dataclasses.replace(rootfs.details, agent_requests=brought.requests - before)
        self._tell_created(Created(pid, root, details))
        self._enter("start")
        threading.Thread(target=self._await_exit, args=(pid,), daemon=True).start()
        with context.span("start"):
            self._runtime.start()
        self._control.send(Started(time.monotonic_ns(), image.descriptor.digest))

    def _tell_created(self, message: Created) -> None:
        """Its namespaces go along: the harness may come to look at the process when it has ended."""
        held = Namespaces.of(message.pid)
        self._control.send(message, descriptors=tuple(held.descriptors.values()))
        held.close()

    def _enter(self, phase: Literal["create", "start"]) -> None:
        self._phase = phase
        self._control.send(Entered(phase))

    def _await_exit(self, pid: int) -> None:
        """Wait for the container's init, which became this process's child when crun ended; say how it ended.

        It is not reaped before the container is deleted: whoever was told its pid may come to look at it late, and must
        find it, or at least no other process of that pid.
        """
        try:
            ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        except ChildProcessError:
            return
        if ended is not None:
            code = ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status
            self._control.send(Exited(code))

    def stop(self) -> None:
        """Takes everything away; idempotent; problems are reported, not raised."""
        problems = []
        for action in (self._delete, self._unmount, self._clean):
            try:
                action()
            except Exception as error:
                problems.append(str(translate(error)))
        self._control.send(Stopped(tuple(problems)))

    def _delete(self) -> None:
        if self._runtime is None:
            return
        self._runtime.delete()
        if self._runtime.pid:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(self._runtime.pid, os.WNOHANG)

    def _unmount(self) -> None:
        if self._root:
            unmount(self._root)
            self._root = ""

    def _clean(self) -> None:
        if self._rootfs is not None:
            self._rootfs.cleanup()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--control-fd", type=int, required=True)
    parser.add_argument("--daemon-fd", type=int)
    parser.add_argument("--output-fds", type=int, nargs=2, required=True)
    parser.add_argument("--mode", required=True)
    parser.add_argument("--cgroup", required=True)
    parser.add_argument("--container-groups", nargs="*", default=[])
    options = parser.parse_args()
    control = Channel(socket.socket(fileno=options.control_fd), TO_AGENT)
    daemon = None if options.daemon_fd is None else DaemonClient(socket.socket(fileno=options.daemon_fd))
    os.umask(0)
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    for descriptor in options.output_fds:
        os.set_inheritable(descriptor, False)
    try:
        launcher = Launcher(options.container_groups) if options.container_groups else None
        agent = Agent(
            control, options.mode, daemon, tuple(options.output_fds), cgroup=options.cgroup, launcher=launcher
        )
    except Exception as error:
        control.send(failed(error, "agent"))
        return
    gc.freeze()
    gc.disable()  # reference counting frees what a pull makes; cycles are a few exceptions
    control.send(AgentUp())
    while (received := control.receive()) is not None:
        if isinstance(received.message, Deploy):
            agent.deploy(received.message)
        elif isinstance(received.message, Prepare):
            agent.prepare(received.message)
        elif isinstance(received.message, Stop):
            agent.stop()
    agent.stop()
    if launcher is not None:
        launcher.close()


if __name__ == "__main__":
    main()
