"""Oddities of real layers: the same tree in every mode, or the same refusal by every mode and command."""

from __future__ import annotations

import os
import re
import subprocess
from typing import TYPE_CHECKING

import pytest

from harness.errors import ContentError, UsageError
from harness.images.verification import verify_image
from harness.lazyfs.compare import compare, survey
from harness.oci.descriptor import OCI_LAYER_ZSTD
from tests.faults.cases import FAULTS, Fault, Stored
from tests.faults.entries import file, gzipped, tar_of
from tests.faults.showing import FORMS, WAYS, convert, shown, tree_of, write
from tests.lazyfs.support import need_root

if TYPE_CHECKING:
    from pathlib import Path

    from harness.lazyfs.compare import Facts

SHOWN = [fault for fault in FAULTS if not fault.refusal]
REFUSED = [fault for fault in FAULTS if fault.refusal]


@pytest.mark.root
@pytest.mark.parametrize("fault", SHOWN, ids=lambda fault: fault.name)
def test_every_mode_shows_the_same_tree(fault: Fault, tmp_path: Path) -> None:
    """Names and content are the expected ones, and every mode agrees with a full pull on every other fact."""
    need_root()
    source = write(fault.layers, tmp_path / "image")
    forms = {"image": source, **{form: convert(source, form, tmp_path / form) for form in FORMS}}
    first: dict[bytes, Facts] = {}
    for way in WAYS:
        with shown(forms[way.form], way, tmp_path / f"{way.mode}-{way.preset}") as root:
            assert tree_of(root) == fault.tree, f"{way}: {fault.why}"
            facts = survey(str(root))
        first = first or facts
        assert list(compare(first, facts)) == [], f"{WAYS[0]} on the left, {way} on the right"


@pytest.mark.parametrize("fault", SHOWN, ids=lambda fault: fault.name)
def test_verify_holds(fault: Fault, tmp_path: Path) -> None:
    """The image holds, and so does each form made of it."""
    source = write(fault.layers, tmp_path / "image")
    for form in ("image", *FORMS):
        made = convert(source, form, tmp_path / form)
        assert verify_image(made, made.resolve()).problems == [], form


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("fault", REFUSED, ids=lambda fault: fault.name)
def test_conversions_refuse(fault: Fault, form: str, tmp_path: Path) -> None:
    """In one line that names the layer and what in it is wrong."""
    source = write(fault.layers, tmp_path / "image")
    if form == "soci" and all(layer.media_type == OCI_LAYER_ZSTD for layer in fault.layers):
        with pytest.raises(UsageError, match="no zTOC"):  # such a layer is unpacked whatever it holds
            convert(source, form, tmp_path / form)
        return
    with pytest.raises(ContentError, match=fault.refusal) as refusal:
        convert(source, form, tmp_path / form)
    _names_a_layer(str(refusal.value))


@pytest.mark.root
@pytest.mark.parametrize("way", WAYS[:2], ids=str)
@pytest.mark.parametrize("fault", REFUSED, ids=lambda fault: fault.name)
def test_full_pulls_refuse(fault: Fault, way: object, tmp_path: Path) -> None:
    """As the conversions do: so no mode starts with a layer that another would not have."""
    need_root()
    source = write(fault.layers, tmp_path / "image")
    with (
        pytest.raises(ContentError, match=fault.refusal) as refusal,
        shown(source, WAYS[0] if str(way) == str(WAYS[0]) else WAYS[1], tmp_path / "pull"),
    ):
        pass
    _names_a_layer(str(refusal.value))


@pytest.mark.parametrize("fault", REFUSED, ids=lambda fault: fault.name)
def test_verify_finds_it(fault: Fault, tmp_path: Path) -> None:
    """An image that no mode would start does not hold."""
    source = write(fault.layers, tmp_path / "image")
    problems = verify_image(source, source.resolve()).problems
    assert any(re.search(fault.refusal, problem) for problem in problems), problems


def _names_a_layer(message: str) -> None:
    assert "\n" not in message
    assert re.search(r"layer (\d+|sha256:[0-9a-f]{8,})", message), message


@pytest.mark.root
def test_a_tree_1500_deep_is_shown_by_every_mode(tmp_path: Path) -> None:
    """No mode recurses by level or keeps a descriptor for each; a name replaces the whole of it."""
    need_root()
    deep = b"/".join([b"d"] * 1500)
    for number, more in enumerate(([], [file(b"d", b"instead")])):
        layer = tar_of(file(deep + b"/end", b"deep"), *more)
        source = write([Stored(layer, gzipped(layer))], tmp_path / str(number))
        for way in (WAYS[1], WAYS[2], WAYS[3], WAYS[4]):
            form = convert(source, way.form, tmp_path / f"{number}-{way.form}")
            assert verify_image(form, form.resolve()).problems == []
            with shown(form, way, tmp_path / f"{number}-{way.mode}-place") as root:
                if more:
                    assert (root / "d").read_bytes() == b"instead"
                    continue
                place = os.open(root, os.O_RDONLY)
                for _ in range(1500):
                    below = os.open(b"d", os.O_RDONLY, dir_fd=place)
                    os.close(place)
                    place = below
                with open(os.open(b"end", os.O_RDONLY, dir_fd=place), "rb") as end:
                    assert end.read() == b"deep"
                os.close(place)
            # pytest clears its directories level by level, which takes no tree of this depth
            subprocess.run(["rm", "-rf", tmp_path / f"{number}-{way.mode}-place"], check=True)
