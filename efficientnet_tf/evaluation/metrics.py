"""What an evaluation counts, by task: sums over images that add up over batches and replicas, and what they mean.

A batch is summed up by `Metrics.sum_up` on the device, and `Metrics.read` turns the sums over all images of a split
into results. Tensors are those of Keras's backend.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.schema import METRICS, Config
from efficientnet_tf.models.selection import METRIC_TEXTS

if TYPE_CHECKING:
    from efficientnet_tf.data.source import Source

ops: Any = keras.ops  # whose types are too loose
_LABELS = {"raw": "raw weights", "ema": "EMA", "exported": "exported model"}


class Metrics(ABC):
    """The metrics of a task. The first of all sums is the number of images."""

    @property
    @abstractmethod
    def size(self) -> int:
        """Number of sums."""

    @abstractmethod
    def sum_up(self, outputs: Any, labels: Any, weights: Any) -> Any:
        """Sum up a batch, each image times its weight.

        Args:
            outputs: What the network returns, float32 [B, outputs].
            labels: Labels as the pipeline reads them, [B, ...].
            weights: float32 [B], 1 for an image and 0 for padding.

        Returns:
            float32 [size]. One vector, so that replicas reduce once per step.
        """

    @abstractmethod
    def read(self, sums: np.ndarray, images: int) -> dict[str, Any]:
        """Turn the sums over all images of a split into the results that `make_evaluator` returns.

        Args:
            sums: float64 [size].
            images: Number of images of the split. Those that could not be read are not in the sums.

        Raises:
            UserError: If no image could be read, or the outputs cannot be counted.
        """


def choose_metrics(config: Config, source: Source, confusion: bool = False) -> Metrics:
    """Return the metrics for the task of a config.

    Args:
        config: The config.
        source: The images that are evaluated.
        confusion: Whether to count the images by their class and the predicted class as well.
    """
    count = len(source.class_names)
    if config.data.task == "multilabel":
        return LabelMetrics(count)
    if config.data.task == "regression":
        mean, std = target_statistics(config, count)
        return NumberMetrics(tuple(mean), tuple(std))
    return ClassMetrics(count, bool(source.label_shape), confusion)


def target_statistics(config: Config, count: int) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation of the numbers to learn, or 0 and 1 if the config does not state them."""
    return list(config.data.target_mean or [0.0] * count), list(config.data.target_std or [1.0] * count)


def _start(sums: np.ndarray, images: int) -> dict[str, Any]:
    """Return the results that every task has, given the sums over all images, of which the first two are common."""
    count = float(sums[0])
    if count > images:
        raise RuntimeError(f"evaluation counted {count:g} of {images} images")
    if not count:
        raise UserError(f"None of the {images} evaluation images could be read.")
    result: dict[str, Any] = {"examples": int(count), "loss": float(sums[1]) / count}
    if count < images:
        result["unreadable"] = images - int(count)
    return result


@dataclass(frozen=True)
class ClassMetrics(Metrics):
    """Top-1, top-5 and cross-entropy of a classifier.

    The sums are images, loss, top-1 and top-5 hits. With real labels there are two more: images that have real labels,
    and hits among these. With the confusion matrix there are classes**2 more.

    Attributes:
        classes: Number of classes.
        has_real_labels: Whether labels are int32 [B, 1 + K]: the class, up to K that count as correct, then -1.
            Otherwise they are int32 [B].
        confusion: Whether to count predictions by class as well.
    """

    classes: int
    has_real_labels: bool = False
    confusion: bool = False

    @property
    def _totals(self) -> int:
        return 4 + 2 * self.has_real_labels

    @property
    def size(self) -> int:
        """Number of sums."""
        return self._totals + self.confusion * self.classes**2

    def sum_up(self, outputs: Any, labels: Any, weights: Any) -> Any:
        """Sum up a batch, see `Metrics`."""
        logits, classes = outputs, self.classes
        labels, real = (labels[:, 0], labels[:, 1:]) if self.has_real_labels else (labels, None)
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
        if self.confusion:
            # A product of ones and zeros, which is exact on every device, even in bfloat16. The row of a NaN is zero.
            true = ops.one_hot(labels, classes, dtype="float32") * weights[:, None]
            counts = ops.matmul(ops.transpose(true), ops.one_hot(predicted, classes, dtype="float32"))
            sums = ops.concatenate([sums, ops.reshape(counts, [-1])], axis=0)
        return sums

    def read(self, sums: np.ndarray, images: int) -> dict[str, Any]:
        """Return "examples", "loss", "top1", of more than five classes "top5", and what was asked for in addition.

        Raises:
            UserError: If no image could be read or none has real labels, or if logits that are counted by class are
                NaN.
        """
        result = _start(sums, images)
        count, _, top1, top5, *real = sums[: self._totals].tolist()
        result["top1"] = top1 / count
        if self.classes > 5:
            result["top5"] = top5 / count
        if self.has_real_labels:
            if not real[0]:
                raise UserError(f"None of the {images} images has real labels to compare with.")
            result |= {"real": real[1] / real[0], "real_examples": int(real[0])}
        if self.confusion:
            result["confusion"] = sums[self._totals :].reshape(self.classes, self.classes).astype(np.int64)
            missing = count - result["confusion"].sum()
            if missing:
                raise UserError(f"The logits of {missing:g} images contain NaN, so they belong to no class.")
        return result


