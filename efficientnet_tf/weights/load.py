"""Other people's weights: `python -m efficientnet_tf.weights --variant=b4 --input=PATH --output=DIR`.

All of a file goes in, or nothing: every variable on both sides is used exactly once, or the call fails and lists what
is left on each side. A model directory carries what the weights need (normalisation, padding, crop, size), so that
evaluate, predict and export need not be told.
"""

import numpy as np

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.weights.formats import read_weights
from efficientnet_tf.weights.names import model_variables

STEM, HEAD = "stem_conv/kernel", ("predictions/kernel", "predictions/bias")


def load_weights(
    model,
    path,
    *,
    reset_head=False,
    adapt_channels=False,
    average=True,
    normalization=None,
    padding=None,
):
    """Load weights of any known format into a model.

    Args:
        model: keras.Model, from `build_model` or one of the constructors.
        path: str: Keras .h5, .weights.h5 or .keras, of this package or of keras.applications; a checkpoint of the
            official TensorFlow 1 code; timm's safetensors or .pth; a model directory or an export of this package.
        reset_head: bool; True keeps the model's own classifier, whatever the file has.
        adapt_channels: bool; True fits the first convolution to another number of image channels: summed for one
            channel, else repeated in turn and scaled to the same sum.
        average: bool; False takes raw weights where a file has moving averages, too.
        normalization: None for what the file says, "imagenet" or "advprop", which TensorFlow 1 checkpoints do not say.
        padding: None for what the file says, "same" or "symmetric", which a bare timm file does not say.

    Returns:
        stored_weights.Stored: what was recognised and decided. The model's normalisation is set to what the weights
        were trained with.

    Raises:
        UserError: when the file cannot be read, or does not fit the model; the model is as it was.
    """
    variables = list(model_variables(model))
    stored = read_weights(path, variables, average=average, normalization=normalization, padding=padding)
    assign_weights(model, stored, path, reset_head=reset_head, adapt_channels=adapt_channels)
    return stored


def assign_weights(model, stored, path, *, reset_head=False, adapt_channels=False):
    """Put what `read_weights` has read into a model; see `load_weights`."""
    variables, values = model_variables(model), dict(stored.values)
    if reset_head:
        for name in HEAD:
            variables.pop(name, None)
            values.pop(name, None)
    if adapt_channels and STEM in values:
        values[STEM] = _adapt_channels(values[STEM], variables[STEM].shape[2])
    _check_match(path, {name: tuple(v.shape) for name, v in variables.items()}, values)
    _check_build(path, model, stored.needs)
    for name, variable in variables.items():
        variable.assign(values[name])
    _set_normalization(model, stored.needs)


def _check_match(path, shapes, values):
    """Raise UserError unless names and shapes of both sides are the same, and all numbers are finite."""
    missing, left = sorted(shapes.keys() - values.keys()), sorted(values.keys() - shapes.keys())
    both = sorted(shapes.keys() & values.keys())
    wrong = [name for name in both if shapes[name] != values[name].shape]
    broken = [name for name in both if not np.all(np.isfinite(values[name]))]
    lines = [f"the file lacks {name} {shapes[name]}" for name in missing]
    lines += [f"the model has no place for {name} {values[name].shape}" for name in left]
    lines += [f"{name} is {values[name].shape} in the file, {shapes[name]} in the model" for name in wrong]
    lines += [f"{name} has numbers that are not finite" for name in broken]
    if not lines:
        return
    hint = ""
    if {*missing, *left, *wrong} <= {*HEAD, STEM}:
        hint = (
            " (reset_head, --reset_head: keep the model's own classifier)"
            if {*missing, *left, *wrong} & {*HEAD}
            else ""
        )
        if STEM in wrong and np.delete(shapes[STEM], 2).tolist() == np.delete(values[STEM].shape, 2).tolist():
            hint += " (adapt_channels, --adapt_channels: fit the first convolution)"
    shown = "\n  ".join(lines[:20]) + (f"\n  and {len(lines) - 20} more" if len(lines) > 20 else "")
    raise UserError(f"{path} does not fit the model; nothing was loaded{hint}:\n  {shown}")


def _check_build(path, model, needs):
    """Raise UserError where the model computes otherwise than the weights need."""
    built = {
        "model.batch_norm_epsilon": model.get_layer("stem_bn").epsilon,
        "model.padding": "same" if model.get_layer("stem_conv").padding == "same" else "symmetric",
    }
    wrong = {key: needs[key] for key, has in built.items() if key in needs and not _equal(needs[key], has)}
    if wrong:
        wanted = ", ".join(f"{key}={value} (this model: {built[key]})" for key, value in wrong.items())
        raise UserError(
            f"{path}: these weights give the right answers only with {wanted}. Nothing was loaded. Build the model "
            "from a variant with these values, or convert with `python -m efficientnet_tf.weights`, which does"
        )


def _equal(one, other):
    return one == other if isinstance(one, str) else abs(one - other) <= 1e-6 * abs(other)


def _adapt_channels(kernel, channels):
    """Fit a kernel [k, k, in, out] to other image channels, the sum over them unchanged."""
    if channels == kernel.shape[2]:
        return kernel
    if channels == 1:
        return kernel.sum(axis=2, keepdims=True)
    repeated = kernel[:, :, np.arange(channels) % kernel.shape[2]]
    return repeated * (kernel.shape[2] / channels)


def _set_normalization(model, needs):
    mean, std = needs.get("model.mean"), needs.get("model.std")
    if mean is None:
        return
    channels = model.inputs[0].shape[-1]
    if len(mean) != channels:  # as `build_model` does for images that are not RGB
        mean, std = (sum(mean) / len(mean),), (sum(std) / len(std),)
    layer = model.get_layer("normalization")
    layer.scale, layer.offset = [1 / s for s in std], [-m / s for m, s in zip(mean, std, strict=True)]
    model.train_function = model.test_function = model.predict_function = None  # traced with the old numbers
