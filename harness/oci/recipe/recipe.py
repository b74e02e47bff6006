"""This module builds a recipe into an OCI layout in the cache: each layer once, shared between images, atomically.

A layer's key covers the layer itself, everything below it, the epoch and this builder's version, so that equal bases
of different recipes are one layer. Packages are as the mirrors give them on the day of the build.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.errors import ContentError, DigestMismatch
from harness.oci.descriptor import OCI_CONFIG, OCI_LAYER_GZIP, OCI_MANIFEST, Descriptor, Platform, go_json
from harness.oci.layout import LayoutStore
from harness.oci.recipe.build_root import BuildRoot, need_root
from harness.oci.recipe.layer_gzip import GzipLayerWriter
from harness.oci.recipe.layer_tar import tree_size, write_layer
from harness.oci.recipe.layers import build_layer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from harness.model.image import ImageConfig, Recipe
    from harness.oci.cache import Cache

BUILDER_VERSION = 1
TAG = "image"


def _silent(what: str, done: int, total: int) -> None:
    """Does nothing: no progress is wanted."""


@dataclass(frozen=True, slots=True)
class BuiltLayer:
    """Names a finished layer in the cache."""

    path: Path
    digest: str
    size: int
    diff_id: str
    plain_bytes: int
    entries: int
    description: str

    @property
    def descriptor(self) -> Descriptor:
        return Descriptor(OCI_LAYER_GZIP, self.digest, self.size)


def layer_keys(recipe: Recipe) -> list[str]:
    """Returns the cache key of every layer, bottom first."""
    keys: list[str] = []
    below = ""
    for layer in recipe.layers:
        stated = {
            "builder": BUILDER_VERSION,
            "below": below,
            "epoch": recipe.epoch_s,
            "platform": str(Platform.of_host()),
            "layer": layer.model_dump(mode="json"),
        }
        below = hashlib.sha256(json.dumps(stated, sort_keys=True).encode()).hexdigest()
        keys.append(below)
    return keys


def recipe_key(recipe: Recipe) -> str:
    """Returns the cache key of the whole image: its top layer and its configuration."""
    stated = {"layers": layer_keys(recipe), "config": recipe.config.model_dump(mode="json")}
    return hashlib.sha256(json.dumps(stated, sort_keys=True).encode()).hexdigest()


def recipe_place(recipe: Recipe, cache: Cache) -> Path:
    """Returns where the layout of a recipe's image is, once it is built."""
    return cache.images / recipe_key(recipe)


def build_recipe(recipe: Recipe, cache: Cache, report: Callable[[str, int, int], object] = _silent) -> Path:
    """Returns the layout directory (its image is tagged ``image``) of a recipe, built unless it is there.

    ``report`` is told of progress as (what is done, bytes so far, bytes in all or 0).
    """
    key = recipe_key(recipe)
    place = cache.images / key
    if cache.has(place):
        return place
    with cache.lock(f"image-{key}", lambda: report("waiting for another build of this image", 0, 0)):
        if cache.has(place):
            return place
        layers = build_layers(recipe, cache, report)
        with cache.scratch("image") as scratch:
            made = scratch / "layout"
            write_layout(made, recipe.config, recipe.epoch_s, layers)
            cache.commit(made, place)
    return place


def build_layers(recipe: Recipe, cache: Cache, report: Callable[[str, int, int], object]) -> list[BuiltLayer]:
    """Brings all layers of a recipe, from the cache or built; trees exist only while something above is being built."""
    keys = layer_keys(recipe)
    built: list[BuiltLayer] = []
    with cache.scratch("trees") as scratch:
        trees: list[Path] = []
        for number, (key, layer) in enumerate(zip(keys, recipe.layers, strict=True)):
            with cache.lock(f"layer-{key}", lambda: report("waiting for another build of this layer", 0, 0)):
                if not (cache.layers / key).is_dir():
                    need_root("building an image from a recipe")
                    for index in range(len(trees), number):
                        tree = scratch / f"lower{index}"
                        report(f"unpacking layer {index + 1} to build on", 0, 0)
                        unpack_layer(built[index], tree)
                        trees.append(tree)
                    description = describe(layer)
                    report(f"layer {number + 1}/{len(keys)}: {description}", 0, 0)
                    root = BuildRoot(scratch / f"build{number}", tuple(trees))
                    root.scratch.mkdir()
                    if trees:
                        root.prepare()
                    else:
                        root.upper.mkdir(mode=0o755)
                        root.merged.mkdir()
                    build_layer(layer, root, recipe.epoch_s)
                    pack_layer(root, cache, key, recipe.epoch_s, description, report=report)
                    trees.append(root.upper)
            built.append(load_layer(cache.layers / key))
    return built


def describe(layer: Any) -> str:
    """Describes a layer in one line for people: its kind and what it brings."""
    if layer.kind == "debian":
        return f"debian {layer.suite} + {len(layer.packages)} packages"
    if layer.kind == "pip":
        return f"pip: {', '.join(layer.requirements[:4])}{', …' if len(layer.requirements) > 4 else ''}"
    if layer.kind == "npm":
        return f"npm: {', '.join(layer.packages[:4])}{', …' if len(layer.packages) > 4 else ''}"
    return f"files: {', '.join(file.path for file in layer.files[:4])}{', …' if len(layer.files) > 4 else ''}"


