"""This module is the data dictionary: every column of every frame, with its type, its unit and its meaning.

Frames take their column order and their types from here, and docs/data.md is generated from here, so that the three
cannot disagree.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Column:
    """Describes one column: ``dtype`` is pandas', ``unit`` is empty where the value has none."""

    name: str
    dtype: str
    unit: str
    meaning: str


_TEXT, _REAL, _COUNT, _FLAG = "string", "float64", "Int64", "boolean"

#: What says which case a row belongs to; these stand first in every frame.
CASE = (
    Column("session", _TEXT, "", "Name of the session the row comes from."),
    Column("host", _TEXT, "", "CPU model, cores and kernel of the host it ran on."),
    Column("scenario", _TEXT, "", "Scenario by name."),
    Column("mode", _TEXT, "", "How the root file system gets there."),
    Column("preset", _TEXT, "", "The mode's named set of policies."),
    Column("label", _TEXT, "", "What the scenario calls the entry, where it has several of one preset."),
    Column("engine", _TEXT, "", "What implements the mode."),
    Column("shape", _TEXT, "", "Size of the machine."),
    Column("distance", _TEXT, "", "How far the registry is."),
    Column("compression", _TEXT, "", "How the scenario has the layers compressed; empty where it leaves them."),
    Column("read_percent", _COUNT, "%", "Share of the image's bytes that the start reads; empty where it does not."),
    Column("machines", _COUNT, "", "Machines that a trial starts at the same moment; empty where it has one."),
    Column("case", _TEXT, "", "The columns before in one text, unique within a session."),
    Column("block", _COUNT, "", "Block of the trial; comparisons are paired inside blocks."),
    Column("trial", _COUNT, "", "Number of the trial in its plan."),
)

TRIALS = (
    *CASE,
    Column("started_at", _TEXT, "UTC, ISO 8601", "When the trial began."),
    Column("image_digest", _TEXT, "", "Digest of the image that was started."),
    Column("options", _TEXT, "JSON", "What differed from the preset's own policy, by name; `{}` where nothing did."),
    Column("prefetch", _TEXT, "", "What was fetched before it was asked for: image, trace, list or none."),
    Column("status", _TEXT, "", "ok or failed."),
    Column("valid", _FLAG, "", "Whether the trial may enter a comparison."),
    Column("why", _TEXT, "", "Why it may not: the failure's message, or the rules it broke."),
    Column("ready_s", _REAL, "s", "Time from T0 to readiness; empty unless the trial is valid."),
    Column("bound_s", _REAL, "s", "Physical lower bound of this trial."),
    Column("cpu_s", _REAL, "core-seconds", "CPU charged to the machine from T0 to readiness; empty if not known."),
    Column("throttled_s", _REAL, "s", "Time the machine was held back by its CPU quota until readiness."),
    Column("received_before_ready_bytes", _COUNT, "bytes", "Bytes received until readiness."),
    Column(
        "streamed_before_ready_bytes",
        _COUNT,
        "bytes",
        "Of those, what a lazy mode streamed without being asked, far from the registry; empty for full pulls.",
    ),
    Column(
        "daemon_restarts",
        _COUNT,
        "",
        "Daemons of a lazy mode that died, each replaced by another one; empty where nobody would have taken over.",
    ),
    Column("received_bytes", _COUNT, "bytes", "Bytes received in the whole trial; empty where not known."),
    Column("requests_before_ready", _COUNT, "", "Registry requests until readiness; empty where they are not known."),
    Column("memory_peak_bytes", _COUNT, "bytes", "Peak memory of the machine, page cache included."),
    Column("memory_ready_bytes", _COUNT, "bytes", "Memory of the machine at readiness, page cache included."),
    Column("memory_ready_cache_bytes", _COUNT, "bytes", "What of that is page cache."),
    Column("disk_written_bytes", _COUNT, "bytes", "Bytes written to the machine's disk."),
    Column("fuse_requests", _COUNT, "", "FUSE requests in the whole trial; empty where no daemon counts them."),
)

SPANS = (
    *CASE,
    Column("valid", _FLAG, "", "Whether the trial may enter a comparison."),
    Column("span", _TEXT, "", "Name of the span of the timeline."),
    Column("start_s", _REAL, "s after T0", "When it began."),
    Column("end_s", _REAL, "s after T0", "When it ended."),
    Column("layer", _COUNT, "", "Layer it belongs to, 0 is the lowest; empty where it belongs to none."),
    Column("detail", _TEXT, "", "What the engine says about it."),
)

PHASES = (
    *CASE,
    Column("valid", _FLAG, "", "Whether the trial may enter a comparison."),
    Column("phase", _TEXT, "", "pull, start, background or workloads."),
    Column("wall_s", _REAL, "s", "Duration of the phase."),
    Column("cpu_user_s", _REAL, "core-seconds", "CPU in user space."),
    Column("cpu_system_s", _REAL, "core-seconds", "CPU in the kernel."),
    Column("throttled_s", _REAL, "s", "Time held back by the CPU quota."),
    Column("nr_periods", _COUNT, "", "Periods of the quota that went by."),
    Column("nr_throttled", _COUNT, "", "Periods in which the quota was used up."),
)

FUSE = (
    *CASE,
    Column("valid", _FLAG, "", "Whether the trial may enter a comparison."),
    Column("opcode", _TEXT, "", "FUSE opcode."),
    Column("count", _COUNT, "", "How often the kernel asked in the whole trial."),
    Column("service_s", _REAL, "s", "Time the daemon took to answer, summed."),
    Column("service_max_s", _REAL, "s", "The longest answer."),
    Column("queueing_s", _REAL, "s", "Time the requests waited for the daemon, summed."),
)

