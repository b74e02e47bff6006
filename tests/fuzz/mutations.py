"""Sound inputs, damaged: flips, cuts, insertions, repeats, and the numbers that break arithmetic."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import strategies as st

if TYPE_CHECKING:
    from collections.abc import Sequence

_NUMBERS = [0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, (1 << 63) - 1, (1 << 64) - 1]
_WIDTHS = (1, 2, 4, 8)


@st.composite
def damaged(draw: st.DrawFn, corpus: Sequence[bytes], words: Sequence[bytes] = ()) -> bytes:
    """One of ``corpus`` with up to six edits, or (rarely) arbitrary bytes; ``words`` are put in as they are."""
    if draw(st.integers(0, 30)) == 0:
        return draw(st.binary(max_size=2000))
    data = bytearray(draw(st.sampled_from(corpus)))
    for _ in range(draw(st.integers(0, 6))):
        if not data:
            break
        at = draw(st.integers(0, len(data) - 1))
        kind = draw(st.integers(0, 7 if words else 6))
        if kind == 0:
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == 1:
            data[at] = draw(st.integers(0, 255))
        elif kind == 2:
            number, width = draw(st.sampled_from(_NUMBERS)), draw(st.sampled_from(_WIDTHS))
            order = "big" if draw(st.booleans()) else "little"
            data[at : at + width] = (number & ((1 << 8 * width) - 1)).to_bytes(width, order)  # type: ignore[arg-type]
        elif kind == 3:
            del data[at:]
        elif kind == 4:
            del data[at : at + draw(st.integers(1, 600))]
        elif kind == 5:
            data[at:at] = draw(st.binary(max_size=40))
        elif kind == 6:
            size = draw(st.integers(1, 600))
            data[at:at] = data[max(0, at - size) : at]
        else:
            word = draw(st.sampled_from(words))
            data[at : at + len(word)] = word
    return bytes(data)
