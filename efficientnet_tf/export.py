"""Export a trained model: `python -m efficientnet_tf.export --model_dir=DIR --output=PATH`.

The name of the output says what it becomes: `.tflite`, `.onnx` and `.xml` are files for LiteRT, ONNX Runtime and
OpenVINO (`artefacts`), any other name is the folder of a SavedModel (`saved_model`). Either is run by its own runtime
and compared with the Keras model before it lies under its name.
"""

import json
import os
import tempfile

from efficientnet_tf import cli

TOLERANCE = 1e-4  # of the greatest logit, for float32
AGREEMENT = 0.98  # of top-1 with the Keras model, for every precision
CULPRITS = 5  # layers that are named where int8 loses too much
PROBED = 64  # images that tell which
BATCH = 32


def export_file(
    model_dir, output, precision="float32", calibration_images=300, keep_float=(), images=1000, overrides=()
):
    """Write the model of a model directory, its moving average where it has one, as a file for another runtime.

    Before it lies under its name, the file is opened by that runtime, and its logits for images of the evaluation split
    are compared with the Keras model's.

    Args:
        model_dir: str.
        output: str, a name that `artefacts.format_of` knows, where nothing lies yet.
        precision: str, one of the format's.
        calibration_images: int >= 1; for int8, images of the training split that show the range of each activation.
        keep_float: sequence of str; for int8, convolutions and dense layers that stay in float.
        images: int >= 1, images of the evaluation split to compare on; all where it has no more.
        overrides: sequence of `section.key=value` for the sections data and eval: where the images are.

    Returns:
        dict: "images", how many were compared; "difference", the largest of a logit; "greatest", the greatest logit;
        "agreement", the share of images with the same top-1; "bytes", of what was written.

    Raises:
        UserError: when `output` exists or cannot be written; for a precision that the format does not have, a layer
            that the model does not have, a runtime or images that are not there; when float32 differs by more than
            1e-4 of the greatest logit, or another precision agrees on less than 98 % of the images: for int8 with the
            layers that lose most.
    """
    import keras

    from efficientnet_tf import artefacts, checkpoint, files, folding
    from efficientnet_tf.config import UserError, override_config

    kind = artefacts.format_of(output)
    _check_file(kind, output, precision, keep_float)
    model, config, _ = checkpoint.load_model(model_dir)
    folded = folding.fold_batch_norm(model)
    _check_layers(folded, keep_float)
    texts = {name: files.read_text(os.path.join(model_dir, name)) for name in ("config.yaml", "classes.txt")}
    texts["precision"] = precision
    config = override_config(config, overrides)
    compared = _images(config, images, training=False)
    calibration = _images(config, calibration_images, training=True) if precision == "int8" else []

    with tempfile.TemporaryDirectory() as scratch:
        path = os.path.join(scratch, os.path.basename(output))
        named = keras.Model(folded.input, {"logits": folded.output})
        kind.write(named, path, precision, [image[None] for image in calibration], keep_float, texts)
        result = _compare_file(model, path, compared)
        if precision == "float32" and not result["difference"] <= TOLERANCE * max(1.0, result["greatest"]):
            raise UserError(
                f"run by {kind.name}, the network differs from the Keras model by {result['difference']:.2g} "
                f"in a logit, more than {TOLERANCE:g} of the greatest, {result['greatest']:.3g}; {output} was not "
                "written"
            )
        if not result["agreement"] >= AGREEMENT:
            exhausted = len(calibration) < calibration_images
            told = _say_losses(folded, calibration, compared, keep_float, exhausted) if precision == "int8" else ""
            raise UserError(
                f"run by {kind.name} in {precision}, the network's top-1 is that of the Keras model on "
                f"{result['agreement']:.1%} of {result['images']} images, less than {AGREEMENT:.0%}; {output} was not "
                f"written{told}"
            )
        result["bytes"] = _move(path, output)
    return result


def _parts(output):
    """Return the files of an artefact, the one that is opened last."""
    return ([output.removesuffix(".xml") + ".bin"] if output.endswith(".xml") else []) + [output]


