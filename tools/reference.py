"""The reference session: four scenarios recorded into ``results/reference``, and the documents' figures and tables.

    tools/reference.py record [NAME …] [--blocks N]   measure (root), adopt, write; goes on where it was stopped
    tools/reference.py adopt NAME DIRECTORY           take a session that was recorded some other way, then write
    tools/reference.py write                          everything that is made from what is stored
    tools/reference.py check                          name what is stale; exit code 1 if anything is

A document says where a table belongs: what stands between ``<!-- reference: table quickstart -->`` and
``<!-- end -->`` is replaced. Nothing that is measured is written by hand.
"""

from __future__ import annotations

import argparse
import math
import re
import shutil
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from harness.errors import ColdbenchError  # noqa: E402 - through the line above, also uninstalled
from harness.report import figures, tables, wording  # noqa: E402
from harness.report.answer import answer  # noqa: E402
from harness.report.comparison import Group, compare  # noqa: E402
from harness.report.figures.canvas import standalone  # noqa: E402
from harness.report.publish import context_of, publish  # noqa: E402
from harness.session import store  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable

    from harness.model.observation import Observation
    from harness.model.session import SessionHeader

PLACE = ROOT / "results" / "reference"
FILES = (store.HEADER, store.OBSERVATIONS, store.PREPARATIONS)
#: A list of all files of a large image weighs more than its trials, and is made again from the scenario.
INVENTORY_LIMIT_BYTES = 256 << 10

_CHEAP = ("--workload", "stat-walk", "--workload", "read-small", "--temperature", "cold", "--temperature", "warm")
_OURS = ("overlay2:sequential", "overlay2:tuned", "overlay2:local", "estargz:tuned", "soci:tuned", "erofs:tuned",
         "erofs:packed")  # fmt: skip
_THEIRS = ("overlay2:overlay2", "overlay2:default", "estargz:default", "soci:default")


def _each(option: str, *values: str) -> tuple[str, ...]:
    """The option once for each value."""
    return tuple(word for value in values for word in (option, value))


#: Ours beside Docker and containerd, on the machine that all documents speak of.
_BESIDE = (
    "--shape", "cpu=0.25,memory=1G", *_each("--engine", "embedded", "docker", "containerd"),
    *_each("--mode", *_OURS, *_THEIRS),
)  # fmt: skip

#: What is recorded, and how: one machine each, and of large images few workloads, or it would take a day.
RECORDINGS: dict[str, tuple[str, ...]] = {
    "quickstart": _BESIDE,
    "node-web": ("--shape", "gcp-e2-micro", *_CHEAP, "--workload", "require"),
    # The real snapshotters' background fetch of it takes minutes each time.
    "python-data": (*_BESIDE, "--workload", "read-small", "--temperature", "cold", "--no-background"),
    # A gigabyte: without what takes minutes after ready.
    "repl": (*_each("--mode", *_OURS[1:]), *_CHEAP, "--no-background"),
}
DOCUMENTS = ("README.md", "docs/index.md", "docs/tutorial.md", "docs/how-it-works.md", "docs/performance.md")
_BLOCK = re.compile(r"(<!-- reference: ([a-z -]+?) -->\n).*?(<!-- end -->)", re.DOTALL)


@dataclass(frozen=True)
class Recorded:
    """One stored session of the reference and its comparison."""

    name: str
    header: SessionHeader
    observations: list[Observation]
    group: Group

    @property
    def blocks(self) -> int:
        return len({o.block for o in self.observations})

    @property
    def image_bytes(self) -> int:
        made = store.load_preparations(PLACE / self.name)
        return next((p.bytes for p in made if p.form == "image"), 0)


def recorded() -> dict[str, Recorded]:
    """What is stored, in the order of ``RECORDINGS``."""
    found = {}
    for name in RECORDINGS:
        if (PLACE / name / store.HEADER).exists():
            header, observations = store.load(PLACE / name)
            found[name] = Recorded(name, header, observations, compare(observations)[0])
    return found


# -- recording


def record(names: list[str], blocks: int) -> None:
    """Run what is not recorded yet of each, in a directory beside, and adopt it when it is whole."""
    for name in names:
        out = PLACE.with_name("reference.new") / name
        resumes = (out / store.HEADER).exists()
        options = ["--resume"] if resumes else [name, "--blocks", str(blocks), *RECORDINGS[name]]
        done = subprocess.run(
            [sys.executable, "-m", "harness", "run", *options, "--out", str(out)], cwd=ROOT, check=False
        )
        if done.returncode not in {0, 5}:
            raise ColdbenchError(f"{name}: the run ended with {done.returncode}; record again to go on with it")
        adopt(name, out)


