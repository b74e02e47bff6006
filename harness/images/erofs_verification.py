"""This module checks an image's EROFS index against the image: spans, windows, start pack and metadata, to the last
byte.

What the file system shows is a function of the layers' tars: metadata written afresh from them must be the index's.
Together with the spans, which must inflate to the tars, that is everything a mount can serve.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from harness.errors import FormatError
from harness.formats.erofs.byte_source import IndexedByteSource
from harness.formats.erofs.index import WHOLE, index_parts, load_erofs_index
from harness.formats.erofs.merge import merge_layers
from harness.formats.erofs.packing import load_pack
from harness.formats.erofs.table import TarTable
from harness.formats.erofs.writer import write_metadata
from harness.images.pack_contents import check_against
from harness.images.verification_compare import LazyLayer

if TYPE_CHECKING:
    from collections.abc import Callable

    from harness.formats.erofs.index import ErofsIndex, IndexedLayer
    from harness.formats.gzip.layer_stream import SpooledTar
    from harness.oci.descriptor import Descriptor
    from harness.oci.image import Image
    from harness.oci.store import ImageSource


LayerCheck = tuple[int, str, "Callable[[SpooledTar], LazyLayer]"]


def index_checks(source: ImageSource, image: Image, manifest: bytes) -> tuple[ErofsIndex, list[LayerCheck]]:
    """Opens the image's EROFS index, whose manifest ``find_erofs_index`` gave, and gives (layer, what, check) for each
    layer.

    The checks are made in order and each raises ContentError when something does not hold; the last one compares the
    metadata too.
    """
    head, windows = index_parts(manifest, image.descriptor.digest)
    index = load_erofs_index(manifest, source.open_blob(head).read(), image.descriptor, image.layers)
    windows_blob = source.open_blob(windows) if windows is not None else None
    pack = load_pack(source, image, manifest, index)
    tables: list[TarTable] = []
    sizes: list[int] = []
    checks: list[LayerCheck] = []
    parts = "spans and windows" if pack is None else "spans, windows and start pack"
    for layer, descriptor in zip(index.layers, image.layers, strict=True):

        def check(tar: SpooledTar, layer: IndexedLayer = layer, descriptor: Descriptor = descriptor) -> LazyLayer:
            if layer.size != tar.size:
                raise FormatError("EROFS index", f"promises {layer.size} bytes, the tar has {tar.size}")
            if layer.kind != WHOLE:
                data = IndexedByteSource(layer, source.open_blob(descriptor), windows_blob)
                for number in range(len(layer)):
                    start, end = layer.span_bounds(number)
                    if data.span(number) != os.pread(tar.descriptor, end - start, start):
                        raise FormatError(f"span {number}", "inflates to something else than the tar has there")
            if pack is not None:
                check_against(pack, index, layer, tar)
            table = TarTable()
            table.add(tar.entries)
            tables.append(table)
            sizes.append(tar.size)
            if layer.number == len(index.layers) - 1:
                _compare_metadata(index, tables, sizes)
            names = frozenset(table.finish(tar.size).names)
            return LazyLayer(TarTable().finish(0), _Nothing(), hidden=names | table.hidden)

        last = layer.number == len(index.layers) - 1
        checks.append((layer.number, f"EROFS {parts}{', and the metadata of all layers' if last else ''}", check))
    return index, checks


class _Nothing:
    """Stands for the byte source of a layer that was compared already."""

    size = 0

    def read(self, offset: int, size: int) -> bytes:
        raise FormatError("EROFS index", f"{size} bytes at {offset} of nothing")


def _compare_metadata(index: ErofsIndex, tables: list[TarTable], sizes: list[int]) -> None:
    if len(tables) != len(index.layers):
        raise FormatError("EROFS metadata", "cannot be compared, since another layer does not hold")
    merged = merge_layers(
        [table.finish(size) for table, size in zip(tables, sizes, strict=True)], [table.fragments for table in tables]
    )
    if write_metadata(merged, sizes, block_size=index.block_size).data != index.metadata:
        raise FormatError("EROFS metadata", "is not what the layers give")
