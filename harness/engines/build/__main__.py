"""``python -m harness.engines.build [KIT …]`` builds what is missing; ``nox -s engines`` runs it.

It exits with 0, or with 4 when this host cannot build (no Go, no C compiler, no module proxy); with ``--if-possible``
that is said and is no error: the tests that want the programs are skipped with the reason.
"""

from __future__ import annotations

import argparse
import sys

from harness.engines.build.compiler import build, missing
from harness.engines.build.programs import KITS, built
from harness.errors import ColdbenchError


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def main() -> int:
    parser = argparse.ArgumentParser(prog="nox -s engines --", description="Build the real engines from Go modules.")
    parser.add_argument("kits", nargs="*", metavar="KIT", help=f"one of {', '.join(kit.name for kit in KITS)} (all)")
    parser.add_argument("--if-possible", action="store_true", help="say why a kit is not built, and exit 0")
    parser.add_argument(
        "--where", metavar="PROGRAM", help="print the path of a program that was built, and nothing else"
    )
    options = parser.parse_args()
    if options.where:
        _say(built(options.where))
        return 0
    if unknown := set(options.kits) - {kit.name for kit in KITS}:
        parser.error(f"no kit {', '.join(sorted(unknown))}; there are {', '.join(kit.name for kit in KITS)}")
    code = 0
    for kit in KITS:
        if options.kits and kit.name not in options.kits:
            continue
        if kit.built:
            _say(f"{kit.name} {kit.version}: there already, {kit.place}")
            continue
        if reason := missing(kit):
            _say(f"{kit.name} {kit.version}: not built: {reason}")
            code = code if options.if_possible else 4
            continue
        _say(f"{kit.name} {kit.version}: building; the first time takes minutes and downloads its modules")
        try:
            took_s = build(kit)
        except ColdbenchError as error:
            _say(f"{kit.name} {kit.version}: {error}")
            code = code if options.if_possible else 4
            continue
        _say(f"{kit.name} {kit.version}: built in {took_s:.0f} s, {kit.place}")
    return code


if __name__ == "__main__":
    sys.exit(main())
