"""This module names forms (what the registry holds for a mode) and presentations (how served bytes become a file
system).
"""

from __future__ import annotations

from enum import StrEnum


class Form(StrEnum):
    """Says what the registry must hold for a mode."""

    IMAGE = "image"
    """It is the image as it is."""
    ESTARGZ = "estargz"
    ESTARGZ_OPTIMIZED = "estargz-optimized"
    """It is written for one workload: what its start reads comes first, up to a landmark that is fetched ahead."""
    SOCI = "soci"
    EROFS = "erofs"
    EROFS_PACKED = "erofs-packed"
    """It has a start pack, recorded for one workload."""


_NO_WAY_INTO = {
    (Form.SOCI, "zstd"): "a zTOC leads into gzip and plain tar, not into zstd: every layer would be unpacked",
    (Form.EROFS, "zstd"): "the index has no way into zstd: every layer would be fetched whole at the start",
    (Form.EROFS_PACKED, "zstd"): "a start pack holds nothing of zstd layers, which are fetched whole at the start",
}


def no_way_into(form: Form, compression: str) -> str:
    """Says why layers of this compression (``gzip``, ``zstd``, ``none``) cannot be read in part; empty where they
    can.
    """
    return _NO_WAY_INTO.get((form, compression), "")


class Presentation(StrEnum):
    """Says how lazily served bytes become a file system."""

    NONE = "none"
    """They do not: layers are unpacked into directories."""
    TREE = "tree"
    """Every file comes over FUSE."""
    BLOB = "blob"
    """EROFS reads one file that comes over FUSE."""
