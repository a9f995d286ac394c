"""Exports a trained model for deployment.

The name of the output chooses the format: `.tflite`, `.onnx` and `.xml` are files for LiteRT, ONNX Runtime and OpenVINO
(see `formats`), and any other name is the folder of a SavedModel (see `saved_model`). Every export is run by its own
runtime and compared with the Keras model before it is moved into place.
"""

from __future__ import annotations

import functools
import os
import tempfile
from collections.abc import Sequence
from typing import Any

from efficientnet_tf.config.errors import UserError, suggest
from efficientnet_tf.config.text import escape
from efficientnet_tf.data.listing import check_data
from efficientnet_tf.export.agreement import check_agreement, compare_file
from efficientnet_tf.export.check import check_model, clean_path
from efficientnet_tf.export.formats import (
    FORMATS,
    Format,
    check_packages,
    find_format,
    require_packages,
)
from efficientnet_tf.export.metadata import append_record, check_texts, list_files, read_metadata
from efficientnet_tf.export.output import UNFINISHED, check_output, unfinished_output
from efficientnet_tf.export.overrides import override_data
from efficientnet_tf.export.record import make_record
from efficientnet_tf.models.run_directory import format_class_names, read_class_names, read_config
from efficientnet_tf.runtime.files import read_text
from efficientnet_tf.scaling.layers import list_layers

WORST_LAYERS = 5  # layers that an error names if int8 loses too much
PROBE_IMAGES = 64  # images on which the loss of each layer is measured
# Keys that are part of what is exported.
FIXED_KEYS = ("data.crop", "data.crop_padding", "data.interpolation", "data.background")


def export_model(
    model_dir: str | os.PathLike[str],
    output: str | os.PathLike[str],
    precision: str = "float32",
    *,
    calibration_images: int = 300,
    keep_float: Sequence[str] = (),
    io: str = "float32",
    images: int = 1000,
    overrides: Sequence[str] = (),
    checkpoint: str | int | None = None,
) -> dict[str, Any]:
    """Write the model of a model directory for deployment, with EMA weights if the run has them.

    The export is opened by its own runtime and compared with the Keras model before it is moved to `output`: a
    SavedModel on generated images, a file on images of the evaluation split.

    Args:
        model_dir: A model directory, as `train_model` writes it.
        output: What to write. It must not exist yet. `FILE.tflite` is for LiteRT, `FILE.onnx` for ONNX Runtime, and
            `FILE.xml`, with its `FILE.bin`, for OpenVINO. Any other name is the folder of a SavedModel.
        precision: "float32", "float16", "bfloat16" (OpenVINO only), "dynamic" (int8 weights, LiteRT only) or "int8"
            (int8 weights and activations). A SavedModel is always float32.
        calibration_images: Number of training images that show the range of each activation, for int8, at least 1.
        keep_float: Names of convolutions and dense layers that stay in float, for int8.
        io: Type of the input and the output, for int8: "float32", or "int8" or "uint8" for hardware that computes with
            integers only (LiteRT and ONNX Runtime). The file says how pixels and logits follow from the integers.
        images: Largest number of images of the evaluation split to compare on, at least 1.
        overrides: Changes of the run's config as `section.key=value`, in the sections data and eval, for example where
            the images are now.
        checkpoint: "best", "newest" or the number of a step. The default is the best one if `eval.best` chooses one,
            else the newest.

    Returns:
        A dict with "output", "precision" and "difference", the largest difference of a logit. For files also "images",
        the number of images compared, "greatest", the largest logit, "agreement", the share of images with the same
        top-1 class, and "bytes", the size of what was written. For data.task=multilabel the agreement is the share of
        labels that are predicted alike, and for data.task=regression the share of the numbers' variance in training
        that is left without the differences.

    Raises:
        UserError: If `output` exists or cannot be written; if the format does not have the precision, the model does
            not have a layer, or a runtime or the images are missing; if float32 differs by more than 1e-4 of the
            largest logit; or if the agreement in another precision is less than 98%. For int8 the message names the
            layers that lose most.

    Example:
        >>> from efficientnet_tf import export_model
        >>> result = export_model("runs/digits", "digits.tflite", images=100)
        >>> result["images"], result["agreement"]
        (100, 1.0)
    """
    model_dir = clean_path(model_dir)
    output = os.fspath(output)
    kind = check_export(model_dir, output, precision, keep_float, io, overrides, checkpoint)
    if kind is None:
        from efficientnet_tf.export.saved_model import export_saved_model

        difference = export_saved_model(model_dir, output, checkpoint)
        return {"output": output, "precision": precision, "difference": difference}
    from efficientnet_tf.models.data_format import channels_last_scope

    with channels_last_scope():  # for Rescaling, which looks up the data format whenever it is called
        settings = precision, calibration_images, keep_float, io, images, overrides, checkpoint
        result = _export_file(kind, model_dir, output, *settings)
    return {"output": output, "precision": precision, **result}


