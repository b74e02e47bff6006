"""The engine's pure parts: what daemons are told, what their words mean, and when a lazy start was none."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from harness.engines.containerd import fallback, metrics
from harness.engines.containerd.configuration import Places, containerd_config, soci_config, stargz_config
from harness.engines.containerd.failures import explain
from harness.engines.containerd.fallback import Layers
from harness.engines.containerd.programs import numbers
from harness.errors import (
    AuthError,
    ColdbenchError,
    DigestMismatch,
    DiskFull,
    ImageNotFound,
    MachineError,
    RegistryError,
    UnsupportedMediaType,
    WorkloadError,
)
from harness.model.policy import Snapshotter

PLACES = Places(Path("/run/coldbench/0123abcd/scratch/ctd"))
TRANSFER = "io.containerd.transfer.v1.local"


def test_containerd_keeps_to_the_scratch_disk() -> None:
    """No path of the configuration lies outside the machine's own directory, and sockets' names are short enough."""
    read = tomllib.loads(
        containerd_config(PLACES, Snapshotter.SOCI, proxied=True, parallel=False, platform="linux/amd64")
    )
    paths = [read["root"], read["state"], read["grpc"]["address"], read["ttrpc"]["address"]]
    paths.append(read["proxy_plugins"]["soci"]["address"])
    shims = read["plugins"]["io.containerd.shim.v1.manager"]["socket_dir"]
    assert all(path.startswith(f"{PLACES.root}/") for path in [*paths, shims])
    assert len(shims) <= 42  # containerd refuses longer ones
    assert "io.containerd.nri.v1.nri" in read["disabled_plugins"]


def test_remote_snapshotters_are_told_by_labels() -> None:
    """containerd hands a lazy snapshotter image and layers, which is an export of the plugin; the others need none."""
    read = tomllib.loads(
        containerd_config(PLACES, Snapshotter.STARGZ, proxied=True, parallel=False, platform="linux/amd64")
    )
    assert read["proxy_plugins"]["stargz"]["exports"] == {"enable_remote_snapshot_annotations": "true"}
    assert read["plugins"][TRANSFER]["unpack_config"][0]["snapshotter"] == "stargz"
    plain = tomllib.loads(
        containerd_config(PLACES, Snapshotter.OVERLAYFS, proxied=False, parallel=True, platform="linux/amd64")
    )
    assert "proxy_plugins" not in plain
    assert plain["plugins"][TRANSFER]["max_concurrent_unpacks"] > 1
    assert plain["plugins"][TRANSFER]["concurrent_layer_fetch_buffer"] > 512


def test_snapshotters_speak_plain_http_to_the_registry_only() -> None:
    """The mirror has the form each of them parses: a host for stargz, a URL for SOCI."""
    stargz = tomllib.loads(stargz_config("198.18.0.1:5000", plain_http=True))
    assert stargz["resolver"]["host"]["198.18.0.1:5000"]["mirrors"] == [{"host": "198.18.0.1:5000", "insecure": True}]
    soci = tomllib.loads(soci_config(PLACES, "198.18.0.1:5000", plain_http=True, parallel_pull=False))
    assert soci["resolver"]["host"]["198.18.0.1:5000"]["mirrors"][0]["host"] == "http://198.18.0.1:5000"
    assert soci["content_store"]["type"] == "soci"
    whole = tomllib.loads(soci_config(PLACES, "198.18.0.1:5000", plain_http=True, parallel_pull=True))
    assert whole["pull_modes"]["parallel_pull_unpack"]["enable"]
    assert not whole["pull_modes"]["soci_v2"]["enable"]


STARGZ_LOG = (
    'time="2026-11-30T09:45:24Z" level=info msg="preparing filesystem mount at mountpoint=/x/1/fs" key=k\n'
    'time="2026-11-30T09:45:24Z" level=warning msg="failed to prepare remote snapshot" '
    'error="failed to resolve layer: invalid footer" key=k\n'
)


def test_a_lazy_start_that_unpacked_everything_says_so() -> None:
    """No layer was lazy: the reason names the snapshotter and the words of its own log."""
    (found,) = fallback.found("stargz", Layers((30 << 20, 1 << 20), frozenset({0, 1})), STARGZ_LOG)
    assert found.rule == "not-lazy"
    assert found.reason.startswith("stargz unpacked every layer; its log: failed to prepare remote snapshot")


def test_one_large_layer_unpacked_is_enough() -> None:
    """A layer that should have been served and was not makes the trial invalid, small ones are unpacked by design."""
    sizes = (30 << 20, 1 << 20)
    (found,) = fallback.found("soci", Layers(sizes, frozenset({0})), "")
    assert "soci unpacked layer 0 (31 MB) instead of serving it; its log: no reason" in found.reason
    assert fallback.found("soci", Layers(sizes, frozenset({1})), "") == ()
    assert fallback.found("soci", Layers(sizes, frozenset()), STARGZ_LOG) == ()


def test_metrics_are_summed_over_layers() -> None:
    """Counters of all layers become one, named by operation; histograms' buckets and other programs' are left out."""
    text = """# HELP x y
stargz_fs_operation_count{layer="sha256:a",operation_type="on_demand_read_access_count"} 40
stargz_fs_operation_count{layer="sha256:b",operation_type="on_demand_read_access_count"} 6
stargz_fs_operation_duration_milliseconds_bucket{layer="a",operation_type="mount",le="1"} 3
stargz_fs_operation_duration_milliseconds_sum{layer="a",operation_type="mount"} 198.5
stargz_fs_layer_size_bytes{digest="sha256:a"} 100
go_goroutines 12
soci_fs_broken{} ?
"""
    assert metrics.parse(text) == {
        "operation_count.on_demand_read_access_count": 46.0,
        "operation_duration_milliseconds_sum.mount": 198.5,
        "layer_size_bytes": 100.0,
    }


@pytest.mark.parametrize(
    ("phase", "kind", "message", "error"),
    [
        ("pull", "", "write /x/ingest/1/data: no space left on device", DiskFull),
        ("create", "", "mkdir /x: no space left on device", DiskFull),
        ("pull", "not-found", "198.18.0.1:5000/x@sha256:00: not found", ImageNotFound),
        (
            "pull",
            "",
            'failed to do request: Head "http://h/v2/x": connect: connection refused',
            RegistryError,
        ),
        ("pull", "", "failed to copy: httpReadSeeker: failed open: unexpected status code 500", RegistryError),
        ("pull", "", "failed to authorize: 401 Unauthorized", AuthError),
        ("pull", "", "unexpected commit digest sha256:aa, expected sha256:bb: failed precondition", DigestMismatch),
        ("pull", "", 'wrong diff id "sha256:aa" calculated on extraction "sha256:bb"', DigestMismatch),
        ("pull", "not-found", "no match for platform in manifest: not found", UnsupportedMediaType),
        ("start", "", 'runc create failed: exec: "/nothing": executable file not found in $PATH', WorkloadError),
        ("create", "", "something\nnobody foresaw", MachineError),
    ],
)
def test_failures_are_of_a_kind(phase: str, kind: str, message: str, error: type[ColdbenchError]) -> None:
    """containerd's words become the class that decides the exit code, in one line."""
    found = explain(phase, kind, message)
    assert type(found) is error
    assert "\n" not in str(found)


def test_versions_compare_as_numbers() -> None:
    """2.10 is newer than 2.4, what says no version is older than all."""
    assert numbers("2.10.0") > numbers("2.4.2") > numbers("") == ()
    assert numbers("containerd github.com/containerd/containerd/v2 2.4.2+unknown ") == (2, 4, 2)
