"""The lazy modes in the embedded engine, on a real machine with a real registry and crun."""

from __future__ import annotations

import dataclasses
import os
import signal
import time
from typing import TYPE_CHECKING

import pytest

from harness.engines import make_engine
from harness.engines.protocol import Process, Unwatched
from harness.errors import ContentError, ImageNotFound
from harness.formats.erofs import image as erofs_image
from harness.formats.estargz import image as estargz_image
from harness.formats.estargz.writer import EstargzOptions
from harness.formats.soci import image as soci_image
from harness.machine.machine import Machine
from harness.machine.network import SimulatedNetwork
from harness.model.engine import EmbeddedChoice
from harness.model.shape import Distance, parse_shape
from harness.model.timeline import Recorder
from harness.oci.descriptor import digest_bytes
from harness.oci.registry.push import RegistryDestination
from harness.oci.store import ImageSource
from tests.engines.support import TestRegistry, base_layer, run_registry
from tests.lazyfs.support import MODES, File, need_root, noise, tar_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from harness.model.details import EngineDetails
    from harness.model.observation import LazyUsage

pytestmark = pytest.mark.root

UPPER = tar_of(File("data", noise(200_000)), File("etc"), File("etc/.wh.group", b""))


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestRegistry]:
    """One image in all lazy forms, under the tags of their modes, and as it is under ``plain``."""
    need_root()
    with SimulatedNetwork("lazyfs") as network, run_registry(network.address, tmp_path_factory.mktemp("reg")) as found:
        found.push("plain", [base_layer(), UPPER])
        found.push("erofs", [base_layer(), UPPER])
        source = ImageSource(found.client(), "plain")
        image = source.resolve()
        destination = RegistryDestination(found.client(), "estargz")
        estargz_image.convert_image(source, image, destination, EstargzOptions())
        # The smaller layer gets no zTOC, so it is unpacked beside the lazy one.
        smallest = min(layer.size for layer in image.layers)
        options = soci_image.Options(min_layer_bytes=smallest + 1)
        soci_image.index_image(source, RegistryDestination(found.client(), "soci"), options)
        erofs = ImageSource(found.client(), "erofs")
        erofs_image.index_image(erofs, RegistryDestination(found.client(), "erofs"), copy=False)
        yield found


def start(
    registry: TestRegistry, mode: str, tag: str, trace: bool = False, distance: Distance | None = None
) -> tuple[LazyUsage, Recorder, list[str], bytes, EngineDetails]:
    """Deploy, wait for the end of the program, and give what the engine saw."""
    upstream = (registry.address, registry.port)
    with Machine(parse_shape("unlimited"), distance=distance or Distance(), registry_upstream=upstream) as machine:
        engine = make_engine(EmbeddedChoice())
        process = Process(args=("/bin/probe", "who"))
        request = dataclasses.replace(
            registry.request(tag, registry=machine.registry, process=process), mode=mode, trace=trace
        )
        try:
            engine.start(machine, request)
            timeline = Recorder(time.monotonic_ns())
            container = engine.deploy(machine, request, timeline, Unwatched())
            assert container.exit_code(20) == 0
            output = os.read(container.stdout, 10_000)
            engine.mark_ready()
            assert engine.finish_background(30, timeline)
            usage = engine.lazy_usage()
            assert usage is not None
            paths = [touch.path for touch in engine.first_touches()]
            details = engine.report().details
        finally:
            engine.tear_down()
    return usage, timeline, paths, output, details


@pytest.mark.parametrize("mode", MODES)
def test_container_runs_from_a_lazy_root(registry: TestRegistry, mode: str) -> None:
    """Index, mount, create and start are on the timeline; the program was read lazily; the rest came afterwards."""
    usage, timeline, paths, output, details = start(registry, mode, mode, trace=True)
    assert output
    if mode == "erofs":
        # The container may use no loop device; the agent, which mounts, may.
        assert (details.erofs, details.erofs_refused) == ("loops", None)
    assert {"resolve", "index", "mount", "create", "start", "background"} <= {span.name for span in timeline.spans}
    assert "/bin/probe" in paths
    assert usage.layers_lazy == (1 if mode == "soci" else 2)
    assert usage.layers_unpacked == (1 if mode == "soci" else 0)
    assert usage.bytes_fetched is not None
    assert usage.bytes_fetched_before_ready is not None
    assert 0 < usage.bytes_fetched_before_ready <= usage.bytes_fetched
    assert (usage.bytes_streamed, usage.streamed_since_s) == (0, None)
    assert usage.spans_fetched == usage.spans_total
    assert usage.fuse is not None
    assert usage.fuse["read"].count > 0


@pytest.mark.parametrize("mode", MODES)
def test_a_machines_daemon_is_replaced(registry: TestRegistry, mode: str) -> None:
    """Killed in its machine after the start, it is followed by another one, which the engine and its counters tell."""
    with Machine(parse_shape("unlimited"), registry_upstream=(registry.address, registry.port)) as machine:
        engine = make_engine(EmbeddedChoice())
        process = Process(args=("/bin/probe", "who"))
        request = dataclasses.replace(registry.request(mode, registry=machine.registry, process=process), mode=mode)
        try:
            engine.start(machine, request)
            timeline = Recorder(time.monotonic_ns())
            container = engine.deploy(machine, request, timeline, Unwatched())
            assert container.exit_code(20) == 0
            (killed,) = engine.daemon_pids()
            os.kill(killed, signal.SIGKILL)
            engine.mark_ready()
            assert engine.finish_background(30, timeline)
            usage = engine.lazy_usage()
            assert usage is not None
            assert (usage.restarts, usage.background_finished) == (1, True)
            assert engine.daemon_pids() not in {(), (killed,)}
            assert engine.report().details.survives_daemon is True
        finally:
            engine.tear_down()
        assert engine.daemon_pids() == ()


@pytest.mark.parametrize(("mode", "named_by"), [*((mode, "tag") for mode in MODES), ("erofs", "digest")])
def test_three_rounds_before_the_mount(registry: TestRegistry, mode: str, named_by: str) -> None:
    """No mode waits for more than three requests in a row: a name, what it names, what that names.

    A digest says at once what refers to it, though this registry lists that under a tag alone.
    """
    name = mode
    if named_by == "digest":
        client = registry.client()
        name = digest_bytes(client.manifest(mode)[0])
        client.close()
    usage, _timeline, _paths, output, details = start(
        registry, mode, name, distance=Distance(rtt_ms=20, first_byte_ms=100)
    )
    assert output
    assert details.rounds_before_mount == (2 if mode == "estargz" or named_by == "digest" else 3)
    assert usage.retries == 0
    # So far away the layers are streamed, too, and that is told; next to the registry they are not.
    assert usage.streamed_since_s is not None
    assert usage.streamed_since_s > 0
    assert "as foreseen" in usage.streamed_why
    assert usage.bytes_streamed_before_ready <= usage.bytes_fetched_before_ready  # type: ignore[operator]


@pytest.mark.parametrize(
    ("mode", "error"), [("soci", ContentError), ("estargz", ContentError), ("erofs", ImageNotFound)]
)
def test_image_without_an_index_fails_clearly(registry: TestRegistry, mode: str, error: type[Exception]) -> None:
    """It is not silently pulled whole: the error names the command that is missing."""
    with pytest.raises(error, match=r"coldbench (index|convert)"):
        start(registry, mode, "plain" if mode != "erofs" else "estargz")
