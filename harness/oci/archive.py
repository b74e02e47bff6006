"""This module reads images in one file, in place and not unpacked: OCI archives (a layout in a tar), and what ``docker
save`` writes.

A blob is an extent of the tar, and ranges of it are plain reads; an archive that somebody compressed is unpacked into a
temporary file first. ``docker save`` before 25.0 stores uncompressed layers and no manifest: one is made here, with the
layers' diff IDs as their digests. From 25.0 on it writes both forms; where the OCI one is empty, manifest.json counts.
"""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import json
import lzma
import os
import shutil
import tarfile
import tempfile
import zlib
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from harness.errors import ColdbenchError, FormatError, ImageNotFound, UsageError
from harness.oci.cache import writing
from harness.oci.descriptor import (
    OCI_CONFIG,
    OCI_LAYER,
    OCI_LAYER_GZIP,
    OCI_LAYER_ZSTD,
    OCI_MANIFEST,
    Descriptor,
    go_json,
    is_digest,
)
from harness.oci.image import MAX_MANIFEST_BYTES, checked_diff_ids, parse_json
from harness.oci.layout import LayoutStore, manifest_referrers, numbered, select_entry
from harness.oci.reference import Reference, canonical_name
from harness.oci.store import CHUNK_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import BinaryIO

    from harness.oci.store import BlobStore

_COMPRESSED = {b"\x1f\x8b": OCI_LAYER_GZIP, b"\x28\xb5": OCI_LAYER_ZSTD}


def detect_archive(path: str) -> str:
    """Returns the name (``oci-archive:…`` or ``docker-archive:…``) of a file, told by what is in it."""
    store = open_detected(path)
    store.close()
    return store.where


def open_detected(path: str, name: str = "") -> TarStore:
    """Opens the store of an archive of either kind, told by what is in it; ``name`` chooses among its images.

    Where both forms are there, the OCI one keeps the image's digest and is preferred, unless it is empty.
    """
    file = _plain_file(path)
    try:
        members = _members(path, file)
        docker = "manifest.json" in members
        if "index.json" in members:
            store = _open_oci(Reference("oci-archive", path=path, tag=name), file, members)
            if not docker or _is_complete(store):
                return store
        if docker:
            return _open_docker(Reference("docker-archive", path=path, tag=name), file, members)
        raise FormatError(path, "neither an OCI archive (no index.json) nor made by docker save (no manifest.json)")
    except BaseException:
        os.close(file)
        raise


def open_archive(reference: Reference) -> TarStore:
    """Opens the store of an ``oci-archive:`` or ``docker-archive:`` reference."""
    file = _plain_file(reference.path)
    try:
        members = _members(reference.path, file)
        if reference.transport == "docker-archive":
            return _open_docker(reference, file, members)
        store = _open_oci(reference, file, members)
        if not store.entries and "manifest.json" in members:
            raise ImageNotFound(f"{reference}: its OCI form lists no image; name it docker-archive:{reference.path}")
        return store
    except BaseException:
        os.close(file)
        raise


def _is_complete(store: TarStore) -> bool:
    """Says whether the OCI form holds images: Docker 25.0 wrote manifests without layers, or no manifest at all."""
    images = 0
    for entry in store.entries:
        if not (entry.is_manifest or entry.is_index) or store.blob_size(entry.digest) is None:
            continue
        images += 1
        if entry.is_index:
            continue
        try:
            document = parse_json(store.manifest(entry.digest)[0], store.where)
            config = Descriptor.from_json(document.get("config"), store.where)
            rootfs = parse_json(store.get_range(config.digest, 0, config.size), store.where).get("rootfs")
        except ColdbenchError:
            return False
        diff_ids = rootfs.get("diff_ids") if isinstance(rootfs, dict) else None
        if len(document.get("layers") or []) != len(diff_ids or []):
            return False
    return images > 0


