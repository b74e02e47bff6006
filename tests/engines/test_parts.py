"""The embedded engine's parts that need no root: decoders, pipe, control socket, users, configuration, modes."""

from __future__ import annotations

import gzip
import os
import threading
import zlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.engines.embedded.agent import failed, translate
from harness.engines.embedded.bundle import DEFAULT_PATH, process_of
from harness.engines.embedded.modes import load, parts_of
from harness.engines.embedded.pipe import BytePipe
from harness.engines.embedded.registry import connect
from harness.engines.embedded.users import Identity, resolve_user
from harness.engines.protocol import DeployRequest, Process
from harness.errors import (
    ColdbenchError,
    DigestMismatch,
    DiskFull,
    FormatError,
    OutOfMemory,
    UnsafePath,
    UnsupportedMediaType,
    UsageError,
    from_kind,
)
from harness.formats.gzip.inflate import MAX_PIECE, inflate
from harness.model.modes import EMBEDDED, ENGINES
from harness.oci.store import RangeIgnored

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def pieces(data: bytes, size: int) -> Iterator[bytes]:
    return (data[at : at + size] for at in range(0, len(data), size))


@pytest.mark.parametrize("decoder", ["isal", "zlib"])
@settings(max_examples=40, deadline=None)
@given(st.lists(st.binary(max_size=5000), min_size=1, max_size=4), st.integers(1, 3000), st.integers(0, 20))
def test_gzip_members_are_one_stream(decoder: str, members: list[bytes], size: int, padding: int) -> None:
    """Any number of members, cut anywhere, with zeros after the last."""
    stored = b"".join(gzip.compress(member) for member in members) + bytes(padding)
    assert b"".join(inflate(pieces(stored, size), "layer", decoder)) == b"".join(members)


@pytest.mark.parametrize("decoder", ["isal", "zlib"])
def test_pieces_are_bounded(decoder: str) -> None:
    """A bomb comes out in bounded pieces, whole."""
    stored = gzip.compress(bytes(20 << 20))
    sizes = [len(piece) for piece in inflate(iter([stored]), "layer", decoder)]
    assert max(sizes) <= MAX_PIECE
    assert sum(sizes) == 20 << 20
    stored = zstandard.compress(bytes(20 << 20))
    sizes = [len(piece) for piece in inflate(iter([stored]), "layer", decoder)]
    assert max(sizes) <= MAX_PIECE
    assert sum(sizes) == 20 << 20


@pytest.mark.parametrize("decoder", ["isal", "zlib"])
@pytest.mark.parametrize("damage", ["cut", "flipped", "checksum", "garbage"])
def test_damaged_gzip(decoder: str, damage: str) -> None:
    """A stream that is cut or changed, its checksum included, is an error that names the layer."""
    stored = bytearray(gzip.compress(os.urandom(50_000)))
    if damage == "cut":
        del stored[-20:]
    elif damage == "flipped":
        stored[25_000] ^= 0x10
    elif damage == "checksum":
        stored[-6] ^= 1
    else:
        stored += b"no gzip header"
    with pytest.raises(FormatError, match="layer 3"):
        list(inflate(pieces(bytes(stored), 4000), "layer 3", decoder))


def test_zstd() -> None:
    """Frames one after the other are one stream; what stands behind is an error; so is another compression, by name."""
    stored = zstandard.compress(b"first") + zstandard.compress(b"second" * 1000)
    assert b"".join(inflate(pieces(stored, 7), "layer")) == b"first" + b"second" * 1000
    with pytest.raises(FormatError, match="behind the zstd stream"):
        list(inflate(pieces(stored + b"no frame at all", 7), "layer"))
    with pytest.raises(UnsupportedMediaType, match="xz"):
        inflate(iter([b"\xfd7zXZ\0\0"]), "layer")


