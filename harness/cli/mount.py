"""``coldbench mount IMAGE DIR`` serves an image lazily for a person to look at."""

from __future__ import annotations

import os
import signal
import subprocess
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from harness.model.modes import SOCI, lazy_modes, lazy_policy

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from harness.lazyfs.control import DaemonClient
    from harness.lazyfs.messages import StoreAddress, Usage
    from harness.machine.records import Record
    from harness.oci.store import ImageSource

_ANSWER_S = 5.0
"""Nobody waits longer than this for a daemon that answers nothing."""


def _modes() -> str:
    return "|".join(mode.name for mode in lazy_modes())


def _presets() -> str:
    """Lists each preset, with the modes that have it where not all do."""
    modes = lazy_modes()
    names = dict.fromkeys(preset.name for mode in modes for preset in mode.presets)
    having = {name: [m.name for m in modes if name in {p.name for p in m.presets}] for name in names}
    return ", ".join(name if len(of) == len(modes) else f"{name} ({', '.join(of)})" for name, of in having.items())


def mount(
    image: str = typer.Argument(..., metavar="IMAGE", help="docker://…, oci:… or scenario:NAME, with its index."),
    directory: str = typer.Argument(..., metavar="DIR", help="Where to mount it; made if it is not there."),
    mode: str = typer.Option(SOCI.name, metavar=_modes(), help="Which of its lazy forms to serve."),
    preset: str = typer.Option(SOCI.best.name, metavar="NAME", help=_presets()),
    platform: str = typer.Option("", metavar="OS/ARCH", help="Platform to take from an index (default: this host's)."),
    allow_other: bool = typer.Option(
        False, "--allow-other", help="Let other users look as the image's modes say; without, root alone can."
    ),
) -> None:
    """Mount an image read-only without pulling it: bytes are fetched and verified as they are read.

    Stays in the foreground; Ctrl-C unmounts. Layers without an index are pulled and unpacked first, as the engine does.
    Its set-user-ID programs gain nothing, its device nodes do not open. After a kill -9, `coldbench clean` unmounts.
    """
    from harness.cli.bars import open_named
    from harness.engines.embedded.lazy import provide
    from harness.engines.embedded.modes import Context
    from harness.errors import MachineError, UsageError
    from harness.lazyfs.control import end, spawn
    from harness.lazyfs.messages import GetUsage, MarkReady
    from harness.lazyfs.mounting.stack import stacked
    from harness.machine.host import require_root
    from harness.oci.descriptor import Platform

    policies = lazy_policy(mode, preset)
    if policies.library and find_spec(policies.library) is None:
        raise UsageError(f"preset {preset} needs the library {policies.library}: pip install 'coldbench[{preset}]'")
    wanted = Platform.parse(platform) if platform else None
    require_root("mounting")
    os.makedirs(directory, exist_ok=True)
    for number in (signal.SIGINT, signal.SIGTERM):  # a script's background job starts with SIGINT ignored
        signal.signal(number, signal.default_int_handler)
    with ExitStack() as cleanups:
        source = cleanups.enter_context(open_named(image))
        resolved = source.resolve(wanted)
        run = cleanups.enter_context(_recorded(image, directory))
        scratch = run.files[0]
        os.umask(0)
        process, client = spawn(str(run.directory / "lazyfs"), policies.library)
        run.add_process(process.pid)
        cleanups.callback(end, process, _ANSWER_S)
        cleanups.callback(client.close)
        context = Context(
            client=source.store,
            mode=mode,
            store=_address(source),
            reference=source.selector,
            scratch=scratch,
            report_span=lambda *_: None,
            daemon=client,
        )
        rootfs = provide(context, resolved, preset, {})
        cleanups.callback(rootfs.cleanup)
        cleanups.enter_context(stacked(_guarded(rootfs.lowerdirs, scratch, allow_other), run.mounts()[0], run.name))
        client.call(MarkReady())
        typer.echo(f"{image} is mounted on {directory} (mode {mode}); Ctrl-C unmounts it")
        try:
            _watch(process, client)
        except KeyboardInterrupt:
            pass
        try:
            usage = client.call(GetUsage(), timeout_s=_ANSWER_S)
        except MachineError:
            return
        typer.echo(
            f"fetched {usage.bytes_fetched / 1e6:.1f} of {resolved.compressed_bytes / 1e6:.1f} MB in "
            f"{usage.requests} requests; {usage.spans_fetched} of {usage.spans_total} spans"
        )


