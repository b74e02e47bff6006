"""This module writes what the daemons are told: containerd's and the snapshotters' configuration files, all on the
scratch disk.

Nothing lies in containerd's usual places (/run/containerd, /var/lib/containerd, /opt/containerd): a containerd of the
host's own neither meets ours nor hands it anything, and all of ours goes with the machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.model.policy import Snapshotter

if TYPE_CHECKING:
    from pathlib import Path

CONTAINERD_METRICS_PORT = 61338
METRICS_PORTS = {Snapshotter.STARGZ: 61339, Snapshotter.SOCI: 61340}
#: Of containerd's own keys: chunks of one layer fetched at once, and layers unpacked at once.
_FETCH_CHUNK_BYTES = 8 << 20
_PARALLEL_DOWNLOADS = 8
_PARALLEL_UNPACKS = 4
#: What has nothing to do here and would touch the host: kubelet's side, node resource plug-ins, /opt/containerd.
_DISABLED = (
    "io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime",
    "io.containerd.nri.v1.nri", "io.containerd.internal.v1.opt", "io.containerd.tracing.processor.v1.otlp",
    "io.containerd.internal.v1.tracing", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper",
    "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.blockfile",
    "io.containerd.podsandbox.controller.v1.podsandbox", "io.containerd.image-verifier.v1.bindir",
)  # fmt: skip


@dataclass(frozen=True)
class Places:
    """Holds the paths of one trial's daemons, as they see them."""

    root: Path

    @property
    def containerd_socket(self) -> Path:
        return self.root / "containerd.sock"

    @property
    def snapshotter_socket(self) -> Path:
        return self.root / "snapshotter.sock"

    @property
    def snapshotter_root(self) -> Path:
        return self.root / "snapshotter"

    @property
    def containerd_config(self) -> Path:
        return self.root / "containerd.toml"

    @property
    def snapshotter_config(self) -> Path:
        return self.root / "snapshotter.toml"

    @property
    def state(self) -> Path:
        return self.root / "state"

    @property
    def home(self) -> Path:
        """Returns HOME of the daemons: it is empty, so that no configuration of the user's leaks in."""
        return self.root / "home"

    def rootfs(self, namespace: str, container: str) -> Path:
        """Returns where containerd mounts a container's root file system."""
        return self.state / "io.containerd.runtime.v2.task" / namespace / container / "rootfs"


def containerd_config(
    places: Places, snapshotter: Snapshotter, *, proxied: bool, parallel: bool, platform: str, labels: bool = True
) -> str:
    """Writes containerd's file for one snapshotter.

    ``proxied``: its daemon is a program of its own. ``labels``: the daemon tells such a snapshotter image, manifest and
    layers by labels; without them SOCI quietly unpacks everything. ``parallel``: layers are fetched in chunks and
    unpacked several at once.
    """
    disabled = ", ".join(f'"{name}"' for name in _DISABLED)
    lines = [
        "version = 3",
        f'root = "{places.root / "root"}"',
        f'state = "{places.state}"',
        f"disabled_plugins = [{disabled}]",
        f'[grpc]\naddress = "{places.containerd_socket}"',
        f'[ttrpc]\naddress = "{places.containerd_socket}.ttrpc"',
        f'[metrics]\naddress = "127.0.0.1:{CONTAINERD_METRICS_PORT}"',
        # A short path: the kernel allows a socket's name 107 bytes, containerd 42 for this part.
        f'[plugins."io.containerd.shim.v1.manager"]\nsocket_dir = "{places.root / "s"}"',
        '[plugins."io.containerd.transfer.v1.local"]',
    ]
    if parallel:
        lines += [
            f"concurrent_layer_fetch_buffer = {_FETCH_CHUNK_BYTES}",
            f"max_concurrent_downloads = {_PARALLEL_DOWNLOADS}",
            f"max_concurrent_unpacks = {_PARALLEL_UNPACKS}",
        ]
    lines += [
        '[[plugins."io.containerd.transfer.v1.local".unpack_config]]',
        f'platform = "{platform}"\nsnapshotter = "{snapshotter}"',
        f'differ = "{snapshotter.value if snapshotter is Snapshotter.EROFS else "walking"}"',
    ]
    if proxied:
        lines.append(f'[proxy_plugins.{snapshotter.value}]\ntype = "snapshot"\naddress = "{places.snapshotter_socket}"')
        if labels:
            lines.append(f'[proxy_plugins.{snapshotter}.exports]\nenable_remote_snapshot_annotations = "true"')
    return "\n".join(lines) + "\n"


def stargz_config(registry: str, *, plain_http: bool) -> str:
    """Writes stargz-snapshotter's file: its defaults, but for how the registry is spoken to and for its metrics."""
    lines = [f'metrics_address = "127.0.0.1:{METRICS_PORTS[Snapshotter.STARGZ]}"']
    if plain_http:
        lines.append(f'[[resolver.host."{registry}".mirrors]]\nhost = "{registry}"\ninsecure = true')
    return "\n".join(lines) + "\n"


def soci_config(places: Places, registry: str, *, plain_http: bool, parallel_pull: bool) -> str:
    """Writes the SOCI snapshotter's file: its defaults, but for how the registry is spoken to, its content store and
    metrics.

    ``parallel_pull``: it fetches and unpacks whole layers itself, several at once, instead of serving them lazily; the
    values are those of its documentation (docs/parallel-mode.md of soci-snapshotter 0.16).
    """
    store = "containerd" if parallel_pull else "soci"
    lines = [
        f'metrics_address = "127.0.0.1:{METRICS_PORTS[Snapshotter.SOCI]}"\nmetrics_network = "tcp"',
        f'[content_store]\ntype = "{store}"\ncontainerd_address = "{places.containerd_socket}"',
    ]
    if parallel_pull:
        lines.append(
            "[pull_modes.soci_v1]\nenable = false\n[pull_modes.soci_v2]\nenable = false\n"
            "[pull_modes.parallel_pull_unpack]\nenable = true\n"
            "max_concurrent_downloads = 50\nmax_concurrent_downloads_per_image = 10\n"
            'concurrent_download_chunk_size = "8mb"\nmax_concurrent_unpacks = 20\n'
            "max_concurrent_unpacks_per_image = 10\ndiscard_unpacked_layers = true"
        )
    if plain_http:
        # SOCI parses a mirror as a URL; without its scheme it falls back to a full pull, silently.
        lines.append(f'[[resolver.host."{registry}".mirrors]]\nhost = "http://{registry}"\ninsecure = true')
    return "\n".join(lines) + "\n"
