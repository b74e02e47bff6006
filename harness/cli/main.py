"""The command ``coldbench`` finds the command modules, runs one, and turns errors into one line and an exit code."""

from __future__ import annotations

import importlib
import pkgutil
import sys
import traceback

import typer

from harness import __version__, cli
from harness.cli.tables import error_console
from harness.errors import ColdbenchError

#: A bug of ours: the infrastructure failed.
BUG_EXIT_CODE = 5

app = typer.Typer(
    name="coldbench",
    help="How fast a container starts on a small machine, and what the trick that made it fast costs afterwards.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(value: bool) -> None:
    if value:
        print(f"coldbench {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(
        False, "--version", help="Print the version and exit.", callback=_print_version, is_eager=True
    ),
) -> None:
    pass


def load_commands() -> None:
    """Registers every module of this package that has a ``register(app)``; heavy imports belong inside the commands."""
    for info in pkgutil.iter_modules(cli.__path__):
        if info.name == "main":
            continue
        module = importlib.import_module(f"{cli.__name__}.{info.name}")
        register = getattr(module, "register", None)
        if register is not None:
            register(app)


def main() -> None:
    """Runs the command line; the exit code is 0 on success, else the error's own (architecture: exit codes)."""
    load_commands()
    try:
        app()
    except ColdbenchError as error:
        error_console().print(f"coldbench: {error}", markup=False)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("coldbench: interrupted", file=sys.stderr)
        sys.exit(130)
    except Exception:
        # Python ends in 1, which is the code of a confirmed regression: a bug of ours must not read as one.
        traceback.print_exc()
        print("coldbench: this is a bug in coldbench; the lines above say where", file=sys.stderr)
        sys.exit(BUG_EXIT_CODE)
