"""What a trial looks at from outside."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.session.observing import mounted
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
