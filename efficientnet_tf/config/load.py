"""Load variants and recipes, and compose them with overrides into the one config of a run.

Later layers win:

    variant file (the section `model`)  <  recipe file (any section)  <  `section.key=value` overrides

`layers` reads the files. Every mistake is reported together with the file or override that it comes from.
"""

import functools
import importlib.metadata
import itertools
import platform
import re
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pydantic
import yaml

from efficientnet_tf.config.data_schema import READ_WITH, DataConfig
from efficientnet_tf.config.errors import UserError, suggest
from efficientnet_tf.config.layers import CONFIG_DIR, PACKAGE_DIR, Layers, list_names, read_recipe, read_variant
from efficientnet_tf.config.schema import Config, FieldError, ModelSpec, Section, merge, nest
from efficientnet_tf.config.text import escape, shorten
from efficientnet_tf.config.yaml12 import Dumper, parse_yaml

LONGEST_KEY = 200  # characters of the key of an override
MOST_MISTAKES = 10  # that one error lists
OVERRIDES = "overrides"  # the layer of the overrides in error messages, named like the argument of `load_config`

_Schema = TypeVar("_Schema", bound=Section)


# ------------------------------------------------------------------------------------------------------ load


def list_variants() -> list[str]:
    """Return the names of all variants in `configs/`, in alphabetical order.

    Example:
        >>> from efficientnet_tf import list_variants
        >>> list_variants()[:3]
        ['b0', 'b1', 'b2']
        >>> list_variants()[-2:]
        ['v2-xl', 'wide_resnet50_2']
    """
    return list_names(CONFIG_DIR)


def load_variant(variant: "str | Path | ModelSpec") -> ModelSpec:
    """Return the network that a variant describes.

    Args:
        variant: A name in `configs/` such as "v2-s", or the path of a YAML file. A `ModelSpec` is returned as is.

    Raises:
        UserError: If the variant is unknown, or if the file has a key or a value that the schema does not allow.

    Example:
        >>> from efficientnet_tf import load_variant
        >>> spec = load_variant("b7")
        >>> spec.width, spec.depth, spec.resolution
        (2.0, 3.1, 600)
    """
    if isinstance(variant, ModelSpec):
        return variant
    name, content = read_variant(variant)
    return _validate(ModelSpec, content, [(name, content)])


def load_config(variant: str | Path | None, recipe: str | Path, overrides: Iterable[str] = ()) -> Config:
    """Return the config of a run, composed of a variant, a recipe and overrides.

    Args:
        variant: Name of a variant in `configs/`, or the path of a YAML file. None is the variant that the recipe names,
            or B0 if it names none.
        recipe: Name of a recipe in `configs/recipes/`, or the path of a YAML file.
        overrides: Texts of the form `section.key=value`. The values are read as YAML.

    Raises:
        UserError: If anything is wrong. One error lists all mistakes, each with its file, its key, the value received,
            what is allowed and the nearest valid key.

    Example:
        >>> from efficientnet_tf import load_config
        >>> config = load_config("b0", "digits", ["train.epochs=3", "optimizer.name=adamw"])
        >>> config.optimizer.name, config.train.epochs, config.train.batch_size
        ('adamw', 3.0, 64)
    """
    layers = _read_layers(variant, recipe, overrides)
    config = _validate(Config, functools.reduce(merge, (layer for _, layer in layers)), layers)
    _check_keys_are_read(config, layers[-1][1])
    return config


def load_recipe_network(variant: str | Path, recipe: str | Path) -> ModelSpec:
    """Return a variant with the keys of its section `model` that a recipe changes.

    Unlike `load_config`, this needs no other key, such as the folder of the images.

    Args:
        variant: Name of a variant in `configs/`, or the path of a YAML file.
        recipe: Name of a recipe in `configs/recipes/`, or the path of a YAML file.

    Raises:
        UserError: If the network is invalid.
    """
    layers = [(name, layer.get("model") or {}) for name, layer in _read_layers(variant, recipe, ())]
    return _validate(ModelSpec, functools.reduce(merge, (layer for _, layer in layers)), layers)


