"""How a variant, a recipe and overrides become the one config of a run, checked against the schema.

    variant YAML (the `model` section) < recipe YAML (any section) < `key=value` overrides

Nothing in this file touches a device.
"""

import functools
import importlib.metadata
import itertools
import platform
import re
import subprocess
from pathlib import Path

import pydantic
import yaml

from efficientnet_tf.config.errors import UserError, suggest
from efficientnet_tf.config.schema import Config, ModelSpec, Section, merge, nest
from efficientnet_tf.config.yaml12 import Dumper, parse_yaml, read_mapping

PACKAGE_DIR = Path(__file__).resolve().parent.parent

# In a wheel the configs lie inside the package, in a source tree or an editable install beside it.
CONFIG_DIR = next(
    (d for d in (PACKAGE_DIR / "configs", PACKAGE_DIR.parent / "configs") if d.is_dir()),
    PACKAGE_DIR / "configs",
)


def _find(kind, folder, name):
    """Return the YAML file of a variant or recipe given its name or its path."""
    name = str(name)
    if name.endswith((".yaml", ".yml")):
        if not Path(name).is_file():
            raise UserError(f"{kind} file {name!r} does not exist")
        return Path(name)
    path = folder / f"{name.lower()}.yaml"
    if not re.fullmatch(r"[\w.-]+", name) or not path.is_file():
        allowed = sorted(p.stem for p in folder.glob("*.yaml"))
        raise UserError(
            f"unknown {kind} {name!r}: allowed are {', '.join(allowed)}, or a path that ends in .yaml."
            + suggest(name, allowed)
        )
    return path


def _read_variant(variant):
    """Read a variant's YAML; where it names a `baseline`, what it leaves unsaid comes from there."""
    path = _find("variant", CONFIG_DIR, variant)
    content = read_mapping(path)
    if "baseline" in content:
        baseline = content.pop("baseline")
        base = read_mapping(_find(f"baseline of {path}:", CONFIG_DIR, baseline))
        if "baseline" in base:
            raise UserError(f"{path}: baseline {baseline!r} has a baseline itself: name one with a stage table")
        content = base | content
    return {"name": path.stem} | content, path


# --------------------------------------------------------------------------------------------------- checks


def _has(content, location):
    for key in location:
        try:
            content = content[key]
        except (KeyError, IndexError, TypeError):
            return False
    return True


def _origin(layers, item, message):
    """Return the names of the layers that a mistake comes from: those that state the values it is about."""
    location = item["loc"]
    if item["type"] == "missing" and not any(isinstance(part, int) for part in location):
        return next(name for name, layer in layers if _has(layer, location[:-1]))
    if item["type"] == "value_error":  # a contradiction: its message names the keys
        keys = [location + tuple(word.split(".")) for word in re.findall(r"[a-z_]+(?:\.[a-z_]+)*", message)]
    else:  # a list comes from one layer as a whole
        keys = [tuple(itertools.takewhile(lambda part: not isinstance(part, int), location))]
    said = [next((name for name, layer in reversed(layers) if _has(layer, key)), None) for key in keys]
    return ", ".join(name for name, _ in layers if name in said) or layers[-1][0]


def _section_at(model, location):
    """Return the names allowed where `location` ends: the fields of the section that holds it."""
    for key in location[:-1]:
        if isinstance(key, int):
            continue
        annotation = model.model_fields[key].annotation
        inner = [a for a in (annotation, *getattr(annotation, "__args__", ())) if isinstance(a, type)]
        model = next((a for a in inner if issubclass(a, Section)), model)
    return model.model_fields


def _elsewhere(key):
    """Return a hint where another section has the key."""
    for section, field in Config.model_fields.items():
        if key in field.annotation.model_fields:
            return f" Did you mean {section}.{key}?"
    return ""


def _validate(schema, content, layers):
    """Validate `content`; every mistake is reported in one error, with the layer (file, flag) it came from."""
    try:
        return schema.model_validate(content)
    except pydantic.ValidationError as error:
        lines = []
        for item in error.errors(include_url=False):
            location = item["loc"]
            key = ".".join(str(part) for part in location)
            message = item["msg"].removeprefix("Value error, ")
            if item["type"] == "too_short" and item["input"]:
                continue  # its items are wrong and reported themselves
            if item["type"] == "extra_forbidden":
                allowed = _section_at(schema, location)
                hint = suggest(location[-1], allowed) or _elsewhere(location[-1])
                message = f"unknown key; allowed are {', '.join(sorted(allowed))}." + hint
            elif item["type"] == "missing":
                message = "is required and not given"
            elif item["type"] != "value_error":
                message += f", received {item['input']!r}"
            lines.append(f"{_origin(layers, item, message)}: {key + ': ' if key else ''}{message}")
        raise UserError("\n".join(lines)) from None


