"""Our SOCI index beside the reference tool's: the same bytes, in turn, as a section of docs/credibility.md."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from harness.engines.build.conversions import Run, compare, section, timed
from harness.engines.build.programs import built
from harness.errors import WorkloadError
from tests.engines.containerd.support import layers
from tests.session.support import write_layout

if TYPE_CHECKING:
    from pathlib import Path


def test_pairs_become_a_section_with_intervals() -> None:
    """Ratios are ours over theirs with their intervals; other bytes are named as loudly as can be."""
    found = [(Run(1.0 + n / 50, 2.0, "a"), Run(2.0, 4.0 + n / 50, "a")) for n in range(6)]
    said = section("quickstart", found, "0.16.1")
    assert "`soci convert --standalone` 0.16.1 on the image of scenario quickstart, 6 pairs in turn" in said
    assert "the same bytes each time; wall time 0.52 [0.5" in said
    assert "NOT the same bytes" in section("quickstart", [(Run(1, 1, "a"), Run(1, 1, "b"))], "")


@pytest.mark.files
def test_a_converter_that_fails_is_quoted(tmp_path: Path) -> None:
    """Its exit code and its last line."""
    with pytest.raises(WorkloadError, match=r"sh ended with 3: no such image"):
        timed(["sh", "-c", "echo no such image; exit 3"], tmp_path)


@pytest.mark.files
def test_both_write_the_same(tmp_path: Path) -> None:
    """The real tool and ours give one image of a large layer the same index, byte for byte."""
    if not (soci := built("soci")):
        pytest.skip("soci is not built (./dev engines -- soci)")
    write_layout(tmp_path / "image", layers(12))
    ((ours, theirs),) = compare(tmp_path / "image", "latest", soci, 1)
    assert ours.digest == theirs.digest
    assert ours.cpu_s > 0
