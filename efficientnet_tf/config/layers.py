"""Read the files of variants and recipes as the layers of a config. `load` combines and checks them.

A variant file may name a `baseline`, from which the keys come that it leaves out. A recipe file may do the same, and
may have a section `variants` with the values of single variants. `variant` is the one that is trained if none is named:

    baseline: imagenet
    variant: v2-s
    train: {batch_size: 4096}
    variants:
      v2-s: {augment: {randaugment_level: 10}}
      v2-m: {augment: {randaugment_level: 15}}
"""

import os
import re
from pathlib import Path
from typing import Any

from efficientnet_tf.config.errors import UserError, suggest
from efficientnet_tf.config.paths import check_path, is_remote
from efficientnet_tf.config.text import escape, shorten
from efficientnet_tf.config.yaml12 import read_mapping

PACKAGE_DIR = Path(__file__).resolve().parent.parent

# A wheel has the configs inside the package. A source tree and an editable install have them next to it.
CONFIG_DIR = next(
    (d for d in (PACKAGE_DIR / "configs", PACKAGE_DIR.parent / "configs") if d.is_dir()),
    PACKAGE_DIR / "configs",
)

Layers = list[tuple[str, dict]]  # (name for error messages, content), from the lowest layer to the highest


def list_names(folder: Path) -> list[str]:
    """Return the names of the YAML files in a folder, in alphabetical order."""
    return sorted(path.stem for path in folder.glob("*.yaml"))


def read_variant(variant: object) -> tuple[str, dict[str, Any]]:
    """Return a variant's file, as a name for error messages, and its keys together with those of its baseline.

    Args:
        variant: Name of a variant in `configs/`, or the path of a YAML file.

    Raises:
        UserError: If there is no such file, if it is not YAML, or if its baseline has a baseline.
    """
    path = _find("variant", CONFIG_DIR, variant)
    layers = _read_with_baseline(path, CONFIG_DIR, "variant with a stage table")
    content = {"name": path.stem}
    for _, layer in layers:
        content |= layer
    return layers[-1][0], content


def read_recipe(recipe: object, variant: object = None) -> tuple[object, Layers]:
    """Return a variant, and the layers of a recipe for it: its baseline, the recipe, and its values for the variant.

    Args:
        recipe: Name of a recipe in `configs/recipes/`, or the path of a YAML file.
        variant: As for `read_variant`. None is the recipe's own variant, or B0 if it names none. A section `variants`
            of the recipe has values for the variant or for its baseline.

    Raises:
        UserError: If there is no such file, if it is not YAML, or if its section `variants` leaves this variant out.
    """
    path = _find("recipe", CONFIG_DIR / "recipes", recipe)
    layers = _read_with_baseline(path, CONFIG_DIR / "recipes", "recipe without one")
    name, content = layers[-1]
    for layer_name, layer in reversed(layers):
        if "variant" in layer:
            own = _find(f"variant in {layer_name}:", CONFIG_DIR, layer.pop("variant"))
            variant = own if variant is None else variant
    variant = "b0" if variant is None else variant
    if "variants" not in content:
        return variant, layers
    parts = content.pop("variants")
    if not isinstance(parts, dict) or not all(isinstance(part, dict) for part in parts.values()):
        raise UserError(f"{name}: variants: expected a mapping from names of variants to sections and their keys")
    variant_path = _find("variant", CONFIG_DIR, variant)
    names = variant_path.stem, str(read_mapping(variant_path).get("baseline"))
    match = next((name for name in names if name in parts), None)
    if match is None:
        listed = ", ".join(shorten(escape(part)) for part in parts)
        raise UserError(
            f"{name} has no values for variant {shorten(repr(names[0]))}. It has values for {listed}, and for variants "
            f"with one of these as their baseline.{suggest(names[0], list(parts))}"
        )
    return variant, [*layers, (f"{name} (variants.{match})", parts[match])]


def _read_with_baseline(path: Path, folder: Path, advice: str) -> Layers:
    """Return the content of a file, after that of the file in `folder` that it names as its `baseline`, if any."""
    name, content = escape(str(path)), read_mapping(path)
    if "baseline" not in content:
        return [(name, content)]
    baseline = content.pop("baseline")
    base_path = _find(f"baseline in {name}:", folder, baseline)
    base = read_mapping(base_path)
    for key, what in (("baseline", "a baseline"), ("variants", "a section variants")):
        if key in base:
            raise UserError(f"{name}: baseline {baseline!r} has {what} itself. Name a {advice}.")
    return [(escape(str(base_path)), base), (name, content)]


def _find(kind: str, folder: Path, name: object) -> Path:
    """Return the YAML file of a variant or a recipe, given its name or its path."""
    name = str(name)
    if name.endswith((".yaml", ".yml")):
        check_path(kind, name)
        if is_remote(name):
            raise UserError(f"{kind}={escape(name)} is on gs://. Copy the file to this machine first.")
        if not os.path.lexists(name):
            raise UserError(f"{kind} file '{shorten(escape(name))}' does not exist")
        return Path(name)
    path = folder / f"{name.lower()}.yaml"
    if not re.fullmatch(r"[\w.-]{1,100}", name) or not path.is_file():
        allowed = list_names(folder)
        raise UserError(
            f"unknown {kind} {shorten(repr(name))}. Allowed are {', '.join(allowed)}, or a path that ends in .yaml."
            + suggest(name, allowed)
        )
    return path
