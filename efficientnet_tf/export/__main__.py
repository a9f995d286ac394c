"""Export a trained model: `python -m efficientnet_tf.export --model_dir=DIR --output=PATH`."""

import argparse
import json
import os

from efficientnet_tf import cli
from efficientnet_tf.export.export import export_model
from efficientnet_tf.export.repository import LAYOUTS, export_to_repository


def main(args: argparse.Namespace) -> int:
    """Export a model and print how closely the export agrees with it."""
    from efficientnet_tf.config.errors import UserError
    from efficientnet_tf.config.text import escape
    from efficientnet_tf.export.agreement import describe_agreement
    from efficientnet_tf.export.check import read_model
    from efficientnet_tf.export.formats import find_format

    settings = dict(
        precision=args.precision,
        calibration_images=args.calibration_images,
        keep_float=args.keep_float,
        io=args.io,
        images=args.images,
        overrides=cli.overrides(args),
        checkpoint=args.checkpoint,
    )
    if args.layout is None:
        if args.name is not None:
            raise UserError(f"name={escape(args.name)} applies to layout={'|'.join(LAYOUTS)} only.")
        result = export_model(args.model_dir, args.output, **settings)
    else:
        name = args.name or os.path.basename(os.path.abspath(args.model_dir))
        result = export_to_repository(args.model_dir, args.output, args.layout, name, args.version, **settings)
    if args.json:
        print(json.dumps(result))
        return 0
    output = result["output"]
    kind = find_format(output)
    if kind is None:
        print(
            f"Exported to {escape(output)}. Reloaded in a fresh process, its logits differ by at most "
            f"{result['difference']:.2g}."
        )
        return 0
    task = read_model(args.model_dir)[0].data.task
    print(
        f"Exported to {escape(output)} ({args.precision}, {result['bytes'] / 1e6:.1f} MB). In {kind.name}, on "
        f"{result['images']} images of the evaluation split, its logits differ by at most {result['difference']:.2g} "
        f"and {describe_agreement(result['agreement'], task)}."
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
        "--layout",
        choices=LAYOUTS,
        help="Write one version of a model into the repository of a server instead. --output is then the folder of the "
        "repository. tf_serving is for TensorFlow Serving, ovms for OpenVINO Model Server, triton for Triton.",
    )
    parser.add_argument(
        "--name", help="With --layout: name of the model. The default is the last part of the model directory."
    )
    parser.add_argument("--version", type=cli.positive_int, default=1, help="With --layout: number of the version.")
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
        "--io",
        default="float32",
        choices=["float32", "int8", "uint8"],
        help="For int8: type of the input and the output. 'int8' and 'uint8' are for hardware that computes with "
        "integers only (LiteRT and ONNX Runtime).",
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
