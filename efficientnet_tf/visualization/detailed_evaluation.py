"""Evaluates a model in one process and keeps all outputs, for the metrics and the page that need them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.image_size import format_size
from efficientnet_tf.evaluation import details as details_lib
from efficientnet_tf.evaluation.metrics import choose_metrics
from efficientnet_tf.export.loaded import sigmoid, softmax
from efficientnet_tf.visualization.evaluation_report import Evaluated, find_mistakes, make_evaluation_report

if TYPE_CHECKING:
    from efficientnet_tf.export.evaluation_data import EvaluationData
    from efficientnet_tf.export.loaded import LoadedModel

_ROWS = 1000  # that are summed up together


def evaluate_in_detail(
    model: LoadedModel,
    data: EvaluationData,
    counts_classes: bool,
    title: str | None,
    report: Callable[[int], Any] | None = None,
) -> tuple[dict[str, Any], dict[str, Any], str | None]:
    """Evaluate a model on all images in this process.

    Args:
        model: The model.
        data: The images.
        counts_classes: Whether to count the images by their class and the predicted class.
        title: Title of the page, or None to make none.
        report: Function that is called after each batch with its number of images.

    Returns:
        The result of `evaluation.loop.make_evaluator`, that of `evaluation.details`, and the page.

    Raises:
        UserError: As `make_evaluator`, or if an output is not finite.
    """
    from efficientnet_tf.evaluation.loop import collect_outputs

    outputs, labels, places = collect_outputs(
        lambda images: model(images)[:, data.columns], data.source, data.config, report or (lambda images: None)
    )
    if not len(outputs):
        raise UserError(f"None of the {data.source.size} evaluation images could be read.")
    bad = int((~np.isfinite(outputs)).any(axis=1).sum())
    if bad:
        raise UserError(f"The outputs of {bad} images are not finite, so they have no metrics.")
    metrics = choose_metrics(data.config, data.source, counts_classes)
    sums = np.zeros(metrics.size)
    for start in range(0, len(outputs), _ROWS):
        part = slice(start, start + _ROWS)
        sums += np.asarray(metrics.sum_up(outputs[part], labels[part], np.ones(len(outputs[part]), np.float32)))
    result = metrics.read(sums, data.source.size)
    evaluated = _interpret(model.task, data.class_names, outputs, labels, places)
    describe = {
        "classification": details_lib.describe_classes,
        "multilabel": details_lib.describe_labels,
        "regression": details_lib.describe_numbers,
    }[model.task]
    details = describe(evaluated.scores, evaluated.labels, data.class_names)
    page = None if title is None else _make_page(model, data, title, evaluated, details, result)
    return result, details, page


def _interpret(
    task: str, names: Sequence[str], outputs: np.ndarray, labels: np.ndarray, places: np.ndarray
) -> Evaluated:
    """Return probabilities in place of logits, and the class of an image that has real labels, too."""
    if task == "classification":
        labels = labels if labels.ndim == 1 else labels[:, 0]
        return Evaluated(task, names, softmax(outputs), labels, places)
    return Evaluated(task, names, sigmoid(outputs) if task == "multilabel" else outputs, labels, places)


def _make_page(model, data, title, evaluated, details, result):
    mistakes = find_mistakes(evaluated, data.config.data.target_std)
    pictures = _read_pictures(data.source, data.config, [mistake.place for mistake in mistakes])
    config = data.config
    status = (
        f"{config.model.name}, {format_size(config.image_size)} pixels, on {result['examples']:,} images of the split "
        f"{config.data.eval_split!r} of {config.data.source}."
    )
    shown = [(mistake, *pictures[mistake.place]) for mistake in mistakes]
    return make_evaluation_report(title, status, evaluated, details, result.get("confusion"), shown)


def _read_pictures(source, config, places):
    """Return {place: (pixels, name)} of images by their place in the order of the evaluation."""
    import tensorflow as tf

    from efficientnet_tf.data.pipeline import eval_image
    from efficientnet_tf.data.source import Order

    found, wanted = {}, set(places)
    if source.indexed:
        ids = ((place, place, tf.constant(place, tf.int64)) for place in places)
    else:  # Files of records are read from their start.
        ids = source.stream(Order(batch=1, steps=source.size))
    for place, id_, payload in ids:
        if int(place) in wanted:
            encoded, _ = source.load(payload)
            found[int(place)] = eval_image(encoded, config).numpy()[..., :3], source.describe(int(id_))
        if len(found) == len(wanted):
            break
    return found
