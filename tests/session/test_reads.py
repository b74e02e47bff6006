"""What a start read, put against what its image holds."""

from __future__ import annotations

import pytest

from harness.lazyfs.messages import Touch
from harness.session.image_files import ListedFile
from harness.session.reads import analyse, most_read, package_of


@pytest.mark.parametrize(
    ("path", "package"),
    [
        ("/usr/lib/python3/dist-packages/pandas/core/frame.py", "/usr/lib/python3/dist-packages/pandas"),
        ("/opt/venv/lib/python3.12/site-packages/six.py", "/opt/venv/lib/python3.12/site-packages/six"),
        (
            "/x/site-packages/__pycache__/six.cpython-312.pyc",
            "/x/site-packages/six",
        ),
        ("/x/site-packages/pandas-2.2.3.dist-info/RECORD", "/x/site-packages/pandas"),
        ("/x/site-packages/scipy.libs/libopenblas.so", "/x/site-packages/scipy"),
        ("/x/site-packages/_cffi.cpython-312-x86_64-linux-gnu.so", "/x/site-packages/_cffi"),
        ("/app/node_modules/express/lib/router/index.js", "/app/node_modules/express"),
        ("/app/node_modules/@scope/name/a.js", "/app/node_modules/@scope/name"),
        ("/app/node_modules/a/node_modules/b/index.js", "/app/node_modules/a"),
        ("/usr/lib/x86_64-linux-gnu/libc.so.6", "/usr/lib/x86_64-linux-gnu"),
        ("/usr/share/doc/bash/copyright", "/usr/share/doc"),
        ("/usr/bin/python3", "/usr/bin"),
        ("/usr/local/lib/thing/a/b", "/usr/local/lib/thing"),
        ("/etc/ssl/certs/x.pem", "/etc/ssl"),
        ("/hello", "/"),
    ],
)
def test_package_directories(path: str, package: str) -> None:
    """A file belongs to its distribution or module, else to a directory near the root."""
    assert package_of(path) == package


def touch(path: str, size: int, offset: int = 0) -> Touch:
    return Touch(path, 0, offset, size, 0.1)


FILES = [
    ListedFile("/usr", "dir", 0, 0, False),
    ListedFile("/usr/bin/python3", "file", 1000, 0, True),
    ListedFile("/usr/share/doc/a", "file", 300, 0, False),
    ListedFile("/usr/share/doc/b", "file", 500, 1, False),
    ListedFile("/x/site-packages/pandas/a.py", "file", 100, 1, False),
    ListedFile("/x/site-packages/pandas/b.py", "file", 0, 1, False),
]


def test_shares_and_what_is_never_read() -> None:
    """Files and bytes are counted for the image, for each layer and for each package directory."""
    touches = [touch("/usr/bin/python3", 4096), touch("/x/site-packages/pandas/a.py", 60, 40), touch("/gone", 7)]
    found = analyse(FILES, touches, 2)
    assert (found.image.files, found.image.bytes, found.image.files_read, found.image.bytes_read) == (5, 1900, 2, 1060)
    assert [(p.name, p.files, p.files_read) for p in found.layers] == [("0", 2, 1), ("1", 3, 1)]
    assert [p.name for p in found.packages] == ["/usr/bin", "/usr/share/doc", "/x/site-packages/pandas"]
    assert [p.name for p in found.unread] == ["/usr/share/doc"]
    assert [p.name for p in most_read(found)] == ["/usr/bin", "/x/site-packages/pandas"]
    assert found.unknown == ("/gone",)


def test_an_image_without_files() -> None:
    """Nothing to read is not an error."""
    found = analyse([], [], 1)
    assert found.image.files == 0
    assert found.unread == ()
