"""This module holds descriptors, platforms and media types, and writes JSON as Go does (OCI image spec 1.1,
descriptor.md and media-types.md).

The processes inside the simulated machine import it, so it stays light: no pydantic, no HTTP.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from harness.errors import FormatError, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_EMPTY = "application/vnd.oci.empty.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
OCI_LAYER_GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"
OCI_LAYER_ZSTD = "application/vnd.oci.image.layer.v1.tar+zstd"
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar"
DOCKER_LAYER_GZIP = "application/vnd.docker.image.rootfs.diff.tar.gzip"

INDEX_TYPES = frozenset({OCI_INDEX, DOCKER_INDEX})
MANIFEST_TYPES = frozenset({OCI_MANIFEST, DOCKER_MANIFEST})
CONFIG_TYPES = frozenset({OCI_CONFIG, DOCKER_CONFIG})
LAYER_COMPRESSION = {
    OCI_LAYER: "none",
    OCI_LAYER_GZIP: "gzip",
    OCI_LAYER_ZSTD: "zstd",
    DOCKER_LAYER: "none",
    DOCKER_LAYER_GZIP: "gzip",
    "application/vnd.docker.image.rootfs.diff.tar.zstd": "zstd",  # containerd and BuildKit write it
    "application/vnd.oci.image.layer.nondistributable.v1.tar": "none",
    "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip": "gzip",
    "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd": "zstd",
    "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip": "gzip",
}
"""It names the compression of each layer media type we can unpack; any other type is not a layer."""

REF_NAME = "org.opencontainers.image.ref.name"

_DIGEST = re.compile(r"(?:sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128})\Z")
_GO_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "i686": "386", "riscv64": "riscv64"}


def is_digest(text: str) -> bool:
    """Says whether ``text`` is a well-formed sha256 or sha512 digest."""
    return _DIGEST.match(text) is not None


def digest_bytes(data: bytes | bytearray | memoryview) -> str:
    """Returns ``sha256:<hex>`` of ``data``."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def text_map(value: Any, where: str) -> dict[str, str]:
    """Returns annotations of parsed JSON (absent ones are none); FormatError unless they map strings to strings."""
    if value is not None and not (isinstance(value, dict) and all(isinstance(text, str) for text in value.values())):
        raise FormatError(where, "annotations are not a map of strings")
    return value or {}


def strings(value: Any, where: str) -> list[str]:
    """Returns a list of strings in parsed JSON (an absent one is empty); FormatError for anything else."""
    if value is not None and not (isinstance(value, list) and all(isinstance(text, str) for text in value)):
        raise FormatError(where, "is not a list of strings")
    return value or []


def go_json(value: object, *, indent: int | None = None) -> bytes:
    """Writes ``value`` as Go's encoding/json does: no spaces, HTML characters escaped, keys in the order given."""
    separators = (",", ":") if indent is None else (",", ": ")
    text = json.dumps(value, separators=separators, ensure_ascii=False, indent=indent)
    for character, escape in (
        ("<", "\\u003c"),
        (">", "\\u003e"),
        ("&", "\\u0026"),
        ("\u2028", "\\u2028"),
        ("\u2029", "\\u2029"),
    ):
        if character in text:
            text = text.replace(character, escape)
    return text.encode()


@dataclass(frozen=True, slots=True)
class Platform:
    """Says what an image runs on, in Go's names (``linux``, ``amd64``)."""

    os: str = "linux"
    architecture: str = "amd64"
    variant: str = ""
    os_version: str = ""
    os_features: tuple[str, ...] = ()

    @classmethod
    def of_host(cls) -> Platform:
        """Returns the platform of the machine this runs on."""
        machine = os.uname().machine
        architecture = _GO_ARCHITECTURES.get(machine, machine)
        return cls("linux", architecture, {"arm64": "v8", "arm": "v7"}.get(architecture, ""))

    @classmethod
    def parse(cls, text: str) -> Platform:
        """Reads a platform from ``os/architecture[/variant]``."""
        parts = text.split("/")
        if len(parts) not in {2, 3} or not all(parts):
            raise UsageError(f"platform {text!r} is not os/architecture[/variant]")
        return cls(parts[0], parts[1], parts[2] if len(parts) == 3 else "")

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)

    def to_json(self) -> dict[str, Any]:
        out: dict[str, Any] = {"architecture": self.architecture, "os": self.os}
        if self.os_version:
            out["os.version"] = self.os_version
        if self.os_features:
            out["os.features"] = list(self.os_features)
        if self.variant:
            out["variant"] = self.variant
        return out

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Platform:
        """Reads one from an image's configuration or a descriptor; FormatError for features that are no list of
        strings.
        """
        return cls(
            str(value.get("os", "")),
            str(value.get("architecture", "")),
            str(value.get("variant", "")),
            str(value.get("os.version", "")),
            tuple(strings(value.get("os.features"), "platform: os.features")),
        )

    def accepts(self, offered: Platform) -> bool:
        """Says whether an image for ``offered`` runs here; an offer without a variant fits, and v8
        is arm64's only one.
        """
        if (self.os, self.architecture) != (offered.os, offered.architecture):
            return False
        return not self.variant or not offered.variant or self.variant == offered.variant


