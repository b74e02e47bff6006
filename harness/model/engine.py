"""Engines as a scenario names them: which one, and which of the programs found on this host it is to use.

``engines = ["docker", "embedded"]`` takes each as it is found; tables name programs: ``[engines.docker]`` with
``dockerd = "/opt/docker/dockerd"``. Both become the same list of choices on the way in.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field

from harness.errors import UsageError
from harness.model import modes
from harness.model.workload import Table


def engine_name(name: str) -> str:
    """Refuse an engine that nothing implements, as pydantic wants it (ValueError)."""
    try:
        modes.engine_modes(name)
    except UsageError as error:
        raise ValueError(str(error)) from None
    return name


EngineName = Annotated[str, AfterValidator(engine_name), Field(json_schema_extra={"enum": list(modes.ENGINES)})]


class _OtherEngine(Table):
    """What choices of engines that are not ours have in common."""

    own_registry_only: ClassVar[bool] = False
    """Whether its daemon cannot be led through the relays that stand for a registry elsewhere."""
    optional: bool = Field(
        default=False, description="Leave this engine out, and say so, where it cannot run, instead of refusing to run."
    )


class EmbeddedChoice(Table):
    """Our own engine: it needs nothing but crun or runc."""

    own_registry_only: ClassVar[bool] = False
    engine: Literal["embedded"] = "embedded"


class DockerChoice(_OtherEngine):
    """Docker: a dockerd of the harness's own inside the machine."""

    own_registry_only: ClassVar[bool] = True
    engine: Literal["docker"] = "docker"
    dockerd: str = Field(
        default="", description="Path of the dockerd to run; else COLDBENCH_DOCKERD, else the one on the PATH."
    )
    containerd: str = Field(
        default="", description="Path of the containerd beside it; else the one beside dockerd, else the PATH's."
    )


class ContainerdChoice(_OtherEngine):
    """containerd with its snapshotters, inside the machine."""

    engine: Literal["containerd"] = "containerd"
    containerd: str = Field(
        default="",
        description="Path of the containerd to run; else COLDBENCH_CONTAINERD, else the one `nox -s engines` built, "
        "else the one on the PATH. Its shim is looked for beside it.",
    )
    stargz: str = Field(
        default="", description="Path of stargz-snapshotter's daemon (containerd-stargz-grpc); else the one built."
    )
    soci: str = Field(default="", description="Path of soci-snapshotter-grpc; else the one built, else the PATH's.")


EngineChoice = Annotated[EmbeddedChoice | DockerChoice | ContainerdChoice, Field(discriminator="engine")]


class EngineTables(Table):
    """``[engines.NAME]`` as a file may say it, for editors; ``expand_engines`` makes a list of it."""

    embedded: EmbeddedChoice | None = None
    docker: DockerChoice | None = None
    containerd: ContainerdChoice | None = None


_CHOICES: dict[str, type[EmbeddedChoice | DockerChoice | ContainerdChoice]] = {
    "embedded": EmbeddedChoice, "docker": DockerChoice, "containerd": ContainerdChoice,
}  # fmt: skip


def default_choice(name: str) -> EngineChoice:
    """An engine as it is found on this host."""
    return _CHOICES[name]()


def is_optional(choice: EngineChoice) -> bool:
    """Whether a session goes on without this engine where it cannot run."""
    return not isinstance(choice, EmbeddedChoice) and choice.optional


def wanted_now(choice: EngineChoice) -> EngineChoice:
    """The same engine for a user who named it: not to be left out in silence."""
    if isinstance(choice, EmbeddedChoice):
        return choice
    return choice.model_copy(update={"optional": False})


def expand_engines(value: object) -> object:
    """A list of names or tables, or a table of tables by name, as the list of tables it stands for.

    Raises:
        ValueError: an engine that there is not (the message names the nearest).
    """
    if isinstance(value, dict):
        value = [{"engine": name, **(table if isinstance(table, dict) else {})} for name, table in value.items()]
    elif isinstance(value, str):
        value = [value]
    if not isinstance(value, list | tuple):
        return value
    entries = [{"engine": entry} if isinstance(entry, str) else entry for entry in value]
    for entry in entries:
        if isinstance(entry, dict):
            engine_name(str(entry.get("engine")))
    return entries
