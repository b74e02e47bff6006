"""What leaves memory first."""

from __future__ import annotations

from harness.lazyfs.data.memory_cache import MemoryCache, Resident


class _Rest:
    def inflate(self, size: int) -> list[bytes]:
        return [bytes(size)]


def _resident(*, partial: bool) -> Resident:
    resident = Resident(bytes(1000))
    resident.append([bytes(400 << 10)], _Rest() if partial else None)
    return resident


def test_whole_units_leave_before_half_inflated_ones() -> None:
    """What is inflated of half a unit would have to be inflated again; whole units go to disk, the coldest first."""
    cache = MemoryCache(3 * (400 << 10))
    for unit, partial in enumerate((True, False, False, True)):
        cache.put((0, unit), _resident(partial=partial))
    assert [key for key, _ in cache.victims()] == [(0, 1), (0, 2)]


def test_half_inflated_units_leave_when_nothing_else_is_left() -> None:
    """The budget is kept whatever the units are; a unit that a thread works on stays."""
    cache = MemoryCache(400 << 10)
    for unit in range(3):
        cache.put((0, unit), _resident(partial=True))
    busy = cache.get((0, 0))
    assert busy is not None
    busy.busy = True
    assert [key for key, _ in cache.victims()] == [(0, 1), (0, 2)]


def test_released_bytes_leave_a_hole_and_what_is_beside_them() -> None:
    """What the kernel has is not kept twice; the edges of its pages are, and a read of the hole finds None."""
    data = bytes(range(256)) * 40
    resident = Resident(b"stored")
    resident.append([data[:5000]], _Rest())
    resident.append([data[5000:]], None, keep_packed=True)
    before = (resident.cost, resident.whole, resident.complete)
    resident.release(4096, 8192)
    assert (resident.cost, resident.whole, resident.complete) == (before[0] - 4096, True, False)
    assert before[1:] == (True, True)
    for begin, end in ((0, 4096), (100, 200), (8192, len(data)), (9000, 9001)):
        assert bytes(resident.slice(begin, end) or b"") == data[begin:end]
    for begin, end in ((0, 4097), (4096, 4097), (5000, 5001), (8191, 8193), (4000, 9000)):
        assert resident.slice(begin, end) is None


def test_only_what_the_stored_bytes_can_give_back_is_released() -> None:
    """Without them the inflated bytes stay; started again, the stored bytes are all there is."""
    data = bytes(10_000)
    alone = Resident()
    alone.append([data], None)
    alone.release(0, 10_000)
    assert alone.slice(0, 10_000) == data
    resident = Resident(b"stored")
    resident.append([data], None, keep_packed=True)
    resident.release(0, 10_000)
    resident.restart()
    assert (resident.filled, resident.whole, resident.packed) == (0, False, b"stored")
