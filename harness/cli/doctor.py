"""``coldbench doctor`` says whether this host can measure, and how to mend what is in the way."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from harness.machine.checks import Check
    from harness.machine.host import HostFacts
    from harness.model.bound import Rates


def doctor(
    rates: bool = typer.Option(
        False, "--rates", help="Measure what one core does at its best (for the lower bound), and keep it."
    ),
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
) -> None:
    """Check root, cgroups, file systems, namespaces, shaping, tools and noise; exit code 4 if trials cannot run."""
    from harness.errors import HostUnfit
    from harness.machine import checks, host
    from harness.machine import rates as measured

    facts = host.collect()
    found = checks.run_checks(facts)
    figures = measured.measure() if rates else measured.load()
    if as_json:
        from harness.cli import engines

        print(
            json.dumps(
                {
                    "engines": [engines.as_json(*entry) for entry in engines.look()],
                    "checks": [
                        {"name": c.name, "level": c.level, "found": c.found, "mend": c.mend} for c in found
                    ],
                    "host": facts.model_dump(mode="json"),
                    "rates": figures.model_dump(mode="json") if figures else None,
                },
                indent=2,
            )
        )  # fmt: skip
    else:
        _print_checks(facts, found)
        _print_engines()
        if figures is not None:
            _print_rates(figures)
        elif not rates:
            print("\nrates for the lower bound: not measured yet (coldbench doctor --rates, or the first run)")
    failed = [check.name for check in found if check.level == "fail"]
    if failed:
        raise HostUnfit(f"this host cannot run trials: {', '.join(failed)}; see above how to mend it")


def _print_checks(facts: HostFacts, found: list[Check]) -> None:
    from rich.table import Table

    from harness.cli.tables import console as make_console

    console = make_console()
    console.print(
        f"{facts.cpu_model}, {facts.cores} cores, {facts.memory_bytes / 2**30:.1f} GiB, Linux {facts.kernel}\n",
        markup=False,
    )
    table = Table(box=None, pad_edge=False, show_header=False)
    colours = {"ok": "green", "warn": "yellow", "fail": "red"}
    for check in found:
        table.add_row(f"[{colours[check.level]}]{check.level}[/]", check.name, check.found, check.mend)
    console.print(table)


def _print_engines() -> None:
    from harness.cli.engines import look, print_engines
    from harness.cli.tables import console

    print("\nengines:")
    print_engines(console(), look())


def _print_rates(rates: Rates) -> None:
    print(f"\nrates of one core, at their best ({rates.measured_at}):")
    print(
        f"  inflate      {rates.inflate_bytes_s / 1e6:8.0f} MB/s   (zstd {rates.inflate_zstd_bytes_s / 1e6:.0f} MB/s)"
    )
    print(f"  SHA-256      {rates.hash_bytes_s / 1e6:8.0f} MB/s")
    print(f"  receive      {rates.receive_core_s_per_byte * 1e12:8.0f} us/MB")
    print(f"  write        {rates.write_core_s_per_byte * 1e12:8.0f} us/MB")
    print(f"  create       {rates.create_core_s * 1e6:8.1f} us/file")
    print(f"  FUSE request {rates.fuse_request_core_s * 1e6:8.1f} us at least")


def register(app: typer.Typer) -> None:
    app.command()(doctor)
