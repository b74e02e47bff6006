"""This module holds an image resolved to one platform: its manifest, its configuration, and how it was found."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from harness.errors import FormatError, UnsupportedMediaType
from harness.oci.descriptor import (
    CONFIG_TYPES,
    INDEX_TYPES,
    MANIFEST_TYPES,
    OCI_INDEX,
    OCI_MANIFEST,
    Descriptor,
    Platform,
    strings,
    text_map,
)

MAX_CONFIG_BYTES = 16 << 20
"""Configurations are read into memory and parsed; real ones have some tens of kilobytes."""
MAX_MANIFEST_BYTES = 4 << 20
"""Registries must take manifests of at least this size (distribution spec); larger ones are refused unread."""


@dataclass(frozen=True, slots=True)
class Image:
    """Holds one platform's image: exact bytes and parsed forms; layers bottom first, one diff ID each.

    ``chain`` holds the indexes walked on the way here, outermost first, as (descriptor, exact bytes); empty when the
    name led straight to a manifest.
    """

    descriptor: Descriptor
    manifest: dict[str, Any]
    manifest_bytes: bytes
    config_descriptor: Descriptor
    config: dict[str, Any]
    config_bytes: bytes
    layers: tuple[Descriptor, ...]
    diff_ids: tuple[str, ...]
    chain: tuple[tuple[Descriptor, bytes], ...] = ()

    @property
    def platform(self) -> Platform:
        return Platform.from_json(self.config)

    @property
    def compressed_bytes(self) -> int:
        """Sums up the bytes of all layers as stored."""
        return sum(layer.size for layer in self.layers)

    @property
    def annotations(self) -> dict[str, str]:
        return dict(self.manifest.get("annotations") or {})


def parse_json(data: bytes, where: str) -> dict[str, Any]:
    """Parses a JSON object; raises FormatError for anything else."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise FormatError(where, f"is not JSON ({error})") from None
    if not isinstance(value, dict):
        raise FormatError(where, "is not a JSON object")
    if b"\\ud" in data or b"\\uD" in data:
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise FormatError(where, "holds half of a surrogate pair, which is no text") from None
    return value


def media_type_of(document: dict[str, Any], stated: str = "") -> str:
    """Returns the media type of a manifest or index: its own field, else what the transport stated, else told by its
    shape.
    """
    own = document.get("mediaType")
    if isinstance(own, str) and own:
        return own
    stated = stated.partition(";")[0].strip()
    if stated in INDEX_TYPES or stated in MANIFEST_TYPES:
        return stated
    if "manifests" in document:
        return OCI_INDEX
    if "config" in document and "layers" in document:
        return OCI_MANIFEST
    if document.get("schemaVersion") == 1:
        return "application/vnd.docker.distribution.manifest.v1+json"
    return stated or "unknown"


MAX_INDEX_DEPTH = 4
"""An index inside an index is followed down to this depth; deeper ones are refused, since nobody makes them but to
harm.
"""
_MAX_NAMELESS = 16


@dataclass(frozen=True, slots=True)
class Candidates:
    """Holds the entries of an index that may run on a platform, in the order in which to try them.

    ``fitting`` say so themselves. ``nameless`` name no platform, so their configuration has to say it. ``offered`` are
    all platforms of the index, for messages.
    """

    fitting: tuple[Descriptor, ...]
    nameless: tuple[Descriptor, ...]
    offered: str


def platform_candidates(index: dict[str, Any], platform: Platform, where: str) -> Candidates:
    """Lists the entries of an index to try for ``platform``: an exact variant before an open one, else in order (OCI
    1.1).

    Entries for other purposes (attestations with platform unknown/unknown, artefacts) are never among them.
    """
    entries = Descriptor.list_from_json(index.get("manifests"), f"{where}: manifests")
    images = [entry for entry in entries if entry.is_manifest or entry.is_index]
    named = [entry for entry in images if entry.platform is not None and str(entry.platform)]
    fitting = [entry for entry in named if entry.platform is not None and platform.accepts(entry.platform)]
    fitting.sort(key=lambda entry: entry.platform is None or entry.platform.variant != platform.variant)
    nameless = [entry for entry in images if entry not in named and not entry.artifact_type]
    offered = sorted({str(entry.platform) for entry in named} - {"unknown/unknown"})
    return Candidates(tuple(fitting), tuple(nameless[:_MAX_NAMELESS]), ", ".join(offered) or "none")


def check_manifest(document: dict[str, Any], media_type: str, where: str) -> tuple[Descriptor, tuple[Descriptor, ...]]:
    """Returns config and layer descriptors of an image manifest; UnsupportedMediaType when it is
    not a container image.
    """
    if media_type not in MANIFEST_TYPES:
        raise UnsupportedMediaType(f"{where}: media type {media_type} is not an image manifest this program reads")
    if not isinstance(document.get("layers"), list):
        raise FormatError(where, "the manifest has no layers")
    text_map(document.get("annotations"), f"{where}: manifest")
    config = Descriptor.from_json(document.get("config"), f"{where}: config")
    return config, tuple(Descriptor.list_from_json(document["layers"], f"{where}: layer"))


def checked_diff_ids(config: dict[str, Any], where: str) -> list[str]:
    """Returns diff IDs; FormatError when a part of the configuration that is used later is not of
    its type (OCI 1.1).
    """
    rootfs, run = config.get("rootfs") or {}, config.get("config") or {}
    if not isinstance(rootfs, dict) or not isinstance(run, dict):
        raise FormatError(where, "rootfs and config are not JSON objects")
    for key in ("Entrypoint", "Cmd", "Env"):
        strings(run.get(key), f"{where}: {key}")
    Platform.from_json(config)
    return strings(rootfs.get("diff_ids"), f"{where}: diff_ids")


def build_image(
    descriptor: Descriptor,
    manifest_bytes: bytes,
    config_bytes: bytes,
    where: str,
    chain: tuple[tuple[Descriptor, bytes], ...] = (),
) -> Image:
    """Puts an image together from verified bytes and checks that its parts agree."""
    manifest = parse_json(manifest_bytes, f"{where}: manifest")
    config_descriptor, layers = check_manifest(manifest, media_type_of(manifest, descriptor.media_type), where)
    if config_descriptor.media_type not in CONFIG_TYPES:
        raise UnsupportedMediaType(
            f"{where}: config of media type {config_descriptor.media_type} is not a container image's"
        )
    for number, layer in enumerate(layers):
        if layer.compression is None:
            raise UnsupportedMediaType(f"{where}: layer {number} has media type {layer.media_type}")
    config = parse_json(config_bytes, f"{where}: config")
    diff_ids = checked_diff_ids(config, f"{where}: config")
    if len(diff_ids) != len(layers):
        raise FormatError(f"{where}: config", f"{len(diff_ids)} diff_ids for {len(layers)} layers")
    return Image(
        descriptor,
        manifest,
        manifest_bytes,
        config_descriptor,
        config,
        config_bytes,
        layers,
        tuple(diff_ids),
        chain,
    )
