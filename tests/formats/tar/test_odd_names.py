"""Names that need cleaning are found, and only those."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from harness.errors import UnsafePath
from harness.formats.estargz.names import clean_name, clean_names
from harness.formats.tar.odd_names import any_odd

NAMES = st.lists(st.text(alphabet="a./", max_size=7), max_size=5)


@given(names=NAMES)
def test_odd_components(names: list[str]) -> None:
    """Odd means: a name that is not empty has an empty component, ``.`` or ``..``."""
    joined = b"\0" + b"".join(name.encode() + b"\0" for name in names)
    odd = any(name and any(part in ("", ".", "..") for part in name.split("/")) for name in names)
    assert any_odd(joined) is odd


@given(names=NAMES)
def test_all_at_once_is_one_by_one(names: list[str]) -> None:
    """Cleaning all names of a TOC gives what cleaning each gives, refusals included."""
    try:
        expected: list[bytes] | None = [clean_name(name) for name in names]
    except UnsafePath:
        expected = None
    try:
        found: list[bytes] | None = clean_names(names)
    except UnsafePath:
        found = None
    assert found == expected
