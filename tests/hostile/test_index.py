"""An index that somebody else lists beside the image."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from harness.errors import ImageNotFound
from harness.formats.erofs.image import find_erofs_index, index_image
from harness.lazyfs.plan import plan_blob
from harness.oci.layout import LayoutStore
from harness.oci.store import ImageSource
from tests.engines.support import base_layer
from tests.lazyfs.support import write_image

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.files


def test_only_the_index_that_preparation_made_is_used(tmp_path: Path) -> None:
    """Another index, listed later, is not taken when the digest is known; one that is not listed is an error."""
    source = write_image(tmp_path / "image", [base_layer()])
    destination = LayoutStore(tmp_path / "indexed", "image", create=True)
    index_image(source, destination, copy=True)
    store = LayoutStore(tmp_path / "indexed", "image")
    indexed = ImageSource(store, "image")
    image = indexed.resolve()
    made, manifest = find_erofs_index(indexed, image.descriptor)
    forged = json.dumps({**json.loads(manifest), "annotations": {"forged": "yes"}}).encode()
    destination.add_referrer(image.descriptor, forged, made.media_type)
    destination.close()
    again = ImageSource(LayoutStore(tmp_path / "indexed", "image"), "image")
    assert "forged" in plan_blob(again, image).manifest, "the attack works where no digest is known"
    assert plan_blob(again, image, made.digest).manifest == manifest.decode()
    with pytest.raises(ImageNotFound, match="does not list"):
        plan_blob(again, image, "sha256:" + "0" * 64)