def _plain_file(path: str) -> int:
    """Returns a descriptor of the uncompressed tar: the file itself, or a temporary file with what it unpacks to."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise ImageNotFound(f"{path}: no such file") from None
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from None
    try:
        head = os.pread(file, 6, 0)
    except OSError as error:
        os.close(file)
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from None
    unpack = next((unpack for magic, unpack in _UNPACKERS.items() if head.startswith(magic)), None)
    if unpack is None:
        return file
    directory = os.environ.get("TMPDIR") or "/var/tmp"
    with os.fdopen(file, "rb") as packed, writing(Path(directory)):
        with tempfile.TemporaryFile(dir=directory) as plain:
            try:
                unpack(packed, plain)
            except (EOFError, ValueError, lzma.LZMAError, zlib.error, gzip.BadGzipFile) as error:
                raise FormatError(path, f"its compression is damaged or cut ({error})") from None
            plain.flush()
            return os.dup(plain.fileno())


def _unpack_zstd(packed: BinaryIO, plain: IO[bytes]) -> None:
    """Unpacks frame after frame; ValueError when one is damaged or ends early, which zstandard's reader passes over."""
    import zstandard

    frames, data = zstandard.ZstdDecompressor(), b""
    while data or (data := packed.read(CHUNK_BYTES)):
        frame = frames.decompressobj()
        try:
            plain.write(frame.decompress(data))
            while not frame.eof and (data := packed.read(CHUNK_BYTES)):
                plain.write(frame.decompress(data))
        except zstandard.ZstdError as error:
            raise ValueError(str(error)) from None
        if not frame.eof:
            raise EOFError("a zstd frame ends early")
        data = frame.unused_data


def _unpack_xz(packed: BinaryIO, plain: IO[bytes]) -> None:
    with lzma.LZMAFile(packed) as unpacked:
        shutil.copyfileobj(unpacked, plain, CHUNK_BYTES)


_UNPACKERS: dict[bytes, Callable[[BinaryIO, IO[bytes]], None]] = {
    b"\x1f\x8b": lambda packed, plain: shutil.copyfileobj(gzip.GzipFile(fileobj=packed), plain, CHUNK_BYTES),
    b"BZh": lambda packed, plain: shutil.copyfileobj(bz2.BZ2File(packed), plain, CHUNK_BYTES),
    b"\xfd7zXZ\0": _unpack_xz,
    b"\x28\xb5\x2f\xfd": _unpack_zstd,
}
"""It maps the first bytes of each compression that people use for archives; docker load and skopeo take the same
ones.
"""


class TarStore:
    """Serves blobs as extents (offset, size) of one open file, and small documents made on the fly."""

    def __init__(self, file: int, name: str) -> None:
        self.where = name
        self.remarks: list[str] = []
        self.tag = ""
        self.extents: dict[str, tuple[int, int]] = {}
        self.made: dict[str, bytes] = {}
        self.entries: list[Descriptor] = []
        self._file = file

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def manifest(self, reference: str) -> tuple[bytes, str]:
        entry = select_entry(self.entries, reference or self.tag, self.where)
        size = self.blob_size(entry.digest)
        if size is None:
            raise ImageNotFound(f"{self.where}: manifest {entry.digest} is not there")
        if size > MAX_MANIFEST_BYTES:
            raise FormatError(f"{self.where}: {entry.digest}", f"manifest of {size} bytes is too large")
        return self.get_range(entry.digest, 0, size), entry.media_type

    def blob_size(self, digest: str) -> int | None:
        if digest in self.made:
            return len(self.made[digest])
        return self.extents[digest][1] if digest in self.extents else None

    def get_range(self, digest: str, offset: int, size: int) -> bytes:
        if digest in self.made:
            return self.made[digest][offset : offset + size]
        if digest not in self.extents:
            raise ImageNotFound(f"{self.where}: blob {digest} is not there")
        start, length = self.extents[digest]
        if offset + size > length:
            raise FormatError(f"{self.where}: blob {digest}", f"ends before byte {offset + size}")
        return self.read_at(start + offset, size)

    def stream_blob(self, digest: str, sink: Callable[[bytes], object]) -> int:
        size = self.blob_size(digest)
        if size is None:
            raise ImageNotFound(f"{self.where}: blob {digest} is not there")
        for offset in range(0, size, CHUNK_BYTES):
            sink(self.get_range(digest, offset, min(CHUNK_BYTES, size - offset)))
        return size

    def blob_path(self, digest: str) -> Path | None:
        """Returns None: a blob is a part of the archive."""
        return None

    def referrers(self, digest: str, artifact_type: str | None = None) -> list[Descriptor]:
        return manifest_referrers(self.entries, self, digest, artifact_type)

    def read_at(self, offset: int, size: int) -> bytes:
        """Returns ``size`` bytes of the archive file; FormatError where it is cut."""
        data = b""
        while len(data) < size:
            piece = os.pread(self._file, size - len(data), offset + len(data))
            if not piece:
                raise FormatError(self.where, f"the archive is cut at byte {offset + len(data)}")
            data = data + piece if data else piece
        return data


