"""This module writes what a gate leaves for people and CI systems: a summary, annotations, JUnit XML, a comment, and
JSON.

The comment begins with a marker, an HTML comment that names the scenario: whoever posts it looks for the marker and
updates the comment it finds, so that a pull request has one of them.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

from harness.gate.document import gate_document
from harness.gate.wording import LEGEND, TIME_HEADER, change, host_lines, percent, said, table, time_rows, value
from harness.report import wording
from harness.session.store import write_atomically

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from harness.gate.aa import AaRecord, RatePart
    from harness.gate.result import Failure, GateResult

_SIGN = {
    "pass": "passes", "regression": "**fails**", "not confirmed": "passes: a regression was not confirmed",
    "inconclusive": "is **inconclusive**", "trials failed": "**could not be decided**: trials failed",
    "nothing to compare": "had **nothing to compare**", "error": "**could not be run**",
}  # fmt: skip


def marker(scenario: str) -> str:
    """Returns the first line of the comment body."""
    return f"<!-- coldbench gate {scenario} -->"


def sentence(result: GateResult) -> str:
    """Says the verdict in a sentence."""
    against = f" against {result.baseline}" if result.baseline else ""
    text = f"coldbench gate of `{result.scenario}`{against} {_SIGN[result.decision]}"
    if result.failure is not None:
        return f"{text}: {result.failure.message}"
    if result.regressions:
        first = result.regressions[0]
        more = f" (and {len(result.regressions) - 1} more)" if len(result.regressions) > 1 else ""
        return f"{text}: {first.case + ': ' if first.case else ''}{first.sentence}{more}."
    if result.decision == "inconclusive":
        open_ = [line for line in result.lines if line.verdict == "inconclusive"]
        return (
            f"{text}: {len(open_)} of {sum(1 for line in result.lines if line.verdict)} metrics scatter too widely for "
            f"{result.blocks} blocks; more blocks or a wider margin would decide."
        )
    return f"{text}."


def rate(part: RatePart) -> str:
    """Writes a rate as ``1.2 % [0.5, 2.4]``."""
    return f"{percent(part.rate)} [{wording.figures(100 * part.low, 2)}, {wording.figures(100 * part.high, 2)}]"


def errors_here(record: AaRecord) -> str:
    """Says in two sentences what the A/A run of this host tells of the gate."""
    text = (
        f"On this host (A/A run of {record.created_at[:10]}, {record.blocks} blocks) {record.gate_blocks} blocks of "
        f"equal sides give a wrong verdict in {rate(record.wrong)} of draws, a confirmed regression in "
        f"{rate(record.wrong_confirmed)}."
    )
    if record.caught is not None:
        text += f" A start slower by {percent(record.caught_change)} is caught in {rate(record.caught)}."
    return text


def summary(result: GateResult) -> str:
    """Writes Markdown: the verdict in a sentence, why, the tables, error rates, host, how to repeat it."""
    out = [f"### {sentence(result)}", ""]
    if result.failure is not None:
        return "\n".join([*out, *_of_failure(result, result.failure)]) + "\n"
    if result.anyway and any(d.decisive for d in result.differences):
        out += ["**Compared anyway, although these differ:** " + "; ".join(map(str, result.differences)), ""]
    elif result.differences:
        out += ["What differs: " + "; ".join(map(str, result.differences)), ""]
    for regression in result.regressions:
        out.append(f"- **{regression.case or 'image'}**: {regression.sentence}")
        out += [f"  - {reason}" for reason in regression.reasons]
    out += [f"- {text}" for text in result.unconfirmed]
    out += [""] if result.regressions or result.unconfirmed else []
    told = [line for line in result.counters if line.status != "same"]
    same = len(result.counters) - len(told)
    if told:
        rows = [
            [line.case or "image", line.metric, value(line.metric, line.baseline), value(line.metric, line.candidate),
             "new" if line.baseline == 0 else change(1 + line.change), percent(line.tolerance),
             f"**{line.status}**" if line.status == "regression" else line.status]
            for line in told
        ]  # fmt: skip
        out += [*table(("case", "counter", "baseline", "candidate", "change", "let pass", ""), rows), ""]
    if result.counters:
        out += [f"{same} of {len(result.counters)} counters and image metrics are as before.", ""]
    if result.lines:
        decide = [line for line in result.lines if line.verdict is not None]
        out += [*table(TIME_HEADER, time_rows(decide)), "", LEGEND, ""]
        out += [f"- {text}" for text in host_lines(decide)]
        if result.confirmation:
            again = [f"{c.case} {c.metric}: {wording.ratio(c.ratio)} {said(c)}" for c in result.confirmation]
            out += ["Second session: " + "; ".join(again) + ".", ""]
        rest = [line for line in result.lines if line.verdict is None]
        if rest:
            out += ["<details><summary>For information</summary>", "", *table(TIME_HEADER, time_rows(rest)), ""]
            out += ["</details>", ""]
    elif not result.timed:
        out += ["Times were not looked at: what does not scatter has decided already.", ""]
    out += [f"- {text}; not compared" for text in result.alone]
    out += [f"- left out: {text}" for text in result.excluded]
    out += [f"- {text}" for text in result.notes]
    out += [errors_here(result.aa)] if result.aa is not None else []
    extended = result.most_blocks > result.blocks
    went = f"{result.blocks} blocks{f' of at most {result.most_blocks}' if extended else ''}"
    how = "Holm; looks by alpha spending" if extended else "Holm"
    out += ["", f"{went}, false alarms held at {percent(result.alpha)} a session ({how}). Host: {result.host}."]
    out += [f"Repeat: `{result.repeat}`"] if result.repeat else []
    return "\n".join(out) + "\n"


def _of_failure(result: GateResult, failure: Failure) -> list[str]:
    """Says what there is to say where no trial was judged."""
    out = [f"There is no verdict, neither good nor bad: {failure.kind}, exit code {failure.exit_code}."]
    if result.blocks:
        out.append(f"Before that {result.blocks} blocks gave valid trials; their observations are kept.")
    out += [f"- {text}" for text in result.unconfirmed]
    out += [f"Host: {result.host}."] if result.host else []
    return [*out, *([f"Repeat: `{result.repeat}`"] if result.repeat else [])]


def workflow_commands(result: GateResult) -> list[str]:
    """Writes workflow commands for GitHub: one error per regression.

    What could not be decided is an error where the exit code fails the job, else a warning.
    """

    def at(key: str) -> str:
        line = result.lines_of_file.get(key) or result.lines_of_file.get(key.partition("/")[0])
        return f"file={_property(result.file)},line={line or result.lines_of_file.get('', 1)}"

    out = [
        f"::error {at(r.metric)},title=coldbench {_property(r.metric)}::"
        f"{_message((r.case + ': ' if r.case else '') + r.sentence + ''.join('; ' + x for x in r.reasons[:4]))}"
        for r in result.regressions
    ]
    out += [f"::warning {at('')},title=coldbench::{_message(text)}" for text in result.unconfirmed]
    if result.decision in {"inconclusive", "trials failed", "nothing to compare", "error"}:
        why = "; ".join([sentence(result), *(result.excluded[:4] if result.failed else ())])
        out.append(f"::{'error' if result.exit_code else 'warning'} {at('')},title=coldbench::{_message(why)}")
    return out


def error_command(text: str) -> str:
    """Writes a workflow command for an error that belongs to no line of a scenario."""
    return f"::error title=coldbench::{_message(text)}"


def _message(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A").replace("**", "")


def _property(text: str) -> str:
    return _message(text).replace(":", "%3A").replace(",", "%2C")


def junit(result: GateResult) -> str:
    """Writes one test case per metric that decides and per counter; inconclusive ones are skipped with the reason.

    A gate that judged nothing has one test case, "gate", with the error.
    """
    suite = ET.Element("testsuite", name=f"coldbench {result.scenario}")
    reasons = {(r.case, r.metric): r for r in result.regressions}
    failures = skipped = 0
    judged: list[tuple[str, str, str, str]] = [
        (
            line.case,
            line.metric,
            line.status,
            f"{value(line.metric, line.baseline)} to {value(line.metric, line.candidate)}",
        )
        for line in result.counters
    ]
    judged += [
        (line.case, line.metric, line.verdict, wording.ratio(line.ratio)) for line in result.lines if line.verdict
    ]
    for case, metric, verdict, text in judged:
        test = ET.SubElement(suite, "testcase", classname=f"{result.scenario}.{case or 'image'}", name=metric)
        regression = reasons.get((case, metric))
        if regression is not None:
            failures += 1
            failure = ET.SubElement(test, "failure", message=regression.sentence, type="regression")
            failure.text = "\n".join(regression.reasons)
        elif verdict in {"inconclusive", "ignored", "unsteady", "regression"}:
            skipped += 1
            note = "not confirmed" if verdict == "regression" else verdict
            ET.SubElement(test, "skipped", message=f"{note}: {text}")
    errors: list[tuple[str, str, str, str]] = []
    if result.failed:
        errors.append(("trials", "WorkloadError", f"{result.failed} trials failed", "\n".join(result.excluded)))
    if result.failure is not None:
        errors.append(("gate", result.failure.kind, result.failure.message, ""))
    elif result.decision == "nothing to compare":
        errors.append(("gate", "NothingToCompare", sentence(result), "\n".join([*result.alone, *result.excluded])))
    for name, kind, message, text in errors:
        test = ET.SubElement(suite, "testcase", classname=result.scenario, name=name)
        ET.SubElement(test, "error", message=message, type=kind).text = text
    suite.set("tests", str(len(judged) + len(errors)))
    suite.set("failures", str(failures))
    suite.set("skipped", str(skipped))
    suite.set("errors", str(len(errors)))
    ET.indent(suite)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(suite, encoding="unicode") + "\n"


def write(result: GateResult, environment: Mapping[str, str] = os.environ) -> list[Path]:
    """Writes summary.md, comment.md, junit.xml and gate.json beside the session; appends to GitHub's step summary.

    A result without a directory is appended only.
    """
    text = summary(result)
    files = {
        "summary.md": text,
        "comment.md": f"{marker(result.scenario)}\n{text}",
        "junit.xml": junit(result),
        "gate.json": gate_document(result) + "\n",
    }
    step = environment.get("GITHUB_STEP_SUMMARY")
    if step:
        with open(step, "a", encoding="utf-8") as file:
            file.write(text)
    if result.directory is None:
        return []
    result.directory.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        write_atomically(result.directory / name, content.encode())
    return [result.directory / name for name in files]