def pack_layer(
    root: BuildRoot,
    cache: Cache,
    key: str,
    epoch_s: int,
    description: str,
    *,
    report: Callable[[str, int, int], object],
) -> None:
    """Compresses what was built into the cache entry ``key``."""
    _, total = tree_size(root.upper)
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        report(f"compressing {description}", done, total)

    with cache.scratch("layer") as scratch:
        made = scratch / "entry"
        made.mkdir()
        with open(made / "layer.tar.gz", "wb") as file, GzipLayerWriter(file) as writer:
            entries = write_layer(root.upper, writer, epoch_s, advance, lowers=root.lowers)
        facts = {
            "digest": writer.digest,
            "size": writer.packed_bytes,
            "diff_id": writer.diff_id,
            "plain_bytes": writer.plain_bytes,
            "entries": entries,
            "description": description,
        }
        (made / "layer.json").write_text(json.dumps(facts, indent=1) + "\n")
        cache.commit(made, cache.layers / key)


def load_layer(directory: Path) -> BuiltLayer:
    try:
        facts = json.loads((directory / "layer.json").read_bytes())
        return BuiltLayer(path=directory / "layer.tar.gz", **facts)
    except (OSError, ValueError, TypeError) as error:
        raise ContentError(
            f"{directory}: damaged cache entry ({error}); remove the directory and build again"
        ) from None


def unpack_layer(layer: BuiltLayer, tree: Path) -> None:
    """Unpacks one of our own layers for OverlayFS: markers become whiteout devices and opaque xattrs."""
    tree.mkdir(mode=0o755)
    with open(layer.path, "rb") as file:
        # The bytes that were hashed are those that are unpacked: the same open file, and nobody else may write to it.
        actual = "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()
        if actual != layer.digest:
            raise DigestMismatch(f"{layer.path} (remove its directory to build it again)", layer.digest, actual)
        file.seek(0)
        done = subprocess.run(
            ["tar", "-xzp", "-C", str(tree), "--numeric-owner", "--xattrs", "--xattrs-include=*"],
            stdin=file,
            capture_output=True,
            check=False,
        )
    if done.returncode != 0:
        raise ContentError(f"{layer.path}: cannot be unpacked: {done.stderr.decode(errors='replace').strip()[:200]}")
    restore_whiteouts(tree)


def restore_whiteouts(tree: Path) -> None:
    """Turns the markers of an unpacked layer into what OverlayFS understands in a lower directory."""
    for marker in sorted(tree.rglob(".wh.*")):
        marker.unlink()
        if marker.name == ".wh..wh..opq":
            os.setxattr(marker.parent, "trusted.overlay.opaque", b"y")
        else:
            os.mknod(marker.parent / marker.name.removeprefix(".wh."), 0o020000, os.makedev(0, 0))


def write_layout(directory: Path, config: ImageConfig, epoch_s: int, layers: list[BuiltLayer]) -> Descriptor:
    """Writes an OCI layout with one image, whose layers are hard links into the cache; returns the manifest's
    descriptor.
    """
    store = LayoutStore(directory, create=True)
    for layer in layers:
        target = directory / "blobs" / "sha256" / layer.descriptor.hex
        try:
            target.hardlink_to(layer.path)
        except FileExistsError:
            continue
        except OSError:
            shutil.copyfile(layer.path, target)
    data = go_json(image_config(config, epoch_s, layers))
    descriptor = Descriptor.of(data, OCI_CONFIG)
    store.put_blob(descriptor, data)
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": descriptor.to_json(),
        "layers": [layer.descriptor.to_json() for layer in layers],
    }
    return store.put_manifest(go_json(manifest), OCI_MANIFEST, TAG)


def image_config(config: ImageConfig, epoch_s: int, layers: list[BuiltLayer]) -> dict[str, Any]:
    """Writes the configuration blob (OCI image spec, config.md), keys in Go's order."""
    import datetime

    created = datetime.datetime.fromtimestamp(epoch_s, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    env = {"PATH": path} | config.env
    run: dict[str, Any] = {}
    if config.user:
        run["User"] = config.user
    if config.ports:
        run["ExposedPorts"] = {port: {} for port in sorted(config.ports)}
    run["Env"] = [f"{key}={value}" for key, value in env.items()]
    if config.entrypoint:
        run["Entrypoint"] = list(config.entrypoint)
    if config.command:
        run["Cmd"] = list(config.command)
    run["WorkingDir"] = config.cwd
    platform = Platform.of_host()
    return {
        "created": created,
        "architecture": platform.architecture,
        **({"variant": platform.variant} if platform.variant else {}),
        "os": platform.os,
        "config": run,
        "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in layers]},
        "history": [{"created": created, "created_by": layer.description, "comment": "coldbench"} for layer in layers],
    }
