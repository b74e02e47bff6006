"""Recipes: keys, caching, and what a built layout holds."""

from __future__ import annotations

import tarfile
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError

from harness.errors import HostUnfit, ImageNotFound, NotRoot
from harness.images.catalog import materialise
from harness.model.image import ImageSpec, Recipe
from harness.oci.cache import Cache, cache_root
from harness.oci.location import open_source
from harness.oci.recipe.debian_sources import Source, read_sources, sources_for
from harness.oci.recipe.layers import wheel_platforms
from harness.oci.recipe.recipe import build_recipe, layer_keys, load_layer, recipe_key


def recipe(*texts: str, **config: Any) -> Recipe:
    layers = [{"kind": "files", "files": [{"path": f"/d/f{n}", "text": text}]} for n, text in enumerate(texts)]
    return Recipe.model_validate({"layers": layers, "config": config})


def test_keys_follow_what_is_below() -> None:
    """Equal bases share a key, whatever is above; a change below changes everything above; config is the image's."""
    one, two = recipe("a", "b"), recipe("a", "c")
    assert layer_keys(one)[0] == layer_keys(two)[0]
    assert layer_keys(one)[1] != layer_keys(two)[1]
    assert layer_keys(recipe("x", "b"))[1] != layer_keys(one)[1]
    assert recipe_key(one) == recipe_key(recipe("a", "b"))
    assert recipe_key(one) != recipe_key(recipe("a", "b", user="me"))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({}, "exactly one of"),
        ({"ref": "a/b", "layout": "d"}, "exactly one of"),
        ({"recipe": {"layers": [{"kind": "pip", "requirements": ["a"]}]}}, "first layer is pip"),
        ({"recipe": {"layers": []}}, "at least 1"),
        ({"recipe": {"layers": [{"kind": "rpm"}]}}, "rpm"),
        ({"recipe": {"layers": [{"kind": "files", "files": [{"path": "/a/../b"}]}]}}, r"\.\."),
        ({"recipe": {"layers": [{"kind": "files", "files": [{"path": "a"}]}]}}, "pattern"),
    ],
)
def test_wrong_tables(spec: dict[str, Any], message: str) -> None:
    """What cannot be built is refused when the scenario is read."""
    with pytest.raises(ValidationError, match=message):
        ImageSpec.model_validate(spec)


