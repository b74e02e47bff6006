"""``coldbench shapes`` lists the VM shapes this program knows, with their figures and where they come from."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from harness.model.shape import Shape


def shapes(
    name: str = typer.Argument("", help="One shape, named or inline, with its sources; all of them if omitted."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
) -> None:
    """List VM shapes: CPU with its credits, memory, network, disk; and the presets of the registry's distance.

    A shape with credits has two forms: NAME:fresh (credits as at boot) and NAME:drained (none). The form a bare name
    means is marked with *.
    """
    from harness.model.shape import DISTANCES, load_shapes, parse_shape

    book = load_shapes()
    listed = [parse_shape(name)] if name else list(book)
    defaults = {book.get(known).label for known in book.names}
    if as_json:
        print(
            json.dumps(
                {
                    "shapes": [
                        {"label": s.label, "default": s.label in defaults, **s.model_dump(mode="json")} for s in listed
                    ],
                    "distances": [d.model_dump(mode="json") for d in DISTANCES.values()],
                },
                indent=2,
            )
        )
        return
    _print_tables(listed, defaults, details=bool(name))


def _print_tables(listed: list[Shape], defaults: set[str], details: bool) -> None:
    from rich.table import Table

    from harness.cli.tables import console as make_console
    from harness.model.shape import DISTANCES

    console = make_console()
    # Narrower than its figures the table would lose them; a narrow terminal wraps its lines instead.
    console.width = max(console.width, 132)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("shape", "vCPU", "base", "burst", "credits at boot", "earned/h", "cap", "memory", "network", "disk"):
        table.add_column(title, justify="left" if title in ("shape", "network", "disk") else "right", no_wrap=True)
    for shape in listed:
        table.add_row(*_row(shape, shape.label in defaults))
    console.print(table)
    if details:
        for shape in listed:
            for line in (*shape.sources, shape.note):
                if line:
                    console.print(f"  {line}", markup=False)
        return
    console.print("\n* what the bare name means. Credits in core-seconds. Any shape can be changed or written inline:")
    console.print("  aws-t2.micro:drained,rtt=10ms    cpu=0.25,memory=1G,bandwidth=1Gbit\n", markup=False)
    distances = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("distance of the registry", "round trip", "first byte", "per connection", "in all"):
        distances.add_column(title, justify="left" if title.startswith("distance") else "right")
    for distance in DISTANCES.values():
        distances.add_row(
            distance.name,
            f"{distance.rtt_ms:g} ms",
            f"{distance.first_byte_ms:g} ms",
            _megabytes(distance.per_connection_bytes_s),
            _megabytes(distance.total_bytes_s),
        )
    console.print(distances)


def _megabytes(rate_bytes_s: int | None) -> str:
    return "-" if rate_bytes_s is None else f"{rate_bytes_s / 1e6:g} MB/s"


def _row(shape: Shape, default: bool) -> list[str]:
    def cell(value: float | None, unit: str = "") -> str:
        return "-" if value is None else f"{value:g}{unit}"

    credit, network, disk = shape.credits, shape.network, shape.disk
    bandwidth = "-"
    if network is not None:
        bandwidth = f"{network.rate_bits_s / 1e9:g}"
        if network.burst_bits_s is not None:
            bandwidth += f"/{network.burst_bits_s / 1e9:g}"
        bandwidth += " Gbit/s"
    limits = []
    if disk is not None and disk.iops:
        limits.append(f"{disk.iops} IOPS")
    if disk is not None and disk.bytes_per_s:
        limits.append(_megabytes(disk.bytes_per_s))
    if shape.disk_size_bytes is not None:
        limits.append(f"{shape.disk_size_bytes / 2**30:g} GiB")
    return [
        f"{'*' if default else ' '} {shape.label}",
        cell(shape.vcpus),
        cell(shape.baseline_cores),
        cell(shape.ceiling_cores),
        "unlimited" if credit and credit.surplus else cell(credit.at_boot_core_s if credit else None, " s"),
        cell(credit.earned_core_s_per_h if credit else None, " s"),
        cell(credit.cap_core_s if credit else None, " s"),
        "-" if shape.memory_bytes is None else f"{shape.memory_bytes / 2**30:g} GiB",
        bandwidth,
        ", ".join(limits) or "-",
    ]


def register(app: typer.Typer) -> None:
    app.command()(shapes)
