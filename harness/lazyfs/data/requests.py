"""This module decides which units one range request fetches: it merges neighbours, as requests cost more than bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.lazyfs.data.residency import Layer, Residency


def merge(layer: Layer, units: Sequence[int], *, gap: int, most: int, max_units: int = 0) -> list[list[int]]:
    """Cuts ascending units into lists, each of which one range request may fetch.

    Units that lie at most ``gap`` bytes apart share a request, as long as it stays below ``most`` bytes and, where
    ``max_units`` is given, within so many units. A unit that alone is larger gets a request of its own.
    """
    groups = list[list[int]]()
    group_start = group_end = 0
    for unit in units:
        start, size = layer.units.extent(unit)
        joins = (
            bool(groups)
            and group_start <= start <= group_end + gap
            and max(group_end, start + size) - group_start <= most
            and (not max_units or len(groups[-1]) < max_units)
        )
        if joins:
            groups[-1].append(unit)
            group_end = max(group_end, start + size)
        else:
            groups.append([unit])
            group_start, group_end = start, start + size
    return groups


def with_block(residency: Residency, layer: Layer, units: list[int], block: int, straddling: int = 0) -> list[int]:
    """Returns ``units`` and the missing ones beside them that lie in the same aligned blocks of the blob.

    Units of at most ``straddling`` bytes may lie there in part, since nothing but one more request would bring them.
    """
    extent, missing = layer.units.extent, residency.missing
    if not block:
        return units
    start, size = extent(units[0])
    low = start - start % block
    start, size = extent(units[-1])
    high = -(-(start + size) // block) * block
    first, last = units[0], units[-1]
    while first > 0 and missing(layer, first - 1):
        start, size = extent(first - 1)
        if (start + size <= low if size <= straddling else start < low) or start > extent(first)[0]:
            break
        first -= 1
    while last + 1 < len(layer) and missing(layer, last + 1):
        start, size = extent(last + 1)
        if start < extent(last)[0] or (start >= high if size <= straddling else start + size > high):
            break
        last += 1
    return [*range(first, units[0]), *units, *range(units[-1] + 1, last + 1)]
