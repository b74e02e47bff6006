"""Pages of the documentation site that the program itself writes (a hook of MkDocs: ``mkdocs.yml``, ``hooks``)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mkdocs.structure.files import File, Files

from harness.cli.reference import markdown

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the reference of all commands, made from the commands."""
    files.append(File.generated(config, "reference/commands.md", content=markdown()))
    return files
