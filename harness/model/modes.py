"""This module holds the one table of modes and presets: whoever wants to know something about a mode asks here.

Nobody else compares names of modes or presets (a test looks). A mode says how the root file system gets onto the
machine. Modes and presets belong to an engine, since each engine offers its own. A new preset is one line in this table
plus its implementation. Tables, figures and labels take their order, marker and colour from here too, so that a user's
label changes nothing.

The agent and the daemon inside the machine import this module, so it uses the standard library alone.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from harness.errors import UsageError
from harness.model import policy
from harness.model.forms import Form as Form  # noqa: PLC0414 - exported from here
from harness.model.forms import Presentation as Presentation  # noqa: PLC0414 - exported from here
from harness.model.near_miss import near_miss
from harness.model.policy import KIB, MIB, PYFUSE3, LazyPolicy, Option, PullPolicy, Snapshotter, SnapshotterPolicy

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping


class Role(StrEnum):
    """Says what a preset is compared for."""

    OFFER = "offer"
    """It is a way to start containers that the answer may recommend."""
    YARDSTICK = "yardstick"
    """It shows what something costs, or imitates somebody else's policies; nobody is told to use it."""
    FLOOR = "floor"
    """It starts with the image already on the machine: what a lazy start can hope for."""


@dataclass(frozen=True, slots=True)
class Preset:
    """Names a set of policies of one mode."""

    name: str
    does: str
    """Says what it does, in a few words: for help and tables."""
    policy: PullPolicy | LazyPolicy | None
    """Holds its policy; None where the engine is not ours and has policies of its own."""
    pull_core_s_per_gb: float = 0.0
    """Guesses the core-seconds of a full pull per compressed GB; measured trials replace the guess."""
    baseline: bool = False
    """Says whether others are compared with it."""
    unpacks: bool = True
    """Says whether a full pull makes every file of the image."""
    only_options: tuple[str, ...] | None = None
    """Lists the options it takes, where these are not all that its mode has."""
    line: str = "-"
    """Says how figures draw it: a line style of matplotlib."""
    hollow: bool = False
    """Says whether its markers are outlines only."""
    role: Role = Role.OFFER
    shipped_lazy: bool = False
    """Says whether an engine that is not ours starts the container before its image is there."""
    form: Form | None = None
    """Says what the registry must hold, where that is not its mode's form."""
    snapshotter: SnapshotterPolicy | None = None
    """Says how containerd and its snapshotter are set up; only engine containerd has it."""

    @property
    def lazy(self) -> bool:
        """Says whether the container starts before its image is there."""
        return self.takes_prefetch or self.shipped_lazy

    @property
    def takes_prefetch(self) -> bool:
        """Says whether a scenario's prefetch list and background fetch mean anything to it."""
        return isinstance(self.policy, LazyPolicy) and not self.policy.eager

    def streams(self, options: Mapping[str, object]) -> bool:
        """Says whether, with these options, a lazy start may bring layers before it is ready that nothing asked for."""
        policies = self.policy
        if not isinstance(policies, LazyPolicy) or not self.takes_prefetch:
            return False
        return all(options.get(name, getattr(policies, name)) for name in ("stream", "adaptive"))

    @property
    def follows_pack(self) -> bool:
        """Says whether a start streams what a recorded one asked for."""
        return isinstance(self.policy, LazyPolicy) and self.policy.pack

    @property
    def before_t0(self) -> bool:
        """Says whether the image is on the machine before T0."""
        return isinstance(self.policy, PullPolicy) and self.policy.before_t0

    @property
    def keeps_pages(self) -> bool:
        """Says whether the page cache is left as it is before T0."""
        return isinstance(self.policy, PullPolicy) and self.policy.keep_pages


