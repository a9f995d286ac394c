"""Converts weights: `python -m efficientnet_tf.weights --variant=b4 --input=PATH --output=DIR`."""

from efficientnet_tf import cli


def main(args):
    """Convert the weights, and print what was read and how the model uses it."""
    from efficientnet_tf.config.image_size import format_size
    from efficientnet_tf.config.load import load_config
    from efficientnet_tf.runtime.files import check_weights_path
    from efficientnet_tf.weights.formats import check_new_weights, check_weights
    from efficientnet_tf.weights.names import variable_paths

    # What can be refused is refused before TensorFlow is imported, which takes seconds.
    check_weights_path("input", args.input)
    config = load_config(args.variant, "imagenet", cli.overrides(args))
    check_new_weights(args.output)
    options = {"average": not args.raw, "normalization": args.normalization, "padding": args.padding}
    check_weights(args.input, variable_paths(config.model), **options)
    from efficientnet_tf.weights.convert import convert_weights

    summary, config = convert_weights(
        args.variant,
        args.input,
        args.output,
        overrides=cli.overrides(args),
        classes=args.classes,
        reset_head=args.reset_head,
        adapt_channels=args.adapt_channels,
        **options,
    )
    settings = {
        "mean": config.model.mean,
        "std": config.model.std,
        "padding": config.model.padding,
        "size": format_size(config.image_size),
        "crop": config.data.crop,
        "crop padding": config.crop_padding,
        "interpolation": config.data.interpolation,
    }
    print(f"{args.input}: {summary.format}")
    for note in summary.notes:
        print(f"  {note}")
    print("  " + "; ".join(f"{name} {_format(value)}" for name, value in settings.items()))
    print(f"written to {args.output}")


def _format(value):
    return ", ".join(f"{v:.6g}" for v in value) if isinstance(value, tuple) else str(value)


def make_parser():
    """Return the command's flags."""
    parser = cli.make_parser(
        "weights",
        "Convert weights of Keras, timm, efficientnet_pytorch, the official TensorFlow 1 code or this package. Either "
        "all of a file is used, or nothing is written.",
    )
    parser.add_argument(
        "--variant", required=True, help="Network, such as b0, v2-s or lite0, or the path of a variant's YAML file."
    )
    parser.add_argument(
        "--input",
        type=cli.model_path,
        required=True,
        help="File, folder, or prefix of a TensorFlow checkpoint to read, or hf://user/name on the Hugging Face Hub.",
    )
    parser.add_argument(
        "--output",
        type=cli.path,
        required=True,
        help="Folder for a model directory, or a file ending in .weights.h5 or .keras.",
    )
    parser.add_argument("--raw", action="store_true", help="Use the raw weights if the file also has their EMA.")
    parser.add_argument(
        "--normalization",
        choices=["imagenet", "advprop"],
        help="How pixels were normalized in training, if it differs from what the file or the variant says.",
    )
    parser.add_argument(
        "--padding",
        choices=["same", "symmetric"],
        help="Padding to assume when the timm file name does not say which family it is: same for tf_efficientnet_*, "
        "symmetric for efficientnet_*.",
    )
    parser.add_argument(
        "--classes", type=cli.positive_int, help="Number of classes of the new classifier, with --reset_head."
    )
    parser.add_argument(
        "--reset_head", action="store_true", help="Ignore the file's classifier and start with a random one."
    )
    parser.add_argument(
        "--adapt_channels",
        action="store_true",
        help="Fit the first convolution to the number of channels in the config.",
    )
    cli.add_override_arguments(parser)
    return parser


if __name__ == "__main__":
    cli.run(main, make_parser())