def load_variant(variant):
    """Load the network that a variant describes.

    Args:
        variant: str, a name in `configs/` ("b0" ... "b8", "l2"), or the path of a YAML file; or a ModelSpec.

    Returns:
        A ModelSpec.

    Raises:
        UserError: for an unknown variant, a key or a value that the schema does not allow.
    """
    if isinstance(variant, ModelSpec):
        return variant
    content, path = _read_variant(variant)
    return _validate(ModelSpec, content, [(str(path), content)])


def _parse_overrides(overrides):
    """Turn `["train.epochs=5", ...]` into a nested mapping; values are read as YAML."""
    nested = {}
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise UserError(f"--set {text}: expected section.key=value, for example train.epochs=5")
        nested = merge(nested, nest({key.strip(): parse_yaml(value, f"--set {text}")}))
    return nested


def load_config(variant, recipe, overrides=()):
    """Compose the config of a run: variant, recipe, overrides, in this order.

    Args:
        variant: str, name or path of a variant.
        recipe: str, name or path of a recipe.
        overrides: sequence of str, `section.key=value`, read as YAML.

    Returns:
        A Config, complete and checked.

    Raises:
        UserError: one error that lists every mistake: file, key, value received, what is allowed, the nearest key.
    """
    model, variant_path = _read_variant(variant)
    recipe_path = _find("recipe", CONFIG_DIR / "recipes", recipe)
    layers = [
        (str(variant_path), {"model": model}),
        (str(recipe_path), read_mapping(recipe_path)),
        ("--set", _parse_overrides(overrides)),
    ]
    return _validate(Config, functools.reduce(merge, (layer for _, layer in layers)), layers)


def override_config(config, overrides):
    """Return the config with `section.key=value` overrides laid upon it.

    Raises:
        UserError: as `load_config`.
    """
    over = _parse_overrides(overrides)
    return _validate(Config, merge(config.model_dump(), over), [("--set", over)])


# --------------------------------------------------------------------------------------------------- files


def describe_environment(*others):
    """Return versions and git commit as a mapping: what, beside the config, decided a run; of `others` as well."""
    versions = {"python": platform.python_version(), "machine": platform.machine()}
    for package in ("efficientnet_tf", "keras", "tensorflow", "tensorflow-cpu", "tensorflow-tpu", "numpy", *others):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    try:
        git = ["git", "-C", str(PACKAGE_DIR), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        versions["git_commit"] = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        versions["git_commit"] = "not a git checkout"
    return versions


def dump_config(config):
    """Return the config as YAML text, every key stated."""
    return yaml.dump(config.model_dump(mode="json"), Dumper=Dumper, sort_keys=False, default_flow_style=None, width=120)


def dump_variant(spec):
    """Return a ModelSpec as the text of a variant's YAML; the name is left to the file."""
    content = spec.model_dump(mode="json", exclude={"name"})
    return yaml.dump(content, Dumper=Dumper, sort_keys=False, default_flow_style=None, width=120)


def parse_config(text, where):
    """Read what `dump_config` wrote (an `environment` section beside it is passed over).

    Raises:
        UserError: when the text is not a complete config of this version.
    """
    content = parse_yaml(text, where)
    if not isinstance(content, dict):
        raise UserError(f"{where}: not a config")
    content.pop("environment", None)
    return _validate(Config, content, [(where, content)])


def diff_config(old, new):
    """Return the lines `key: old -> new` for every key in which two configs differ."""

    def flatten(section, prefix=""):
        for key, value in section.items():
            if isinstance(value, dict):
                yield from flatten(value, f"{prefix}{key}.")
            else:
                yield prefix + key, value

    old, new = dict(flatten(old.model_dump())), dict(flatten(new.model_dump()))
    return [f"{key}: {old.get(key)!r} -> {new.get(key)!r}" for key in new if old.get(key) != new.get(key)]
