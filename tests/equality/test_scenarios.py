"""Every shipped scenario in every lazy mode shows what unpacking its image shows. By hand: ``nox -s equality``.

Slow: it builds the images that are not in the cache yet. ``COLDBENCH_EQUALITY`` names other scenarios or files. What it
found is recorded in docs/formats.md.
"""

from __future__ import annotations

import os
import shutil
import time
from typing import TYPE_CHECKING

import pytest

from harness import scenarios
from harness.formats.erofs.recording import Recording
from harness.lazyfs.compare import Facts, compare, survey
from harness.lazyfs.messages import GetUsage
from harness.model.modes import Form, find
from harness.oci.cache import Cache
from harness.oci.registry.server import RegistryServer
from harness.session.preparation import Preparer
from harness.session.progress import Silent
from tests.equality.independent import independent_survey
from tests.equality.support import KernelLog, shown, untarred

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.root

NAMES = os.environ.get("COLDBENCH_EQUALITY", "").split() or sorted(scenarios.available())
MODES = ("estargz", "soci", "erofs")
Tree = dict[bytes, Facts]


@pytest.fixture(scope="module")
def preparer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Preparer]:
    """Makes forms as ``coldbench run`` does, and pushes them to a registry on loopback."""
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    with RegistryServer(storage=tmp_path_factory.mktemp("registry")) as server:
        yield Preparer(Cache.default(), server.host, "equality/", lambda _: None, Silent())


@pytest.fixture(scope="module", params=NAMES)
def unpacked(
    request: pytest.FixtureRequest, preparer: Preparer, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Tree]:
    """A scenario's name and its tree as mode overlay2 shows it."""
    name = str(request.param)
    published = preparer.publish(scenarios.load(name), Form.IMAGE)
    with shown(preparer.host, published, "overlay2", tmp_path_factory.mktemp("overlay2")) as image:
        return name, survey(str(image.root))


def holds(name: str, way: str, expected: Tree, seen: Tree, started: float) -> None:
    found = list(compare(expected, seen))
    size = sum(facts.size or 0 for facts in seen.values() if facts.content)
    print(
        f"\n{name} {way}: {len(seen)} entries, {size / 1e6:.0f} MB, {len(found)} differences, "
        f"{time.monotonic() - started:.0f} s"
    )
    assert len(expected) > 100
    assert found == []


def test_unpacked_as_gnu_tar_does(unpacked: tuple[str, Tree], preparer: Preparer, tmp_path: Path) -> None:
    """Our unpacker and gzip with GNU tar make the same tree of the same layers."""
    name, expected = unpacked
    started = time.monotonic()
    with untarred(str(preparer.local(scenarios.load(name)).name), tmp_path) as root:
        holds(name, "GNU tar", expected, survey(str(root)), started)


@pytest.mark.parametrize("mode", MODES)
def test_served_lazily(unpacked: tuple[str, Tree], mode: str, preparer: Preparer, tmp_path: Path) -> None:
    """Every entry, type, mode, owner, size, link, time, device, attribute, target and byte; the kernel is content."""
    name, expected = unpacked
    published = preparer.publish(scenarios.load(name), find(mode).form)
    log = KernelLog()
    try:
        started = time.monotonic()
        with shown(preparer.host, published, mode, tmp_path) as image:
            seen = survey(str(image.root))
            assert image.requests()["read"] > 0  # it was FUSE that gave the bytes
        holds(name, mode, expected, seen, started)
        assert log.complaints() == []
    finally:
        log.close()


def test_served_from_a_start_pack(unpacked: tuple[str, Tree], preparer: Preparer, tmp_path: Path) -> None:
    """The same with a pack of the first 64 MB of the layers in use, and nothing else fetched in the background."""
    name, expected = unpacked
    scenario = scenarios.load(name)
    layers = preparer.local(scenario).image.layers
    recording = Recording(tuple((layer.digest, 0, 1 << 40) for layer in layers))
    published = preparer.publish(scenario, Form.EROFS_PACKED, (), recording)
    started = time.monotonic()
    with shown(preparer.host, published, "erofs", tmp_path, preset="packed", background=False) as image:
        seen = survey(str(image.root))
        assert image.client is not None
        usage = image.client.call(GetUsage())
    holds(name, "with a start pack", expected, seen, started)
    assert usage.pack is not None
    assert (usage.pack.failures, usage.pack.frames) == (0, usage.pack.frames_total)
    assert usage.pack.bytes_pushed > 0


def test_image_read_by_go_erofs(unpacked: tuple[str, Tree], preparer: Preparer, tmp_path: Path) -> None:
    """The one file that the daemon serves is an EROFS image to a reader that is neither ours nor the kernel's."""
    program = os.environ.get("COLDBENCH_EROFS_CHECK")
    if not program:
        pytest.skip("COLDBENCH_EROFS_CHECK names no independent reader (docs/formats.md)")
    name, expected = unpacked
    published = preparer.publish(scenarios.load(name), Form.EROFS)
    started = time.monotonic()
    with shown(preparer.host, published, "erofs", tmp_path / "served") as image:
        assert image.client is not None
        shutil.copyfile(os.path.join(image.client.wait_up().root, "image"), tmp_path / "image")
    holds(name, "go-erofs", expected, independent_survey(program, tmp_path / "image"), started)
    (tmp_path / "image").unlink()
