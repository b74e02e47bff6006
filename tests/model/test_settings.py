"""No option is lost: each is checked when a scenario is loaded, reaches the engine, and is stored."""

from __future__ import annotations

import ast
import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import harness
from harness import scenarios
from harness.engines.protocol import DeployRequest, Process
from harness.errors import ScenarioError, UsageError
from harness.model import option_table
from harness.model.modes import EMBEDDED, ENGINES, find, policy_of
from harness.model.plan import Selection, make_plan
from harness.model.policy import LazyPolicy, Option, PullPolicy, keys_of
from harness.model.settings import settings_of

if TYPE_CHECKING:
    from harness.model.scenario import Scenario

HEAD = """\
name = "web"
image = { ref = "docker://registry.example/web:1" }
workload = { readiness = { kind = "exit" } }
"""

EVERY = [
    (mode.name, preset.name, option)
    for mode in ENGINES[EMBEDDED]
    for preset in mode.presets
    for option in mode.options(preset).values()
]


def parsed(text: str) -> Scenario:
    return scenarios.parse(HEAD + text, "web.toml")


def refused(text: str) -> str:
    """The message, without the file's name, that a scenario's text is refused with."""
    with pytest.raises(ScenarioError) as caught:
        parsed(text)
    return str(caught.value).removeprefix("web.toml:")


def another(option: Option, value: Any) -> bool | int | float | str:
    """A value that the option takes and that is not ``value``."""
    if option.kind == "bool":
        return not value
    if option.kind == "str":
        return next(choice for choice in option.limits.choices if choice != value)
    number = option.limits.least if value != option.limits.least else option.limits.least + 1
    return int(number) if option.kind == "int" else number


