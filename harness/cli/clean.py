"""``coldbench clean`` removes what killed runs left."""

from __future__ import annotations

import json

import typer


def clean(
    dry_run: bool = typer.Option(False, "--dry-run", "-n", help="Only list what would be removed."),
    as_json: bool = typer.Option(False, "--json", help="Print a JSON list."),
) -> None:
    """Remove mounts, control groups, interfaces, loop devices and processes of runs that were killed.

    What belongs to a run that is still alive is left alone.
    """
    from harness.errors import MachineError
    from harness.machine import leftovers
    from harness.machine.host import require_root

    require_root("cleaning up")
    removed = [str(found) for found in leftovers.find_leftovers()] if dry_run else leftovers.sweep()
    if as_json:
        print(json.dumps(removed, indent=2))
    elif not removed:
        print("nothing was left behind")
    else:
        for text in removed:
            print(f"{'would remove' if dry_run else 'removed'} {text}")
    left = [] if dry_run else leftovers.find_leftovers()
    if left:
        raise MachineError(f"could not remove {'; '.join(map(str, left))}")


def register(app: typer.Typer) -> None:
    app.command()(clean)
