"""TODO docstring (from weights)."""

import json
import os
import zipfile

from efficientnet_tf import cli
from efficientnet_tf.config.errors import UserError
from efficientnet_tf.weights.formats import read_weights
from efficientnet_tf.weights.load import HEAD, assign_weights
from efficientnet_tf.weights.loaded import CONFIG_ATTRIBUTE, CONFIG_ENTRY
from efficientnet_tf.weights.names import variable_paths

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
    from efficientnet_tf.config.load import load_config, override_config
    from efficientnet_tf.models.builder import build_model

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
    model = build_model(config.model, classes, (size, size, channels))
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
    from efficientnet_tf.config.load import dump_config

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
            from efficientnet_tf.models.model_dir import write_model_dir

            write_model_dir(output, model, config, names)
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