def _check_file(kind, output, precision, keep_float):
    """Refuse what cannot be done before the work."""
    import tensorflow as tf

    from efficientnet_tf import artefacts, files
    from efficientnet_tf.config import UserError

    if precision not in kind.precisions:
        raise UserError(f"--precision={precision}: {kind.name} takes {', '.join(kind.precisions)}")
    if keep_float and precision != "int8":
        raise UserError(f"--keep_float={','.join(keep_float)} goes with --precision=int8, received {precision}")
    files.check_output("--output", output, tuple(artefacts.FORMATS))
    for path in _parts(output):
        if tf.io.gfile.exists(path):
            raise UserError(f"--output={output}: {path} exists")
    artefacts.require(kind, precision)


def _check_layers(model, keep_float):
    from efficientnet_tf import int8
    from efficientnet_tf.config import UserError, nearest

    layers = int8.layers_with_weights(model)
    for name in keep_float:
        if name not in layers:
            raise UserError(
                f"--keep_float={name}: the model has no such convolution or dense layer; it has {layers[0]} ... "
                f"{layers[-1]}.{nearest(name, layers)}"
            )


def _images(config, count, training):
    """Read images of the training or the evaluation split as evaluation sees them: float32 [N, S, S, C]."""
    import numpy as np
    from tqdm import tqdm

    from efficientnet_tf import data, sources

    split = config.data.train_split if training else config.data.eval_split
    source = sources.open_source(config.data, split, training=training)
    failures = data.Failures(source)
    dataset = data.sample_images(source, config, failures, count)
    bar = tqdm(dataset.as_numpy_iterator(), f"{split} images", min(count, source.size), unit="image", leave=False)
    images = np.stack(list(bar))
    failures.check(config.data.max_bad_fraction if training else 0)
    return images


def _compare_file(model, path, images):
    """Run the Keras model and the file on the same images."""
    import numpy as np
    import tensorflow as tf
    from tqdm import tqdm

    from efficientnet_tf import artefacts

    run, _ = artefacts.open_artefact(path)
    forward = tf.function(lambda batch: model(batch, training=False))
    batches = [images[i : i + BATCH] for i in range(0, len(images), BATCH)]  # the last of another size
    pairs = [(forward(b).numpy(), run(b)) for b in tqdm(batches, "comparing", unit="batch", leave=False)]
    expected, found = (np.concatenate(logits) for logits in zip(*pairs, strict=True))
    return {
        "images": len(images),
        "difference": float(np.abs(found - expected).max()),
        "greatest": float(np.abs(expected).max()),
        "agreement": float(np.mean(found.argmax(axis=1) == expected.argmax(axis=1))),
    }


def _say_losses(model, calibration, images, keep_float, exhausted):
    """Return lines about the layers that lose most in int8, and what to do; `exhausted`: there are no more images."""
    from efficientnet_tf import int8

    losses = int8.measure_losses(model, [image[None] for image in calibration], images[:PROBED])
    worst = [name for name in losses if name not in keep_float][:CULPRITS]
    lines = [f"  {name}: {losses[name]:.1%}" for name in worst]
    return (
        "\nThese layers lose most, each in int8 alone (error of the logits in shares of their standard deviation):\n"
        + "\n".join(lines)
        + f"\nLeave some in float: --keep_float={','.join([*keep_float, *worst])}"
        + (
            f"\nAll {len(calibration)} training images have been used to calibrate"
            if exhausted
            else f"\nor calibrate on more images: --calibration_images={4 * len(calibration)} (now {len(calibration)})"
        )
    )


def _move(path, output):
    """Lay the files at their place, the one that is opened last; return how many bytes they have."""
    import tensorflow as tf

    from efficientnet_tf.config import UserError

    size = 0
    try:
        for source, target in zip(_parts(path), _parts(output), strict=True):
            size += os.path.getsize(source)
            tf.io.gfile.copy(source, f"{target}.unfinished", overwrite=True)
            tf.io.gfile.rename(f"{target}.unfinished", target)
    except (tf.errors.OpError, OSError) as error:
        raise UserError(f"--output={output} cannot be written: {error}") from None
    return size


def main(args):
    """Export and say how far the model that was written agrees."""
    from efficientnet_tf import artefacts, saved_model
    from efficientnet_tf.config import UserError

    kind = artefacts.format_of(args.output)
    if kind is None:
        if args.precision != "float32":
            raise UserError(
                f"--precision={args.precision}: a SavedModel, which --output={args.output} asks for, is float32; names "
                f"in {', '.join(artefacts.FORMATS)} ask for other formats"
            )
        difference = saved_model.export_saved_model(args.model_dir, args.output)
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
