"""This module holds the constants of the zTOC format, for its writer and its reader."""

from __future__ import annotations

import struct

VERSION = b"0.9"
GZIP, UNCOMPRESSED = 1, 2
TYPES = {0x30: b"reg", 0x31: b"hardlink", 0x32: b"symlink", 0x33: b"char", 0x34: b"block", 0x35: b"dir", 0x36: b"fifo"}
"""Maps a tar type flag to a type string."""
HEADER = struct.Struct("<iq")
"""It stands before the checkpoints: their count, the span size."""
FIXED = struct.Struct("<qqB")
"""It describes one checkpoint, before its window: compressed offset, decompressed offset, bits."""
