"""This module holds what the image commands share: images by name, sizes, progress bars (on a terminal, not with
``--json``).
"""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING, Any

from harness.cli.tables import error_console

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from harness.oci.descriptor import Descriptor
    from harness.oci.store import ImageSource


@contextlib.contextmanager
def bar(quiet: bool = False, *, transient: bool = True) -> Iterator[Any]:
    """Makes a ``rich`` progress display in bytes.

    It shows nothing where standard error is no terminal, since a pipe keeps every turn.
    """
    from rich.progress import BarColumn, DownloadColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = [SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn()]
    console = error_console()
    hidden = quiet or not console.is_terminal
    with Progress(*columns, TimeElapsedColumn(), console=console, transient=transient, disable=hidden) as progress:
        yield progress


@contextlib.contextmanager
def build_progress(quiet: bool) -> Iterator[Callable[[str, int, int], None]]:
    """Makes the progress for `build_recipe`: on a terminal a bar per thing that is done, with bytes where they are
    known; else a line.
    """
    lines = not quiet and not sys.stderr.isatty()
    with bar(quiet, transient=False) as progress:
        tasks: dict[str, Any] = {}

        def report(what: str, done: int, total: int) -> None:
            if what not in tasks:
                for task in tasks.values():
                    progress.stop_task(task)
                tasks[what] = progress.add_task(what, total=total or None)
                if lines:
                    print(what, file=sys.stderr, flush=True)
            progress.update(tasks[what], completed=done, total=total or None)

        yield report


@contextlib.contextmanager
def blob_progress(quiet: bool = False) -> Iterator[Callable[[Descriptor, int], None]]:
    """Makes a progress that is told of bytes as they pass, and draws one line per blob."""
    with bar(quiet) as progress:
        tasks: dict[str, Any] = {}

        def advance(descriptor: Descriptor, count: int) -> None:
            if descriptor.digest not in tasks:
                tasks[descriptor.digest] = progress.add_task(descriptor.hex[:12], total=descriptor.size)
            progress.advance(tasks[descriptor.digest], count)

        yield advance


@contextlib.contextmanager
def count_progress(quiet: bool = False) -> Iterator[Callable[[str, int, int], None]]:
    """Makes a progress that is told where things are: (what, bytes so far, bytes in all)."""
    with bar(quiet) as progress:
        tasks: dict[str, Any] = {}

        def advance(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(what, total=total)
            progress.update(tasks[what], completed=done)

        yield advance


def layer_progress(shown: Any, what: str, total: int) -> Callable[[int, int], None]:
    """Adds one line for all layers to a `bar`; the callback is told (number of the layer, its stored bytes so far)."""
    task = shown.add_task(what, total=total)
    counts: dict[int, int] = {}

    def progress(number: int, done: int) -> None:
        counts[number] = done
        shown.update(task, completed=sum(counts.values()))

    return progress


@contextlib.contextmanager
def open_named(name: str, quiet: bool = False) -> Iterator[ImageSource]:
    """Opens an image's source; a scenario's image is built first, with a progress bar.

    What the store has to remark is printed at the end.
    """
    from harness.images.catalog import locate
    from harness.oci.location import open_source
    from harness.oci.reference import parse_reference

    reference = parse_reference(name)
    if reference.transport == "scenario":
        with build_progress(quiet) as report:
            reference = locate(reference, None, report, lambda news: print(f"coldbench: {news}", file=sys.stderr))
    with open_source(reference) as source:
        try:
            yield source
        finally:
            for remark in dict.fromkeys(source.store.remarks):
                print(f"coldbench: {remark}", file=sys.stderr)
            source.store.remarks.clear()


def megabytes(count: int) -> str:
    """Writes bytes in decimal units, with three digits that count."""
    value, unit = float(count), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 999.5:
            break
        value, unit = value / 1000, larger
    digits = 0 if unit == "B" or value >= 99.95 else 1 if value >= 9.995 else 2
    return f"{value:.{digits}f} {unit}"
