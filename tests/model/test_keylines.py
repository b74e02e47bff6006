"""Lines of keys in TOML texts."""

from __future__ import annotations

import tomllib
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from harness.model.keylines import key_lines

TEXT = '''\
# comment = 1
a = """
b = 2
"""
[t."quoted key"]   # [no]
c.d = [
    1,
    { e = 'x#y', f = [2] },
]
[[list]]
k = 1
[list.sub]
m = 1
[[list]]
k = "]" # k
'''


def test_every_form_of_key() -> None:
    """Dotted and quoted keys, nested arrays, inline tables, arrays of tables; strings and comments do not mislead."""
    tomllib.loads(TEXT)
    lines = key_lines(TEXT)
    assert lines[("a",)] == 2
    assert ("b",) not in lines
    assert lines[("t", "quoted key")] == 5
    assert lines[("t", "quoted key", "c", "d")] == 6
    assert lines[("t", "quoted key", "c", "d", 1, "e")] == 8
    assert lines[("t", "quoted key", "c", "d", 1, "f", 0)] == 8
    assert lines[("list", 0, "k")] == 11
    assert lines[("list", 0, "sub", "m")] == 13
    assert lines[("list", 1, "k")] == 15


def paths(data: Any, prefix: tuple[str | int, ...] = ()) -> set[tuple[str | int, ...]]:
    """All key paths of parsed data."""
    found: set[tuple[str | int, ...]] = set()
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in items:
        found |= {(*prefix, key), *paths(value, (*prefix, key))}
    return found


@given(st.text(alphabet="ab=\"'[]{},.# \n1\\", max_size=40))
def test_scanner_agrees_with_tomllib(text: str) -> None:
    """Whatever tomllib accepts, the scanner finds exactly its keys."""
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return
    assert paths(data) == set(key_lines(text)) - {()}
