"""Packages of an image: dpkg, pip and npm, read from what they left in its layers."""

from __future__ import annotations

import io
import json
import tarfile
from typing import TYPE_CHECKING

import pytest

from harness.images.packages import read_packages
from harness.oci.layout import LayoutStore
from harness.oci.location import open_source
from harness.oci.reference import parse_reference
from harness.session.image_files import list_files
from tests.support.images import Layer, put_image

if TYPE_CHECKING:
    from pathlib import Path

    from harness.images.packages import Package

pytestmark = pytest.mark.files

SITE = "usr/lib/python3/dist-packages"
STATUS = """Package: git
Status: install ok installed
Version: 1:2.39
Depends: libc6 (>= 2.34), perl:any,
 mawk | awk-of-some-kind

Package: perl-base
Essential: yes
Version: 5.36
Provides: perl
"""


def _layer(files: dict[str, str]) -> Layer:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, text in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(text.encode())
            tar.addfile(entry, io.BytesIO(text.encode()))
    return Layer.of_tar(buffer.getvalue())


def _packages(directory: Path, *layers: dict[str, str]) -> dict[str, Package]:
    store = LayoutStore(directory, "t", create=True)
    put_image(store, "t", [_layer(files) for files in layers])
    store.close()
    with open_source(parse_reference(f"oci:{directory}:t")) as source:
        image = source.resolve()
        shown = frozenset(file.path for file in list_files(source, image) if file.kind == "file")
        return {package.key: package for package in read_packages(source, image, shown)}


def test_each_package_manager_names_its_files_and_needs(tmp_path: Path) -> None:
    """dpkg by its lists and status, pip by RECORD and METADATA, npm by the directory of each package.json."""
    found = _packages(
        tmp_path / "image",
        {
            "var/lib/dpkg/status": STATUS,
            "var/lib/dpkg/info/git.list": "/.\n/bin\n/bin/git\n/usr/share/doc/git/gone\n",
            "var/lib/dpkg/info/perl-base.list": "/usr/bin/perl\n",
            "usr/bin/git": "elf",
            "usr/bin/perl": "elf",
        },
        {
            f"{SITE}/Shop_Thing-1.2.dist-info/METADATA": "Name: Shop_Thing\nVersion: 1.2\nRequires-Dist: Click (>=8)\n"
            "Requires-Dist: tests; extra == 'dev'\n\nRequires-Dist: prose\n",
            f"{SITE}/Shop_Thing-1.2.dist-info/RECORD": "shop/__init__.py,sha256=x,1\n../../../bin/shop,,\n",
            f"{SITE}/shop/__init__.py": "",
            "usr/bin/shop": "#!",
            "app/node_modules/express/package.json": json.dumps({"version": "4", "dependencies": {"qs": "*"}}),
            "app/node_modules/express/index.js": "",
            "app/node_modules/express/node_modules/qs/package.json": json.dumps({"version": "6"}),
            "app/node_modules/express/node_modules/qs/lib.js": "",
            "app/node_modules/broken/package.json": "{",
        },
    )
    git = found["dpkg:git"]
    assert (git.version, git.files) == ("1:2.39", frozenset({"/usr/bin/git"}))
    assert git.needs == ("libc6", "perl-base", "mawk", "awk-of-some-kind")
    assert found["dpkg:perl-base"].essential
    shop = found["pip:shop-thing"]
    assert (shop.version, shop.needs) == ("1.2", ("click",))
    assert shop.files == {f"/{SITE}/shop/__init__.py", "/usr/bin/shop"}
    assert found["npm:express"].needs == ("qs",)
    assert "/app/node_modules/express/index.js" in found["npm:express"].files
    assert found["npm:qs"].files == {
        "/app/node_modules/express/node_modules/qs/package.json",
        "/app/node_modules/express/node_modules/qs/lib.js",
    }
    assert "npm:broken" not in found


def test_a_package_that_a_later_layer_removed_is_none(tmp_path: Path) -> None:
    """What the image does not show does not count: the list of a removed package is gone with a whiteout."""
    found = _packages(
        tmp_path / "image",
        {"var/lib/dpkg/status": STATUS, "var/lib/dpkg/info/git.list": "/usr/bin/git\n", "usr/bin/git": "elf"},
        {"var/lib/dpkg/info/.wh.git.list": "", "usr/bin/.wh.git": ""},
    )
    assert "dpkg:git" not in found
