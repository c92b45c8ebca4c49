"""From a recipe's name or file, and overrides like `run.steps=5`, to settings, or to an error that says what to change."""

import difflib
import hashlib
import json
import tomllib
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, cast, get_args, get_origin, get_type_hints

import msgspec

from asearch.configuration.auxiliary import check_auxiliary
from asearch.configuration.engine import check_engine
from asearch.configuration.plugins import check_plugins
from asearch.configuration.settings import ArchiveSettings, Settings, ViewerSettings
from asearch.errors import ConfigError
from asearch.learning.presets import Algorithm
from asearch.training.settings import TrainerSettings

Tree = dict[str, Any]


def suggest(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` for a near miss, else the list of what there is."""
    names = sorted(known)
    near = difflib.get_close_matches(word, names, n=1)
    return f"; did you mean '{near[0]}'?" if near else f"; known: {', '.join(names)}"


def recipe_names() -> list[str]:
    """The recipes that come with asearch."""
    folder = resources.files("asearch.recipes")
    return sorted(entry.name for entry in folder.iterdir() if entry.joinpath("recipe.toml").is_file())


def recipe_name(recipe: str) -> str:
    """What a recipe, given by name or by the path of its file, is called unless it says so itself."""
    return Path(recipe).parent.name if recipe.endswith(".toml") else recipe


def load_settings(recipe: str, overrides: Iterable[str] = (), values: Mapping[str, object] | None = None) -> Settings:
    """Settings of a recipe (a name, or the path of a TOML file) with `table.key=value` overrides and dotted `values`.

    Raises ConfigError for an unknown recipe, an unknown key (with its path and a suggestion) or a value of the wrong type.
    """
    tree = _read_recipe(recipe)
    tree.setdefault("recipe", recipe_name(recipe))
    return _decided(_overridden(tree, overrides, values or {}))


def change_settings(settings: Settings, overrides: Iterable[str], values: Mapping[str, object] | None = None) -> Settings:
    """The settings with `table.key=value` overrides and dotted `values`. Raises ConfigError as `load_settings` does."""
    return _overridden(cast("Tree", msgspec.to_builtins(settings)), overrides, values or {})


def _overridden(tree: Tree, overrides: Iterable[str], values: Mapping[str, object]) -> Settings:
    given: list[tuple[str, object]] = []
    for override in overrides:
        path, equals, text = override.partition("=")
        if not equals:
            raise ConfigError(f"setting {override!r} has no '=': write it as table.key=value, e.g. run.steps=20")
        given.append((path.strip(), _parse_value(text.strip())))
    given += values.items()
    for path, value in given:
        if path in ("trainer.objective", "warmstart.trainer.objective"):
            _leave_objective(tree, path, value)
    for path, value in given:
        _put(tree, path, value)
    return decode_settings(tree)


def _decided(settings: Settings) -> Settings:
    """The settings with what the objective decides: a run says it, so that whoever reads its outcomes need not derive it."""
    if settings.run.equal_rewards is not None:
        return settings
    decided = "keep" if settings.trainer.algorithm.equal_rewards_teach else "discard"
    return msgspec.structs.replace(settings, run=msgspec.structs.replace(settings.run, equal_rewards=decided))


def _leave_objective(tree: Tree, path: str, objective: object) -> None:
    """Drop the values that go with the objective of a recipe where another one is asked for: they would not be its own."""
    table: Any = tree
    for name in path.split(".")[:-1]:
        table = table.get(name, {}) if isinstance(table, dict) else {}
    if isinstance(table, dict) and table.get("objective", TrainerSettings().objective) != objective:
        for name in Algorithm.__struct_fields__:
            cast("Tree", table).pop(name, None)


def decode_settings(tree: Tree) -> Settings:
    """Typed settings of a tree of tables. Raises ConfigError that names the path of what is wrong."""
    _refuse_unknown(tree, Settings, "")
    try:
        settings = msgspec.convert(tree, Settings, strict=True)
    except msgspec.ValidationError as error:
        raise ConfigError(_readable(str(error))) from error
    return check_settings(settings)


def check_settings(settings: Settings) -> Settings:
    """The settings, if their values make sense together. Raises ConfigError."""
    run = settings.run
    positive = {
        "run.groups_per_step": run.groups_per_step,
        "run.group_size": run.group_size,
        "run.steps": run.steps,
        "world.entities": settings.world.entities,
        "world.relations": settings.world.relations,
        "engine.count": settings.engine.count,
        "actors.drivers": settings.actors.drivers,
        "actors.tools": settings.actors.tools,
        "actors.graders": settings.actors.graders,
        "evaluation.questions": settings.evaluation.questions,
        "run.max_groups_in_flight": run.max_groups_in_flight,
        "run.max_episodes_per_driver": run.max_episodes_per_driver,
        "engine.threads": settings.engine.threads,
        "checkpoint.every_steps": settings.checkpoint.every_steps,
        "checkpoint.keep_versions": settings.checkpoint.keep_versions,
        "tools.concurrency": settings.tools.concurrency,
    }
    not_negative = {
        "seed": settings.seed,
        "run.eta": run.eta,
        "run.max_refills": run.max_refills,
        "run.max_empty_steps": run.max_empty_steps,
        "warmstart.steps": settings.warmstart.steps,
        "engine.max_restarts": settings.engine.max_restarts,
    }
    durations_s = {
        "run.episode_deadline_s": run.episode_deadline_s,
        "run.lease_s": run.lease_s,
        "tools.deadline_s": settings.tools.deadline_s,
        "engine.start_timeout_s": 1.0 if settings.engine.start_timeout_s is None else settings.engine.start_timeout_s,
        "engine.health_interval_s": settings.engine.health_interval_s,
        "engine.health_timeout_s": settings.engine.health_timeout_s,
        "engine.restart_period_s": settings.engine.restart_period_s,
    }
    for path, value in positive.items():
        if value < 1:
            raise ConfigError(f"{path} must be at least 1, got {value}")
    for path, value in not_negative.items():
        if value < 0:
            raise ConfigError(f"{path} must be 0 or more, got {value}")
    for path, seconds in durations_s.items():
        if not 0 < seconds < float("inf"):
            raise ConfigError(f"{path} must be a number of seconds above 0, got {seconds}")
    if run.min_graded is not None and not 1 <= run.min_graded <= run.group_size:
        raise ConfigError(f"run.min_graded must be from 1 to run.group_size ({run.group_size}), got {run.min_graded}")
    if run.rule not in ("mask", "discard", "keep"):
        raise ConfigError(f"run.rule is {run.rule!r}{suggest(run.rule, ('mask', 'discard', 'keep'))}")
    check_engine(settings.engine)
    check_auxiliary(settings.auxiliary)
    check_plugins(settings)
    return settings


def recipe_hash(settings: Settings) -> str:
    """A name for exactly these settings, but for those of the page and the archive: 16 hex digits."""
    named = msgspec.structs.replace(settings, viewer=ViewerSettings(), archive=ArchiveSettings())
    return hashlib.sha256(msgspec.json.encode(named, order="deterministic")).hexdigest()[:16]


def _read_recipe(recipe: str) -> Tree:
    if recipe.endswith(".toml"):
        path = Path(recipe)
        if not path.is_file():
            raise ConfigError(f"there is no recipe file {recipe}")
        text = path.read_text()
    else:
        entry = resources.files("asearch.recipes").joinpath(recipe, "recipe.toml")
        if not entry.is_file():
            raise ConfigError(f"there is no recipe '{recipe}'{suggest(recipe, recipe_names())}")
        text = entry.read_text()
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"recipe {recipe} is not valid TOML: {error}") from error


def _parse_value(text: str) -> object:
    """TOML where it is TOML, `none` for unset, else the text itself."""
    if text.lower() in ("none", "null"):
        return None
    try:
        return cast("object", json.loads(text))
    except ValueError:
        pass
    try:
        return tomllib.loads(f"v = {text}")["v"]
    except tomllib.TOMLDecodeError:
        return text


def _put(tree: Tree, path: str, value: object) -> None:
    *tables, key = path.split(".")
    for table in tables:
        inner = tree.setdefault(table, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"{path}: '{table}' is a value, not a table")
        tree = cast("Tree", inner)
    tree[key] = value


def _refuse_unknown(tree: Tree, struct: type[msgspec.Struct], path: str) -> None:
    known = get_type_hints(struct)
    for key, value in tree.items():
        where = f"{path}{key}"
        if key not in known:
            raise ConfigError(f"unknown setting '{where}'{suggest(key, known)}")
        inner = _table_of(known[key])
        if inner is None or not isinstance(value, dict):
            continue
        if get_origin(known[key]) is dict:
            for name, table in cast("Tree", value).items():
                if isinstance(table, dict):
                    _refuse_unknown(cast("Tree", table), inner, f"{where}.{name}.")
        else:
            _refuse_unknown(cast("Tree", value), inner, f"{where}.")


def _table_of(hint: object) -> type[msgspec.Struct] | None:
    for candidate in (hint, *get_args(hint)):
        if isinstance(candidate, type) and issubclass(candidate, msgspec.Struct):
            return candidate
    return None


def _readable(message: str) -> str:
    """`Expected `int`, got `str` - at `$.run.steps`` as `run.steps: expected int, got str`."""
    what, _, where = message.partition(" - at `$.")
    if not where:
        return message
    return f"{where.rstrip('`')}: {what.replace('`', '')[:1].lower()}{what.replace('`', '')[1:]}"