@dataclass(frozen=True, slots=True)
class Mode:
    """Describes one mode of one engine; its first preset is the default."""

    name: str
    form: Form
    presentation: Presentation
    presets: tuple[Preset, ...]
    marker: str
    """Says how figures mark it (matplotlib)."""
    colour: str
    tracer: bool = False
    """Says whether a start's reads are recorded through it."""
    program: str = ""
    """Says what people call the program behind it, where the engine is not ours."""
    told_as: tuple[str, ...] = ()
    """Lists the names under which observations tell that program's version; the first one found counts."""

    def preset(self, name: str) -> Preset:
        """Returns the preset called ``name``, the default one for an empty name. Raises UsageError."""
        for preset in self.presets:
            if preset.name == name:
                return preset
        if not name:
            return self.presets[0]
        raise UsageError(unknown_preset(self.name, name, [preset.name for preset in self.presets]))

    def options(self, preset: Preset) -> dict[str, Option]:
        """Returns the options that do something in this mode and preset, by name; none where the engine is not ours."""
        if preset.policy is None:
            return {}
        about = {*Form, *Presentation} - {self.form, self.presentation}
        return {
            name: option
            for name, option in policy.options_of(type(preset.policy)).items()
            if not (option.limits.only and about.issuperset(option.limits.only))
            and (preset.only_options is None or name in preset.only_options)
        }

    @property
    def best(self) -> Preset:
        """Returns the preset with the best policies this project knows."""
        return self.preset("tuned")

    @property
    def through_fuse(self) -> bool:
        """Says whether bytes of the root file system come over FUSE, also where a preset fetches all of them first."""
        return self.presentation is not Presentation.NONE


EMBEDDED = "embedded"
"""It names our own engine."""

_SEQUENTIAL = Preset(
    "sequential", "one step and one layer after the other", PullPolicy(False, "zlib"),
    pull_core_s_per_gb=62.0, baseline=True, role=Role.YARDSTICK,
)  # fmt: skip
_TUNED_PULL = Preset(
    "tuned", "fetching, decoding and unpacking overlap", PullPolicy(), pull_core_s_per_gb=15.0, baseline=True, line="--"
)
_LOCAL = Preset(
    "local", "unpacked before T0, page cache dropped: the floor", PullPolicy(before_t0=True), line=":",
    role=Role.FLOOR, only_options=(),
)  # fmt: skip
_WARM = Preset(
    "warm", "unpacked before T0, page cache kept: a restart", PullPolicy(before_t0=True, keep_pages=True), line=":",
    role=Role.FLOOR, only_options=(),
)  # fmt: skip
_EAGER = Preset(
    "eager", "full pull that unpacks no file",
    LazyPolicy(eager=True, prefetch=False, background=False, trust_disk=True),
    pull_core_s_per_gb=8.0, unpacks=False, line="--",
    only_options=(
        "entry_timeout_s", "attr_timeout_s", "attempts", "retry_first_s", "read_ahead_kib", "handover", "direct_io",
        "trust_disk",
    ),
)  # fmt: skip


def _tuned(policies: LazyPolicy) -> Preset:
    return Preset("tuned", "the best policies known", policies)


def _library(policies: LazyPolicy) -> Preset:
    return Preset(
        PYFUSE3,
        "the tuned policies, served through the library pyfuse3",
        dataclasses.replace(policies, library=PYFUSE3, restart=False),
        line="-.",
        hollow=True,
        role=Role.YARDSTICK,
    )


def _reference(policies: LazyPolicy) -> Preset:
    return Preset(
        "reference",
        "the reference snapshotter's published defaults",
        policies,
        line=":",
        hollow=True,
        role=Role.YARDSTICK,
    )


_ESTARGZ = LazyPolicy()
_SOCI = LazyPolicy(readahead_units=0, memory_bytes=52 * MIB)
"""A span of 4 MiB is read-ahead enough: fetching the next one too costs 1 % more bytes and no less time."""

_EROFS = LazyPolicy(inflate_step=512 * KIB, readahead_units=4)
"""Here what is inflated costs no request any more, and a smaller step costs no less CPU; spans have 1 MiB, a quarter of
SOCI's.
"""

OVERLAY2 = Mode("overlay2", Form.IMAGE, Presentation.NONE, (_SEQUENTIAL, _TUNED_PULL, _LOCAL, _WARM), "s", "#666666")
ESTARGZ = Mode(
    "estargz", Form.ESTARGZ, Presentation.TREE,
    (_tuned(_ESTARGZ), _reference(policy.STARGZ), _library(_ESTARGZ)), "o", "#0072B2",
    # It serves every layer, where soci has small ones unpacked and does not see what is read of them, and it sees
    # files, where erofs sees blocks that several files share.
    tracer=True,
)  # fmt: skip
SOCI = Mode(
    "soci", Form.SOCI, Presentation.TREE,
    (_tuned(_SOCI), _reference(policy.SOCI), _library(_SOCI)), "^", "#D55E00",
)  # fmt: skip
EROFS = Mode(
    "erofs", Form.EROFS, Presentation.BLOB,
    (
        _tuned(_EROFS),
        Preset(
            "packed", "the tuned policies, and what a recorded start asked for in one stream",
            dataclasses.replace(_EROFS, pack=True, exact_read_ahead_kib=32), form=Form.EROFS_PACKED, line="-.",
        ),
        _EAGER,
    ), "D", "#009E73",
)  # fmt: skip