def _members(path: str, file: int) -> dict[str, tarfile.TarInfo]:
    os.lseek(file, 0, os.SEEK_SET)  # a duplicate shares its place with the descriptor that wrote a temporary file
    try:
        with open(os.dup(file), "rb") as stream, tarfile.open(fileobj=stream, mode="r:") as archive:
            return {member.name.removeprefix("./"): member for member in archive}
    except (OSError, tarfile.TarError) as error:
        raise FormatError(path, f"cannot be read as a tar ({error})") from None


def _open_oci(reference: Reference, file: int, members: dict[str, tarfile.TarInfo]) -> TarStore:
    if "index.json" not in members:
        hint = f"; did you mean docker-archive:{reference.path}?" if "manifest.json" in members else ""
        raise FormatError(reference.path, f"is not an OCI archive (no index.json){hint}")
    store = TarStore(file, str(reference))
    store.tag = reference.tag
    for name, member in members.items():
        parts = name.split("/")
        if member.isreg() and len(parts) == 3 and parts[0] == "blobs":
            store.extents[f"{parts[1]}:{parts[2]}"] = (member.offset_data, member.size)
    index = members["index.json"]
    document = parse_json(store.read_at(index.offset_data, index.size), f"{store.where}: index.json")
    store.entries = Descriptor.list_from_json(document.get("manifests"), store.where)
    return store


def _open_docker(reference: Reference, file: int, members: dict[str, tarfile.TarInfo]) -> TarStore:
    if "manifest.json" not in members:
        hint = f"; did you mean oci-archive:{reference.path}?" if "index.json" in members else ""
        raise FormatError(reference.path, f"was not made by docker save (no manifest.json){hint}")
    store = TarStore(file, str(reference))
    listing = members["manifest.json"]
    try:
        images = json.loads(store.read_at(listing.offset_data, listing.size))
        image = _select_docker(images, reference)
        config_member = _target(members, str(image["Config"]), store.where)
        layer_members = [_target(members, str(name), store.where) for name in image["Layers"] or []]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise FormatError(f"{store.where}: manifest.json", f"is not what docker save writes ({error!r})") from None
    config = store.read_at(config_member.offset_data, config_member.size)
    diff_ids = checked_diff_ids(parse_json(config, f"{store.where}: config"), f"{store.where}: config")
    if len(diff_ids) != len(layer_members):
        raise FormatError(f"{store.where}: config", f"{len(diff_ids)} diff_ids for {len(layer_members)} layers")
    config_descriptor = Descriptor.of(config, OCI_CONFIG)
    store.made[config_descriptor.digest] = config
    layers = []
    for member, diff_id in zip(layer_members, diff_ids, strict=True):
        media_type = _COMPRESSED.get(store.read_at(member.offset_data, min(2, member.size)), OCI_LAYER)
        digest = diff_id if media_type == OCI_LAYER else _hash_extent(store, member)
        if not is_digest(digest):
            raise FormatError(f"{store.where}: config", f"diff ID {digest!r} is not a digest")
        store.extents[digest] = (member.offset_data, member.size)
        layers.append(Descriptor(media_type, digest, member.size))
    manifest = go_json(
        {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": config_descriptor.to_json(),
            "layers": [layer.to_json() for layer in layers],
        }
    )
    descriptor = Descriptor.of(manifest, OCI_MANIFEST)
    store.made[descriptor.digest] = manifest
    # The archive's own names chose the image already; the store knows it as its only one, under whatever name.
    store.entries = [descriptor]
    return store