def test_cache_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """COLDBENCH_CACHE, then XDG_CACHE_HOME when absolute, then ~/.cache."""
    monkeypatch.setenv("HOME", "/h")
    monkeypatch.delenv("COLDBENCH_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_root() == Path("/h/.cache/coldbench")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert cache_root() == Path("/x/coldbench")
    monkeypatch.setenv("COLDBENCH_CACHE", "/own")
    assert cache_root() == Path("/own")


@pytest.mark.files
def test_unusable_cache_place(tmp_path: Path) -> None:
    """A cache that cannot be created names the variable that moves it."""
    (tmp_path / "file").write_text("")
    with pytest.raises(HostUnfit, match="COLDBENCH_CACHE"), Cache(tmp_path / "file").lock("x"):
        pass


@pytest.mark.files
def test_scratch_leftovers_go(tmp_path: Path) -> None:
    """Directories of dead processes are swept, those in use are not."""
    cache = Cache(tmp_path)
    (tmp_path / "build" / "dead").mkdir(parents=True)
    with cache.scratch("a") as first, cache.scratch("b") as second:
        assert first.is_dir()
        assert sorted((tmp_path / "build").iterdir()) == sorted([first, second])
    assert list((tmp_path / "build").iterdir()) == []


@pytest.mark.files
def test_layers_need_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without root nothing is half done, and the message says what to do."""
    monkeypatch.setattr("harness.oci.recipe.build_root.os", SimpleNamespace(geteuid=lambda: 1000))
    with pytest.raises(NotRoot, match="sudo"):
        build_recipe(recipe("a"), Cache(tmp_path))
    assert not (tmp_path / "images").exists()


@pytest.mark.files
def test_missing_layout(tmp_path: Path) -> None:
    """A scenario's layout or archive that is not there is reported before anything runs."""
    with pytest.raises(ImageNotFound, match="not an OCI layout"):
        materialise(ImageSpec(layout=str(tmp_path)), Cache(tmp_path / "c"))
    with pytest.raises(ImageNotFound, match="no such file"):
        materialise(ImageSpec(archive=str(tmp_path / "none.tar")), Cache(tmp_path / "c"))


@pytest.mark.root
def test_build_once_and_share(tmp_path: Path) -> None:
    """Two recipes with one base build three layers in all; a second build of either does nothing; bytes repeat."""
    cache = Cache(tmp_path / "cache")
    said: list[str] = []

    def report(what: str, done: int, total: int) -> None:
        if what.startswith("layer "):
            said.append(what)

    first = build_recipe(recipe("a", "b", command=["/d/f0"], env={"K": "V"}, ports=["80/tcp"]), cache, report)
    build_recipe(recipe("a", "c"), cache, report)
    build_recipe(recipe("a", "c"), cache, report)
    assert [what.split(":")[0] for what in said] == ["layer 1/2", "layer 2/2", "layer 2/2"]
    assert list((tmp_path / "cache" / "build").iterdir()) == []
    image = open_source(f"oci:{first}").resolve()
    assert image.config["config"]["Cmd"] == ["/d/f0"]
    assert "K=V" in image.config["config"]["Env"]
    assert image.config["config"]["ExposedPorts"] == {"80/tcp": {}}
    assert list(image.diff_ids) == [load_layer(cache.layers / key).diff_id for key in layer_keys(recipe("a", "b"))]
    again = build_recipe(recipe("a", "b", command=["/d/f0"], env={"K": "V"}, ports=["80/tcp"]), Cache(tmp_path / "c2"))
    assert open_source(f"oci:{again}").resolve().descriptor == image.descriptor


@pytest.mark.root
def test_concurrent_builds_make_one(tmp_path: Path) -> None:
    """Who comes second waits for the first, says so, and gets the same image."""
    cache = Cache(tmp_path / "cache")
    holding, waiting = threading.Event(), threading.Event()
    places: list[Path] = []
    builds: list[str] = []

    def slow(what: str, done: int, total: int) -> None:
        builds.append(what)
        holding.set()
        assert waiting.wait(20)

    def second(what: str, done: int, total: int) -> None:
        builds.append(what)
        waiting.set()

    threads = [threading.Thread(target=lambda: places.append(build_recipe(recipe("a"), cache, slow)))]
    threads[0].start()
    assert holding.wait(20)
    threads.append(threading.Thread(target=lambda: places.append(build_recipe(recipe("a"), cache, second))))
    threads[1].start()
    for thread in threads:
        thread.join(30)
    assert len(set(places)) == 1
    assert builds.count("waiting for another build of this image") == 1
    assert sum(what.startswith("layer 1/1") for what in builds) == 1


@pytest.mark.root
def test_files_keep_the_directories_of_the_base(tmp_path: Path) -> None:
    """A file put into a directory of the base leaves that directory's mode alone."""
    layers = [
        {"kind": "files", "files": [{"path": "/srv/x", "text": "1", "mode": "0600", "uid": 5}]},
        {"kind": "files", "files": [{"path": "/srv/y", "text": "2"}]},
    ]
    cache = Cache(tmp_path)
    directory = build_recipe(Recipe.model_validate({"layers": layers}), cache)
    top = load_layer(cache.layers / layer_keys(Recipe.model_validate({"layers": layers}))[1])
    with tarfile.open(top.path) as archive:
        assert [(member.name, member.mode) for member in archive] == [("srv", 0o755), ("srv/y", 0o644)]
    assert directory.is_dir()


def test_sources_of_the_host() -> None:
    """The suite's own entries are used; a host of another release keeps its mirror and changes the suite."""
    mirror = Source("http://mirror.example/debian", ("bookworm", "bookworm-updates", "trixie"), "main", "/k.gpg")
    other = Source("http://vendor.example/apt", ("stable",))
    listing = sources_for("bookworm", [other, mirror])
    assert "Suites: bookworm bookworm-updates\n" in listing
    assert "vendor" not in listing
    assert "Signed-By: /k.gpg" in listing
    moved = sources_for("forky", [other, mirror])
    assert "URIs: http://mirror.example/debian\nSuites: forky forky-updates\n" in moved
    assert sources_for("bookworm", [other]) == ""


@pytest.mark.files
def test_both_forms_of_sources_are_read(tmp_path: Path) -> None:
    """One-line and deb822 files are understood; sources of code, disabled stanzas and comments are passed over."""
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / "sources.list").write_text(
        "# deb http://no.example/debian bookworm main\n"
        "deb [arch=amd64 signed-by=/k.gpg] http://one.example/debian bookworm main contrib\n"
        "deb-src http://no.example/debian bookworm main\n"
    )
    (tmp_path / "sources.list.d" / "a.sources").write_text(
        "Types: deb deb-src\nURIs: http://two.example/debian\nSuites: bookworm bookworm-updates\nComponents: main\n"
        "Signed-By:\n -----BEGIN-----\n .\n x\n\n"
        "Types: deb\nEnabled: no\nURIs: http://no.example/debian\nSuites: bookworm\n"
    )
    found = read_sources(tmp_path)
    assert [source.uris for source in found] == ["http://one.example/debian", "http://two.example/debian"]
    assert found[0].signed_by == "/k.gpg"
    assert "Signed-By: \n -----BEGIN-----" in found[1].render()


def test_wheel_platforms() -> None:
    """Newest first, and only for machines that have wheels."""
    assert wheel_platforms("x86_64")[0] == "manylinux_2_36_x86_64"
    assert "manylinux2014_aarch64" in wheel_platforms("aarch64")
    with pytest.raises(HostUnfit):
        wheel_platforms("sparc")
