"""The table of modes: what it promises, and that nobody compares names beside it."""

from __future__ import annotations

import ast
import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

import harness
from harness.errors import UsageError
from harness.model import modes
from harness.model.modes import EMBEDDED, ENGINES, Mode, Preset, lazy_policy, policy_of
from harness.model.policy import LazyPolicy
from harness.model.scenario import ModeChoice

#: Words of the table that mean something else in a file or a room of ``harness``, and what.
ALLOWED: dict[str, tuple[str, set[str]]] = {
    "model/forms.py": ("forms speak of themselves", {"estargz", "soci", "erofs"}),
    "machine": ("file systems of the kernel", {"erofs"}),
    "lazyfs/mounting/mounts.py": ("the kernel's file system", {"erofs"}),
    "session/observing.py": ("a file system in the kernel's mount table", {"erofs"}),
    "model/observation.py": ("a temperature", {"warm"}),
    "model/workload.py": ("a temperature", {"warm"}),
    "probes/workloads.py": ("a temperature", {"warm"}),
    "report/figures": ("a temperature", {"warm"}),
    "engines/build/compiler.py": ("the Go toolchain's word for no other one", {"local"}),
    "session/reads.py": ("a directory of the image", {"local"}),
    "session/validity.py": ("a file system in the kernel's mount table", {"erofs"}),
    "formats": ("formats speak of themselves", {"estargz", "soci", "erofs"}),
    "images": ("formats found in an image", {"estargz", "soci", "erofs"}),
    "cli/image.py": ("formats found in an image", {"estargz", "soci", "erofs"}),
    "cli/index.py": ("the subcommand that makes a SOCI index", {"soci"}),
    "cli/index_erofs.py": ("the subcommand that makes an EROFS index", {"erofs"}),
    "model/policy.py": ("the library of that name, and containerd's snapshotters", {"pyfuse3", "soci", "erofs"}),
    "lazyfs/plan.py": ("a kind of lazy layer", {"estargz"}),
    "lazyfs/data/sources.py": ("a kind of lazy layer", {"estargz"}),
    "lazyfs/service.py": ("detail of a span", {"erofs"}),
    "lazyfs/data/memory_cache.py": ("a field's name, of stored bytes", {"packed"}),
    "oci/archive.py": ("a file's name", {"packed"}),
    "engines/embedded/lazy.py": ("a directory's name, and the image's reference", {"erofs", "reference"}),
    "engines/docker": ("Docker's own name of its storage driver", {"overlay2"}),
    "cli/shapes.py": ("the shape that is taken when none is named", {"default"}),
    "engines/build/programs.py": ("a kit of programs", {"soci"}),
    "engines/build/conversions.py": ("a program", {"soci"}),
    "engines/containerd/configuration.py": ("a kind of content store", {"soci"}),
    "cli/scenarios.py": ("a column", {"default"}),
    "model/shape.py": ("a key of shapes", {"default"}),
}


def names() -> set[str]:
    """All names of the table, alone and as ``mode:preset``."""
    found = set()
    for known in ENGINES.values():
        for mode in known:
            found |= {mode.name, *(p.name for p in mode.presets), *(f"{mode.name}:{p.name}" for p in mode.presets)}
    return found


def strings(source: str) -> set[str]:
    return {n.value for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Constant) and isinstance(n.value, str)}


def said() -> dict[str, set[str]]:
    """Words of the table by the files of ``harness`` that say them."""
    root = Path(harness.__file__).parent
    files = {path.relative_to(root).as_posix(): path for path in sorted(root.rglob("*.py"))}
    return {file: strings(path.read_text(encoding="utf-8")) & names() for file, path in files.items()}


def inside(file: str, place: str) -> bool:
    return file == place or file.startswith(f"{place}/")


def test_nobody_compares_names_beside_the_table() -> None:
    """A string that is a mode's or preset's name is found in the table alone, or where it means something else."""
    guilty = {}
    for file, words in said().items():
        allowed = set[str]().union(*(known for place, (_, known) in ALLOWED.items() if inside(file, place)))
        if words - allowed and file != "model/modes.py":
            guilty[file] = words - allowed
    assert guilty == {}


def test_every_allowance_is_needed() -> None:
    """What moved or changed is taken off the list."""
    everything = said()
    for place in ALLOWED:
        assert any(words for file, words in everything.items() if inside(file, place)), place


