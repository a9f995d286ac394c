"""Other people's weights: `python -m efficientnet_tf.weights --variant=b4 --input=PATH --output=DIR`.

All of a file goes in, or nothing: every variable on both sides is used exactly once, or the call fails and lists what
is left on each side. A model directory carries what the weights need (normalisation, padding, crop, size), so that
evaluate, predict and export need not be told.
"""

import json
import os
import zipfile

import numpy as np

from efficientnet_tf import cli
from efficientnet_tf.config import UserError
from efficientnet_tf.stored_weights import CONFIG_ATTRIBUTE, CONFIG_ENTRY
from efficientnet_tf.weight_formats import read_weights
from efficientnet_tf.weight_names import model_variables, variable_paths

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


# ------------------------------------------------------------------------------------------------ the command


def convert(variant, path, output, *, overrides=(), classes=None, reset_head=False, adapt_channels=False, **options):
    """Read weights of any format, and write them with what they need.

    Args:
        variant: str, "b0" ... "b8", "l2", or the path of a variant's YAML.
        path: str, see `load_weights`.
        output: str: a folder, for a model directory; or a file that ends in .weights.h5 or .keras.
        overrides: sequence of `section.key=value`, stronger than what the file says.
        classes: int, of the classifier; None for the file's.
        reset_head: bool, as of `load_weights`.
        adapt_channels: bool, as of `load_weights`.
        **options: average, normalization, padding, as of `load_weights`.

    Returns:
        (stored_weights.Stored, config.Config).

    Raises:
        UserError: as `load_weights`; and when the output exists or cannot be written.
    """
    from efficientnet_tf import models
    from efficientnet_tf.config import load_config, override_config

    if os.path.exists(output):
        raise UserError(f"--output={output} exists: take another, nothing is overwritten")
    config = load_config(variant, "imagenet", ["train.ema_decay=0"])
    stored = read_weights(path, variable_paths(config.model), **options)
    needs = [f"{key}={json.dumps(value)}" for key, value in stored.needs.items()]
    config = override_config(override_config(config, needs), overrides)
    if classes is None:
        if HEAD[1] not in stored.values:
            raise UserError(f"{path} has no classifier: give --classes=N and --reset_head for a new one")
        classes = len(stored.values[HEAD[1]])
    size, channels = config.image_size, config.data.channels
    model = models.build_model(config.model, classes, (size, size, channels))
    assign_weights(model, stored, path, reset_head=reset_head, adapt_channels=adapt_channels)
    _write(model, config, class_names(classes), output)
    return stored, config


def class_names(classes):
    """Return names for the labels of weights that state none: ImageNet's synsets for 1,000, else numbers."""
    if classes == 1000:
        import tensorflow_datasets as tfds

        with tfds.core.tfds_path("datasets/imagenet2012/labels.txt").open() as file:
            return file.read().split()
    return [str(i) for i in range(classes)]


def _write(model, config, names, output):
    from efficientnet_tf.config import dump_config

    try:
        if output.endswith(".weights.h5"):
            import h5py

            temporary = output.removesuffix(".weights.h5") + ".tmp.weights.h5"
            model.save_weights(temporary)
            with h5py.File(temporary, "a") as file:
                file.attrs[CONFIG_ATTRIBUTE] = dump_config(config)
            os.replace(temporary, output)
        elif output.endswith(".keras"):
            temporary = output.removesuffix(".keras") + ".tmp.keras"
            model.save(temporary)
            with zipfile.ZipFile(temporary, "a") as archive:  # Keras passes over what it does not know
                archive.writestr(CONFIG_ENTRY, dump_config(config))
            os.replace(temporary, output)
        else:
            from efficientnet_tf import checkpoint

            checkpoint.write_model_dir(output, model, config, names)
    except OSError as error:
        raise UserError(f"--output={output} cannot be written: {error}") from None


def main(args):
    """Convert and say what was decided."""
    stored, config = convert(
        args.variant,
        args.input,
        args.output,
        overrides=cli.overrides(args),
        classes=args.classes,
        reset_head=args.reset_head,
        adapt_channels=args.adapt_channels,
        average=not args.raw,
        normalization=args.normalization,
        padding=args.padding,
    )
    print(f"{args.input}: {stored.format}")
    for note in stored.notes:
        print(f"  {note}")
    needs = {"mean": config.model.mean, "std": config.model.std, "padding": config.model.padding}
    needs |= {"size": config.image_size, "crop padding": config.data.crop_padding}
    needs["interpolation"] = config.data.interpolation
    print("  " + "; ".join(f"{name} {_format(value)}" for name, value in needs.items()))
    print(f"written to {args.output}")


def _format(value):
    return ", ".join(f"{v:.6g}" for v in value) if isinstance(value, tuple) else str(value)


def make_parser():
    """Return the command's flags."""
    parser = cli.make_parser(
        "weights",
        "Convert weights of Keras, of timm, of the official TensorFlow 1 code or of this package. All of a file is "
        "used, or nothing is written.",
    )
    parser.add_argument("--variant", required=True, help="b0 ... b8, l2, or the path of a variant's YAML")
    parser.add_argument("--input", required=True, help="file, folder, or prefix of a TensorFlow checkpoint")
    parser.add_argument(
        "--output", required=True, help="folder for a model directory, or a file ending in .weights.h5 or .keras"
    )
    parser.add_argument("--raw", action="store_true", help="raw weights, where the file has moving averages as well")
    parser.add_argument(
        "--normalization",
        choices=["imagenet", "advprop"],
        help="how pixels were normalised, where it is not as the file says or the variant has it",
    )
    parser.add_argument(
        "--padding", choices=["same", "symmetric"], help="timm without a telling name: same for tf_*, else symmetric"
    )
    parser.add_argument("--classes", type=cli.positive_int, help="classes of the new classifier, with --reset_head")
    parser.add_argument("--reset_head", action="store_true", help="do not take the file's classifier: a random one")
    parser.add_argument("--adapt_channels", action="store_true", help="fit the first convolution to data.channels")
    cli.add_override_arguments(parser)
    return parser


if __name__ == "__main__":
    cli.run(main, make_parser())
