"""What an image could do without: packages nobody read, nobody needs, with who brought each directory."""

from __future__ import annotations

from harness.images.packages import Package
from harness.report.contents import LayerUse, look, order
from harness.session.image_files import ListedFile

SITE = "/usr/lib/python3/dist-packages"


def _file(path: str, size: int = 100, layer: int = 0) -> ListedFile:
    return ListedFile(path, "file", size, layer, False)


FILES = [
    _file("/bin/sh"),
    _file("/usr/bin/git", 5000),
    _file("/usr/lib/libpcre.so", 900),
    _file("/usr/share/emacs/lisp.el", 70_000),
    _file(f"{SITE}/shop/__init__.py", layer=1),
    _file(f"{SITE}/shop/__pycache__/__init__.cpython-311.pyc", layer=1),
    _file(f"{SITE}/unused/big.py", 9000, layer=1),
    _file(f"{SITE}/unused/__pycache__/big.cpython-311.pyc", 8000, layer=1),
    _file("/app/data/never.bin", 400, layer=2),
]
PACKAGES = [
    Package("dpkg", "dash", "1", frozenset({"/bin/sh"}), essential=True),
    Package("dpkg", "git", "2", frozenset({"/usr/bin/git"}), needs=("libpcre",)),
    Package("dpkg", "libpcre", "3", frozenset({"/usr/lib/libpcre.so"})),
    Package("dpkg", "emacs", "4", frozenset({"/usr/share/emacs/lisp.el"}), needs=("dash",)),
    Package("pip", "shop", "1", frozenset({f"{SITE}/shop/__init__.py"})),
    Package("pip", "unused", "1", frozenset({f"{SITE}/unused/big.py"})),
]
READ = {"/usr/bin/git", f"{SITE}/shop/__pycache__/__init__.cpython-311.pyc"}


def test_packages_that_nobody_read_or_needs_can_go() -> None:
    """The largest first, with all they brought, compiled files too; what a used package needs stays, and says why."""
    found = look(FILES, READ, PACKAGES, [1000, 500, 50])
    assert [(p.brought_by, p.bytes, p.files, p.layer) for p in found.droppable] == [
        ("dpkg:emacs", 70_000, 1, 0),
        ("pip:unused", 17_000, 2, 1),
    ]
    assert {p.name: p.needed_by for p in found.packages if not p.can_go} == {
        "libpcre": "dpkg:git",
        "dash": "the system",
    }


def test_a_compiled_file_stands_for_its_package() -> None:
    """Python reads only the compiled file, which no package's list names: its package is read all the same."""
    assert "pip:shop" not in {p.brought_by for p in look(FILES, READ, PACKAGES, [1000, 500, 50]).packages}


def test_directories_say_who_brought_them() -> None:
    """By package where one owns the files, else as files; a directory of which anything was read is not among them."""
    found = look(FILES, READ, PACKAGES, [1000, 500, 50])
    by_name = {d.name: d for d in found.directories}
    assert by_name["/usr/share/emacs"].brought_by == "dpkg:emacs"
    assert by_name["/app/data"].brought_by == "files"
    assert f"{SITE}/shop" not in by_name


def test_layers_with_what_was_read_of_them() -> None:
    """Stored and shown bytes, the share that was read, and the image's own words where it has them for every layer."""
    found = look(FILES, READ, PACKAGES, [1000, 500, 50], ["RUN apt-get", "RUN pip", "COPY . /app"])
    assert [layer.made_by for layer in found.layers] == ["RUN apt-get", "RUN pip", "COPY . /app"]
    assert found.layers[0].bytes_read == 5000
    assert found.layers[2].bytes_read == 0
    assert look(FILES, READ, PACKAGES, [1000, 500, 50], ["RUN apt-get"]).layers[0].made_by == ""


def test_the_smallest_layer_belongs_on_top() -> None:
    """A change of it takes along what lies above: the order says what is sent again, now and then."""
    layers = [LayerUse(0, 50, 1, 1), LayerUse(1, 1000, 1, 1), LayerUse(2, 500, 1, 1)]
    found = order(layers)
    assert found is not None
    assert (found.numbers, found.resent_now_bytes, found.resent_then_bytes) == ((1, 2, 0), 1550, 50)
    assert not found.is_best
    good = order([LayerUse(0, 1000, 1, 1), LayerUse(1, 500, 1, 1), LayerUse(2, 50, 1, 1)])
    assert good is not None
    assert good.is_best
    assert order(layers[:1]) is None