@contextmanager
def _recorded(image: str, directory: str) -> Iterator[Record]:
    """Keeps a record of all this makes outside of itself, written before the first of it; then gone with it.

    Its one file is a scratch directory on disk, its directory has room for the daemon's mount.
    """
    from harness.machine import leftovers
    from harness.machine.mount_table import mounts_below
    from harness.machine.records import ENVIRONMENT_MARK, Record, remove_directory

    leftovers.sweep()
    run = Record.new("mount", image)
    scratch = Path("/var/tmp", run.name)
    run.files.append(str(scratch))
    run.save()
    os.environ[ENVIRONMENT_MARK] = run.name  # the daemon and the loop devices carry it
    try:
        run.directory.mkdir(mode=0o700)
        (run.directory / "lazyfs").mkdir(mode=0o700)
        run.add_mount(directory)
        scratch.mkdir(mode=0o700)
        yield run
    finally:
        if not mounts_below(scratch) and not mounts_below(run.directory):  # else it is left to `coldbench clean`
            remove_directory(scratch)
            remove_directory(run.directory)
            run.remove()


def _guarded(lowerdirs: Sequence[str], scratch: str, allow_other: bool) -> list[str]:
    """Returns what to stack: an empty directory that is root's alone goes on top, or, for all users, at the bottom,
    since OverlayFS takes no single directory.
    """
    empty = os.path.join(scratch, "guard")
    os.mkdir(empty)
    os.chmod(empty, 0o700)
    return [*lowerdirs, empty] if allow_other else [empty, *lowerdirs]


def _watch(process: subprocess.Popen[bytes], client: DaemonClient) -> None:
    """Says what changes, until interrupted. The daemon's end matters only while something still comes through it."""
    from harness.errors import MachineError
    from harness.lazyfs.messages import GetUsage

    told = ""
    handed_over, restarts = False, 0
    while not client.gone:
        try:
            usage = client.call(GetUsage(), timeout_s=_ANSWER_S)
        except MachineError as error:
            said = "" if client.gone else str(error)
        else:
            handed_over = usage.handed_over
            said = _state(usage)
            if (usage.restarts or 0) > restarts:
                restarts = usage.restarts or 0
                typer.echo(f"the daemon died and was started again ({restarts} in all); the mount goes on")
        if said and said != told:
            typer.echo(said)
        told = said or told
        signal.sigtimedwait([signal.SIGCHLD], 1.0)
    if not handed_over:
        raise MachineError(f"the lazyfs daemon ended (exit {process.poll()}); what is not local is gone")
    typer.echo("the daemon ended; the mount goes on without it")
    while True:
        signal.pause()


def _state(usage: Usage) -> str:
    """Says what somebody who looks at the mount should know of it."""
    if usage.handed_over:
        return "complete: the daemon is no longer needed"
    if usage.not_handed_over:
        return f"the daemon stays needed: {usage.not_handed_over}"
    if usage.background_finished:
        return "complete: the registry is no longer needed"
    if usage.disk_full:
        return "the disk is full: what memory does not hold is fetched again and again"
    return ""


def _address(source: ImageSource) -> StoreAddress:
    """Returns where the daemon finds what ``source`` reads."""
    from harness.errors import UsageError
    from harness.lazyfs.messages import StoreAddress
    from harness.oci.layout import LayoutStore
    from harness.oci.registry.client import RegistryClient, plain_http

    store = source.store
    if isinstance(store, RegistryClient):
        return StoreAddress(registry=store.host, repository=store.repository, plain=plain_http(store.host))
    if isinstance(store, LayoutStore):
        return StoreAddress(layout=str(store.directory.resolve()))
    raise UsageError(f"{source.where}: archives cannot be read by range; copy it to oci:DIR first")


def register(app: typer.Typer) -> None:
    app.command()(mount)