@dataclass(frozen=True, slots=True)
class Descriptor:
    """Points at content: media type, digest and size in bytes; ``annotations`` must not be modified."""

    media_type: str
    digest: str
    size: int
    annotations: Mapping[str, str] = field(default_factory=dict, hash=False)
    platform: Platform | None = None
    artifact_type: str = ""
    urls: tuple[str, ...] = ()
    data: str = ""

    @classmethod
    def of(cls, data: bytes, media_type: str, **fields: Any) -> Descriptor:
        """Makes the descriptor of ``data``, which is hashed here."""
        return cls(media_type, digest_bytes(data), len(data), **fields)

    def to_json(self) -> dict[str, Any]:
        """Writes keys in the order of Go's ``ocispec.Descriptor``; empty fields are left out, annotations sorted as Go
        maps.
        """
        out: dict[str, Any] = {"mediaType": self.media_type, "digest": self.digest, "size": self.size}
        if self.urls:
            out["urls"] = list(self.urls)
        if self.annotations:
            out["annotations"] = dict(sorted(self.annotations.items()))
        if self.data:
            out["data"] = self.data
        if self.platform is not None:
            out["platform"] = self.platform.to_json()
        if self.artifact_type:
            out["artifactType"] = self.artifact_type
        return out

    @classmethod
    def from_json(cls, value: Any, where: str = "descriptor") -> Descriptor:
        """Reads one from parsed JSON; FormatError when a required field is absent, of the wrong
        type, or not a digest.
        """
        if not isinstance(value, dict):
            raise FormatError(where, f"expected an object, found {type(value).__name__}")
        media_type, digest, size = value.get("mediaType", ""), value.get("digest"), value.get("size")
        if not isinstance(media_type, str):
            raise FormatError(where, "mediaType is not a string")
        if not isinstance(digest, str) or not is_digest(digest):
            raise FormatError(where, f"digest {digest!r} is neither sha256:<64 hex> nor sha512:<128 hex>")
        if not isinstance(size, int) or isinstance(size, bool) or size < 0:
            raise FormatError(where, f"size {size!r} is not a number of bytes")
        annotations = text_map(value.get("annotations"), where)
        platform = value.get("platform")
        return cls(
            media_type,
            digest,
            size,
            annotations,
            Platform.from_json(platform) if isinstance(platform, dict) else None,
            str(value.get("artifactType") or ""),
            tuple(strings(value.get("urls"), f"{where}: urls")),
            str(value.get("data") or ""),
        )

    @classmethod
    def list_from_json(cls, value: Any, where: str) -> list[Descriptor]:
        """Reads them from a parsed JSON list, or nothing where there is none; FormatError as for one."""
        if value is not None and not isinstance(value, list):
            raise FormatError(where, f"expected a list, found {type(value).__name__}")
        return [cls.from_json(entry, f"{where} {number}") for number, entry in enumerate(value or [])]

    @property
    def is_index(self) -> bool:
        return self.media_type in INDEX_TYPES

    @property
    def is_manifest(self) -> bool:
        return self.media_type in MANIFEST_TYPES

    @property
    def compression(self) -> str | None:
        """Returns ``none``, ``gzip`` or ``zstd`` for a layer's media type, None for anything else."""
        return LAYER_COMPRESSION.get(self.media_type)

    @property
    def hex(self) -> str:
        return self.digest.partition(":")[2]
