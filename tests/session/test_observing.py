"""What a trial looks at from outside."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from harness.session.observing import host_mounts, inherited_mounts, mounted, root_file_systems
from harness.session.registry import RequestCounter

if TYPE_CHECKING:
    from pathlib import Path

MOUNTINFO = """\
100 107 0:50 / /tmp/some\\040place ro,relatime shared:1 - fuse.lazyfs coldbench ro,user_id=0
167 137 0:51 / /run/coldbench/5c/scratch/embedded/root rw - overlay overlay rw,lowerdir=l/0:l/1
"""


def test_mounts_by_device() -> None:
    """File systems are told apart by device: a mount point may be anywhere, and hidden by another."""
    assert mounted(MOUNTINFO) == {"0:50": "fuse.lazyfs", "0:51": "overlay"}


def test_what_the_host_mounts_meanwhile_is_not_the_machines() -> None:
    """Another program's FUSE mount that appears while the tables are read is the host's, whichever is read first."""
    inside = dict.fromkeys(host_mounts(), "fuse.other")
    machine: Any = SimpleNamespace(namespace_pid=os.getpid())
    for tables in ([{}, inside], [inside, {}]):
        answers = iter(tables)
        assert root_file_systems(machine, (), lambda answers=answers: next(answers)) == {"ext4"}  # type: ignore[misc]


def test_what_a_machine_was_made_with_is_not_its_own() -> None:
    """A private FUSE mount of the host is in a machine from the first, and stays there when the host unmounts it."""
    inside = dict.fromkeys(host_mounts(), "fuse.other")
    machine: Any = SimpleNamespace(namespace_pid=os.getpid())
    assert inherited_mounts(machine).keys() >= inside.keys()
    assert root_file_systems(machine, (), dict, inherited_mounts(machine)) == {"ext4"}
    gone: Any = SimpleNamespace(namespace_pid=0)
    assert inherited_mounts(gone) == {}


def test_request_counter_reads_what_is_new(tmp_path: Path) -> None:
    """Only whole lines of requests count, each once."""
    log = tmp_path / "log"
    counter = RequestCounter(log)
    assert counter.so_far() == 0
    log.write_text('x - - "GET /v2/ HTTP/1.1" 200\ntime="now" level=info\ny "GET /v2/a HTTP/1.1" 2', "utf-8")
    assert counter.so_far() == 1
    with log.open("a", encoding="utf-8") as file:
        file.write('00\nz "GET /v2/b HTTP/1.1" 200\n')
    assert counter.so_far() == 3
