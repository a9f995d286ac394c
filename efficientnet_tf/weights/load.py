"""Loads weights of any known format into a model.

Either everything of a file is loaded or nothing: every variable on both sides is used exactly once, or the call fails
and lists what is left on each side.
"""

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.text import escape
from efficientnet_tf.weights.formats import read_weights
from efficientnet_tf.weights.identify import find_variant
from efficientnet_tf.weights.loaded import LoadedWeights, LoadSummary
from efficientnet_tf.weights.names import model_variables
from efficientnet_tf.weights.tensors import StoredTensor

if TYPE_CHECKING:
    import keras

STEM, HEAD = "stem_conv/kernel", ("predictions/kernel", "predictions/bias")


def load_weights(
    model: "keras.Model",
    path: str,
    *,
    reset_head: bool = False,
    adapt_channels: bool = False,
    average: bool = True,
    normalization: str | None = None,
    padding: str | None = None,
) -> LoadSummary:
    """Load weights of any known format into a model, and set its pixel normalization to that of the weights.

    Args:
        model: A model of `build_model` or of a constructor such as `EfficientNetB0`.
        path: A .h5, .weights.h5 or .keras file of this package or of keras.applications, a checkpoint of the official
            TensorFlow 1 code or of google/automl, a safetensors or .pth file of timm or efficientnet_pytorch, or a
            model directory or an export of this package.
        reset_head: True keeps the model's own classifier and ignores that of the file.
        adapt_channels: True fits the first convolution to another number of image channels. It is summed for one
            channel. Otherwise it is repeated and scaled, so that its sum stays the same.
        average: True loads the EMA of the weights if the file has one, False loads the raw weights.
        normalization: "imagenet" or "advprop" for weights of a TensorFlow 1 checkpoint, which does not record it. None
            uses what the file records, or else what the model has.
        padding: "same" or "symmetric" for a timm file whose name does not say which. None uses what the file records.

    Returns:
        A short summary of what was loaded.

    Raises:
        UserError: If the file cannot be read or does not fit the model. The model is then unchanged.

    Example:
        >>> from efficientnet_tf import build_model, load_weights
        >>> build_model("b0", classes=10, input_shape=(64, 64, 3)).save_weights("b0.weights.h5")
        >>> model = build_model("b0", classes=5, input_shape=(64, 64, 3))
        >>> summary = load_weights(model, "b0.weights.h5", reset_head=True)
        >>> summary.format, summary.variables
        ('Keras weights', 309)
        >>> summary.reset
        ('predictions/kernel', 'predictions/bias')
    """
    path = os.fspath(path)
    shapes: dict[str, tuple[int | None, ...]] = {n: tuple(v.shape) for n, v in model_variables(model).items()}
    for name in HEAD if reset_head else ():
        shapes[name] = ()  # is not read
    if adapt_channels and STEM in shapes:
        shapes[STEM] = (*shapes[STEM][:2], None, *shapes[STEM][3:])
    loaded = read_weights(path, shapes, average=average, normalization=normalization, padding=padding)
    return assign_weights(model, loaded, path, reset_head=reset_head, adapt_channels=adapt_channels)


def assign_weights(
    model: "keras.Model", loaded: LoadedWeights, path: str, *, reset_head: bool = False, adapt_channels: bool = False
) -> LoadSummary:
    """Assign weights that `read_weights` has read for this model. All else is as for `load_weights`."""
    from efficientnet_tf.models.normalization import set_normalization

    variables, values = model_variables(model), dict(loaded.values)
    reset = tuple(name for name in HEAD if reset_head and variables.pop(name, None) is not None)
    unused = tuple(name for name in (*HEAD, *loaded.outside) if reset_head and values.pop(name, None) is not None)
    notes = loaded.notes
    stem = values.get(STEM)
    if adapt_channels and isinstance(stem, np.ndarray) and STEM in variables:
        channels = stem.shape[2], variables[STEM].shape[2]
        if channels[0] != channels[1]:
            values[STEM] = _adapt_channels(stem, channels[1])
            notes = (*notes, f"the first convolution was adapted from {channels[0]} to {channels[1]} channels")
    _check_match(path, {name: tuple(v.shape) for name, v in variables.items()}, values, loaded)
    check_settings(path, model, loaded.needs)
    for name, variable in variables.items():
        variable.assign(values[name])
    if "model.mean" in loaded.needs:
        set_normalization(model, loaded.needs["model.mean"], loaded.needs["model.std"])
    return LoadSummary(loaded.format, len(variables), reset, unused, notes, loaded.needs)


