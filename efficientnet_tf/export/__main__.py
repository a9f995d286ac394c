"""Export a trained model: `python -m efficientnet_tf.export --model_dir=DIR --output=PATH`."""

import argparse
import json

from efficientnet_tf import cli
from efficientnet_tf.export.export import export_model


def main(args: argparse.Namespace) -> int:
    """Export a model and print how closely the export agrees with it."""
    from efficientnet_tf.config.text import escape
    from efficientnet_tf.export.formats import find_format

    result = export_model(
        args.model_dir,
        args.output,
        args.precision,
        calibration_images=args.calibration_images,
        keep_float=args.keep_float,
        images=args.images,
        overrides=cli.overrides(args),
        checkpoint=args.checkpoint,
    )
    if args.json:
        print(json.dumps(result))
        return 0
    kind = find_format(args.output)
    if kind is None:
        print(
            f"Exported to {escape(args.output)}. Reloaded in a fresh process, its logits differ by at most "
            f"{result['difference']:.2g}."
        )
        return 0
    print(
        f"Exported to {escape(args.output)} ({args.precision}, {result['bytes'] / 1e6:.1f} MB). In {kind.name}, on "
        f"{result['images']} images of the evaluation split, its logits differ by at most {result['difference']:.2g} "
        f"and its top-1 class agrees on {result['agreement']:.2%}."
    )
    return 0


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command's flags."""
    parser = cli.make_parser(
        "export", "Write a trained model as a SavedModel, or as a file for LiteRT, ONNX Runtime or OpenVINO."
    )
    parser.add_argument(
        "--model_dir",
        type=cli.model_path,
        required=True,
        help="Model directory of a run, or hf://user/name on the Hugging Face Hub.",
    )
    cli.add_checkpoint_argument(parser)
    parser.add_argument(
        "--output",
        type=cli.path,
        required=True,
        help="What to write. It must not exist. FILE.tflite is for LiteRT, FILE.onnx for ONNX Runtime, FILE.xml (with "
        "FILE.bin) for OpenVINO. Any other name is the folder of a SavedModel.",
    )
    parser.add_argument(
        "--precision",
        default="float32",
        choices=["float32", "float16", "bfloat16", "dynamic", "int8"],
        help="float16 and bfloat16 halve the file. 'dynamic' stores the weights in int8 (LiteRT). 'int8' also computes "
        "the activations in int8.",
    )
    parser.add_argument(
        "--calibration_images",
        type=cli.positive_int,
        default=300,
        help="For int8: number of training images that show the range of each activation.",
    )
    parser.add_argument(
        "--keep_float", type=cli.names, default=[], metavar="LAYER,...", help="For int8: layers that stay in float."
    )
    parser.add_argument(
        "--images",
        type=cli.positive_int,
        default=1000,
        help="Largest number of images of the evaluation split to compare on.",
    )
    parser.add_argument("--json", action="store_true", help="Print one JSON object.")
    cli.add_override_arguments(parser)
    return parser


if __name__ == "__main__":
    cli.run(main, make_parser())
