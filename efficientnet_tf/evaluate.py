"""Evaluate a trained model: `python -m efficientnet_tf.evaluate --model_dir=DIR`."""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from efficientnet_tf import cli
from efficientnet_tf.runtime.hardware import check_devices

if TYPE_CHECKING:
    import tensorflow as tf

    from efficientnet_tf.export.load import LoadedModel

_Path = str | os.PathLike[str]


def evaluate_model(
    model: _Path | LoadedModel,
    *,
    overrides: Sequence[str] = (),
    data_dir: _Path | None = None,
    folder: _Path | None = None,
    strategy: tf.distribute.Strategy | None = None,
    raw: bool = False,
    checkpoint: str | int | None = None,
    real_labels: _Path | None = None,
    per_class: _Path | None = None,
    confusion: _Path | None = None,
    metrics: _Path | None = None,
    report: _Path | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Evaluate a trained or exported model on the evaluation split of its config, or on other images.

    If the data has only some of the model's classes, only their logits compete, as is usual for ImageNet-A and
    ImageNet-R.

    Args:
        model: A path that `load_model` takes, or a model of `load_model`. A path is better for several devices, because
            the model is then created on all of them.
        overrides: Changes of the model's config as `section.key=value`, in the sections data and eval.
        data_dir: Where the images are now, short for `data.dir=...` in `overrides`.
        folder: Folder with one folder of images per class, to evaluate on instead. The names are class names of the
            model, or class numbers.
        strategy: Where to run. The default uses all GPUs, or the CPU if there is none.
        raw: Whether to evaluate the weights without EMA.
        checkpoint: Checkpoint of a model directory: "best", "newest" or the number of a step. The default is the best
            one if `eval.best` chooses one, else the newest.
        real_labels: Path of ImageNet-ReaL's labels, real.json, for images named ILSVRC2012_val_<number>.
        per_class: Path of a .csv or .json file to write the accuracy of each class to, or the metrics of each label or
            number.
        confusion: Path of a .png file to draw the confusion matrix to, for up to 100 classes.
        metrics: Path of a .json file to write all metrics to that scikit-learn computes, see `evaluation.details`.
            With this or `report`, one process evaluates all images.
        report: Path of an .html file to write a page to, with curves, calibration and the worst mistakes.
        progress: Whether to show on standard error how many images are done, and how many per second.

    Returns:
        A dict with "examples", "loss", "top1" and "top5". With data.task=multilabel there are "f1" and "exact" instead,
        and with data.task=regression "mae" and "r2": see `evaluation.metrics`. With `real_labels` also
        "real", the share of the "real_examples" with labels whose prediction is among them. If the data has fewer
        classes than the model, also "classes" and "model_classes". With `per_class` its rows. With `confusion` the
        matrix as lists, a row for each true class. With `metrics` or `report` the "metrics".

    Raises:
        UserError: If there is no model at the path, the data has classes that the model does not know, the labels do
            not fit the data, a file cannot be written, or there are too many classes for a picture.

    Source: Hendrycks et al. 2021, https://arxiv.org/abs/1907.07174 (ImageNet-A), for the logits that compete.

    Example:
        >>> from efficientnet_tf import evaluate_model
        >>> result = evaluate_model("runs/digits")
        >>> result["examples"], result["top1"] > 0.5
        (360, True)
    """
    from efficientnet_tf.config.errors import UserError
    from efficientnet_tf.evaluation.loop import make_evaluator
    from efficientnet_tf.export.evaluation_data import EvaluationData, locate_data
    from efficientnet_tf.runtime.backend import uses_jax
    from efficientnet_tf.runtime.strategy import create_strategy
    from efficientnet_tf.runtime.terminal import RateBar
    from efficientnet_tf.runtime.workers import is_chief, report_lost_workers
    from efficientnet_tf.visualization.evaluation_files import EvaluationFiles, list_rows

    data_dir, folder, real_labels, *outputs = (
        None if path is None else os.fspath(path)
        for path in (data_dir, folder, real_labels, per_class, confusion, metrics, report)
    )
    files = EvaluationFiles(*outputs)
    overrides = [*locate_data(data_dir, folder), *overrides]
    path = os.fspath(model) if isinstance(model, str | os.PathLike) else None
    files.check([real_labels, path])
    strategy = strategy or create_strategy()
    loaded = _open(model, raw, checkpoint, strategy)
    if uses_jax() and loaded.keras_model is None:
        raise UserError("backend=jax cannot evaluate exported files, which need backend=tensorflow.")
    files.check_task(loaded.task)
    data = EvaluationData(loaded, overrides, real_labels, files.check_count)
    bar = RateBar(data.source.size, "Evaluating", "images") if progress and is_chief(strategy) else None
    advance, counts, details, page = bar and bar.advance, files.counts_classes(loaded.task), None, None
    name = os.path.basename(path.rstrip("/")) if path else "model"
    with report_lost_workers(strategy), bar or contextlib.nullcontext():
        if files.needs_outputs(loaded.task):
            from efficientnet_tf.visualization.detailed_evaluation import evaluate_in_detail

            title = f"Evaluation of {name}" if files.report else None
            result, details, page = evaluate_in_detail(loaded, data, counts, title, advance)
        else:
            variables = loaded.keras_model.variables if loaded.keras_model else ()
            result = make_evaluator(
                data.select_logits, data.source, data.config, strategy, counts, advance, variables
            )()
    data.check_real_labels()
    if len(data.class_names) < len(loaded.class_names):
        result |= {"classes": len(data.class_names), "model_classes": len(loaded.class_names)}
    if is_chief(strategy):
        files.write(result, details, data.class_names, name, page)
    found = {"per_class": list_rows(result, details, data.class_names)} if files.per_class else {}
    matrix = result.pop("confusion", None)
    found |= {"confusion": matrix.tolist()} if files.confusion else {}
    return result | found | ({"metrics": details} if files.metrics or files.report else {})


def check_evaluation(
    model: str,
    overrides: Sequence[str] = (),
    raw: bool = False,
    checkpoint: str | None = None,
    real_labels: str | None = None,
    **files: str | None,
) -> None:
    """Refuse what can be refused before TensorFlow is imported. Arguments and errors are those of `evaluate_model`.

    `overrides` includes those for `data_dir` and `folder`, and `files` are the paths of the outputs. If `model` is on
    gs://, only the outputs are checked.
    """
    from efficientnet_tf.config.errors import UserError
    from efficientnet_tf.config.text import escape
    from efficientnet_tf.export.check import check_model, read_model
    from efficientnet_tf.export.evaluation_data import check_evaluation_data
    from efficientnet_tf.runtime.files import check_file, is_remote
    from efficientnet_tf.visualization.evaluation_files import EvaluationFiles

    outputs = EvaluationFiles(**files)
    outputs.check([real_labels, model])
    if real_labels is not None:
        check_file(real_labels)
    if is_remote(model):
        return
    if raw and check_model(model) != "model_dir":
        raise UserError(
            f"model_dir={escape(model)} contains one set of weights only. Pass the model directory to evaluate the raw "
            "weights."
        )
    check_model(model, checkpoint=checkpoint)
    outputs.check_task(read_model(model)[0].data.task)
    check_evaluation_data(model, overrides, real_labels, outputs.check_count)


def _open(model, raw, checkpoint, strategy):
    from efficientnet_tf.config.errors import UserError
    from efficientnet_tf.export.load import LoadedModel, load_model

    if not isinstance(model, LoadedModel):
        with strategy.scope():
            return load_model(model, raw, checkpoint)
    if checkpoint is not None:
        raise UserError("The model is loaded already. Load it with load_model(path, checkpoint=...).")
    if raw and model.weights != "raw":
        raise UserError("The model was loaded without its raw weights. Load it with load_model(path, raw=True).")
    return model


def _describe_outputs(result, files):
    """Yield the lines that are printed after the metrics."""
    if "real" in result:
        yield "ImageNet-ReaL: {real:.2%} of the {real_examples} images with labels".format(**result)
    if "classes" in result:
        yield "Only the data's {classes} of the model's {model_classes} classes compete.".format(**result)
    yield from files.describe(result)


def _without_nan(result):
    """Return the result with None for a loss that is no number, which JSON cannot hold."""
    loss = result["loss"]
    return result | {"loss": loss if math.isfinite(loss) else None}


def main(args: argparse.Namespace) -> int:
    """Evaluate a model and print the results."""
    from efficientnet_tf.export.evaluation_data import locate_data
    from efficientnet_tf.runtime.backend import BACKENDS, choose_backend

    choose_backend(args.backend)
    overrides = [*locate_data(args.data_dir, args.folder), *args.overrides]
    files = {name: getattr(args, name) for name in ("per_class", "confusion", "metrics", "report")}
    check_devices(args.device, args.tpu, args.replicas, BACKENDS)
    check_evaluation(args.model_dir, overrides, args.raw, args.checkpoint, args.real_labels, **files)
    from efficientnet_tf.evaluation.metrics import format_evaluation
    from efficientnet_tf.export.load import find_weights
    from efficientnet_tf.runtime.strategy import create_strategy
    from efficientnet_tf.runtime.workers import is_chief
    from efficientnet_tf.visualization.evaluation_files import EvaluationFiles

    strategy = create_strategy(args.device, args.tpu, args.replicas, cluster=True)
    result = evaluate_model(
        args.model_dir,
        overrides=args.overrides,
        data_dir=args.data_dir,
        folder=args.folder,
        strategy=strategy,
        raw=args.raw,
        checkpoint=args.checkpoint,
        real_labels=args.real_labels,
        **files,
        progress=True,
    )
    if not is_chief(strategy):
        return 0
    if args.json:
        print(json.dumps(_without_nan(result)))
        return 0
    print(format_evaluation({find_weights(args.model_dir, args.raw): result}))
    for line in _describe_outputs(result, EvaluationFiles(**files)):
        print(line)
    return 0


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command's flags."""
    parser = cli.make_parser(
        "evaluate", "Evaluate a trained or exported model: top-1, top-5 and loss, or the metrics of its task."
    )
    parser.add_argument("--model_dir", type=cli.model_path, required=True, help=cli.MODEL_HELP)
    parser.add_argument("--raw", action="store_true", help="Evaluate the weights without EMA.")
    cli.add_checkpoint_argument(parser)
    parser.add_argument("--json", action="store_true", help="Print one JSON object.")
    parser.add_argument(
        "--folder",
        type=cli.path,
        help="Evaluate on this folder, which has one folder of images per class. Their names are class names of the "
        "model, or class numbers. If there are fewer classes than the model has, only these compete.",
    )
    parser.add_argument(
        "--real_labels",
        type=cli.path,
        metavar="real.json",
        help="Labels of ImageNet-ReaL, for images named ILSVRC2012_val_<number>.",
    )
    parser.add_argument(
        "--per_class",
        type=cli.path,
        metavar="FILE.csv",
        help="Write the accuracy of each class, or the metrics of each label or number, to this .csv or .json file.",
    )
    parser.add_argument(
        "--confusion",
        type=cli.path,
        metavar="FILE.png",
        help="Draw the confusion matrix to this file, for up to 100 classes.",
    )
    parser.add_argument(
        "--metrics",
        type=cli.path,
        metavar="FILE.json",
        help="Write precision, recall, F1, average precision, AUROC and calibration to this file, or the errors of "
        "numbers. One process then evaluates all images.",
    )
    parser.add_argument(
        "--report",
        type=cli.path,
        metavar="FILE.html",
        help="Write a page with curves, calibration, confusion and the worst mistakes with their pictures.",
    )
    cli.add_override_arguments(parser)
    cli.add_device_arguments(parser)
    cli.add_backend_argument(parser)
    return parser


if __name__ == "__main__":
    cli.run(main, make_parser())
