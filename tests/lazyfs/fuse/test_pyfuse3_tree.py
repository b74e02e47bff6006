"""The same tree through the library pyfuse3: what it shows is what our own session shows."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest

from harness.engines import make_engine
from harness.lazyfs.compare import compare, survey
from harness.lazyfs.mounting.mounts import mount_device
from harness.model.engine import EmbeddedChoice
from tests.lazyfs.support import GOLDEN, QUIET, convert, overlay, serve, write_image

if TYPE_CHECKING:
    from pathlib import Path

PRESET = "pyfuse3"


@pytest.mark.root
@pytest.mark.parametrize("mode", ["soci", "estargz"])
def test_the_library_shows_the_same_tree(mode: str, tmp_path: Path) -> None:
    """Names, kinds, attributes, extended attributes and every byte are our own session's; opens are counted."""
    source = convert(write_image(tmp_path / "image", [(GOLDEN / "pax.tar").read_bytes()]), tmp_path / mode, mode)
    with serve(source, mode, tmp_path / "ours", options=QUIET) as served:
        with overlay([f"{served.root}/0"], tmp_path / "o" / "one") as shown:
            expected = survey(str(shown))
    assert len(expected) > 20
    with serve(source, mode, tmp_path / "s", preset=PRESET, options=QUIET) as served:
        with overlay([f"{served.root}/0"], tmp_path / "o" / "two") as shown:
            assert not list(compare(expected, survey(str(shown))))
        assert served.count("open") > 0
        assert served.count("release") > 0
        assert served.usage().read_errors == 0
    assert mount_device(served.mountpoint) is None


@pytest.mark.root
def test_a_killed_library_daemon_unmounts(tmp_path: Path) -> None:
    """After SIGKILL nothing can be read, and everything can be taken away."""
    tar = (GOLDEN / "pax.tar").read_bytes()
    source = convert(write_image(tmp_path / "image", [tar]), tmp_path / "soci", "soci")
    with serve(source, "soci", tmp_path / "s", preset=PRESET, options=QUIET) as served:
        served.kill()
        with pytest.raises(OSError) as caught:  # noqa: PT011 - the number says it
            os.listdir(f"{served.root}/0")
        assert caught.value.errno in {errno.ENOTCONN, errno.ECONNABORTED}
    assert mount_device(served.mountpoint) is None


def test_without_the_library_the_preset_is_refused_before_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine says what is missing and how to install it; other presets need nothing of it."""
    engine = make_engine(EmbeddedChoice())
    without = engine.available("soci", "tuned")
    monkeypatch.setattr("harness.engines.embedded.engine.find_spec", lambda name: None)
    assert engine.available("soci", "tuned") == without
    if not without.reason:
        assert "pip install 'coldbench[pyfuse3]'" in engine.available("soci", PRESET).reason