def _select_docker(images: Any, reference: Reference) -> dict[str, Any]:
    if not isinstance(images, list) or not images:
        raise FormatError(f"{reference}: manifest.json", "lists no image")
    wanted = reference.tag
    if wanted.startswith("@") and wanted[1:].isdigit():
        return dict(numbered(images, wanted, str(reference)))
    if wanted:
        canonical = canonical_name(wanted)
        for image in images:
            tags = image.get("RepoTags") or []
            if wanted in tags or canonical in map(canonical_name, tags):
                return dict(image)
    names = ", ".join(tag for image in images for tag in image.get("RepoTags") or []) or "none"
    if wanted:
        raise ImageNotFound(f"{reference}: no image of this name; names there: {names}")
    if len(images) > 1:
        raise UsageError(f"{reference}: several images; append :REF with one of {names}, or :@0 and so on")
    return dict(images[0])


def _target(members: dict[str, tarfile.TarInfo], name: str, where: str) -> tarfile.TarInfo:
    """Returns the regular file a name leads to: docker save stores a repeated layer as a link to the first."""
    for _ in range(8):
        member = members.get(os.path.normpath(name))
        if member is None:
            raise FormatError(where, f"{name} is not in the archive")
        if member.isreg():
            return member
        if member.issym():
            name = os.path.join(os.path.dirname(name), member.linkname)
        elif member.islnk():
            name = member.linkname
        else:
            break
    raise FormatError(where, f"{name} is not a file")


def _hash_extent(store: TarStore, member: tarfile.TarInfo) -> str:
    digest = hashlib.sha256()
    for offset in range(0, member.size, CHUNK_BYTES):
        digest.update(store.read_at(member.offset_data + offset, min(CHUNK_BYTES, member.size - offset)))
    return f"sha256:{digest.hexdigest()}"


class ArchiveDestination:
    """Writes an OCI archive: a layout beside the target, packed and renamed into place by ``close``."""

    takes_partial_indexes = True

    def __init__(self, path: str, tag: str = "") -> None:
        self._path = Path(path)
        if not self._path.parent.is_dir():
            raise UsageError(f"{path}: its directory does not exist")
        self._scratch = Path(tempfile.mkdtemp(prefix=f".{self._path.name}-", dir=self._path.parent))
        self._layout = LayoutStore(self._scratch / "layout", tag, create=True)

    @property
    def where(self) -> str:
        return f"oci-archive:{self._path}"

    def has_blob(self, digest: str) -> bool:
        return self._layout.has_blob(digest)

    def put_blob(self, descriptor: Descriptor, data: bytes | Path | Iterable[bytes]) -> None:
        self._layout.put_blob(descriptor, data)

    def mount_blob(self, descriptor: Descriptor, source: BlobStore) -> bool:
        return self._layout.mount_blob(descriptor, source)

    def put_manifest(self, data: bytes, media_type: str, tag: str = "") -> Descriptor:
        return self._layout.put_manifest(data, media_type, tag)

    def put_nested_manifest(self, data: bytes, media_type: str) -> Descriptor:
        return self._layout.put_nested_manifest(data, media_type)

    def add_referrer(self, subject: Descriptor, data: bytes, media_type: str) -> Descriptor:
        return self._layout.add_referrer(subject, data, media_type)

    def close(self) -> None:
        """Packs what was written; nothing appears at the target when no image was."""
        if not self._scratch.is_dir():
            return
        try:
            if self._layout.entries():
                packed = self._scratch / "packed"
                with tarfile.open(packed, "w:", format=tarfile.PAX_FORMAT) as archive:
                    for path in sorted(self._layout.directory.rglob("*")):
                        if path.is_file():
                            self._add(archive, path)
                os.rename(packed, self._path)
        finally:
            shutil.rmtree(self._scratch, ignore_errors=True)

    def _add(self, archive: tarfile.TarFile, path: Path) -> None:
        info = tarfile.TarInfo(str(path.relative_to(self._layout.directory)))
        info.size = path.stat().st_size
        with open(path, "rb") as file:
            archive.addfile(info, file if info.size else io.BytesIO())