@dataclass(frozen=True)
class LabelMetrics(Metrics):
    """F1, exact matches and binary cross-entropy of several labels. A label with a probability over 1/2 is predicted.

    The sums are images, loss, images with all labels right, and for each label how often it is predicted and there,
    how often it is predicted, and how often it is there.

    Attributes:
        labels: Number of labels.
    """

    labels: int

    @property
    def size(self) -> int:
        """Number of sums."""
        return 3 + 3 * self.labels

    def sum_up(self, outputs: Any, labels: Any, weights: Any) -> Any:
        """Sum up a batch, see `Metrics`. Labels are float32 [B, labels], 0 or 1."""
        losses = ops.mean(ops.binary_crossentropy(labels, outputs, from_logits=True), axis=1)
        # A NaN is always wrong.
        predicted = ops.where(ops.isnan(outputs), 1.0 - labels, ops.cast(outputs > 0, "float32"))
        exact = ops.cast(ops.all(predicted == labels, axis=1), "float32")
        values = ops.concatenate(
            [ops.stack([ops.ones_like(losses), losses, exact], axis=1), predicted * labels, predicted, labels], axis=1
        )
        return ops.sum(ops.where(weights[:, None] > 0, values, 0.0), axis=0)

    def read(self, sums: np.ndarray, images: int) -> dict[str, Any]:
        """Return "examples", "loss", "exact", and "f1", the mean over the labels that are there on any image."""
        result = _start(sums, images)
        hits, predicted, there = sums[3:].reshape(3, self.labels)
        scores = 2 * hits[there > 0] / (predicted + there)[there > 0]
        return result | {"f1": float(scores.mean()) if len(scores) else 0.0, "exact": float(sums[2] / sums[0])}


@dataclass(frozen=True)
class NumberMetrics(Metrics):
    """Errors of numbers.

    The sums are images and loss, and for each number, in units of its standard deviation from its mean: absolute
    errors, squared errors, the numbers, and their squares.

    Attributes:
        mean: Mean of each number in training.
        std: Standard deviation of each number in training.
    """

    mean: Sequence[float]
    std: Sequence[float]

    @property
    def size(self) -> int:
        """Number of sums."""
        return 2 + 4 * len(self.mean)

    def sum_up(self, outputs: Any, labels: Any, weights: Any) -> Any:
        """Sum up a batch, see `Metrics`. Labels are float32 [B, numbers]."""
        true = normalize_targets(labels, self.mean, self.std)
        errors = normalize_targets(outputs, self.mean, self.std) - true
        losses = ops.mean(errors**2, axis=1)
        values = ops.concatenate(
            [ops.stack([ops.ones_like(losses), losses], axis=1), ops.abs(errors), errors**2, true, true**2], axis=1
        )
        return ops.sum(ops.where(weights[:, None] > 0, values, 0.0), axis=0)

    def read(self, sums: np.ndarray, images: int) -> dict[str, Any]:
        """Return "examples", "loss", and the means over the numbers of "mae" and of "r2".

        The loss is the mean squared error in units of the standard deviation in training. "r2", the coefficient of
        determination, is the share of the variance in the split that is predicted. As in scikit-learn, it is 0 for a
        number that is the same on all images, or 1 if it is predicted without an error.
        """
        result = _start(sums, images)
        absolute, squared, total, squares = sums[2:].reshape(4, -1)
        variance = np.maximum(squares - total**2 / sums[0], 0)
        # Rounding leaves a little of a variance that is 0.
        varies = variance > 1e-6 * squares
        r2 = np.where(varies, 1 - squared / np.where(varies, variance, 1), np.where(squared > 0, 0.0, 1.0))
        mae = absolute / sums[0] * np.array(self.std)
        return result | {"mae": float(mae.mean()), "r2": float(r2.mean())}


def normalize_targets(values: Any, mean: Sequence[float], std: Sequence[float]) -> Any:
    """Return numbers, float32 [B, numbers], as distances from their mean in units of their standard deviation."""
    return (values - ops.convert_to_tensor(mean, "float32")) / ops.convert_to_tensor(std, "float32")


def format_evaluation(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Return evaluations as one line for people, raw weights and EMA side by side.

    Args:
        results: {kind: result of an evaluator}, with the kinds "raw" and "ema", or a single one.
    """
    first, *others = results

    def compare(key: str) -> str:
        texts = [METRIC_TEXTS[key].format(results[kind][key]) for kind in results]
        return f"{METRIC_TEXTS[key].label} {texts[0]}" + "".join(f" (EMA {text})" for text in texts[1:])

    keys = [*(key for keys in METRICS.values() for key in keys if key in results[first]), "loss"]
    examples, unreadable = results[first]["examples"], results[first].get("unreadable", 0)
    of_all = f" of {examples + unreadable:,}" if unreadable else ""
    line = f"{', '.join(map(compare, keys))} on {examples:,}{of_all} images"
    return line if others else f"{line}, {_LABELS.get(first, first)}"