def test_the_table_needs_the_standard_library_alone() -> None:
    """The agent and the daemon on a small machine import it."""
    code = "import sys, harness.model.modes; print(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"pydantic", "numpy", "difflib"} & set(found)


def test_embedded_presets_all_have_policies() -> None:
    """The engine of our own decides everything itself."""
    assert all(preset.policy is not None for mode in ENGINES[EMBEDDED] for preset in mode.presets)


def test_options_override_single_values() -> None:
    """Each by its name, the rest as the preset has it."""
    policy = lazy_policy("soci", "reference", {"background": False, "in_flight": 2, "retry_first_s": 1})
    assert (policy.background, policy.in_flight, policy.retry_first_s) == (False, 2, 1.0)
    assert policy.background_after_s == lazy_policy("soci", "reference").background_after_s


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prefech": True}, "did you mean 'prefetch'"),
        ({"prefetch": 1}, "option prefetch: expected true or false, got 1"),
        ({"skip_open": 1}, "option skip_open: expected true or false, got 1"),
        ({"in_flight": "4"}, "expected a whole number from 1 to 256, got '4'"),
        ({"in_flight": 1.5}, "whole number from 1 to 256, got 1.5"),
        ({"in_flight": -1}, "whole number from 1 to 256, got -1"),
        ({"in_flight": True}, "whole number from 1 to 256, got true"),
        ({"retry_first_s": float("nan")}, "a number from 0 to 60, got nan"),
        ({"background": None}, "expected true or false, got None"),
        ({"eager": True}, "none of that name"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, object], message: str) -> None:
    """Unknown names, wrong types, negative numbers, and what makes a preset what it is."""
    with pytest.raises(UsageError, match=message):
        policy_of("soci", "tuned", options)


def test_a_full_pull_has_options_of_its_own() -> None:
    """The decoder is one of two words."""
    assert policy_of("overlay2", "tuned", {"decoder": "zlib"}) != policy_of("overlay2", "tuned")
    with pytest.raises(UsageError, match="expected one of isal, zlib, got 'zstd'"):
        policy_of("overlay2", "tuned", {"decoder": "zstd"})
    with pytest.raises(UsageError, match="serves nothing lazily; expected one of estargz, soci, erofs"):
        lazy_policy("overlay2", "tuned")


def test_unknown_names_bring_the_known_ones() -> None:
    """Presets of that mode only, modes of that engine, engines that something implements."""
    with pytest.raises(UsageError, match="tuned, packed, eager"):
        policy_of("erofs", "reference")
    with pytest.raises(UsageError, match="did you mean 'erofs'"):
        policy_of("erofz", "tuned")
    with pytest.raises(UsageError, match="no engine called 'podman'; expected embedded"):
        modes.engine_modes("podman")


def test_each_engine_runs_an_entry_its_own_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """An entry without a preset takes each engine's default; a named preset runs where there is one."""
    theirs = Mode("overlay2", modes.Form.IMAGE, modes.Presentation.NONE, (Preset("store", "theirs", None),), "s", "red")
    monkeypatch.setitem(ENGINES, "other", (theirs,))
    plain, named = ModeChoice(mode="overlay2"), ModeChoice(mode="overlay2", preset="tuned")
    on_ours, on_theirs = plain.on(EMBEDDED), plain.on("other")
    assert on_ours is not None
    assert on_theirs is not None
    assert (on_ours.preset, on_theirs.preset) == (modes.OVERLAY2.presets[0].name, "store")
    assert named.on("other") is None
    assert ModeChoice(mode="soci").on("other") is None


def test_places_follow_the_table() -> None:
    """By mode, then engine, then preset; what nobody knows any more comes last."""
    listed = [(EMBEDDED, mode.name, preset.name) for mode in ENGINES[EMBEDDED] for preset in mode.presets]
    backwards = list(reversed(listed))
    assert sorted(backwards, key=lambda names: modes.place(*names)) == listed
    assert modes.place("gone", "aufs", "old") > max(modes.place(*names) for names in listed)


def test_policies_are_values() -> None:
    """Two presets of one mode never do the same."""
    for mode in ENGINES[EMBEDDED]:
        assert len({preset.policy for preset in mode.presets}) == len(mode.presets)
        assert all(dataclasses.is_dataclass(preset.policy) for preset in mode.presets)
    assert isinstance(modes.EROFS.preset("eager").policy, LazyPolicy)
    assert not modes.EROFS.preset("eager").lazy
