"""``coldbench try IMAGE`` gives an answer for an image and a VM size, without a scenario file."""

from __future__ import annotations

import sys
import time
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from harness.drafting import Draft, Wish
    from harness.model.observation import Observation
    from harness.oci.cache import Cache


def try_image(
    image: str = typer.Argument(..., metavar="IMAGE", help="As Docker names it (nginx:1.27) or as skopeo does."),
    command: list[str] = typer.Argument(None, metavar="[-- COMMAND…]", help="What to run instead of the image's own."),
    shape: str = typer.Option("gcp-e2-micro", "--shape", help="The VM: a shape's name or cpu=0.25,memory=1G,…"),
    ready: str = typer.Option(
        "",
        "--ready",
        metavar="CONDITION",
        help="exit, tcp:PORT, http:PORT/PATH or stdout:REGEX; else guessed.",
    ),
    quick: bool = typer.Option(False, "--quick", help="Four modes, cold starts only: a first sentence in a minute."),
    minutes: float = typer.Option(20.0, "--minutes", min=0.1, help="Measure no longer than this."),
    out: Path | None = typer.Option(None, "--out", metavar="DIR", help="The session's directory."),
) -> None:
    """Start an image cold in every mode on a small VM until the answer is sure, and say which mode to use.

    The scenario file that was used is kept beside the results: edit it, and go on with `coldbench run`.
    """
    from harness.cli.progress import make_progress
    from harness.drafting import Wish
    from harness.errors import UsageError
    from harness.model.plan import Selection
    from harness.oci.cache import Cache
    from harness.session.headers import make_header
    from harness.session.launching import Launcher
    from harness.session.store import Store
    from harness.session.sureness import Enough

    wish = Wish(image, tuple(command or ()), shape, ready, quick)
    cache = Cache.default()
    made = _draft(wish, cache)
    now = datetime.now(UTC)
    directory = out or Path("results") / f"{now:%Y%m%d-%H%M%S}-try-{made.name}"[:80]
    file = directory.with_name(f"{directory.name}.toml")
    if directory.exists():
        raise UsageError(f"{directory}: is there already; give another place with --out")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(made.text, "utf-8")
    print(f"scenario: {file}", *(f"guessed: {guess}" for guess in made.guesses), sep="\n", file=sys.stderr)
    header = make_header([str(file)], Selection(), workloads=not quick)
    enough = Enough(made.blocks, time.monotonic() + 60 * minutes, tell=_say_so_far)
    with ExitStack() as stack:
        progress = stack.enter_context(make_progress(sys.stderr))
        launcher = stack.enter_context(Launcher(progress, cache))
        store = stack.enter_context(Store.create(directory, header))
        launcher.run(store, goes_on=enough.goes_on)
    _finish(directory, file)


def _say_so_far(seen: Sequence[Observation]) -> None:
    """Prints after each block what the answer would be now."""
    from harness.report.answer import answer
    from harness.report.comparison import compare

    for group in compare(seen):
        print("so far: " + " ".join(answer(group).sentences), file=sys.stderr)


def _finish(directory: Path, file: Path) -> None:
    from harness.cli.terminal_report import print_report
    from harness.report.publish import publish

    published = publish(directory)
    print()
    print_report(published)
    print(f"Report: {published.html_path.resolve()}")
    print(f"Next: edit {file}, then: coldbench run {file}")


def _said_once() -> Callable[[str, int, int], None]:
    """Returns a report of preparation that prints each step once."""
    said: list[str] = []

    def report(what: str, _done: int, _total: int) -> None:
        if what not in said:
            said.append(what)
            print(what, file=sys.stderr)

    return report


def _draft(wish: Wish, cache: Cache) -> Draft:
    """Drafts the scenario for the image, which is copied here unless it is there already."""
    from harness.drafting import draft, image_source, parse_ready
    from harness.images.catalog import materialise, refuse_foreign
    from harness.model.image import ImageSpec
    from harness.model.shape import parse_shape
    from harness.oci.location import open_source
    from harness.session.image_files import list_files

    # Before an image is fetched for nothing.
    parse_shape(wish.shape)
    if wish.ready:
        parse_ready(wish.ready)
    spec = ImageSpec.model_validate(image_source(wish.image))
    reference = materialise(spec, cache, _said_once())
    with open_source(reference) as source:
        found = source.resolve()
        refuse_foreign(found, wish.image)
        paths = [] if wish.quick else [file.path for file in list_files(source, found, cache.root)]
    return draft(wish, found.config.get("config") or {}, frozenset(paths))


def register(app: typer.Typer) -> None:
    app.command("try")(try_image)
