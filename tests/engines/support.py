"""A real registry with small real images, and a machine to run them in."""

from __future__ import annotations

import functools
import gzip
import io
import json
import shutil
import socket
import subprocess
import tarfile
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.engines.protocol import DeployRequest, Process, Unwatched
from harness.oci.descriptor import (
    DOCKER_INDEX,
    DOCKER_LAYER_GZIP,
    OCI_INDEX,
    OCI_LAYER_GZIP,
    Descriptor,
    digest_bytes,
)
from harness.oci.registry.client import RegistryClient
from harness.oci.registry.push import RegistryDestination
from tests.support.images import Layer, put_image

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from harness.engines.protocol import Container
    from harness.model.observation import Phase

Member = tuple[str, dict[str, Any]]
"""A tar member: its name and the ``TarInfo`` fields to set; ``data`` makes a regular file."""

REPOSITORY = "test/image"


def tar_bytes(members: Sequence[Member], pax: bool = True) -> bytes:
    """A tar of ``members``; deterministic."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT if pax else tarfile.GNU_FORMAT) as archive:
        for name, fields in members:
            info = tarfile.TarInfo(name)
            info.mtime = 1_600_000_000
            data = fields.get("data")
            for key, value in fields.items():
                if key != "data":
                    setattr(info, key, value)
            if data is not None:
                info.size = len(data)
            archive.addfile(info, io.BytesIO(data) if data is not None else None)
    return out.getvalue()


@functools.cache
def program() -> bytes:
    """The static program of the test image, compiled once."""
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory) / "probe"
        source = Path(__file__).with_name("probe.c")
        subprocess.run(["cc", "-Os", "-s", "-static", "-o", out, source], check=True)
        return out.read_bytes()


def directory(mode: int = 0o755) -> dict[str, Any]:
    return {"type": tarfile.DIRTYPE, "mode": mode}


def base_layer() -> bytes:
    """Root file system with one program, a user ``app`` (1000:100, also in group 200) and the usual directories."""
    return tar_bytes(
        [
            ("bin", directory()),
            ("bin/probe", {"data": program(), "mode": 0o755}),
            ("etc", directory()),
            ("etc/passwd", {"data": b"root:x:0:0::/root:/bin/sh\napp:x:1000:100::/home/app:/bin/sh\n", "mode": 0o644}),
            ("etc/group", {"data": b"root:x:0:\nstaff:x:100:\nextra:x:200:app\n", "mode": 0o644}),
            ("tmp", directory(0o1777)),
        ]
    )


class TestRegistry:
    """The distribution registry on ``address``, its storage in ``storage``."""

    __test__ = False

    def __init__(self, address: str, port: int, storage: Path) -> None:
        self.address, self.port, self.storage = address, port, storage

    @property
    def host(self) -> str:
        return f"{self.address}:{self.port}"

    def client(self, repository: str = REPOSITORY) -> RegistryClient:
        return RegistryClient(self.host, repository, plain=True)

    def blob_file(self, digest: str) -> Path:
        """The file in which the registry keeps a blob, for faults that no client may cause."""
        value = digest.partition(":")[2]
        return self.storage / "docker/registry/v2/blobs/sha256" / value[:2] / value / "data"

    def push(
        self,
        tag: str,
        layers: Sequence[bytes],
        config: dict[str, Any] | None = None,
        *,
        docker: bool = False,
        layer_type: str = "",
        index: bool = False,
        diff_ids: Sequence[str] | None = None,
        compress: bool = True,
    ) -> list[Descriptor]:
        """Push an image of these tars; the layers' descriptors, lowest first."""
        destination = RegistryDestination(self.client())
        kind = layer_type or (DOCKER_LAYER_GZIP if docker else OCI_LAYER_GZIP)
        stored = [gzip.compress(layer, 6, mtime=0) if compress else layer for layer in layers]
        digests = diff_ids or [digest_bytes(layer) for layer in layers]
        described = [Layer(blob, kind, digest) for blob, digest in zip(stored, digests, strict=True)]
        config = config or {"Entrypoint": ["/bin/probe"]}
        pushed = put_image(destination, "" if index else tag, described, config=config, docker=docker)
        if index:
            entry = {**pushed.to_json(), "platform": {"os": "linux", "architecture": "amd64"}}
            kind = DOCKER_INDEX if docker else OCI_INDEX
            listing = {"schemaVersion": 2, "mediaType": kind, "manifests": [entry]}
            destination.put_manifest(json.dumps(listing).encode(), kind, tag)
        destination.close()
        return [Descriptor.of(layer.blob, layer.media_type) for layer in described]

    def request(self, tag: str, *args: str, preset: str = "tuned", registry: str = "", **fields: Any) -> DeployRequest:
        """A deploy request for one of the images."""
        process = fields.pop("process", None) or Process(args=("/bin/probe", *args) if args else ())
        return DeployRequest(
            registry=registry or self.host,
            repository=REPOSITORY,
            reference=tag,
            mode="overlay2",
            preset=preset,
            process=process,
            **fields,
        )


@contextmanager
def run_registry(address: str, directory: Path, tls: tuple[Path, Path] | None = None) -> Iterator[TestRegistry]:
    """Start ``docker-registry`` on a free port of ``address`` (``tls``: certificate and key); stopped at the end."""
    found = shutil.which("docker-registry")
    assert found, "docker-registry is not installed; apt-get install docker-registry"
    storage = directory / "storage"
    storage.mkdir(parents=True)
    with socket.create_server((address, 0)) as free:
        port = free.getsockname()[1]
    config = directory / "registry.yml"
    secured = f", tls: {{certificate: {tls[0]}, key: {tls[1]}}}" if tls else ""
    config.write_text(
        f"version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\n"
        f"storage: {{filesystem: {{rootdirectory: {storage}}}}}\n"
        f"http: {{addr: '{address}:{port}', secret: test{secured}}}\n"
    )
    with (directory / "registry.log").open("wb") as log:
        process = subprocess.Popen([found, "serve", str(config)], stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 20
        while True:
            try:
                socket.create_connection((address, port), 1).close()
                break
            except OSError:
                assert process.poll() is None, (directory / "registry.log").read_text()
                assert time.monotonic() < deadline, "the registry did not start"
                time.sleep(0.02)
        yield TestRegistry(address, port, storage)
    finally:
        process.terminate()
        process.wait()


class Watching(Unwatched):
    """Hands each container to ``created`` and keeps the names of the phases."""

    def __init__(self, created: Callable[[Container], object]) -> None:
        self._created = created
        self.phases: list[str] = []

    def phase(self, name: Phase) -> None:
        self.phases.append(name)

    def created(self, container: Container) -> None:
        self._created(container)