DOCKER = "docker"
"""It names Docker as it is."""

_CONTAINERD_STORE = Preset(
    "containerd-store", "Docker with its images in containerd's store", None, pull_core_s_per_gb=65.0, line="--"
)
DOCKER_OVERLAY2 = Mode(
    "overlay2", Form.IMAGE, Presentation.NONE,
    (
        Preset("overlay2", "Docker with its own image store", None, pull_core_s_per_gb=65.0, baseline=True),
        _CONTAINERD_STORE,
    ),
    "X", "#2496ED", program="Docker", told_as=("docker", "docker_version"),
)  # fmt: skip

CONTAINERD = "containerd"
"""It names containerd with the real snapshotters."""


def _containerd(name: str, does: str, setup: SnapshotterPolicy, **more: Any) -> Preset:
    return Preset(name, does, None, 40.0, shipped_lazy=setup.lazy, snapshotter=setup, **more)


CONTAINERD_MODES = (
    Mode(
        "overlay2", Form.IMAGE, Presentation.NONE,
        (
            _containerd("default", "containerd as it is", SnapshotterPolicy(Snapshotter.OVERLAYFS), baseline=True),
            _containerd(
                "parallel", "containerd fetches layers in chunks and unpacks them at once",
                SnapshotterPolicy(Snapshotter.OVERLAYFS, parallel=True), baseline=True, line="--",
            ),
        ), "s", "#444444", program="containerd", told_as=("containerd",),
    ),
    Mode(
        "estargz", Form.ESTARGZ, Presentation.TREE,
        (
            _containerd(
                "default",
                "the real stargz-snapshotter as it is",
                SnapshotterPolicy(Snapshotter.STARGZ, lazy=True),
                hollow=True,
            ),
            _containerd(
                "optimized", "the same, of an image written for this workload: what its start reads is prefetched",
                SnapshotterPolicy(Snapshotter.STARGZ, lazy=True), form=Form.ESTARGZ_OPTIMIZED,
            ),
        ), "o", "#005082", program="the real stargz-snapshotter",
        told_as=("coldbench-stargz", "containerd-stargz-grpc"),
    ),
    Mode(
        "soci", Form.SOCI, Presentation.TREE,
        (
            _containerd(
                "default",
                "the real SOCI snapshotter as it is",
                SnapshotterPolicy(Snapshotter.SOCI, lazy=True),
                hollow=True,
            ),
            _containerd(
                "parallel-pull", "the SOCI snapshotter unpacks everything, in parallel",
                SnapshotterPolicy(Snapshotter.SOCI, parallel_pull=True), line="--",
            ),
        ), "^", "#983E00", program="the real SOCI", told_as=("soci-snapshotter-grpc",),
    ),
    Mode(
        "erofs", Form.IMAGE, Presentation.NONE,
        (
            _containerd(
                "default", "containerd's erofs snapshotter: each layer becomes an EROFS file",
                SnapshotterPolicy(Snapshotter.EROFS), unpacks=False,
            ),
        ), "D", "#00694A", program="containerd's erofs snapshotter", told_as=("containerd",),
    ),
)  # fmt: skip

#: Every engine and its modes, in the order of tables. Each engine's first mode is its full pull.
ENGINES: dict[str, tuple[Mode, ...]] = {
    EMBEDDED: (OVERLAY2, ESTARGZ, SOCI, EROFS),
    DOCKER: (DOCKER_OVERLAY2,),
    CONTAINERD: CONTAINERD_MODES,
}


#: Presets by the names they had, which stored sessions and scenario files of others may still use.
RENAMED = {(OVERLAY2.name, "docker-like"): "sequential"}


