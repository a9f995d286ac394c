"""TODO docstring (from export)."""

import json

from efficientnet_tf import cli
from efficientnet_tf.export.export import export_file


def main(args):
    """Export and say how far the model that was written agrees."""
    from efficientnet_tf.config.errors import UserError
    from efficientnet_tf.export.formats import FORMATS, find_format
    from efficientnet_tf.export.saved_model import export_saved_model

    kind = find_format(args.output)
    if kind is None:
        if args.precision != "float32":
            raise UserError(
                f"--precision={args.precision}: a SavedModel, which --output={args.output} asks for, is float32; names "
                f"in {', '.join(FORMATS)} ask for other formats"
            )
        difference = export_saved_model(args.model_dir, args.output)
        if args.json:
            print(json.dumps({"output": args.output, "precision": args.precision, "difference": difference}))
            return
        print(f"exported to {args.output}; reloaded in a fresh process, its logits differ by at most {difference:.2g}")
        return
    result = export_file(
        args.model_dir,
        args.output,
        args.precision,
        args.calibration_images,
        args.keep_float,
        args.images,
        cli.overrides(args),
    )
    if args.json:
        print(json.dumps({"output": args.output, "precision": args.precision, **result}))
        return
    print(
        f"exported to {args.output} ({args.precision}, {result['bytes'] / 1e6:.1f} MB); run by {kind.name} on "
        f"{result['images']} images of the evaluation split, its logits differ by at most {result['difference']:.2g}, "
        f"its top-1 agrees on {result['agreement']:.2%}"
    )


def make_parser():
    """Return the command's flags."""
    parser = cli.make_parser(
        "export", "Write a trained model as a SavedModel, or as a file for LiteRT, ONNX Runtime or OpenVINO."
    )
    parser.add_argument("--model_dir", required=True, help="a model directory")
    parser.add_argument(
        "--output",
        required=True,
        help="what to write; must not exist. FILE.tflite for LiteRT, FILE.onnx, FILE.xml for OpenVINO (FILE.bin beside "
        "it); any other name is a folder, for a SavedModel",
    )
    parser.add_argument(
        "--precision",
        default="float32",
        choices=["float32", "float16", "bfloat16", "dynamic", "int8"],
        help="float16 and bfloat16 halve the file; dynamic: weights in int8 (LiteRT); int8: activations, too",
    )
    parser.add_argument(
        "--calibration_images",
        type=cli.positive_int,
        default=300,
        help="for int8: training images that show the range of each activation",
    )
    parser.add_argument(
        "--keep_float", type=cli.names, default=[], metavar="LAYER,...", help="for int8: layers that stay in float"
    )
    parser.add_argument(
        "--images", type=cli.positive_int, default=1000, help="images of the evaluation split to compare on, at most"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    cli.add_override_arguments(parser)
    return parser


if __name__ == "__main__":
    cli.run(main, make_parser())
