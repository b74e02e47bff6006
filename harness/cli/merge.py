"""``coldbench merge DIR… --out DIR`` makes one session of the shards of one plan."""

from __future__ import annotations

import sys
from pathlib import Path

import typer


def merge(
    directories: list[Path] = typer.Argument(..., metavar="DIR…", help="Sessions of one plan: its shards."),
    out: Path = typer.Option(..., "--out", metavar="DIR", help="Where the merged session goes."),
) -> None:
    """Merge sessions of one plan; hosts are kept apart, no block counts twice. Merging again changes nothing."""
    from harness.session.merge import merge as merge_sessions

    merged = merge_sessions(directories, out)
    total = len(merged.header.plan.trials)
    print(f"{merged.trials} of {total} trials from {len(merged.hosts)} host(s): {', '.join(merged.hosts)}")
    for path in merged.torn:
        print(f"{path}: its last line was cut; that trial is left out", file=sys.stderr)
    if merged.missing_blocks:
        blocks = ", ".join(map(str, merged.missing_blocks))
        print(
            f"missing or incomplete: blocks {blocks}; run them with: coldbench run --resume --out {out}",
            file=sys.stderr,
        )
    print(f"session: {out}   report: coldbench report {out}")


def register(app: typer.Typer) -> None:
    app.command()(merge)