def renamed(mode: str, preset: str) -> str:
    """Returns ``; it is called 'x' now`` for a name that a preset had, else nothing."""
    now = RENAMED.get((mode, preset))
    return f"; it is called {now!r} now" if now else ""


def unknown_preset(mode: str, name: str, known: Iterable[str]) -> str:
    """Returns the message for a preset that a mode does not have: the known ones, and which one was probably meant."""
    names = list(known)
    hint = renamed(mode, name) or near_miss(name, names)
    return f"expected a preset of mode {mode} ({', '.join(names)}), got {name!r}{hint}"


def engine_modes(engine: str) -> tuple[Mode, ...]:
    """Returns the modes of an engine. Raises UsageError for an engine that nothing implements."""
    if engine not in ENGINES:
        hint = near_miss(engine, ENGINES) or f"; expected {_either(ENGINES)}"
        raise UsageError(f"no engine called {engine!r}{hint}")
    return ENGINES[engine]


def find(mode: str, engine: str = EMBEDDED) -> Mode:
    """Returns the mode of that name. Raises UsageError, which names the nearest."""
    modes = {known.name: known for known in engine_modes(engine)}
    if mode not in modes:
        whose = "a mode" if engine == EMBEDDED else f"a mode of engine {engine}"
        raise UsageError(f"expected {whose} ({', '.join(modes)}), got {mode!r}{near_miss(mode, modes)}")
    return modes[mode]


def offers(engine: str, mode: str, preset: str = "") -> Preset | None:
    """Returns the preset an engine runs for these names (its default for none); None where it has no such thing."""
    for known in engine_modes(engine):
        if known.name == mode:
            return next((p for p in known.presets if preset in {"", p.name}), None)
    return None


def mode_names() -> tuple[str, ...]:
    """Returns the names of all engines' modes, each once."""
    return tuple(dict.fromkeys(mode.name for modes in ENGINES.values() for mode in modes))


def preset_names(mode: str) -> tuple[str, ...]:
    """Returns the names of the presets that any engine has for a mode, each once."""
    having = [known for modes in ENGINES.values() for known in modes if known.name == mode]
    return tuple(dict.fromkeys(preset.name for known in having for preset in known.presets))


def default_preset(mode: str) -> str:
    """Returns the preset of an entry that names none: the default of the first engine that has the mode."""
    return preset_names(mode)[0]


def lazy_modes() -> tuple[Mode, ...]:
    """Returns the embedded engine's modes whose bytes come over FUSE."""
    return tuple(mode for mode in ENGINES[EMBEDDED] if mode.through_fuse)


def tracer() -> Mode:
    """Returns the mode a start's reads are recorded through."""
    return next(mode for mode in ENGINES[EMBEDDED] if mode.tracer)


def recorder() -> Mode:
    """Returns the mode whose starts are recorded for start packs."""
    return EROFS


def recorder_options() -> dict[str, bool | int | float | str]:
    """Returns the options with which a recorded start asks for the same bytes as one that follows a pack."""
    packed = next(p.policy for p in EROFS.presets if isinstance(p.policy, LazyPolicy) and p.policy.pack)
    return {"exact_read_ahead_kib": packed.exact_read_ahead_kib}


def policy_of(mode: str, preset: str, options: Mapping[str, object] | None = None) -> PullPolicy | LazyPolicy:
    """Returns the policy of an embedded preset with single options replaced.

    Raises:
        UsageError: an unknown mode, preset or option, or a value that an option does not take.
    """
    found = find(mode)
    chosen = found.preset(preset)
    assert chosen.policy is not None, "the embedded engine's presets all have policies"
    keys = policy.keys_of(type(chosen.policy))
    given = options or {}
    changes = {name: Option(name, "bool", policy.Limits()).value(given[name]) for name in keys if name in given}
    changes |= checked_options(found, chosen, {name: value for name, value in given.items() if name not in keys})
    return dataclasses.replace(chosen.policy, **changes)  # type: ignore[arg-type]


def checked_options(mode: Mode, preset: Preset, options: Mapping[str, object]) -> dict[str, bool | int | float | str]:
    """Returns the options a scenario gives, each as the type it has. Raises UsageError for the first that is wrong."""
    known = mode.options(preset)
    for name in options:
        if name not in known:
            raise UsageError(_unknown_option(mode, preset, name, known))
    return {name: known[name].value(value) for name, value in options.items()}


