"""What we write is what the reference snapshotters read: started through them, lazily, and unpacked by containerd.

Run by hand with ``nox -s interop``; slow (it builds ``python-data``) and in need of the reference tools. What it found
is recorded in docs/formats.md.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import stat
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from harness.oci.cache import Cache
from harness.oci.registry.server import RegistryServer
from tests.interop.reference import Reference

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SCENARIO = os.environ.get("COLDBENCH_INTEROP_SCENARIO", "python-data")
CLONE_NEWNET = 0x40000000
HIDDEN = {"stargz.index.json", ".prefetch.landmark", ".no.prefetch.landmark"}


def coldbench(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "harness", *arguments], check=True)


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A registry on loopback with the scenario's image plain, as eStargz and with a SOCI index (v2).

    From here on this process and its children have a network namespace of their own: nobody else's traffic is counted.
    """
    coldbench("image", "build", SCENARIO)
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.unshare(CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    with RegistryServer(storage=tmp_path_factory.mktemp("registry")) as server:
        base = f"{server.host}/interop"
        coldbench("image", "push", f"scenario:{SCENARIO}", f"docker://{base}:plain")
        coldbench("convert", "estargz", f"scenario:{SCENARIO}", f"docker://{base}:esgz")
        coldbench("index", "soci", f"scenario:{SCENARIO}", f"docker://{base}:soci", "--v2")
        yield base


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reference]:
    daemons = Reference(tmp_path_factory.mktemp("reference"))
    try:
        daemons.start()
        yield daemons
    finally:
        daemons.stop()


def compressed_bytes() -> int:
    from harness.images.catalog import materialise
    from harness.oci.location import open_source
    from harness.scenarios import find, load

    name = materialise(load(find(SCENARIO)).image, Cache.default(), lambda *_: None)
    with open_source(name) as source:
        return source.resolve().compressed_bytes


@pytest.mark.root
@pytest.mark.parametrize(("snapshotter", "tag"), [("stargz", "esgz"), ("soci", "soci")])
def test_reference_snapshotter_starts_it_lazily(
    registry: str, reference: Reference, snapshotter: str, tag: str
) -> None:
    """The container runs to exit code 0 with a small part of the image on the wire."""
    answer = reference.run(snapshotter, f"{registry}:{tag}", "python3", "-c", "print('hello')")
    total = compressed_bytes()
    print(f"{snapshotter}: {answer['bytes'] / 1e6:.1f} MB on the wire of {total / 1e6:.0f} MB, {answer['seconds']}")
    assert answer["code"] == 0
    assert answer["bytes"] < total / 3


@pytest.mark.root
def test_containerd_unpacks_our_estargz_to_the_original_tree(
    registry: str, reference: Reference, tmp_path: Path
) -> None:
    """Every entry, attribute and byte is that of the original image; only the TOC and the landmark are more."""
    with reference.unpacked(f"{registry}:plain", tmp_path / "plain") as plain:
        original = dict(walk(plain))
    with reference.unpacked(f"{registry}:esgz", tmp_path / "esgz") as converted:
        ours = dict(walk(converted))
    extra = set(ours) - set(original)
    assert extra <= HIDDEN
    for name in extra:
        del ours[name]
    assert len(original) > 1000
    assert ours == original


def walk(root: Path) -> Iterator[tuple[str, tuple[object, ...]]]:
    """Every entry with its attributes and, for regular files, the digest of its bytes."""
    for directory, names, files in os.walk(root):
        for name in [*names, *files]:
            path = os.path.join(directory, name)
            status = os.lstat(path)
            content: object = None
            if stat.S_ISREG(status.st_mode):
                with open(path, "rb") as file:
                    content = hashlib.file_digest(file, "sha256").hexdigest()
            elif stat.S_ISLNK(status.st_mode):
                content = os.readlink(path)
            xattrs = tuple(
                (x, os.getxattr(path, x, follow_symlinks=False))
                for x in sorted(os.listxattr(path, follow_symlinks=False))
            )
            # A directory's time changes when the TOC is unpacked into the root; that of the root is not compared.
            yield (
                os.path.relpath(path, root),
                (
                    status.st_mode,
                    status.st_uid,
                    status.st_gid,
                    status.st_mtime_ns,
                    status.st_rdev,
                    status.st_size if stat.S_ISREG(status.st_mode) else 0,
                    status.st_nlink if not stat.S_ISDIR(status.st_mode) else 0,
                    content,
                    xattrs,
                ),
            )
