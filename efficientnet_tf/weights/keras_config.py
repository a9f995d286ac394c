"""Finds an EfficientNet in the config of a Keras model, as text. Nothing in it is built or imported.

The config of a stranger can name any class and any function. Keras would look for them, and a Lambda layer holds code.
"""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

# Layers that leave pixels as they are when a model answers, or only change their number.
_PASSING = {"InputLayer", "Identity", "Dropout", "SpatialDropout2D", "ActivityRegularization", "GaussianNoise"}
_PASSING |= {"ZeroPadding2D", "Resizing", "CenterCrop"}
_CLASSIFIER = {"GlobalAveragePooling2D", "Dropout", "Dense", "Identity", "InputLayer", "Softmax", "Activation"}
_MODELS = {"Functional", "Sequential", "Model"}
_OUTPUTS = ("linear", "softmax", "sigmoid", None)


@dataclass(frozen=True)
class NetworkConfig:
    """What the config of a Keras model says about the EfficientNet in it.

    Attributes:
        needs: {"section.key": value} of epsilon and padding. Empty without a config.
        steps: What happens to the pixels before the network's first convolution, in order: (scale, offset) with one
            value per channel or one for all. None stands for a Normalization layer that keeps its numbers in variables.
        head_problem: Why the layers after the network are no classifier of this package, or "".
    """

    needs: dict[str, Any] = field(default_factory=dict)
    steps: tuple["_Step | None", ...] = ()
    head_problem: str = ""

    @property
    def has_config(self) -> bool:
        """Whether there is a config to describe."""
        return bool(self.needs)

    def normalization(self, mean: Sequence[float] | None, variance: Sequence[float] | None) -> dict[str, Any]:
        """Return the needs `model.mean` and `model.std`, or none if nothing normalizes the pixels.

        Args:
            mean: Variable of the Normalization layer, or None if there is none.
            variance: As `mean`.

        Raises:
            ValueError: If a number is not possible.
        """
        scale, offset = (1.0,), (0.0,)
        for step in self.steps:
            if step is None:
                if mean is None or variance is None:
                    raise ValueError("the weights of its Normalization layer are missing")
                step = _normalize(read_numbers([*mean]), read_numbers([*variance]), inverts=False)
            factor, term = step
            scale = tuple(s * f for s, f in _pairs(scale, factor))
            offset = tuple(o * f for o, f in _pairs(offset, factor))
            offset = tuple(o + t for o, t in _pairs(offset, term))
        if not self.steps:
            return {}
        if not all(math.isfinite(v) for v in scale + offset) or not all(s > 0 for s in scale):
            raise ValueError("its normalization of the pixels has numbers that are not possible")
        both = list(_pairs(scale, offset))
        return {"model.mean": tuple(-o / s for s, o in both), "model.std": tuple(1 / s for s, _ in both)}


_Step = tuple[tuple[float, ...], tuple[float, ...]]
_Layer = tuple[str, str, dict[str, Any]]  # class name, name and config


def describe_network(config: bytes) -> NetworkConfig:
    """Find the EfficientNet in a model's config.

    Args:
        config: Content of the config.json of a .keras file, or of the attribute `model_config` of an .h5 file.

    Raises:
        ValueError: If there is none or more than one, or layers before it change its input.
    """
    root = json.loads(config.decode())
    if root == {}:
        return NetworkConfig()
    found = list(_find_networks(_layer(root), None))
    if len(found) > 1:
        names = " and ".join(model[1] or "the model itself" for model, _ in found)
        raise ValueError(f"it contains {len(found)} EfficientNets, {names}. Save the one to use on its own")
    if not found:
        names = [name for kind, name, _ in _inner_layers(_layer(root)) if kind in _MODELS] or [_layer(root)[1]]
        listed = ", ".join(filter(None, names[:5])) or "a model without a name"
        raise ValueError(
            f"it contains {listed} but no layer stem_conv, so it is no EfficientNet of this package or "
            "of keras.applications. Choose a file that contains one"
        )
    model, trail = found[0]
    layers = _inner_layers(model)
    start = [name for _, name, _ in layers].index("stem_conv")
    before, after = layers[:start], [layer for layer in layers[start:] if not _OWN.match(layer[1])]
    while trail is not None:  # from the network to the outermost model
        siblings, position, trail = trail
        before = [*siblings[:position], *before]
        after += siblings[position + 1 :]
    by_name = {name: values for _, name, values in layers}
    steps = tuple(_find_steps(_flatten(before)))
    problem = "" if "predictions" in by_name else _find_head_problem(_flatten(after))
    return NetworkConfig(_settings(by_name, has_own_numbers=None not in steps), steps, problem)


_OWN = re.compile(r"(stem|top)_|block\d+[a-z]+_|avg_pool$|predictions$")