def _unknown_option(mode: Mode, preset: Preset, name: str, known: Mapping[str, Option]) -> str:
    whose = f"{mode.name}:{preset.name}"
    if preset.policy is None:
        return f"option {name!r}: {whose} takes no options, since its policies are the engine's"
    if name in policy.keys_of(type(preset.policy)):
        return f"option {name!r}: expected the key {name} beside options"
    if name in policy.options_of(type(preset.policy)):
        return f"option {name!r} does nothing in {whose}; it takes {', '.join(known)}"
    keys = policy.keys_of(type(preset.policy)) if preset.takes_prefetch else ()
    hint = near_miss(name, [*keys, *known]) or f"; it takes {', '.join(known)}"
    return f"option {name!r}: {whose} has none of that name{hint}"


def lazy_policy(mode: str, preset: str, options: Mapping[str, object] | None = None) -> LazyPolicy:
    """Returns ``policy_of`` for what the daemon serves. Raises UsageError for a mode it does not serve, too."""
    policies = policy_of(mode, preset, options)
    if not isinstance(policies, LazyPolicy):
        names = ", ".join(known.name for known in lazy_modes())
        raise UsageError(f"mode {mode} serves nothing lazily; expected one of {names}")
    return policies


def containerd_store(preset: str) -> bool:
    """Says whether this preset of Docker keeps images in containerd's store."""
    return DOCKER_OVERLAY2.preset(preset) is _CONTAINERD_STORE


def uses_library(mode: str, preset: str) -> bool:
    """Says whether an embedded preset serves through a library that has to be installed."""
    policies = find(mode).preset(preset).policy
    return isinstance(policies, LazyPolicy) and bool(policies.library)


@dataclass(frozen=True, slots=True)
class Style:
    """Says how figures draw a case, in matplotlib's words."""

    colour: str = "#999999"
    marker: str = "o"
    line: str = "-"
    hollow: bool = False


def style(engine: str, mode: str, preset: str) -> Style:
    """Returns how figures draw a case; one that is not listed here (a stored session of later days) looks plain."""
    for known in ENGINES.get(engine, ()):
        if known.name == mode:
            found = next((p for p in known.presets if p.name == preset), None)
            return Style(known.colour, known.marker, *((found.line, found.hollow) if found else ()))
    return Style()


def is_lazy(engine: str, mode: str, preset: str) -> bool:
    """Says whether a stored case's container started before its image was there."""
    found = offers(engine, mode, preset) if engine in ENGINES else None
    return found is not None and found.lazy


def role(engine: str, mode: str, preset: str) -> Role:
    """Returns what a stored case was compared for; one that is not listed here is a yardstick: nobody is told to use
    it.
    """
    found = offers(engine, mode, preset) if engine in ENGINES else None
    return found.role if found is not None else Role.YARDSTICK


def program_of(engine: str, mode: str) -> tuple[str, tuple[str, ...]]:
    """Returns what people call a stored case's program, and the names under which observations tell its version.

    Both are empty for our own engine and for what is not listed here.
    """
    found = next((known for known in ENGINES.get(engine, ()) if known.name == mode), None)
    return (found.program, found.told_as) if found is not None else ("", ())


def is_baseline(engine: str, mode: str, preset: str) -> bool:
    """Says whether others are compared with a case of these names."""
    found = offers(engine, mode, preset) if engine in ENGINES else None
    return found is not None and found.baseline


def place(engine: str, mode: str, preset: str) -> tuple[int, int, int]:
    """Returns where a case stands in tables: by mode, engine and preset as listed here; what is not listed comes
    last.
    """
    rows = [(e, m.name, p.name) for e, modes in ENGINES.items() for m in modes for p in m.presets]

    def rank(names: Iterator[str], name: str) -> int:
        listed = list(dict.fromkeys(names))
        return listed.index(name) if name in listed else len(listed)

    return (
        rank((row[1] for row in rows), mode),
        rank((row[0] for row in rows), engine),
        rank((row[2] for row in rows if row[:2] == (engine, mode)), preset),
    )


def _either(words: Mapping[str, object]) -> str:
    *first, last = words
    return f"{', '.join(first)} or {last}" if first else last
