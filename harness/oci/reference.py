"""This module reads image names as skopeo writes them (containers-transports(5)), and ``scenario:NAME`` for a
scenario's own.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field, replace

from harness.errors import UsageError
from harness.oci.descriptor import is_digest

ACCEPTED = (
    "docker://HOST[:PORT]/NAME[:TAG][@DIGEST], oci:DIR[:TAG], oci-archive:FILE[:TAG], "
    "docker-archive:FILE[:REF] or scenario:NAME"
)
TRANSPORTS = ("docker", "oci", "oci-archive", "docker-archive", "scenario")

_NAME_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_NAME = re.compile(rf"{_NAME_PART}(?:/{_NAME_PART})*\Z")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}\Z")
_HOST = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?)(?::[0-9]{1,5})?\Z")
_SCENARIO = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\Z")


@dataclass(frozen=True, slots=True)
class Reference:
    """Holds one parsed name: ``host`` and ``repository`` for docker, ``path`` for files, ``name`` for a scenario.

    ``host`` is the registry as written (``docker.io`` where a name has none); who connects maps it to an address.
    ``called`` is what the user calls an image whose place here is a copy in the cache; messages use it.
    """

    transport: str
    host: str = ""
    repository: str = ""
    path: str = ""
    name: str = ""
    tag: str = ""
    digest: str = ""
    called: str = field(default="", compare=False)

    @property
    def selector(self) -> str:
        """Returns the digest if there is one, else the tag (may be empty: the only image of a layout or archive)."""
        return self.digest or self.tag

    def with_selector(self, selector: str) -> Reference:
        """Returns the same place with another tag or digest."""
        if is_digest(selector):
            return replace(self, tag="", digest=selector)
        return replace(self, tag=selector, digest="")

    def __str__(self) -> str:
        if self.transport == "docker":
            tag = f":{self.tag}" if self.tag else ""
            digest = f"@{self.digest}" if self.digest else ""
            return f"docker://{self.host}/{self.repository}{tag}{digest}"
        if self.transport == "scenario":
            return f"scenario:{self.name}"
        return f"{self.transport}:{self.path}" + (f":{self.selector}" if self.selector else "")


def parse_reference(text: str) -> Reference:
    """Parses an image name; UsageError names the accepted forms."""
    transport, colon, rest = text.partition(":")
    if not colon or transport not in TRANSPORTS:
        raise UsageError(f"image {text!r}: expected {ACCEPTED}{_hint(text)}")
    if transport == "docker":
        if not rest.startswith("//"):
            raise UsageError(f"image {text!r}: expected docker://HOST[:PORT]/NAME[:TAG][@DIGEST]")
        return _parse_docker(text, rest[2:])
    if transport == "scenario":
        if not _SCENARIO.match(rest):
            raise UsageError(f"image {text!r}: expected scenario:NAME, the name of a file in scenarios/ without .toml")
        return Reference("scenario", name=rest)
    # Paths hold no colon, as in skopeo; what follows the first one is the tag (or digest, or a docker reference).
    path, _, selector = rest.partition(":")
    if not path:
        raise UsageError(f"image {text!r}: the path is missing; expected {ACCEPTED}")
    if transport == "docker-archive":
        return Reference(transport, path=path, tag=selector)
    if is_digest(selector.removeprefix("@")):
        return Reference(transport, path=path, digest=selector.removeprefix("@"))
    return Reference(transport, path=path, tag=selector)


def _hint(text: str) -> str:
    """Says what a name without a transport may have meant: a file or directory that is there, a registry's image."""
    if os.path.isfile(text):
        return f"; did you mean docker-archive:{text} or oci-archive:{text}?"
    if os.path.isdir(text.partition(":")[0]):
        return f"; did you mean oci:{text}?"
    bare = text.split("://", 1)[1] if text.startswith(("http://", "https://")) else text
    try:
        _parse_docker(text, bare)
    except UsageError:
        return ""
    other = f" or scenario:{text}" if _SCENARIO.match(text) else ""
    return f"; did you mean docker://{bare}{other}?"


def canonical_name(text: str) -> str:
    """Returns a name as registries know it: ``b`` becomes ``docker.io/library/b:latest``; what is
    no such name stays.
    """
    try:
        reference = _parse_docker(text, text)
    except UsageError:
        return text
    return str(reference).removeprefix("docker://")


def _parse_docker(text: str, rest: str) -> Reference:
    rest, at, digest = rest.partition("@")
    if at and not is_digest(digest):
        raise UsageError(f"image {text!r}: {digest!r} is not a digest (sha256:<64 hex>)")
    head, slash, tail = rest.partition("/")
    if slash and ("." in head or ":" in head or head == "localhost"):
        host, remainder = head, tail
    else:
        host, remainder = "docker.io", rest
    if not _HOST.match(host):
        raise UsageError(f"image {text!r}: {host!r} is not HOST[:PORT]")
    name, _, tag = remainder.partition(":")
    if host == "docker.io" and "/" not in name:
        name = f"library/{name}"
    if not _NAME.match(name):
        raise UsageError(f"image {text!r}: {name!r} is not a repository name (lower case letters, digits, . _ - and /)")
    if tag and not _TAG.match(tag):
        raise UsageError(f"image {text!r}: {tag!r} is not a tag (letters, digits, . _ -; at most 128)")
    return Reference("docker", host=host, repository=name, tag=tag or ("" if digest else "latest"), digest=digest)