def _read_layers(variant: str | Path | None, recipe: str | Path, overrides: Iterable[str]) -> Layers:
    chosen, layers = read_recipe(recipe, variant)
    name, model = read_variant(chosen)
    return [(name, {"model": model}), *layers, (OVERRIDES, _parse_overrides(overrides))]


def override_config(config: Config, overrides: Iterable[str]) -> Config:
    """Return a config with some keys changed.

    Args:
        config: The config to start from. It stays as it is.
        overrides: Texts of the form `section.key=value`.

    Raises:
        UserError: As for `load_config`.
    """
    changes = _parse_overrides(overrides)
    changed = _validate(Config, merge(config.model_dump(), changes), [(OVERRIDES, changes)])
    _check_keys_are_read(changed, changes)
    return changed


def change_spec(spec: ModelSpec, changes: dict[str, Any]) -> ModelSpec:
    """Return a network with other values of some keys.

    Raises:
        UserError: If the schema does not allow a value.
    """
    return _validate(ModelSpec, spec.model_dump() | changes, [(f"{escape(spec.name)}, scaled", changes)])


def _parse_overrides(overrides: Iterable[str]) -> dict[str, Any]:
    """Return {"train": {"epochs": 5}} for ["train.epochs=5"]."""
    nested = {}
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or not key.strip() or len(key) > LONGEST_KEY:
            raise UserError(
                f"{OVERRIDES}: {shorten(repr(text))} is not of the form section.key=value, for example train.epochs=5"
            )
        nested = merge(nested, nest({key.strip(): parse_yaml(value, f"{OVERRIDES}: {text}")}))
    return nested


# ------------------------------------------------------------------------------------------------------ check


def _validate(schema: type[_Schema], content: dict, layers: Layers) -> _Schema:
    """Validate merged content. One error reports every mistake, each with the layer that it comes from."""
    try:
        return schema.model_validate(content)
    except pydantic.ValidationError as error:
        # A list that is too short only because its items are invalid is not a mistake of its own.
        items = [i for i in error.errors(include_url=False) if not (i["type"] == "too_short" and i["input"])]
        lines = [_describe(schema, item, layers) for item in items[:MOST_MISTAKES]]
        if len(items) > MOST_MISTAKES:
            lines.append(f"{len(items) - MOST_MISTAKES:,} more mistakes")
        raise UserError("\n".join(lines)) from None


def _check_keys_are_read(config: Config, overrides: Mapping[str, Any]) -> None:
    """Raise an error if the overrides set a key of `data` that is not read with the source, task or crop of the config.

    The keys are allowed in files, because a recipe may get another source, and older runs may contain them.
    """
    default = DataConfig()
    for key in overrides.get("data", {}):
        value = getattr(config.data, key)
        other, readers = READ_WITH.get(key, ("source", ()))
        chosen = getattr(config.data, other)
        if readers and chosen.partition(":")[0] not in readers and value != getattr(default, key):
            advice = "Choose another recipe, for example folder, or set data.source=folder." if key == "dir" else ""
            raise UserError(
                f"{OVERRIDES}: data.{key}={shorten(escape(str(value)))} would not be read. It is only for data.{other}="
                f"{' or '.join(readers)}, and this config has {escape(chosen)}. {advice}".rstrip()
            )


def _describe(schema: type[Section], item: Mapping[str, Any], layers: Layers) -> str:
    """Return the line that reports one of pydantic's errors."""
    location = item["loc"]
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "extra_forbidden":
        allowed = _keys_at(schema, location)
        hint = _suggest_section(location[-1]) or suggest(location[-1], allowed)
        message = f"unknown key. Allowed are {', '.join(sorted(allowed))}." + hint
    elif item["type"] == "missing":
        message = "is required but missing"
    elif item["type"] != "value_error":
        message += f", received {shorten(repr(item['input']))}"
    key = ".".join(shorten(escape(str(part))) for part in location)
    return f"{_origin(layers, item, message)}: {key + ': ' if key else ''}{message}"