def adopt(name: str, session: Path) -> None:
    """Copy a session to its place, without what only its host knows. Raises ColdbenchError where a path shows."""
    header, _ = store.load(session)
    host = {key: value for key, value in header.host.items() if key != "name"}
    files = {scenario: f"scenarios/{scenario}.toml" for scenario in header.scenario_files}
    words = header.command.replace(f"{ROOT}/", "")
    command = re.sub(r"^(__main__\.py|\S*/coldbench) ", "coldbench ", words)
    header = header.model_copy(update={"host": host, "scenario_files": files, "command": command})
    place = PLACE / name
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    for file in FILES:
        shutil.copyfile(session / file, place / file)
    (place / store.HEADER).write_text(header.model_dump_json(indent=1) + "\n", "utf-8")
    for inventory in (session / "images").glob("*.json.gz"):
        if inventory.stat().st_size <= INVENTORY_LIMIT_BYTES:
            (place / "images").mkdir(exist_ok=True)
            shutil.copyfile(inventory, place / "images" / inventory.name)
    private = (str(ROOT), f"{Path.home()}/", socket.gethostname())
    for file in FILES:
        text = (place / file).read_text("utf-8")
        shown = [word for word in private if len(word) > 4 and word in text]
        if shown:
            raise ColdbenchError(f"{place / file}: names {shown[0]}, which is of this host alone")
    publish(place)


# -- what is made from it


def _quoted(sentences: tuple[str, ...]) -> str:
    return "\n".join(f"> {wording.markdown(sentence)}\n>" for sentence in sentences).removesuffix("\n>")


def _answer(found: Recorded) -> str:
    return _quoted(answer(found.group).sentences)


