"""Finds what makes the probabilities of a trained network right: a temperature, or a threshold for each label."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.optimize

from efficientnet_tf.evaluation.details import describe_classes, describe_labels

_LEAST, _MOST = 0.02, 50.0  # temperatures


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """Return the temperature T for which the cross-entropy of softmax(logits / T) is lowest, from 0.02 to 50.

    Args:
        logits: float [N, classes].
        labels: Class of each image, int [N].

    Source: Guo et al., "On Calibration of Modern Neural Networks", 2017, section 4.2.
    """
    logits = logits.astype(np.float64)

    def cross_entropy(log_temperature):
        return measure_cross_entropy(logits / np.exp(log_temperature), labels)

    bounds = (np.log(_LEAST), np.log(_MOST))
    found: Any = scipy.optimize.minimize_scalar(cross_entropy, bounds=bounds, method="bounded", options={"xatol": 1e-6})
    return float(np.exp(found.x))


def measure_cross_entropy(logits: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean cross-entropy of softmax(logits), for classes int [N]."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    of_class = shifted[np.arange(len(labels)), labels]
    return float(np.mean(np.log(np.exp(shifted).sum(axis=1)) - of_class))


def describe_calibration(probabilities: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> dict[str, float]:
    """Return the calibration error of probabilities, and with several labels also "macro_f1" and "exact"."""
    if labels.ndim == 1:
        return {"calibration_error": describe_classes(probabilities, labels, names)["summary"]["calibration_error"]}
    summary = describe_labels(probabilities, labels, names)["summary"]
    return {key: summary[key] for key in ("macro_f1", "exact", "calibration_error")}


def find_thresholds(probabilities: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> list[float]:
    """Return the probability of each label above which its F1 score is highest, and 1/2 where it is not defined."""
    rows = describe_labels(probabilities, labels, names)["rows"]
    return [0.5 if row["best_threshold"] is None else row["best_threshold"] for row in rows]
