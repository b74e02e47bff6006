"""Our conversions beside the reference tools': the same bytes, in turn, as a section of docs/credibility.md."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import pytest

from harness.engines.build.conversions import CONVERSIONS, Conversion, Run, compare, sentence, timed
from harness.engines.build.programs import built
from harness.errors import MissingTool, WorkloadError
from tests.engines.containerd.support import layers
from tests.session.support import write_layout

if TYPE_CHECKING:
    from pathlib import Path


def test_pairs_become_a_sentence_with_intervals() -> None:
    """Ratios are ours over theirs with their intervals; other bytes are named as loudly as can be."""
    soci = CONVERSIONS[0]
    found = [(Run(1.0 + n / 50, 2.0, "a"), Run(2.0, 4.0 + n / 50, "a")) for n in range(6)]
    said = sentence(soci, "quickstart", found, "0.16.1")
    assert "`soci convert --standalone` 0.16.1 on the image of scenario quickstart, 6 pairs in turn" in said
    assert "the same bytes each time; wall time 0.52 [0.5" in said
    assert "NOT the same bytes" in sentence(soci, "quickstart", [(Run(1, 1, "a"), Run(1, 1, "b"))], "")


@pytest.mark.files
def test_a_converter_that_fails_is_quoted(tmp_path: Path) -> None:
    """Its exit code and its last line."""
    with pytest.raises(WorkloadError, match=r"sh ended with 3: no such image"):
        timed(["sh", "-c", "echo no such image; exit 3"])


@pytest.mark.files
@pytest.mark.parametrize("conversion", CONVERSIONS, ids=[c.program for c in CONVERSIONS])
def test_both_write_the_same(conversion: Conversion, tmp_path: Path) -> None:
    """The real tool's result and ours have the same bytes, of an image with a large layer."""
    if not built(conversion.program):
        pytest.skip(f"{conversion.program} is not built (./dev engines)")
    write_layout(tmp_path / "image", layers(12))
    ((ours, theirs),) = compare(conversion, tmp_path / "image", "latest", 1)
    assert ours.digest == theirs.digest
    assert ours.cpu_s > 0


@pytest.mark.files
def test_a_converter_that_is_not_built(tmp_path: Path) -> None:
    """It is named, with the command that builds it."""
    conversion = dataclasses.replace(CONVERSIONS[0], program="no-such-program")
    with pytest.raises(MissingTool, match=r"no-such-program is not built; run `./dev engines`"):
        compare(conversion, tmp_path, "latest", 1)