def check_export(
    model_dir: str,
    output: str,
    precision: str = "float32",
    keep_float: Sequence[str] = (),
    io: str = "float32",
    overrides: Sequence[str] = (),
    checkpoint: str | int | None = None,
) -> Format | None:
    """Refuse what can be refused before TensorFlow is imported. Arguments and errors are those of `export_model`.

    Returns:
        The format of the output, None for a SavedModel.
    """
    check_output(model_dir, output)
    kind = find_format(output)
    if kind is None and precision != "float32":
        raise UserError(
            f"precision={escape(precision)} does not apply to output={escape(output)}, which is a SavedModel and "
            f"always float32. Use a name that ends in {', '.join(FORMATS)} for other formats."
        )
    if kind is not None and precision not in kind.precisions:
        raise UserError(
            f"precision={escape(precision)} is not available for {kind.name}. Choose one of "
            f"{', '.join(kind.precisions)}."
        )
    if keep_float and precision != "int8":
        raise UserError(
            f"keep_float={','.join(keep_float)} applies to precision=int8 only, received precision={precision}."
        )
    if check_model(model_dir, checkpoint=checkpoint) != "model_dir":
        raise UserError(
            f"model_dir={escape(model_dir)} is not a model directory but a single model. Pass the directory that a run "
            "wrote."
        )
    config = override_data(read_config(model_dir), overrides, FIXED_KEYS)
    _check_io(kind, precision, keep_float, io, config.data.task)
    _check_layers(config.model, keep_float)
    if kind is not None:
        check_packages(kind)
        check_texts(output, {"classes.txt": format_class_names(read_class_names(model_dir))})
        _check_data(config.data, calibrates=precision == "int8" and (bool(keep_float) or not config.trains_for_int8))
    return kind


def _check_io(kind, precision, keep_float, io, task):
    """Refuse integers as input and output of a network that does not compute with integers throughout."""
    if io == "float32":
        return
    if precision != "int8" or keep_float:
        what = f"keep_float={','.join(keep_float)}" if keep_float else f"precision={precision}"
        raise UserError(f"io={escape(io)} needs a network that is int8 throughout, received {what}.")
    if task == "regression":
        raise UserError(f"io={escape(io)} is not available for data.task=regression, whose numbers are always float32.")
    if io not in kind.io:
        raise UserError(f"io={escape(io)} is not available for {kind.name}. Choose one of {', '.join(kind.io)}.")


def _check_data(data, calibrates):
    """Refuse missing images, and say how to give their new place."""
    try:
        check_data(data, [data.eval_split, *([data.train_split] if calibrates else [])])
    except UserError as error:
        purpose = " and calibrated on those of the training split" if calibrates else ""
        raise UserError(
            f"{error} The export is compared on images of the evaluation split{purpose}. If they were moved, pass "
            "data_dir=DIR or overrides: data.dir=DIR."
        ) from None


def _export_file(kind, model_dir, output, precision, calibration_images, keep_float, io, images, overrides, checkpoint):
    """Write a file for another runtime; see `export_model`."""
    import keras

    from efficientnet_tf.models.folding import fold_batch_norm
    from efficientnet_tf.models.model_dir import restore_model_and_limits

    require_packages(kind)
    model, config, class_names, limits = restore_model_and_limits(model_dir, checkpoint=checkpoint)
    is_trained = precision == "int8" and bool(limits) and not keep_float
    folded = fold_batch_norm(model)
    texts = {"config.yaml": read_text(os.path.join(model_dir, "config.yaml"))}
    texts |= {"classes.txt": format_class_names(class_names), "precision": precision}
    check_texts(output, texts)  # the config, too
    trained_config, config = config, override_data(config, overrides, FIXED_KEYS)
    compared = _read_images(config, images, training=False)
    calibration: Any = []
    network, reference = folded, functools.partial(model, training=False)
    if precision == "int8":
        from efficientnet_tf.export.bias_correction import correct_biases
        from efficientnet_tf.export.int8_network import compute_quantized_logits, make_int8_network
        from efficientnet_tf.models.quantized import PIXELS

        if is_trained:
            folded, reference = model, compute_quantized_logits(model, limits)
        else:
            calibration = _read_images(config, calibration_images, training=True)
            limits = _prepare_for_int8(folded, calibration, keep_float)
        if io != "float32":  # Whole numbers are the pixels themselves.
            limits = {name: each for name, each in limits.items() if name != PIXELS}
        network = make_int8_network(folded, limits, not output.endswith(".tflite"), keep_float)
        if not is_trained:
            correct_biases(network, folded, calibration)

    with tempfile.TemporaryDirectory() as scratch, unfinished_output(output) as unfinished:
        path = os.path.join(scratch, f"network{os.path.splitext(output)[1]}")
        named = keras.Model(network.input, {"logits": network.output})
        kind.write(named, path, precision, texts, io)
        append_record(path, make_record(trained_config, class_names, read_metadata(path).compute_digest()))
        result = compare_file(reference, path, compared, config)
        all_used = len(calibration) < calibration_images
        advise = functools.partial(_advise, folded, calibration, compared, keep_float, all_used)
        advise = advise if len(calibration) else str
        check_agreement(kind.name, output, precision, result, config.data.task, advise)
        result["bytes"] = _copy(path, unfinished)
    return result


