"""The shipped shapes: every figure's rules, and the two forms."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from harness.errors import UsageError
from harness.model.shape import DISTANCES, Credits, Network, Shape, load_shapes


def test_every_shape_with_credits_comes_fresh_and_drained() -> None:
    """A shape with credits has both forms, one without has one, and the label names the form where it matters."""
    book = load_shapes()
    labels = [shape.label for shape in book]
    assert len(labels) == len(set(labels)) == 2 * (len(book.names) - 2) + 2
    for name in book.names:
        shape = book.get(name)
        if shape.credits is None:
            assert name in ("unlimited", "kubernetes-250m")
            continue
        fresh, drained = book.get(f"{name}:fresh").credits, book.get(f"{name}:drained").credits
        assert fresh is not None
        assert drained is not None
        assert fresh.surplus or fresh.at_boot_core_s > 0
        assert not drained.surplus
        assert drained.at_boot_core_s == 0


def test_credits_are_earned_at_the_baseline() -> None:
    """What a shape earns per hour is what its baseline would burn: the two figures of a vendor agree."""
    for shape in load_shapes():
        if shape.credits is not None and shape.baseline_cores is not None:
            assert shape.credits.earned_core_s_per_h == pytest.approx(shape.baseline_cores * 3600), shape.name


def test_sources() -> None:
    """Every shape but the one without limits says where its figures were read."""
    assert [shape.name for shape in load_shapes() if not shape.sources] == ["unlimited"]


def test_figures_of_the_documents() -> None:
    """Samples of each vendor's table, in this program's units."""
    book = load_shapes()
    t2 = book.get("aws-t2.micro")
    assert (t2.vcpus, t2.baseline_cores, t2.ceiling_cores, t2.memory_bytes) == (1, 0.1, 1, 1 << 30)
    assert t2.credits == Credits(earned_core_s_per_h=360, cap_core_s=8640, at_boot_core_s=1800)
    assert t2.network is not None
    assert (t2.network.rate_bits_s, t2.network.peak_bits_s) == (64_000_000, 1_024_000_000)
    fly = book.get("fly-shared-cpu-1x")
    assert (fly.period_us, fly.baseline_cores) == (80_000, 0.0625)
    assert fly.disk is not None
    assert (fly.disk.iops, fly.disk.bytes_per_s) == (2000, 8 << 20)
    azure = book.get("azure-b2s")
    assert azure.credits is not None
    assert azure.credits.at_boot_core_s == 3600


def test_default_forms() -> None:
    """A bare name means the form as launched, except where the vendor's burst is unknown: there the sustained end."""
    book = load_shapes()
    assert book.get("gcp-e2-micro").form == "drained"
    assert book.get("aws-t2.micro").form == "fresh"
    bracket = book.get("gcp-e2-micro:fresh").credits
    assert bracket is not None
    assert bracket.at_boot_core_s == 60


def test_aliases() -> None:
    """A size sold under several names is found by each."""
    assert load_shapes().get("aws-t4g.micro") == load_shapes().get("aws-t3.micro")


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("gcp-e2-mcro", "did you mean gcp-e2-micro"),
        ("nonsense-of-all-kinds", "coldbench shapes"),
        ("aws-t2.micro:empty", "expected fresh or drained"),
        ("kubernetes-250m:drained", "no credits"),
    ],
)
def test_unknown_names_say_what_to_do(text: str, hint: str) -> None:
    """A wrong name is a usage error that offers the nearest one or the command that lists them."""
    with pytest.raises(UsageError, match=hint):
        load_shapes().get(text)


def test_contradictions_are_refused() -> None:
    """A bucket without a burst rate, or a ceiling below the baseline, is no shape."""
    with pytest.raises(ValidationError, match="belong together"):
        Network(rate_bits_s=1, bucket_bytes=1)
    with pytest.raises(ValidationError, match="below baseline"):
        Shape(
            name="x",
            baseline_cores=2.0,
            burst_cores=1.0,
            credits=Credits(earned_core_s_per_h=1, cap_core_s=1, at_boot_core_s=1),
        )


def test_distances() -> None:
    """The presets: none delays nothing, slow limits in all and so needs no relay either."""
    assert not DISTANCES["none"].delays
    assert not DISTANCES["slow"].delays
    assert DISTANCES["slow"].total_bytes_s == 3_000_000
    assert DISTANCES["far"].delays