WORKLOADS = (
    *CASE,
    Column("workload", _TEXT, "", "Run-time workload by name."),
    Column("temperature", _TEXT, "", "cold, warm, stale or evicted."),
    Column("wall_s", _REAL, "s", "Wall time of one pass; the median pass where several were made."),
    Column("operations", _COUNT, "", "File system operations of one pass."),
    Column("bytes", _COUNT, "bytes", "Bytes read or written in one pass."),
    Column("cpu_s", _REAL, "core-seconds", "CPU of the workload and the daemon in one pass."),
    Column("cpu_daemon_s", _REAL, "core-seconds", "CPU of the daemon in one pass."),
    Column("fuse_requests", _COUNT, "", "FUSE requests of one pass, rounded up; empty where nobody counts them."),
    Column("passes", _COUNT, "", "How many passes were made."),
)

CREDITS = (
    *CASE,
    Column("t_s", _REAL, "s after T0", "When the governor looked."),
    Column("balance_core_s", _REAL, "core-seconds", "CPU credit left."),
    Column("quota_cores", _REAL, "cores", "CPU the machine might use from then on."),
)

FAULTS = (
    *CASE,
    Column("started_at", _TEXT, "UTC, ISO 8601", "When the trial began."),
    Column("image_digest", _TEXT, "", "Digest of the image that was started."),
    Column("fault", _TEXT, "", "What failed."),
    Column("onset", _TEXT, "", "When: ready, background, after, or seconds after ready."),
    Column("quiet", _FLAG, "", "Whether nobody read while it lasted."),
    Column("status", _TEXT, "", "ok or failed."),
    Column("valid", _FLAG, "", "Whether the trial did what was asked."),
    Column("why", _TEXT, "", "Why it did not, or that a wrong byte was read."),
    Column("sample", _TEXT, "", "touched, untouched, mapped, evicted or later; empty for a trial without reads."),
    Column("files", _COUNT, "", "Files of the sample."),
    Column("ok", _COUNT, "", "Read to the end in time."),
    Column("failed", _COUNT, "", "Failed with an error, or killed the reader."),
    Column("hung", _COUNT, "", "Not answered within the deadline."),
    Column("untried", _COUNT, "", "Never begun: neither a success nor a failure."),
    Column("errors", _TEXT, "", "Errors and signals by name, each with how often."),
    Column("error_s", _REAL, "s", "Median time to the error, of the reads that failed."),
    Column("error_max_s", _REAL, "s", "Longest time to an error."),
    Column("deadline_s", _REAL, "s", "When a read counts as one that hangs."),
    Column("wrong", _COUNT, "", "Files read without an error whose bytes are not the image's."),
    Column("onset_s", _REAL, "s after ready", "When the fault began."),
    Column("background_s", _REAL, "s after ready", "When the background fetch had ended; empty where it had not."),
    Column("fault_s", _REAL, "s", "How long the fault lasted."),
    Column("recovered_s", _REAL, "s", "From its end until reads worked again; empty where they did not in the time."),
    Column("recovery_limit_s", _REAL, "s", "How long was waited for that."),
    Column("background_resumed", _FLAG, "", "Whether the background fetch ended after all."),
    Column("resumed_s", _REAL, "s", "From the fault's end until it did."),
    Column("handed_over", _FLAG, "", "Whether the kernel read local data without a daemon when the fault began."),
    Column("wrong_bytes", _COUNT, "bytes", "Sizes of all files of the trial that held wrong bytes."),
    Column("received_bytes", _COUNT, "bytes", "Bytes received in the whole trial."),
    Column("received_before_bytes", _COUNT, "bytes", "Bytes received until the fault began."),
    Column("received_in_fault_bytes", _COUNT, "bytes", "Bytes received while the fault lasted."),
    Column("image_bytes", _COUNT, "bytes", "Stored bytes of the image's layers."),
    Column("unhealthy_s", _REAL, "s", "From the first read that failed until reads worked again, or the end."),
    Column("falsely_healthy_s", _REAL, "s", "Of them, with a probe that answers from memory saying all is well."),
    Column("listing_healthy_s", _REAL, "s", "The same of a probe that lists the root directory first."),
)

#: Every frame of ``harness.load``, by the name of the attribute that gives it.
FRAMES: dict[str, tuple[Column, ...]] = {
    "trials": TRIALS,
    "spans": SPANS,
    "phases": PHASES,
    "fuse": FUSE,
    "workloads": WORKLOADS,
    "credits": CREDITS,
    "faults": FAULTS,
}


def markdown() -> str:
    """Writes the dictionary as docs/data.md shows it: one table for what every row has, and one for each frame."""
    out = ["Every row of every frame says which case it belongs to:", "", *_table(CASE)]
    for name, columns in FRAMES.items():
        out += ["", f"### `{name}`", "", *_table(columns[len(CASE) :])]
    return "\n".join(out) + "\n"


def _table(columns: tuple[Column, ...]) -> list[str]:
    rows = [f"| `{c.name}` | {c.dtype} | {c.unit} | {c.meaning} |" for c in columns]
    return ["| column | type | unit | meaning |", "|---|---|---|---|", *rows]


def _rewrite(text: str) -> str:
    """Returns the document with the part below its marker made anew."""
    marker = "<!-- generated from harness/report/dictionary.py -->\n"
    return text[: text.index(marker) + len(marker)] + "\n" + markdown()


if __name__ == "__main__":
    from pathlib import Path

    document = Path("docs/data.md")
    document.write_text(_rewrite(document.read_text("utf-8")), "utf-8")
