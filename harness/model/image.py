"""This module describes a scenario's image: a recipe to build, a registry reference, an OCI layout, or an archive."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, Strict, model_validator

from harness.model.near_miss import near_miss

DEFAULT_EPOCH_S = 1_767_225_600
"""It is 2026-01-01: no file of an image built from a recipe is younger, so that builds repeat (SOURCE_DATE_EPOCH)."""

Strings = Annotated[tuple[str, ...], Strict(False)]


def _check_path(path: str) -> str:
    if {".", ".."} & set(path.split("/")):
        raise ValueError(f"expected an absolute path without . and .., got {path!r}")
    return path


AbsolutePath = Annotated[str, Field(pattern=r"^/([^/\x00]+(/[^/\x00]+)*)?$"), AfterValidator(_check_path)]


#: The levels each compression has, and the one it has when none is named.
_LEVELS = {"gzip": (1, 9, 6), "zstd": (1, 19, 3)}


@dataclass(frozen=True, slots=True)
class Compression:
    """Says how layers are compressed: ``gzip``, ``zstd`` or ``none``, and at which level (0 for none)."""

    kind: str
    level: int

    @property
    def name(self) -> str:
        """Returns ``KIND``, with ``:LEVEL`` where that is not the usual one."""
        usual = _LEVELS[self.kind][2] if self.kind in _LEVELS else 0
        return self.kind if self.level == usual else f"{self.kind}:{self.level}"


def parse_compression(text: str) -> Compression:
    """Reads ``gzip``, ``zstd`` or ``none``, perhaps with a level as ``zstd:19``. Raises ValueError with what it
    takes.
    """
    kind, colon, level = text.partition(":")
    if kind not in {*_LEVELS, "none"}:
        kinds = (*_LEVELS, "none")
        raise ValueError(f"expected a compression ({', '.join(kinds)}), got {text!r}{near_miss(kind, kinds)}")
    if kind == "none":
        if colon:
            raise ValueError(f"expected none without a level, got {text!r}")
        return Compression(kind, 0)
    least, most, usual = _LEVELS[kind]
    if not colon:
        return Compression(kind, usual)
    if not level.isascii() or not level.isdigit() or not least <= int(level) <= most:
        raise ValueError(f"expected a level of {kind} from {least} to {most}, as {kind}:{most}, got {text!r}")
    return Compression(kind, int(level))


CompressionName = Annotated[str, AfterValidator(lambda text: parse_compression(text).name)]


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class DebianLayer(_Table):
    """Installs packages of a Debian suite, with all they depend on; as the first layer it is the base system."""

    kind: Literal["debian"]
    suite: str = Field(default="bookworm", pattern=r"^[a-z][a-z0-9-]*$", description="As apt knows it.")
    packages: Strings = ()
    variant: Literal["minbase", "apt", "required", "important", "standard"] = Field(
        default="minbase", description="mmdebstrap's variant of the base system; of a first layer only."
    )
    slim: bool = Field(
        default=False, description="Leave out documentation, manual pages and translations, as slim images do."
    )


class PipLayer(_Table):
    """Installs Python packages for the image's own python3, as ``pip install`` leaves them."""

    kind: Literal["pip"]
    requirements: Annotated[Strings, Field(min_length=1)] = Field(description="Requirement specifiers, pinned.")
    compile: bool = Field(default=True, description="Write the .pyc files that pip writes.")


class NpmLayer(_Table):
    """Installs Node packages, as ``npm install`` leaves them in a directory."""

    kind: Literal["npm"]
    packages: Annotated[Strings, Field(min_length=1)] = Field(description="name@version.")
    directory: AbsolutePath = "/app"


class InlineFile(_Table):
    """Holds one file whose text stands in the scenario."""

    path: AbsolutePath
    text: str = ""
    mode: str = Field(default="0644", pattern=r"^0?[0-7]{3,4}$", description="Octal.")
    uid: int = Field(default=0, ge=0, le=0xFFFFFFFE)
    gid: int = Field(default=0, ge=0, le=0xFFFFFFFE)


class FilesLayer(_Table):
    """Adds files given in the scenario itself."""

    kind: Literal["files"]
    files: Annotated[tuple[InlineFile, ...], Strict(False), Field(min_length=1)]


Layer = Annotated[DebianLayer | PipLayer | NpmLayer | FilesLayer, Field(discriminator="kind")]


class ImageConfig(_Table):
    """Holds the image's own configuration (OCI image spec, config.md)."""

    entrypoint: Strings = ()
    command: Strings = ()
    env: dict[str, str] = Field(default_factory=dict)
    cwd: AbsolutePath = "/"
    user: str = ""
    ports: Strings = Field(default=(), description="Exposed ports, such as 8000/tcp.")


class Recipe(_Table):
    """Describes an image built here: its layers, bottom first, and its configuration."""

    layers: Annotated[tuple[Layer, ...], Strict(False), Field(min_length=1)]
    config: ImageConfig = ImageConfig()
    epoch_s: int = Field(default=DEFAULT_EPOCH_S, ge=0, description="Modification times are cut to this time at most.")

    @model_validator(mode="after")
    def _check_base(self) -> Recipe:
        first = self.layers[0].kind
        if first in {"pip", "npm"}:
            raise ValueError(f"the first layer is {first}: expected a debian (or files) layer below it")
        return self


class ImageSpec(_Table):
    """Names the image by exactly one source."""

    recipe: Recipe | None = None
    ref: str | None = Field(default=None, description="A registry reference, docker://HOST/NAME:TAG or HOST/NAME:TAG.")
    layout: str | None = Field(default=None, description="An OCI layout: DIR or DIR:TAG.")
    archive: str | None = Field(default=None, description="A file made by docker save, or an OCI archive.")
    compression: CompressionName | None = Field(
        default=None,
        description="Its layers are compressed so: gzip, zstd or none, perhaps with a level as zstd:19.",
    )

    copy_number: int = Field(
        default=0,
        ge=0,
        description="Above 0: the same files and one more, which holds this number: no blob is that of another copy.",
    )

    @model_validator(mode="after")
    def _check_one(self) -> ImageSpec:
        given = [name for name in ("recipe", "ref", "layout", "archive") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"expected exactly one of recipe, ref, layout, archive; got {', '.join(given) or 'none'}")
        return self
