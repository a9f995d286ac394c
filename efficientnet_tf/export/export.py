"""Export a trained model: `python -m efficientnet_tf.export --model_dir=DIR --output=PATH`.

The name of the output says what it becomes: `.tflite`, `.onnx` and `.xml` are files for LiteRT, ONNX Runtime and
OpenVINO (`artefacts`), any other name is the folder of a SavedModel (`saved_model`). Either is run by its own runtime
and compared with the Keras model before it lies under its name.
"""

import os
import tempfile

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

    from efficientnet_tf.config.errors import UserError
    from efficientnet_tf.config.load import override_config
    from efficientnet_tf.export.folding import fold_batch_norm
    from efficientnet_tf.export.formats import find_format
    from efficientnet_tf.models.model_dir import restore_model
    from efficientnet_tf.runtime.files import read_text

    kind = find_format(output)
    _check_file(kind, output, precision, keep_float)
    model, config, _ = restore_model(model_dir)
    folded = fold_batch_norm(model)
    _check_layers(folded, keep_float)
    texts = {name: read_text(os.path.join(model_dir, name)) for name in ("config.yaml", "classes.txt")}
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

    from efficientnet_tf.config.errors import UserError
    from efficientnet_tf.export.formats import FORMATS, require_packages
    from efficientnet_tf.runtime.files import check_output

    if precision not in kind.precisions:
        raise UserError(f"--precision={precision}: {kind.name} takes {', '.join(kind.precisions)}")
    if keep_float and precision != "int8":
        raise UserError(f"--keep_float={','.join(keep_float)} goes with --precision=int8, received {precision}")
    check_output("--output", output, tuple(FORMATS))
    for path in _parts(output):
        if tf.io.gfile.exists(path):
            raise UserError(f"--output={output}: {path} exists")
    require_packages(kind, precision)


def _check_layers(model, keep_float):
    from efficientnet_tf.config.errors import UserError, suggest
    from efficientnet_tf.export.quantization import layers_with_weights

    layers = layers_with_weights(model)
    for name in keep_float:
        if name not in layers:
            raise UserError(
                f"--keep_float={name}: the model has no such convolution or dense layer; it has {layers[0]} ... "
                f"{layers[-1]}.{suggest(name, layers)}"
            )


def _images(config, count, training):
    """Read images of the training or the evaluation split as evaluation sees them: float32 [N, S, S, C]."""
    import numpy as np
    from tqdm import tqdm

    from efficientnet_tf.data.open import open_source
    from efficientnet_tf.data.pipeline import Failures, sample_images

    split = config.data.train_split if training else config.data.eval_split
    source = open_source(config.data, split, training=training)
    failures = Failures(source)
    dataset = sample_images(source, config, failures, count)
    bar = tqdm(dataset.as_numpy_iterator(), f"{split} images", min(count, source.size), unit="image", leave=False)
    images = np.stack(list(bar))
    failures.check(config.data.max_bad_fraction if training else 0)
    return images


def _compare_file(model, path, images):
    """Run the Keras model and the file on the same images."""
    import numpy as np
    import tensorflow as tf
    from tqdm import tqdm

    from efficientnet_tf.export.formats import open_export

    run, _ = open_export(path)
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
    from efficientnet_tf.export.quantization import measure_losses

    losses = measure_losses(model, [image[None] for image in calibration], images[:PROBED])
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

    from efficientnet_tf.config.errors import UserError

    size = 0
    try:
        for source, target in zip(_parts(path), _parts(output), strict=True):
            size += os.path.getsize(source)
            tf.io.gfile.copy(source, f"{target}.unfinished", overwrite=True)
            tf.io.gfile.rename(f"{target}.unfinished", target)
    except (tf.errors.OpError, OSError) as error:
        raise UserError(f"--output={output} cannot be written: {error}") from None
    return size