def _prepare_for_int8(model, calibration, keep_float):
    """Change a folded model in place so that int8 changes little of what it computes. Return the limits of its tensors.

    The arguments are those of `int8_network.measure_limits`, with the calibration images in one array.
    """
    from efficientnet_tf.export.equalization import equalize_channels
    from efficientnet_tf.export.int8_network import measure_limits
    from efficientnet_tf.export.rounding import round_weights
    from efficientnet_tf.runtime.terminal import track

    def images(what):
        return track((image[None] for image in calibration), len(calibration), what, "images")

    equalize_channels(model, images("Measuring ranges of channels"))
    round_weights(model, images("Measuring inputs of layers"), keep_float)
    return measure_limits(model, images("Measuring ranges of tensors"), keep_float)


def _check_layers(spec, keep_float):
    """Raise UserError unless all names are those of convolutions and dense layers of a network."""
    layers = [layer.name for layer in list_layers(spec) if "kernel" in layer.variables]
    for name in keep_float:
        if name not in layers:
            raise UserError(
                f"keep_float={name} is not a convolution or dense layer of the model, which has {layers[0]} ... "
                f"{layers[-1]}.{suggest(name, layers)}"
            )


def _read_images(config, count, training):
    """Return images of the training or the evaluation split, preprocessed as for evaluation: float32 [N, H, W, C]."""
    import numpy as np

    from efficientnet_tf.data.failures import Failures
    from efficientnet_tf.data.open import open_source
    from efficientnet_tf.data.pipeline import sample_images
    from efficientnet_tf.runtime.terminal import track

    split = config.data.train_split if training else config.data.eval_split
    source = open_source(config.data, split, training=training)
    failures = Failures(source)
    dataset = sample_images(source, config, failures, count)
    total = min(count, source.size)
    images = list(track(dataset.as_numpy_iterator(), total, f"Reading {split} images", "images"))
    failures.check(config.data.max_bad_fraction if images else 0)
    return np.stack(images)


def _advise(model, calibration, images, keep_float, all_used):
    """Return text about the layers that lose most in int8, and what to do.

    Args:
        model: The folded model.
        calibration: Calibration images, float32 [N, H, W, C].
        images: Images to measure on, float32 [N, H, W, C].
        keep_float: Names of the layers that are in float already.
        all_used: Whether the training split has no more images to calibrate on.
    """
    from efficientnet_tf.export.quantization import measure_quantization_errors

    errors = measure_quantization_errors(model, [image[None] for image in calibration], images[:PROBE_IMAGES])
    worst = [name for name in errors if name not in keep_float][:WORST_LAYERS]
    if all_used:
        remedy = f"All {len(calibration)} training images are already used for calibration."
    else:
        more = 4 * len(calibration)
        remedy = f"Or calibrate on more images: calibration_images={more} (now {len(calibration)})"
    return "\n".join(
        [
            "\nThese layers lose most. Each was measured alone in int8, as the error of the logits relative to their "
            "standard deviation:",
            *(f"  {name}: {errors[name]:.1%}" for name in worst),
            f"Keep some in float: keep_float={','.join([*keep_float, *worst])}",
            remedy,
        ]
    )


def _copy(path, unfinished):
    """Copy the files of an export next to their final place, and return their size in bytes."""
    import tensorflow as tf

    parts = list_files(path)
    for part in parts:
        ending = os.path.splitext(part)[1]
        target = os.path.splitext(unfinished.removesuffix(UNFINISHED))[0] + ending + UNFINISHED
        tf.io.gfile.copy(part, target, overwrite=True)
    return sum(map(os.path.getsize, parts))
