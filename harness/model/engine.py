"""This module describes engines as a scenario names them: which one, and which of this host's programs it uses.

``engines = ["docker", "embedded"]`` takes each as it is found; tables name programs: ``[engines.docker]`` with
``dockerd = "/opt/docker/dockerd"``. Both become the same list of choices on the way in.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field, model_validator

from harness.errors import UsageError
from harness.model import modes
from harness.model.observation import Limits  # noqa: TC001 - as below
from harness.model.workload import Table


def engine_name(name: str) -> str:
    """Refuses an engine that nothing implements, as pydantic wants it (ValueError)."""
    try:
        modes.engine_modes(name)
    except UsageError as error:
        raise ValueError(str(error)) from None
    return name


EngineName = Annotated[str, AfterValidator(engine_name), Field(json_schema_extra={"enum": list(modes.ENGINES)})]


class _OtherEngine(Table):
    """Holds what choices of engines that are not ours have in common."""

    own_registry_only: ClassVar[bool] = False
    """Says whether its daemon cannot be led through the relays that stand for a registry elsewhere."""
    optional: bool = Field(
        default=False, description="Leave this engine out, and say so, where it cannot run, instead of refusing to run."
    )


class EmbeddedChoice(Table):
    """Chooses our own engine: it needs nothing but crun or runc."""

    own_registry_only: ClassVar[bool] = False
    engine: Literal["embedded"] = "embedded"


class DockerChoice(_OtherEngine):
    """Chooses Docker: a dockerd of the harness's own inside the machine, or, by ``host``, one that runs already."""

    own_registry_only: ClassVar[bool] = True
    engine: Literal["docker"] = "docker"
    dockerd: str = Field(
        default="", description="Path of the dockerd to run; else COLDBENCH_DOCKERD, else the one on the PATH."
    )
    containerd: str = Field(
        default="", description="Path of the containerd beside it; else the one beside dockerd, else the PATH's."
    )
    host: str = Field(
        default="",
        description="Socket of a Docker that runs already, as unix:///run/docker.sock. The shape's limits then hold "
        "for the container alone, and its results are compared with no machine's.",
    )

    @model_validator(mode="after")
    def _one_docker(self) -> DockerChoice:
        if not self.host:
            return self
        if not self.host.startswith("unix:///"):
            raise ValueError(
                f"host: expected a socket of this machine, as unix:///run/docker.sock, got {self.host!r}; a Docker "
                "elsewhere cannot be limited or watched from here"
            )
        if self.dockerd or self.containerd:
            raise ValueError("host names a Docker that runs already; leave out dockerd and containerd, or host")
        return self


class ContainerdChoice(_OtherEngine):
    """Chooses containerd with its snapshotters, inside the machine."""

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
    """Describes ``[engines.NAME]`` as a file may say it, for editors; ``expand_engines`` makes a list of it."""

    embedded: EmbeddedChoice | None = None
    docker: DockerChoice | None = None
    containerd: ContainerdChoice | None = None


_CHOICES: dict[str, type[EmbeddedChoice | DockerChoice | ContainerdChoice]] = {
    "embedded": EmbeddedChoice, "docker": DockerChoice, "containerd": ContainerdChoice,
}  # fmt: skip


def default_choice(name: str) -> EngineChoice:
    """Returns an engine as it is found on this host."""
    return _CHOICES[name]()


def limits_of(choice: EngineChoice) -> Limits:
    """Says what a shape's limits hold for, and what is charged, under this engine."""
    return "container" if isinstance(choice, DockerChoice) and choice.host else "machine"


def is_optional(choice: EngineChoice) -> bool:
    """Says whether a session goes on without this engine where it cannot run."""
    return not isinstance(choice, EmbeddedChoice) and choice.optional


def wanted_now(choice: EngineChoice) -> EngineChoice:
    """Returns the same engine for a user who named it: it is not left out in silence."""
    if isinstance(choice, EmbeddedChoice):
        return choice
    return choice.model_copy(update={"optional": False})


def expand_engines(value: object) -> object:
    """Turns a list of names or tables, or a table of tables by name, into the list of tables it stands for.

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