def _origin(layers: Layers, item: Mapping[str, Any], message: str) -> str:
    """Return the names of the layers that a mistake comes from: those that set the values in question."""
    location = item["loc"]
    if item["type"] == "missing" and not any(isinstance(part, int) for part in location):
        return next(name for name, layer in layers if _has(layer, location[:-1]))
    cause = item.get("ctx", {}).get("error")
    if isinstance(cause, FieldError) and cause.key:
        keys = [cause.key]
    elif item["type"] == "value_error" and not isinstance(cause, FieldError):
        # Values that contradict each other: the message names their keys.
        keys = [location + tuple(word.split(".")) for word in re.findall(r"[a-z_]+(?:\.[a-z_]+)*", message)]
    else:  # A list is replaced as a whole, so all of it comes from one layer.
        keys = [tuple(itertools.takewhile(lambda part: not isinstance(part, int), location))]
    origins = {next((name for name, layer in reversed(layers) if _has(layer, key)), None) for key in keys}
    return ", ".join(name for name, _ in layers if name in origins) or layers[-1][0]


def _has(content: Any, location: Sequence[str | int]) -> bool:
    for key in location:
        try:
            content = content[key]
        except (KeyError, IndexError, TypeError):
            return False
    return True


def _keys_at(schema: type[Section], location: Sequence[str | int]) -> list[str]:
    """Return the keys of the section in which `location` ends."""
    for key in location[:-1]:
        if isinstance(key, int):
            continue
        annotation = schema.model_fields[key].annotation
        inner = [a for a in (annotation, *getattr(annotation, "__args__", ())) if isinstance(a, type)]
        schema = next((a for a in inner if issubclass(a, Section)), schema)
    return list(schema.model_fields)


def _suggest_section(key: str) -> str:
    """Return a hint if the key belongs to another section, or ""."""
    for name, field in Config.model_fields.items():
        if key in getattr(field.annotation, "model_fields", ()):
            return f" Did you mean {name}.{key}?"
    return ""


# ------------------------------------------------------------------------------------------------------ write


def dump_config(config: Config) -> str:
    """Return a config as YAML text that states every key."""
    return yaml.dump(config.model_dump(mode="json"), Dumper=Dumper, sort_keys=False, default_flow_style=None, width=120)


def dump_variant(spec: ModelSpec) -> str:
    """Return the YAML text of a variant file. It has no `name`, because a variant is named after its file."""
    content = spec.model_dump(mode="json", exclude={"name"})
    return yaml.dump(content, Dumper=Dumper, sort_keys=False, default_flow_style=None, width=120)


def parse_config(text: str, where: str) -> Config:
    """Return the config that `dump_config` wrote. A section `environment` in the text is ignored.

    Args:
        text: The YAML text.
        where: Name of the source of the text, for error messages.

    Raises:
        UserError: If the text is not a complete config that this version can read.
    """
    content = parse_yaml(text, where)
    if not isinstance(content, dict):
        raise UserError(f"{escape(where)}: not a config")
    content.pop("environment", None)
    return _validate(Config, content, [(escape(where), content)])


def diff_config(old: Config, new: Config) -> list[str]:
    """Return a line `key: old -> new` for every key that differs between two configs.

    A default that depends on other keys equals its value, and does not count as changed with these.
    """

    def flatten(section: dict, prefix: str = "") -> Iterator[tuple[str, Any]]:
        for key, value in section.items():
            if isinstance(value, dict):
                yield from flatten(value, f"{prefix}{key}.")
            else:
                yield prefix + key, value

    stated = [dict(flatten(config.model_dump())) for config in (old, new)]
    before, after = (dict(flatten(config.resolve().model_dump())) for config in (old, new))
    keys = [key for key in after if before.get(key) != after.get(key) and stated[0].get(key) != stated[1].get(key)]
    return [f"{key}: {before.get(key)!r} -> {after.get(key)!r}" for key in keys]


def describe_environment(*others: str, source_dir: Path = PACKAGE_DIR) -> dict[str, str]:
    """Return the versions of Python and the main packages, the machine and the git commit.

    Args:
        *others: Names of more packages to list if they are installed.
        source_dir: Folder of the git checkout.
    """
    versions = {"python": platform.python_version(), "machine": platform.machine()}
    for package in ("efficientnet_tf", "keras", "tensorflow", "tensorflow-cpu", "tensorflow-tpu", "numpy", *others):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    try:
        git = ["git", "-C", str(source_dir), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        versions["git_commit"] = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        versions["git_commit"] = "not a git checkout"
    return versions
