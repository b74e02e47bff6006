"""This module merges sessions of one plan, the shards of a CI matrix or parts of a campaign, into one session.

The merged session keeps its hosts apart. Merging is idempotent: the same directories give the same files, and what was
merged already may be merged again. A block is on one host; the same block from two hosts is refused, since nobody can
say which of them counts.
"""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.errors import UsageError
from harness.session import hosts, store
from harness.session.inventory import DIRECTORY

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from harness.model.faults import FaultObservation
    from harness.model.observation import Observation
    from harness.model.session import SessionHeader


@dataclass(frozen=True, slots=True)
class Merged:
    """Says what the merged session holds; ``torn`` are files whose last line was cut and is left out."""

    header: SessionHeader
    trials: int
    hosts: tuple[str, ...]
    missing_blocks: tuple[int, ...]
    torn: tuple[str, ...]


def merge(directories: Sequence[Path], out: Path) -> Merged:
    """Writes the merged session into ``out``.

    Raises: UsageError: the directories are not sessions of one plan, hold a block twice, or ``out`` holds another
    session.
    """
    if not directories:
        raise UsageError("name the sessions to merge")
    first, *others = [(path, *store.load(path)) for path in directories]
    head = first[1]
    for path, header, _ in others:
        _check_same(first[0], head, path, header)
    merged = _header(head)
    if (out / store.HEADER).exists():
        there, _ = store.load(out)
        if there.session != merged.session:
            raise UsageError(f"{out}: holds session {there.session}, which is not this merge; name another --out")
    observations: dict[int, Observation] = {}
    struck: dict[int, FaultObservation] = {}
    owner: dict[int, tuple[str, Path]] = {}
    facts: dict[str, dict[str, object]] = {}
    digests: dict[str, str] = {}
    torn = []
    for path, header, seen in (first, *others):
        if store.is_torn(path):
            torn.append(str(path))
        own = str(header.host.get("name") or header.session)
        known = hosts.load(path)
        facts.update(known or {own: {**header.host, "name": own}})
        for o in seen:
            named = o if o.host else o.model_copy(update={"host": own})
            holder, where = owner.setdefault(o.block, (named.host, path))
            if holder != named.host:
                raise _twice(o.block, where, holder, path, named.host)
            observations[o.trial] = named
            digest = digests.setdefault(o.case.scenario, o.image_digest)
            if o.image_digest and digest and digest != o.image_digest:
                raise UsageError(
                    f"{path}: its image of {o.case.scenario} is {o.image_digest[:19]}, elsewhere {digest[:19]}; push "
                    "the image once and run every shard with its reference"
                )
        for fault in store.load_faults(path):
            named_fault = fault if fault.host else fault.model_copy(update={"host": own})
            holder, where = owner.setdefault(fault.block, (named_fault.host, path))
            if holder != named_fault.host:
                raise _twice(fault.block, where, holder, path, named_fault.host)
            struck[fault.trial] = named_fault
    out.mkdir(parents=True, exist_ok=True)
    if struck:
        faults = "".join(struck[trial].model_dump_json() + "\n" for trial in sorted(struck))
        store.write_atomically(out / store.FAULTS, faults.encode())
    lines = [observations[trial].model_dump_json() + "\n" for trial in sorted(observations)]
    store.write_atomically(out / store.OBSERVATIONS, "".join(lines).encode())
    prepared = dict.fromkeys(p.model_dump_json() + "\n" for path in directories for p in store.load_preparations(path))
    store.write_atomically(out / store.PREPARATIONS, "".join(prepared).encode())
    (out / hosts.HOSTS).unlink(missing_ok=True)
    for name in sorted(facts):
        hosts.append(out, facts[name])
    for path in directories:
        for file in sorted((path / DIRECTORY).glob("*.json.gz")):
            (out / DIRECTORY).mkdir(exist_ok=True)
            if path.resolve() != out.resolve():
                shutil.copyfile(file, out / DIRECTORY / file.name)
    # The header comes last: a directory without one is no session.
    store.write_atomically(out / store.HEADER, merged.model_dump_json(indent=1).encode() + b"\n")
    missing = sorted({t.block for t in head.plan.trials if t.trial not in observations and t.trial not in struck})
    return Merged(merged, len(observations) + len(struck), tuple(sorted(facts)), tuple(missing), tuple(torn))


def _twice(block: int, where: Path, holder: str, path: Path, host: str) -> UsageError:
    return UsageError(
        f"block {block} is in {where} (host {holder}) and in {path} (host {host}); a block counts once: leave one of "
        "them out"
    )


def _header(head: SessionHeader) -> SessionHeader:
    """Returns the merged header; the plan names it, whatever was merged in which order."""
    plan = hashlib.sha256(head.plan.model_dump_json().encode()).hexdigest()[:12]
    return head.model_copy(update={"session": f"merged-{plan}", "shard": ""})


def _check_same(path: Path, head: SessionHeader, other_path: Path, other: SessionHeader) -> None:
    if head.plan != other.plan:
        why = f"seed {other.seed} against {head.seed}" if head.seed != other.seed else "other cases or blocks"
        raise UsageError(f"{other_path}: another plan than {path} ({why}); run every shard with one seed and selection")
    if head.scenarios != other.scenarios:
        raise UsageError(f"{other_path}: its scenarios are not those of {path}; run every shard from the same files")
    if head.workloads != other.workloads:
        raise UsageError(f"{other_path}: run-time workloads were measured there or in {path}, not in both")
    if head.coldbench_version != other.coldbench_version:
        one, two = other.coldbench_version, head.coldbench_version
        raise UsageError(f"{other_path}: measured by coldbench {one}, {path} by {two}; use one version")
