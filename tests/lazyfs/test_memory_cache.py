"""What leaves memory first."""

from __future__ import annotations

from harness.lazyfs.memory_cache import MemoryCache, Resident


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
    cache.units[0, 0].busy = True
    assert [key for key, _ in cache.victims()] == [(0, 1), (0, 2)]