@pytest.mark.parametrize(("mode", "preset", "option"), EVERY, ids=[f"{m}:{p}-{o.name}" for m, p, o in EVERY])
def test_every_option_reaches_the_engine(mode: str, preset: str, option: Option) -> None:
    """From the file to the policy that agent and daemon make of the request, by way of JSON."""
    value = another(option, getattr(policy_of(mode, preset), option.name))
    text = json.dumps(value)
    scenario = parsed(f'modes = [{{ mode = "{mode}", preset = "{preset}", options = {{ {option.name} = {text} }} }}]')
    settings = settings_of(scenario, scenario.modes[0], EMBEDDED)
    assert settings is not None
    request = DeployRequest("r", "x", "y", mode, preset, Process(), options=dict(settings.options))
    told = json.loads(json.dumps(dataclasses.asdict(request)))
    policy = policy_of(told["mode"], told["preset"], told["options"])
    assert getattr(policy, option.name) == value
    assert policy == dataclasses.replace(policy_of(mode, preset), **{option.name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(("mode", "preset", "option"), EVERY, ids=[f"{m}:{p}-{o.name}" for m, p, o in EVERY])
def test_every_option_says_what_it_takes(mode: str, preset: str, option: Option) -> None:
    """A value of another type, and one out of range, are refused when the file is loaded, with its line."""
    for wrong in ['"much"', "nan", "[1]", *(["-1", "1e300"] if option.kind in {"int", "float"} else ["3"])]:
        text = f'modes = [{{ mode = "{mode}", preset = "{preset}", options = {{ {option.name} = {wrong} }} }}]'
        message = refused(text)
        assert message.startswith("4: modes[0].options")
        assert f"got {wrong}" in message.replace("'", '"') or "expected" in message


def test_every_policy_is_read_where_modes_are_made() -> None:
    """A field that no code reads would be an option that does nothing."""
    root = Path(harness.__file__).parent
    read = {
        node.attr
        for path in (*(root / "lazyfs").rglob("*.py"), *(root / "engines").rglob("*.py"), root / "model" / "modes.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute)
    }
    fields = {item.name for kind in (LazyPolicy, PullPolicy) for item in dataclasses.fields(kind)}
    assert fields - read == set()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('modes = [{ mode = "overlay2", preset = "tuned", options = { decodr = "zlib" } }]', "did you mean 'decoder'?"),
        ('modes = [{ mode = "overlay2", options = { in_flight = 3 } }]', "overlay2:sequential has none of that name"),
        ('modes = [{ mode = "soci", options = { handover = false } }]', "'handover' does nothing in soci:tuned"),
        ('modes = [{ mode = "soci", options = { region_bytes = 1 } }]', "'region_bytes' does nothing in soci:tuned"),
        ('modes = [{ mode = "soci", options = { prefetch = false } }]', "expected the key prefetch beside options"),
        ('modes = [{ mode = "erofs", preset = "eager", options = { in_flight = 3 } }]', "does nothing in erofs:eager"),
        ('modes = [{ mode = "erofs", preset = "eager", prefetch = "trace" }]', "erofs:eager fetches everything first"),
        ('modes = [{ mode = "overlay2", background = true }]', "overlay2:sequential fetches everything first"),
        ('modes = [{ mode = "soci", options = { eager = true } }]', "soci:tuned has none of that name"),
        ('modes = ["soci"]\nlazy = { options = { handover = true } }', "5: lazy.options: option 'handover' does"),
        ('modes = ["overlay2", { mode = "overlay2", preset = "sequential", label = "x" }]', "would run the same as"),
        ('modes = ["soci", { mode = "soci", label = "x", options = { in_flight = 4 } }]', "would run the same as soci"),
        ('modes = ["soci", { mode = "soci", label = "x", prefetch = "image" }]', "modes[1]: soci:tuned+x would run"),
        ('modes = ["soci"]\ngate = { baseline = "overlay2" }', "5: gate.baseline: expected one of the"),
        ('engines = ["podman"]', "no engine called 'podman'; expected"),
    ],
)  # fmt: skip
def test_what_would_be_dropped_is_refused(text: str, message: str) -> None:
    """Unknown and useless options, keys for modes that have no use for them, and entries that say the same twice."""
    assert message in refused(text)


def test_every_problem_is_told_at_once() -> None:
    """Each with its place, so that a file is mended in one go."""
    text = 'modes = ["overlay2", { mode = "overlay2", label = "x" }, { mode = "soci", options = { in_fligth = 3 } }]'
    lines = refused(text).splitlines()
    assert len(lines) == 2
    assert "modes[1]: overlay2:sequential+x would run the same" in lines[0]
    assert "modes[2].options: option 'in_fligth': soci:tuned has none of that name" in lines[1]


def test_entries_that_differ_in_anything_are_two() -> None:
    """A label alone is no difference; a policy, a prefetch list or a preset is."""
    scenario = parsed(
        'modes = ["soci", "soci:reference", { mode = "soci", label = "a", prefetch = "trace" },'
        ' { mode = "soci", label = "b", prefetch = ["/x"] },'
        ' { mode = "soci", label = "c", options = { in_flight = 9 } },'
        ' { mode = "overlay2", preset = "tuned", label = "zlib", options = { decoder = "zlib" } }, "overlay2:tuned"]'
    )
    assert len(make_plan([scenario], 1).cases) == 7


def test_shared_options_are_those_of_every_lazy_entry() -> None:
    """What ``[lazy]`` says goes to the lazy entries alone, and an entry's own value goes before it."""
    scenario = parsed(
        'modes = ["overlay2", "erofs:eager", "soci", { mode = "soci", label = "x", options = { in_flight = 2 } }]\n'
        'lazy = { prefetch = "none", background = false, options = { in_flight = 8, merge_gap = 0 } }'
    )
    told = [settings_of(scenario, entry, EMBEDDED) for entry in scenario.modes]
    assert [s.options if s else None for s in told] == [
        {}, {},
        {"in_flight": 8, "merge_gap": 0, "prefetch": False, "background": False},
        {"in_flight": 2, "merge_gap": 0, "prefetch": False, "background": False},
    ]  # fmt: skip
    assert [s.prefetch_kind if s else None for s in told] == ["none", "none", "none", "none"]


def test_a_selection_is_checked_like_a_file() -> None:
    """A mode that the command line adds must take what the scenario says for all lazy modes."""
    scenario = parsed('modes = ["erofs"]\nlazy = { options = { handover = false } }')
    with pytest.raises(UsageError, match="scenario web, mode soci:tuned: option 'handover' does nothing in soci:tuned"):
        make_plan([scenario], 1, Selection(modes=("erofs", "soci")))


def test_keys_of_their_own_are_no_options() -> None:
    """``prefetch`` and ``background`` are said beside the options, once."""
    assert keys_of(LazyPolicy) == ("prefetch", "background")
    assert not set(keys_of(LazyPolicy)) & set(find("soci").options(find("soci").best))


@pytest.mark.files
def test_the_page_of_options_is_current() -> None:
    """docs/options.md shows the table as the code has it; ``python -m harness.model.option_table`` rewrites it."""
    shipped = Path(__file__).parents[2] / "docs" / "options.md"
    assert shipped.read_text("utf-8") == option_table.markdown()


def test_every_option_has_a_meaning() -> None:
    """A user reads it in the list, and not in the code."""
    assert [row.name for kind in (LazyPolicy, PullPolicy) for row in option_table.rows(kind) if not row.meaning] == []


def test_a_recorded_command_is_what_tells_entries_apart() -> None:
    """Presets with a start pack take one, and two entries that record the same would run the same."""
    packed = 'mode = "erofs", preset = "packed"'
    scenario = parsed(f'modes = [{{ {packed} }}, {{ {packed}, label = "other", record = ["true", "x"] }}]')
    own, other = (settings_of(scenario, choice, EMBEDDED) for choice in scenario.modes)
    assert own is not None
    assert other is not None
    assert (own.record, other.record) == ((), ("true", "x"))
    assert "would run the same" in refused(
        f'modes = [{{ {packed}, record = ["true"] }}, {{ {packed}, label = "b", record = ["true"] }}]'
    )
    assert "follows no start pack: it has no record" in refused('modes = [{ mode = "erofs", record = ["true"] }]')
