"""What is kept of a traced start, and in which order."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from harness.lazyfs.messages import FileRange
from harness.lazyfs.trace import Trace, touch_of
from harness.session.traces import Recorded, load, recorded, save

if TYPE_CHECKING:
    from pathlib import Path


def test_reads_are_kept_in_the_order_they_came_in() -> None:
    """Across files, and only as long as the start lasted; a file counts from its first read on."""
    touches = [
        touch_of("/a", 0, [(0, 10, 1.0), (500, 20, 3.0), (900, 5, 9.0)]),
        touch_of("/b", 1, [(4096, 4096, 2.0)]),
        touch_of("/late", 1, [(0, 1, 8.5)]),
    ]
    found = recorded(touches, 8.0)
    assert found.paths == ("/a", "/b")
    assert found.reads == (FileRange("/a", 0, 10), FileRange("/b", 4096, 4096), FileRange("/a", 500, 20))


def test_a_read_that_goes_on_is_one() -> None:
    """A reader that walks on, or reads a part again, makes one read; one that jumps makes another."""
    times = iter(range(100))
    trace = Trace(0, lambda: next(times) * 10**9)
    for offset, size in ((0, 100), (100, 50), (120, 60), (1000, 10), (1000, 20), (0, 10)):
        trace.note(0, 5, offset, size)
    (touch,) = trace.first_touches(lambda layer, entry: f"/{layer}/{entry}")
    assert (touch.path, touch.offset, touch.size, touch.t_s) == ("/0/5", 0, 1020, 0.0)
    assert touch.reads == ((0, 180, 0.0), (1000, 20, 1.0), (0, 10, 2.0))


@pytest.mark.files
def test_a_trace_comes_back_as_it_was_kept(tmp_path: Path) -> None:
    """Names that are no text included; what is no trace is none."""
    place = tmp_path / "deep" / "trace.json"
    assert load(place) is None
    kept = Recorded(("/a", "/b\udcff"), (FileRange("/b\udcff", 5, 7), FileRange("/a", 0, 1)))
    save(place, kept)
    assert load(place) == kept
    for wrong in (
        "",
        "{}",
        '{"paths": ["/a"]}',
        '{"paths": ["/a"], "reads": [["/a", 1]]}',
        '{"paths": 1, "reads": []}',
    ):
        place.write_text(wrong)
        assert load(place) is None