def _check_match(
    path: str,
    shapes: dict[str, tuple],
    values: Mapping[str, np.ndarray | StoredTensor],
    loaded: LoadedWeights,
) -> None:
    """Raise UserError unless names and shapes of both sides are the same and all numbers are finite."""
    missing, extra = sorted(shapes.keys() - values.keys()), sorted(values.keys() - shapes.keys())
    common = sorted(shapes.keys() & values.keys())
    wrong = [name for name in common if shapes[name] != values[name].shape]
    not_finite = [n for n in common if n not in wrong and not np.all(np.isfinite(np.asarray(values[n])))]
    lines = [f"the file lacks {name} {shapes[name]}" for name in missing]
    lines += [f"the model has no variable {escape(name[:200])} {_format(values[name].shape)}" for name in extra]
    lines += [f"{name} is {_format(values[name].shape)} in the file but {shapes[name]} in the model" for name in wrong]
    lines += [f"{name} contains numbers that are not finite" for name in not_finite]
    if not lines:
        return
    hints, mismatched = [], {*missing, *extra, *wrong}
    if mismatched <= {*HEAD, STEM, *loaded.outside}:
        if mismatched & {*HEAD, *loaded.outside}:
            if loaded.head_problem:
                hints.append(escape(loaded.head_problem))
            elif set(extra) & set(loaded.outside):
                hints.append("The layers after the network are not a single classifier.")
            elif HEAD[1] in wrong and len(values[HEAD[1]].shape) == 1:
                hints.append(_describe_classes(values[HEAD[1]].shape[0], shapes[HEAD[1]][0]))
            hints.append("Use reset_head to keep the model's own classifier.")
        if STEM in wrong and np.delete(shapes[STEM], 2).tolist() == np.delete(values[STEM].shape, 2).tolist():
            hints.append("Use adapt_channels to fit the first convolution.")
    elif theirs := find_variant(value.shape for value in values.values()):
        ours = find_variant(shapes.values())
        if ours and ours != theirs:
            raise UserError(
                f"{escape(path)} contains the weights of {theirs}, but the model is {ours}, and nothing was loaded. "
                f"Build {theirs} for this file, or choose a file of {ours}."
            )
        hints.append(f"The file contains {theirs}.")
    intro = f"{escape(path)} does not fit the model, and nothing was loaded."
    shown = "\n  ".join(lines[:20]) + (f"\n  and {len(lines) - 20} more" if len(lines) > 20 else "")
    raise UserError(" ".join([intro, *hints]) + f"\n  {shown}")


def _describe_classes(theirs, ours):
    """Return what to do about a classifier with another number of classes."""
    source = ", those of ImageNet-21k," if theirs in (21_841, 21_843) else ""
    return (
        f"The file's classifier has {theirs:,} classes{source} and the model's {ours:,}. Build a model for {theirs:,}."
    )


def _format(shape):
    return str(tuple(shape)) if len(shape) <= 8 else f"of rank {len(shape)}"


def check_settings(path: str, model: "keras.Model", needs: Mapping[str, Any]) -> None:
    """Raise UserError if the model was built with another epsilon or padding than the weights need."""
    built = built_settings(model)
    wrong = {key: needs[key] for key, value in built.items() if key in needs and not _is_equal(needs[key], value)}
    if wrong:
        settings = ", ".join(f"{key}={value} (this model has {built[key]})" for key, value in wrong.items())
        raise UserError(
            f"{escape(path)}: these weights give the right predictions only with {settings}. Nothing was loaded. Build "
            "the model from a variant with these values, or convert the file with `python -m efficientnet_tf.weights`, "
            "which sets them."
        )


def built_settings(model: "keras.Model") -> dict[str, Any]:
    """Return the epsilon of batch norm and the padding that a model was built with, as needs."""
    return {
        "model.batch_norm_epsilon": model.get_layer("stem_bn").epsilon,
        "model.padding": "same" if model.get_layer("stem_conv").padding == "same" else "symmetric",
    }


def _is_equal(one, other):
    return one == other if isinstance(one, str) else abs(one - other) <= 1e-6 * abs(other)


def _adapt_channels(kernel: np.ndarray, channels: int) -> np.ndarray:
    """Fit a kernel [k, k, in, out] to another number of image channels, and keep its sum over them."""
    if channels == 1:
        return kernel.sum(axis=2, keepdims=True)
    repeated = kernel[:, :, np.arange(channels) % kernel.shape[2]]
    return repeated * (kernel.shape[2] / channels)