def _layer(entry) -> _Layer:
    """Return the parts of a layer's entry in a config. A class that is not one of Keras gets the name of its module."""
    values = entry.get("config") if isinstance(entry, dict) else None
    if not isinstance(values, dict) or not isinstance(entry.get("class_name"), str):
        raise ValueError("its config does not describe a model")
    kind, module = entry["class_name"], entry.get("module")
    is_foreign = module is not None and not str(module).startswith("keras")
    return f"{module}.{kind}" if is_foreign else kind, str(values.get("name", "")), values


def _inner_layers(model: _Layer) -> list[_Layer]:
    kind, _, values = model
    entries = values.get("layers") if kind in _MODELS else None
    return [_layer(entry) for entry in entries] if isinstance(entries, list) else []


def _find_networks(model: _Layer, trail):
    """Yield (network, trail) for each model in a model that has a layer stem_conv.

    A trail is (layers of the model around it, its position among them, the trail of that model), or None.
    """
    layers = _inner_layers(model)
    if any(name == "stem_conv" for _, name, _ in layers):
        yield model, trail
        return
    for i, layer in enumerate(layers):
        yield from _find_networks(layer, (layers, i, trail))


def _flatten(layers):
    """Yield layers, and in the place of a model its own layers."""
    for layer in layers:
        if layer[0] in _MODELS:
            yield from _flatten(_inner_layers(layer))
        else:
            yield layer


def _find_steps(layers):
    """Yield the steps of `NetworkConfig`. Other layers must leave the pixels as they are when a model answers."""
    for kind, name, values in layers:
        if kind == "Rescaling":
            yield read_numbers(values.get("scale")), read_numbers(values.get("offset", 0.0))
        elif kind == "Normalization" and values.get("mean") is None:
            yield None
        elif kind == "Normalization":
            yield _normalize(
                read_numbers(values["mean"]), read_numbers(values.get("variance")), values.get("invert") is True
            )
        elif kind not in _PASSING and not kind.startswith("Random"):
            raise ValueError(f"its layer {name} ({kind}) changes the pixels before the network")


def _normalize(mean, variance, inverts) -> _Step:
    """Return the step of a Normalization layer."""
    if not all(v > 0 for v in variance):
        raise ValueError("its normalization of the pixels has a variance that is not positive")
    root = tuple(math.sqrt(v) for v in variance)
    if inverts:
        return root, mean
    return tuple(1 / r for r in root), tuple(-m / r for m, r in _pairs(mean, root))


def read_numbers(value: Any) -> tuple[float, ...]:
    """Return a number or a list of numbers of a config as floats. Raise ValueError if it is something else."""
    values = value if isinstance(value, list) else [value]
    while len(values) == 1 and isinstance(values[0], list):  # [[[[1, 2, 3]]]]
        values = values[0]
    is_number = [isinstance(v, int | float) and not isinstance(v, bool) and abs(v) < 1e30 for v in values]
    if not values or len(values) > 1000 or not all(is_number):
        raise ValueError("its normalization of the pixels has numbers that are not possible")
    return tuple(float(v) for v in values)


def _pairs(one, other):
    length = max(len(one), len(other))
    one, other = (values * (length if len(values) == 1 else 1) for values in (one, other))
    if len(one) != len(other):
        raise ValueError("its normalization of the pixels has different numbers of channels")
    return zip(one, other, strict=True)


def _settings(by_name, has_own_numbers):
    """Return the needs for epsilon and padding."""
    epsilon = by_name.get("stem_bn", {}).get("epsilon")
    if not isinstance(epsilon, float) or not 0 < epsilon < 1:
        raise ValueError("its layer stem_bn has no epsilon between 0 and 1")
    padding = by_name["stem_conv"].get("padding")
    if padding not in ("same", "valid"):
        raise ValueError("its layer stem_conv has no padding that is known")
    # keras.applications pads in separate layers, with the result of "same".
    is_symmetric = padding == "valid" and has_own_numbers
    return {"model.batch_norm_epsilon": epsilon, "model.padding": "symmetric" if is_symmetric else "same"}


def _find_head_problem(layers):
    """Return why layers after a network's last activation are no classifier of this package, or ""."""
    layers = list(layers)
    others = [f"{name} ({kind})" for kind, name, _ in layers if kind not in _CLASSIFIER]
    if others:
        return f"After the network stand {', '.join(others[:5])}, which no classifier of this package has."
    for kind, name, values in layers:
        if kind in ("Dense", "Activation") and values.get("activation") not in _OUTPUTS:
            return f"The layer {name} has the activation {str(values.get('activation'))[:50]}."
    if [kind for kind, _, _ in layers].count("Dense") > 1:
        return "After the network stand several layers of the class Dense."
    return ""
