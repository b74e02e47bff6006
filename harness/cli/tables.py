"""This module makes the consoles that text is printed on; a tag ``:new`` stays text on them and becomes no picture."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

#: Columns of a pipe or a file, which have no width: paths and digests stay whole.
FILE_COLUMNS = 160


def console() -> Console:
    """Returns standard output, as wide as the terminal is."""
    from rich.console import Console

    wide = None if sys.stdout.isatty() or os.environ.get("COLUMNS") else FILE_COLUMNS
    return Console(highlight=False, width=wide, emoji=False)


def error_console() -> Console:
    """Returns standard error, for progress and messages; it breaks no lines."""
    from rich.console import Console

    return Console(stderr=True, soft_wrap=True, highlight=False, emoji=False)