def _markdown(head: list[str], rows: list[list[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head), *(f"| {' | '.join(row)} |" for row in rows)]
    return "\n".join(lines)


def _table(found: Recorded) -> str:
    """The table of cold starts with the columns a first reader needs, and where it was measured below."""
    whole = tables.cold_start(found.group)
    wanted = ("mode", "valid", "ready, median", "against ", "of ", "CPU s to ready", "received before ready")

    def is_wanted(head: str) -> bool:
        return any(head == w or (w.endswith(" ") and head.startswith(w)) for w in wanted)

    at = [number for number, head in enumerate(whole.head) if is_wanted(head)]
    rows = [[row[n].text if row[n].proven else f"({row[n].text})" for n in at] for row in whole.rows]
    text = _markdown([whole.head[n] for n in at], rows)
    return f"{text}\n\n{_where(found)}"


def _where(found: Recorded) -> str:
    host = found.header.host
    case = found.header.plan.cases[0].case
    repeat = context_of(found.header).command
    return (
        f"(`{found.name}`, an image of {wording.size(found.image_bytes)}, on {case.shape}; {found.blocks} blocks, "
        f"{found.header.created_at[:10]}, {host.get('cores')} cores of {host.get('cpu_model')}, load per core "
        f"{host.get('load_per_core')} at the beginning. In parentheses: not proven. Repeat it: `{repeat}`.)"
    )


def _costs(found: Recorded) -> str:
    """Run-time workloads by mode: ratio to the baseline, in parentheses what is not proven."""
    lines = [line for line in found.group.runtime if line.ratio is not None]
    labels = list(dict.fromkeys(line.label for line in lines))
    at = {(line.workload, line.temperature, line.label): line for line in lines}
    rows = []
    for workload, temperature in dict.fromkeys((line.workload, line.temperature) for line in lines):
        cells = []
        for label in labels:
            line = at.get((workload, temperature, label))
            said = wording.ratio(line.ratio) if line else wording.NO_NUMBER
            cells.append(said if line is None or line.proven else f"({said})")
        rows.append([workload, temperature, *cells])
    base = found.group.baselines[0] if found.group.baselines else "the baseline"
    return f"Wall time after ready, as a ratio to {base}:\n\n" + _markdown(["workload", "files", *labels], rows)


def _summary(all_found: dict[str, Recorded]) -> str:
    """One line per scenario: what one has, what to use, how much sooner, how far from the floor, and its price."""
    rows = []
    for found in all_found.values():
        made = answer(found.group)
        known = made.break_even_s is not None or made.first_touch is not None
        price = _price(made.first_touch, made.later) if known else "not known"
        rows.append(
            [
                f"`{found.name}`", wording.size(found.image_bytes), found.header.plan.cases[0].case.shape,
                made.against or wording.NO_NUMBER, wording.seconds(made.against_ready_s), f"`{made.use}`",
                wording.seconds(made.ready_s), wording.ratio(made.sooner), wording.ratio(made.over_floor), price,
            ]
        )  # fmt: skip
    head = [
        "scenario",
        "image",
        "machine",
        "what one has",
        "ready",
        "use",
        "ready",
        "ratio",
        "of the floor",
        "afterwards",
    ]
    return _markdown(head, rows)


def _price(first_touch: object, later: object) -> str:
    costs = [cost for cost in (first_touch, later) if cost is not None]
    if not costs:
        return "no workload shown to be slower"
    return ", ".join(f"{c.workload} ({c.temperature}) {wording.ratio(c.ratio)}" for c in costs)  # type: ignore[attr-defined]


def _block(words: str, all_found: dict[str, Recorded]) -> str:
    kind, _, name = words.partition(" ")
    if kind == "summary" and not name:
        return _summary(all_found)
    makers: dict[str, Callable[[Recorded], str]] = {"answer": _answer, "table": _table, "costs": _costs}
    if kind not in makers or name not in RECORDINGS:
        raise ColdbenchError(f"<!-- reference: {words} -->: expected summary, or {', '.join(makers)} and a scenario")
    return makers[kind](all_found[name]) if name in all_found else f"(`{name}` is not recorded)"


def _figures(all_found: dict[str, Recorded]) -> dict[str, str]:
    made = {}
    drawn = figures.overview([found.group for found in all_found.values()])
    if drawn is not None:
        words = "; ".join(sentence for f in all_found.values() for sentence in answer(f.group).sentences[:1])
        made["docs/figures/reference.svg"] = standalone(drawn, f"Time to ready by mode. {words}")
    shown = all_found.get("python-data") or all_found.get("quickstart")
    if shown is not None:
        for name, lazy_only in (("timelines", False), ("timelines-lazy", True)):
            figure = figures.timelines(shown.group, lazy_only=lazy_only)
            if figure is not None:
                words = f"The start of {shown.group.key.title}, taken apart, mode by mode"
                made[f"docs/figures/{name}.svg"] = standalone(figure, words)
    return made


def _readme(all_found: dict[str, Recorded]) -> str:
    commands = [f"    {context_of(found.header).command}" for found in all_found.values()]
    sections = []
    for found in all_found.values():
        failed = sum(o.status == "failed" for o in found.observations)
        sections += [
            f"## {found.name}", "", _answer(found), "", _table(found), "", _costs(found), "",
            (f"{tables.counts(found.observations)}. Report: [report.md]({found.name}/report.md), "
             f"[report.html]({found.name}/report.html)."),
            *([f"{failed} trials failed; the report says why."] if failed else []), "",
        ]  # fmt: skip
    head = [
        "# The reference session", "",
        "Recorded by `nox -s reference`, which writes this page too; nobody edits it. Observations are as they",
        "were recorded; of the host its name is left out.", "",
        *commands, "",
        "    coldbench report results/reference/quickstart --out /tmp/report", "",
        "`nox -s reference -- write` makes the figures and tables of README and docs from these files, and a test says",
        "when they are stale. In Python: `harness.load(\"results/reference/*\")`.", "",
        _summary(all_found), "",
    ]  # fmt: skip
    return "\n".join([*head, *sections])


def generated() -> dict[Path, str]:
    """Every file that is made from the stored sessions, with its content."""
    all_found = recorded()
    made: dict[Path, str] = {ROOT / name: text for name, text in _figures(all_found).items()}
    made[PLACE / "README.md"] = _readme(all_found)
    for name in DOCUMENTS:
        path = ROOT / name
        text = path.read_text("utf-8")
        made[path] = _BLOCK.sub(lambda found: f"{found[1]}{_block(found[2], all_found)}\n{found[3]}", text)
    return made


def write() -> list[Path]:
    """Write what differs, the reports included; the files that changed."""
    for name in recorded():
        publish(PLACE / name)
    changed = stale()
    made = generated()
    for path in changed:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(made[path], "utf-8")
    return changed


def stale() -> list[Path]:
    """The files that are not what the stored sessions make of them."""
    return [p for p, text in generated().items() if not p.exists() or p.read_text("utf-8") != text]


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description="The reference session and what the documents show of it.")
    commands = parser.add_subparsers(dest="command", required=True)
    recording = commands.add_parser("record", help="measure, adopt and write (root)")
    recording.add_argument("names", nargs="*", metavar="NAME", help=", ".join(RECORDINGS))
    recording.add_argument("--blocks", type=int, default=6)
    adopting = commands.add_parser("adopt", help="take a session recorded some other way")
    adopting.add_argument("name", choices=list(RECORDINGS))
    adopting.add_argument("session", type=Path)
    commands.add_parser("write", help="make figures, tables and reports from what is stored")
    commands.add_parser("check", help="name what is stale")
    chosen = parser.parse_args()
    try:
        if chosen.command == "check":
            for path in (left := stale()):
                print(f"stale: {path.relative_to(ROOT)}; mend it with: nox -s reference -- write")
            return 1 if left else 0
        if chosen.command == "record":
            unknown = [name for name in chosen.names if name not in RECORDINGS]
            if unknown or not 1 <= chosen.blocks < math.inf:
                raise ColdbenchError(f"expected scenarios of {', '.join(RECORDINGS)} and at least one block")
            record(chosen.names or list(RECORDINGS), chosen.blocks)
        if chosen.command == "adopt":
            adopt(chosen.name, chosen.session)
        for path in write():
            print(f"written: {path.relative_to(ROOT)}")
    except ColdbenchError as error:
        print(f"reference: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
