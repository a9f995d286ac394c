"""Training losses and the metric of a training step, for each task. Tensors are those of Keras's backend."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.load import override_config
from efficientnet_tf.config.schema import METRICS, Config
from efficientnet_tf.evaluation.metrics import normalize_targets, target_statistics

if TYPE_CHECKING:
    from efficientnet_tf.data.source import Source

ops: Any = keras.ops  # whose types are too loose
Tensor = Any  # of Keras's backend

_EASY_MARGIN, _EASY_POWER = 0.05, 4  # of the asymmetric loss


def measure_targets(config: Config, source: Source) -> Config:
    """Return the config of a regression with the mean and the standard deviation of the training images' numbers.

    Any other config, and one that states them, stays as it is.

    Raises:
        UserError: If the config states them for another count of numbers.
    """
    if config.data.task != "regression":
        return config
    count = len(source.class_names)
    if config.data.target_mean is not None:
        if len(config.data.target_mean) != count:
            raise UserError(
                f"data.target_mean has {len(config.data.target_mean)} values, but the data has {count} numbers: "
                f"{', '.join(source.class_names)}."
            )
        return config
    labels: Any = np.asarray(source.labels, np.float64)
    values = {"target_mean": labels.mean(axis=0), "target_std": labels.std(axis=0)}
    # Six digits are enough for a unit, and readable.
    rounded = {key: [float(f"{value:.6g}") for value in values[key]] for key in values}
    return override_config(config, [f"data.{key}={json.dumps(value)}" for key, value in rounded.items()])


def make_targets(labels: Tensor, outputs: int, task: str) -> Tensor:
    """Return what the network learns, float32 [B, outputs]: one-hot classes, or else the labels or numbers themselves.

    Args:
        labels: int32 [B] for classes, else float32 [B, outputs]: probabilities of classes, labels or numbers.
        outputs: Number of outputs of the network.
        task: `data.task`.
    """
    is_class = task == "classification" and len(labels.shape) == 1
    return ops.one_hot(labels, outputs, dtype="float32") if is_class else labels


def split_labels(labels: Tensor, config: Config) -> tuple[Tensor, Tensor | None]:
    """Return the labels of a batch without the weights of the images, and the weights, float32 [B].

    Args:
        labels: Labels as the pipeline reads them, [B, ...]. With `data.weight_column`, the last column is the weight.
        config: Its keys `data.weight_column` and `data.task`.

    Returns:
        Labels as `make_targets` takes them, and the weights, or None without `data.weight_column`.
    """
    if config.data.weight_column is None:
        return labels, None
    labels, weights = labels[:, :-1], labels[:, -1]
    return (ops.cast(labels[:, 0], "int32") if config.data.task == "classification" else labels), weights


def compute_losses(targets: Tensor, outputs: Tensor, config: Config) -> Tensor:
    """Return the loss of each image.

    Args:
        targets: float32 [B, outputs]: class probabilities, one class or the shares of a mixture; labels from 0 to 1; or
            numbers.
        outputs: What the network returns, float32 [B, outputs]: logits or numbers.
        config: Its keys `data.task`, `train.loss` and `train.label_smoothing`, and the statistics of the numbers.

    Returns:
        float32 [B]. Other losses than the cross-entropy are means over the outputs. The gradient of the binary
        cross-entropy with respect to the logits is therefore smaller than that of the cross-entropy, by about the
        number of classes.

    Source: Wightman et al., "ResNet strikes back", 2021, and timm's `BinaryCrossEntropy`, for "bce". Ben-Baruch et al.,
    "Asymmetric Loss For Multi-Label Classification", 2021, section 2 with the focusing of 0 and 4 and the margin of
    0.05 of section 3, for "asymmetric".
    Deviates: The first paper gives both classes of a mixture the target 1. Here they keep their shares, as in timm
    without a threshold. Keras's `BinaryCrossentropy` smooths the target of every class toward 1/2. Here smoothing of
    classes is that of the cross-entropy: a fraction of the target probability is spread evenly over the classes. The
    asymmetric loss is the mean over the labels, where the second paper has the sum.
    """
    smoothing, task = config.train.label_smoothing, config.data.task
    if task == "regression":
        mean, std = target_statistics(config, outputs.shape[-1])
        return _number_losses(
            normalize_targets(outputs, mean, std) - normalize_targets(targets, mean, std), config.loss
        )
    if config.loss == "cross_entropy":
        return keras.losses.categorical_crossentropy(targets, outputs, from_logits=True, label_smoothing=smoothing)
    targets = targets * (1 - smoothing) + smoothing / (2 if task == "multilabel" else targets.shape[-1])
    if config.loss == "bce":
        return ops.mean(ops.binary_crossentropy(targets, outputs, from_logits=True), axis=-1)
    return ops.mean(_asymmetric_losses(targets, outputs), axis=-1)


def weigh_classes(config: Config, classes: int, labels: np.ndarray | None) -> list[float] | None:
    """Return the weight of each class in the loss: `train.class_weights` as numbers, or None if there are none.

    Args:
        config: The config of the run.
        classes: Number of classes.
        labels: Class of each training image, int [N], or its probabilities, [N, classes], or None if it is not known.

    Returns:
        The weights. Balanced ones have a mean of 1 over the images. A class without images has the weight 0.

    Raises:
        UserError: If there is a wrong number of weights, or the labels are needed and not known.
    """
    weights = config.train.class_weights
    if weights == "none":
        return None
    if weights != "balanced":
        if len(weights) != classes:
            raise UserError(f"train.class_weights has {len(weights)} weights, but the data has {classes} classes.")
        return list(weights)
    if labels is None:
        raise UserError(
            "train.class_weights=balanced needs the labels of all images, which are not known for "
            f"data.source={config.data.source}. State a list of weights instead."
        )
    counts = np.bincount(labels, minlength=classes) if labels.ndim == 1 else labels.sum(axis=0, dtype=np.float64)
    return [len(labels) / (np.count_nonzero(counts) * count) if count else 0.0 for count in counts.tolist()]


def compute_teacher_losses(taught: Tensor, outputs: Tensor, config: Config) -> Tensor:
    """Return how far the outputs for each image are from those of a teacher, float32 [B].

    For classes, it is the Kullback-Leibler divergence of the probabilities, and for several labels the mean of those of
    the labels. Both use the temperature and are multiplied by its square, so that gradients do not shrink with it. For
    numbers, it is `train.loss` with the teacher's numbers as targets.

    Args:
        taught: What the teacher returns, float32 [B, outputs].
        outputs: What the network returns, float32 [B, outputs].
        config: Its keys `data.task`, `train.loss` and `train.teacher_temperature`, and the statistics of the numbers.

    Source: Hinton et al., "Distilling the Knowledge in a Neural Network", 2015, section 2.
    Deviates: There, the loss is the cross-entropy. The divergence has the same gradient, and is 0 for equal outputs.
    """
    if config.data.task == "regression":
        return compute_losses(taught, outputs, config)
    temperature = config.train.teacher_temperature
    taught, outputs = taught / temperature, outputs / temperature
    if config.data.task == "classification":
        log_taught, log_outputs = (ops.log_softmax(x, axis=-1) for x in (taught, outputs))
        divergence = ops.sum(ops.exp(log_taught) * (log_taught - log_outputs), axis=-1)
    else:
        probability = ops.sigmoid(taught)
        entropy = ops.binary_crossentropy(probability, taught, from_logits=True)
        divergence = ops.mean(ops.binary_crossentropy(probability, outputs, from_logits=True) - entropy, axis=-1)
    return divergence * temperature**2


def compute_similarity_losses(taught: Tensor, features: Tensor) -> Tensor:
    """Return how far the similarities of each image to the images of its batch are from a teacher's, float32 [B].

    A similarity is the product of the features of two images. Those of one image are a vector of length 1.

    Args:
        taught: Features of the teacher, float32 [B, F].
        features: Features of the network, float32 [B, G].

    Source: Tung and Mori, "Similarity-Preserving Knowledge Distillation", ICCV 2019, equations 2 to 4.
    Deviates: Their loss is the mean of these divided by the size of the batch, at more than one layer.
    """
    return ops.sum((_similarities(taught) - _similarities(features)) ** 2, axis=-1)


def _similarities(features):
    products = ops.matmul(features, ops.transpose(features))
    return products * ops.rsqrt(ops.maximum(ops.sum(products**2, axis=-1, keepdims=True), 1e-12))


def compute_metric(labels: Tensor, outputs: Tensor, config: Config) -> Tensor:
    """Return the metric that the log of a training step shows, float32 scalar: see `metric_name`.

    It is the share of images whose class is right, the share of images with all labels right, or the mean absolute
    error of the numbers.
    """
    if config.data.task == "classification":
        classes = labels if len(labels.shape) == 1 else ops.argmax(labels, axis=-1)
        is_right = ops.cast(ops.argmax(outputs, axis=-1), "int32") == ops.cast(classes, "int32")
    elif config.data.task == "multilabel":
        is_right = ops.all((outputs > 0) == (labels > 0.5), axis=-1)
    else:
        return ops.mean(ops.abs(outputs - labels))
    return ops.mean(ops.cast(is_right, "float32"))


def metric_name(task: str) -> str:
    """Return the key of the metric that a training step reports: "top1", "exact" or "mae"."""
    return "exact" if task == "multilabel" else METRICS[task][0]


def _number_losses(errors, loss):
    """Return the loss of each image, given errors in units of the standard deviation, float32 [B, numbers]."""
    absolute = ops.abs(errors)
    if loss == "mse":
        losses = errors**2
    elif loss == "mae":
        losses = absolute
    else:
        losses = ops.where(absolute <= 1, 0.5 * errors**2, absolute - 0.5)
    return ops.mean(losses, axis=-1)


def _asymmetric_losses(targets, logits):
    """Return the asymmetric loss of each label. One that is absent counts less, the lower its probability is."""
    probability = ops.sigmoid(logits)
    shifted = ops.maximum(probability - _EASY_MARGIN, 0.0)
    absent = -(shifted**_EASY_POWER) * ops.log1p(-ops.minimum(shifted, 1 - 1e-6))
    return targets * ops.softplus(-logits) + (1 - targets) * absent
