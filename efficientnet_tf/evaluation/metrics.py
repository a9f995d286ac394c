"""What an evaluation counts: loss, top-1, top-5, accuracy by ImageNet-ReaL, and the confusion matrix."""

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from efficientnet_tf.config.errors import UserError

ops: Any = keras.ops  # whose types are too loose
_LABELS = {"raw": "raw weights", "ema": "EMA", "exported": "exported model"}


def sum_metrics(
    logits: Any,
    labels: Any,
    weights: Any,
    classes: int,
    has_real_labels: bool = False,
    confusion: bool = False,
) -> Any:
    """Sum up the metrics of a batch, each image times its weight. Tensors are those of Keras's backend.

    Args:
        logits: float32 [B, classes].
        labels: int32 [B]. With `has_real_labels`, int32 [B, 1 + K]: the label, up to K that count as correct, then -1.
        weights: float32 [B], 1 for an image and 0 for padding.
        classes: Number of classes.
        has_real_labels: Whether images have several labels that count as correct.
        confusion: Whether to count predictions by class as well.

    Returns:
        float32 [4]: images, loss, top-1 and top-5 hits. With `has_real_labels`, two more: images that have real labels,
        and hits among these. With `confusion`, classes**2 more. One vector, so that replicas reduce once per step.
    """
    labels, real = (labels[:, 0], labels[:, 1:]) if has_real_labels else (labels, None)
    losses = ops.sparse_categorical_crossentropy(labels, logits, from_logits=True)
    true = ops.take_along_axis(logits, labels[:, None], axis=1)
    # How many classes rank above the label. Among equal logits the first class wins, as in argmax. No logit ranks
    # below a NaN, so a label whose logits have one is never hit.
    is_below = ops.where(ops.arange(classes, dtype="int32") < labels[:, None], logits < true, logits <= true)
    rank = classes - ops.sum(ops.cast(is_below, "int32"), axis=1)
    values = [ops.ones_like(losses), losses, ops.cast(rank < 1, "float32"), ops.cast(rank < 5, "float32")]
    is_nan = ops.any(ops.isnan(logits), axis=1)
    predicted = ops.where(is_nan, classes, ops.cast(ops.argmax(logits, axis=1), "int32"))
    if real is not None:
        values.append(ops.cast(ops.any(real != -1, axis=1), "float32"))
        values.append(ops.cast(ops.any(real == predicted[:, None], axis=1), "float32"))
    sums = ops.sum(ops.where(weights > 0, ops.stack(values), 0.0), axis=1)
    if confusion:
        # A product of ones and zeros, which is exact on every device, even in bfloat16. The row of a NaN is zero.
        true = ops.one_hot(labels, classes, dtype="float32") * weights[:, None]
        counts = ops.matmul(ops.transpose(true), ops.one_hot(predicted, classes, dtype="float32"))
        sums = ops.concatenate([sums, ops.reshape(counts, [-1])], axis=0)
    return sums


def count_sums(classes: int, has_real_labels: bool, confusion: bool) -> int:
    """Return how many sums `sum_metrics` returns."""
    return 4 + 2 * has_real_labels + confusion * classes**2


def read_sums(sums: np.ndarray, size: int, classes: int, has_real_labels: bool, confusion: bool) -> dict[str, Any]:
    """Turn the sums of `sum_metrics` over all `size` images of a split into the results that `make_evaluator` returns.

    Raises:
        UserError: If no image could be read or none has real labels, or if logits that are counted by class are NaN.
    """
    totals = 4 + 2 * has_real_labels
    count, loss, top1, top5, *real = sums[:totals].tolist()
    if count > size:
        raise RuntimeError(f"evaluation counted {count:g} of {size} images")
    if not count:
        raise UserError(f"None of the {size} evaluation images could be read.")
    result = {"examples": int(count), "loss": loss / count, "top1": top1 / count}
    if classes > 5:
        result["top5"] = top5 / count
    if count < size:
        result["unreadable"] = size - int(count)
    if has_real_labels:
        if not real[0]:
            raise UserError(f"None of the {size} images has real labels to compare with.")
        result |= {"real": real[1] / real[0], "real_examples": int(real[0])}
    if confusion:
        result["confusion"] = sums[totals:].reshape(classes, classes).astype(np.int64)
        missing = count - result["confusion"].sum()
        if missing:
            raise UserError(f"The logits of {missing:g} images contain NaN, so they belong to no class.")
    return result


def format_evaluation(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Return evaluations as one line for people, raw weights and EMA side by side.

    Args:
        results: {kind: result of an evaluator}, with the kinds "raw" and "ema", or a single one.
    """
    first, *others = results

    def compare(key: str, form: str) -> str:
        values = [f" (EMA {format(results[kind][key], form)})" for kind in others]
        return format(results[first][key], form) + "".join(values)

    numbers = [f"top-1 {compare('top1', '.2%')}"]
    if "top5" in results[first]:
        numbers.append(f"top-5 {compare('top5', '.2%')}")
    numbers.append(f"loss {compare('loss', '.4f')}")
    examples, unreadable = results[first]["examples"], results[first].get("unreadable", 0)
    of_all = f" of {examples + unreadable:,}" if unreadable else ""
    line = f"{', '.join(numbers)} on {examples:,}{of_all} images"
    return line if others else f"{line}, {_LABELS.get(first, first)}"