@pytest.mark.parametrize("size", [1, 7, 4000])
def test_cut_zstd(size: int) -> None:
    """A frame that ends early is an error wherever it was cut, though libzstd says nothing."""
    stored = zstandard.compress(os.urandom(5000)) + zstandard.compress(b"x" * 100_000)
    whole = b"".join(inflate(pieces(stored, size), "layer"))
    assert len(whole) == 105_000
    for cut in {*range(6, len(stored), 97), len(stored) - 1} - {len(zstandard.compress(os.urandom(5000)))}:
        with pytest.raises(FormatError, match="ends early"):
            list(inflate(pieces(stored[:cut], size), "layer"))


def test_pipe_hands_over_in_order_and_passes_failure() -> None:
    """Everything arrives in order through few slots, then the writer's failure."""
    pipe = BytePipe(slots=2)

    def write() -> None:
        for number in range(100):
            pipe.write(bytes([number]))
        pipe.fail(OSError("cut"))

    writer = threading.Thread(target=write)
    writer.start()
    got: list[bytes] = []
    with pytest.raises(OSError, match="cut"):
        got.extend(pipe)
    writer.join()
    assert b"".join(got) == bytes(range(100))


def test_abandoned_pipe_does_not_block_its_writer() -> None:
    """A writer whose reader gave up comes to its end."""
    pipe = BytePipe(slots=1)

    def write() -> None:
        for _ in range(50):
            pipe.write(b"x")

    writer = threading.Thread(target=write)
    writer.start()
    pipe.abandon()
    writer.join(10)
    assert not writer.is_alive()


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (UnsafePath("a/b", "leaves"), UnsafePath),
        (FormatError("layer 0", "is damaged"), FormatError),
        (OSError(28, "No space left on device"), DiskFull),
        (MemoryError(), OutOfMemory),
        (RangeIgnored("no ranges"), ColdbenchError),
        (ValueError("two\nlines"), ColdbenchError),
    ],
)
def test_errors_cross_the_socket(error: Exception, kind: type[ColdbenchError]) -> None:
    """What failed inside is rebuilt outside as the same class, or its nearest ancestor, on one line."""
    message = failed(error, "pull")
    rebuilt = from_kind(message.kind, message.message)
    assert isinstance(rebuilt, kind)
    assert "\n" not in str(rebuilt)
    assert str(rebuilt) == str(translate(error))


def test_digest_mismatch_crosses_the_socket() -> None:
    """Class and message survive although the class takes other arguments."""
    error = DigestMismatch("layer 1, 3 of 4 bytes", "sha256:a", "sha256:b")
    message = failed(error, "pull")
    rebuilt = from_kind(message.kind, message.message)
    assert isinstance(rebuilt, DigestMismatch)
    assert (str(rebuilt), rebuilt.what, rebuilt.expected) == (str(error), error.what, error.expected)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root file system with users."""
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\nweb:x:33:44::/var/www:/bin/false\n")
    (tmp_path / "etc/group").write_text("root:x:0:\nstaff:x:50:web,other\nops:x:51:other\n")
    return tmp_path


@pytest.mark.files
@pytest.mark.parametrize(
    ("user", "expected"),
    [
        ("", Identity(0, 0, (), "/root")),
        ("root", Identity(0, 0, (), "/root")),
        ("web", Identity(33, 44, (50,), "/var/www")),
        ("33", Identity(33, 44, (50,), "/var/www")),
        ("web:ops", Identity(33, 51, (), "/var/www")),
        ("web:7", Identity(33, 7, (), "/var/www")),
        ("1234", Identity(1234, 0, (), "/")),
        ("1234:5678", Identity(1234, 5678, (), "/")),
    ],
)
def test_users(root: Path, user: str, expected: Identity) -> None:
    """Every form that an image's User takes, by the image's own files."""
    assert resolve_user(str(root), user) == expected


@pytest.mark.files
def test_unknown_names(root: Path) -> None:
    """Names that the image does not know are told."""
    with pytest.raises(FormatError, match="'ghost'"):
        resolve_user(str(root), "ghost")
    with pytest.raises(FormatError, match="'ghosts'"):
        resolve_user(str(root), "web:ghosts")


@pytest.mark.files
@pytest.mark.parametrize("user", ["9999999999999", "4294967295", "0:9999999999999", "huge", "0:hugegroup"])
def test_numbers_that_no_kernel_takes(root: Path, user: str) -> None:
    """An ID beyond 32 bits, given or in the image's files, is refused with words before a runtime chokes on it."""
    for name, line in (("passwd", "huge:x:9999999999999:1::/:/bin/sh\n"), ("group", "hugegroup:x:-1:\n")):
        with (root / "etc" / name).open("a") as file:
            file.write(line)
    with pytest.raises(FormatError, match="no kernel takes"):
        resolve_user(str(root), user)


