"""This module finds where Debian packages come from: the host's own apt sources, turned to the suite a recipe asks for.

Both forms of sources.list(5) are read: one-line and deb822. No mirror is named here; a host without apt sources leaves
the choice to mmdebstrap.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Source:
    """Holds one deb822 stanza."""

    uris: str
    suites: tuple[str, ...]
    components: str = "main"
    signed_by: str = ""

    def render(self) -> str:
        lines = [
            "Types: deb",
            f"URIs: {self.uris}",
            f"Suites: {' '.join(self.suites)}",
            f"Components: {self.components}",
        ]
        if self.signed_by:
            lines.append(f"Signed-By: {self.signed_by}")
        return "\n".join(lines) + "\n"


def read_sources(etc_apt: Path = Path("/etc/apt")) -> list[Source]:
    """Reads the host's enabled binary package sources."""
    found: list[Source] = []
    lists = [etc_apt / "sources.list", *sorted((etc_apt / "sources.list.d").glob("*.list"))]
    for path in lists:
        if path.is_file():
            found += [source for line in path.read_text().splitlines() if (source := _one_line(line))]
    for path in sorted((etc_apt / "sources.list.d").glob("*.sources")):
        found += [source for stanza in re.split(r"\n\s*\n", path.read_text()) if (source := _deb822(stanza))]
    return found


def sources_for(suite: str, sources: list[Source]) -> str:
    """Writes a deb822 file for ``suite`` with its updates and security fixes, '' when the host has no Debian mirror.

    A host of another release keeps its mirror; only the names of the suites change.
    """
    related = re.compile(rf"{re.escape(suite)}(?:-updates|-security|/updates)?\Z")
    chosen = []
    for source in sources:
        suites = tuple(name for name in source.suites if related.match(name))
        if suites:
            chosen.append(replace(source, suites=suites))
    if not chosen:
        for source in sources:
            if re.search(r"/debian/?\Z", source.uris.split()[0]):
                chosen.append(replace(source, suites=(suite, f"{suite}-updates")))
                break
    return "\n".join(source.render() for source in chosen)


def _one_line(line: str) -> Source | None:
    match = re.match(r"deb\s+(?:\[([^\]]*)\]\s+)?(\S+)\s+(\S+)((?:\s+[\w./-]+)*)\s*(?:#.*)?\Z", line.strip())
    if match is None:
        return None
    options = dict(part.split("=", 1) for part in (match[1] or "").split() if "=" in part)
    return Source(match[2], (match[3],), match[4].strip() or "main", options.get("signed-by", ""))


def _deb822(stanza: str) -> Source | None:
    fields: dict[str, str] = {}
    key = ""
    for line in stanza.splitlines():
        if line.startswith("#"):
            continue
        if line[:1] in {" ", "\t"} and key:
            fields[key] += "\n" + line
        elif ":" in line:
            key, _, value = line.partition(":")
            key = key.strip().lower()
            fields[key] = value.strip()
    if "deb" not in fields.get("types", "").split() or fields.get("enabled", "yes").lower() in {"no", "false"}:
        return None
    if not fields.get("uris") or not fields.get("suites"):
        return None
    return Source(
        " ".join(fields["uris"].split()),
        tuple(fields["suites"].split()),
        " ".join(fields.get("components", "main").split()),
        fields.get("signed-by", ""),
    )
