"""``coldbench run-block DIR BLOCK PARENT`` runs one block of a campaign as a process of its own; it is not for people.

Trials need a main thread (Ctrl-C, namespaces) and must end when their worker does: the kernel sends this process
SIGTERM when its parent is gone, and it then ends the trial and takes the machine away, as Ctrl-C would.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from pathlib import Path

import typer

PR_SET_PDEATHSIG = 1


def run_block(
    directory: Path = typer.Argument(...), block: int = typer.Argument(...), parent: int = typer.Argument(...)
) -> None:
    """Run one block of a campaign's session (a worker calls this)."""
    from harness.cli.progress import make_progress
    from harness.errors import Interrupted
    from harness.session.launching import Launcher
    from harness.session.store import Store

    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        raise Interrupted("the worker was gone before its block began")
    with make_progress(sys.stderr) as progress, Launcher(progress) as launcher, Store.resume(directory) as store:
        launcher.run(store, takes=lambda trial: trial.block == block)


def register(app: typer.Typer) -> None:
    app.command("run-block", hidden=True)(run_block)