def test_the_hosts_users_are_out_of_reach(tmp_path: Path) -> None:
    """A passwd that is a symlink to the host's, a fifo, or absent gives no users, and does not hang."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out/passwd").write_text("secret:x:7:7::/:/bin/sh\n")
    image = tmp_path / "image"
    (image / "etc").mkdir(parents=True)
    (image / "etc/passwd").symlink_to(tmp_path / "out/passwd")
    os.mkfifo(image / "etc/group")
    with pytest.raises(FormatError):
        resolve_user(str(image), "secret")
    assert resolve_user(str(image), "7") == Identity(7, 0, (), "/")


@pytest.mark.files
def test_process_of_an_image(root: Path) -> None:
    """Entrypoint and Cmd, environment with Docker's defaults, capabilities for root only; overrides replace."""
    config: dict[str, Any] = {"config": {"Entrypoint": ["/e"], "Cmd": ["c"], "Env": ["A=1", "B=2"], "User": "web"}}
    process = process_of(config, Process(), str(root))
    assert process["args"] == ["/e", "c"]
    assert process["env"][0] == f"PATH={DEFAULT_PATH}"
    assert {"A=1", "B=2", "HOME=/var/www"} <= set(process["env"])
    assert process["cwd"] == "/"
    assert process["capabilities"]["effective"] == []
    override = Process(args=("/x",), env={"A": "mine"}, cwd="/w", user="root")
    process = process_of(config, override, str(root))
    assert process["args"] == ["/x"]
    assert {"A=mine", "B=2", "HOME=/root"} <= set(process["env"])
    assert process["cwd"] == "/w"
    assert process["capabilities"]["effective"]
    with pytest.raises(FormatError, match="Entrypoint"):
        process_of({"config": None}, Process(), str(root))


def test_modes() -> None:
    """Every mode loads its provider; wrong names are told with the right ones."""
    for mode in ENGINES[EMBEDDED]:
        assert callable(load(parts_of(mode.name, mode.best.name).provide))
    with pytest.raises(UsageError, match="overlay2, estargz, soci, erofs"):
        parts_of("aufs")
    with pytest.raises(UsageError, match="reference"):
        parts_of("soci", "quick")


@pytest.mark.files
def test_agent_imports_stay_light() -> None:
    """The process inside the machine loads none of the heavy libraries: a small machine pays for each."""
    import subprocess
    import sys

    code = (
        "import sys; import harness.engines.embedded.agent, harness.engines.embedded.overlay2;"
        "print(*[m for m in ('numpy', 'pandas', 'pydantic', 'rich', 'httpx', 'trio', 'typer') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE, text=True)
    assert out.stdout.split() == []


def test_connect() -> None:
    """Scheme and credentials of the request reach the client; nothing is sent."""
    request = DeployRequest(
        "example.org", "a/b", "latest", "overlay2", "tuned", Process(), scheme="https",
        credentials={"user": "u", "secret": "s"},
    )  # fmt: skip
    assert connect(request).repository_url == "https://example.org/v2/a/b"
    assert connect(replace(request, scheme="http")).repository_url == "http://example.org/v2/a/b"


def test_zlib_is_what_the_name_says() -> None:
    """Both decoders give the same bytes for a stream that zlib wrote at its densest."""
    data = b"the same " * 10_000
    compressor = zlib.compressobj(9, zlib.DEFLATED, 31)
    stored = compressor.compress(data) + compressor.flush()
    for decoder in ("isal", "zlib"):
        assert b"".join(inflate(iter([stored]), "layer", decoder)) == data
