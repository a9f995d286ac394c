"""Metrics of single classes, labels and numbers, from the outputs for all images of a split."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import sklearn.metrics

BINS = 15  # of a reliability plot
_CURVE_POINTS = 200  # of the longest curve that is kept

Row = dict[str, Any]


def describe_classes(probabilities: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    """Return the metrics of a classifier.

    Args:
        probabilities: float [N, classes]; each row adds up to 1.
        labels: Class of each image, int [N].
        names: Name of each class.

    Returns:
        {"summary": {...}, "rows": [...], "reliability": [...]}, as JSON can hold them. A row has "name", "examples",
        "precision", "recall", "f1", "average_precision" and "auroc" of a class against all others. A value is None
        where it is not defined, for example the recall of a class without images. The summary has the means over the
        classes with images ("macro_...") and the means weighted by their images ("weighted_..."), "top1", and
        "calibration_error", the expected calibration error of the predicted class.

    Source: Guo et al., "On Calibration of Modern Neural Networks", 2017, section 2, with 15 bins.
    """
    predicted = probabilities.argmax(axis=1)
    indicator = labels[:, None] == np.arange(len(names))
    chosen = predicted[:, None] == np.arange(len(names))
    rows = _list_rows(probabilities, indicator, chosen, names)
    reliability = bin_confidences(probabilities.max(axis=1), predicted == labels)
    summary = {"top1": float(np.mean(predicted == labels))} | _average(rows)
    return {
        "summary": summary | {"calibration_error": _calibration_error(reliability)},
        "rows": rows,
        "reliability": reliability,
    }


def describe_labels(probabilities: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    """Return the metrics of a network for several labels.

    Args:
        probabilities: float [N, labels], the probability of each label.
        labels: 0 or 1 for each label, [N, labels].
        names: Name of each label.

    Returns:
        As `describe_classes`. A label is predicted if its probability is over 1/2. A row also has "best_threshold", the
        probability above which the F1 score on these images is highest. The summary has "exact", the share of images
        with all labels right, and "micro_...", the metrics of all labels together. The calibration error is that of the
        probabilities of all labels.
    """
    indicator, chosen = labels > 0.5, probabilities > 0.5
    rows = _list_rows(probabilities, indicator, chosen, names)
    for number, row in enumerate(rows):
        row["best_threshold"] = _find_threshold(probabilities[:, number], indicator[:, number])
    hits, examples, predicted = int((indicator & chosen).sum()), int(indicator.sum()), int(chosen.sum())
    micro = {
        "micro_precision": hits / predicted if predicted else 0.0,
        "micro_recall": hits / examples if examples else 0.0,
        "micro_f1": 2 * hits / (examples + predicted) if examples + predicted else 0.0,
    }
    reliability = bin_confidences(probabilities.ravel(), indicator.ravel())
    summary = {"exact": float(np.mean((indicator == chosen).all(axis=1)))} | _average(rows) | micro
    return {
        "summary": summary | {"calibration_error": _calibration_error(reliability)},
        "rows": rows,
        "reliability": reliability,
    }


def describe_numbers(outputs: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    """Return the metrics of a network for numbers.

    Args:
        outputs: Predicted numbers, float [N, numbers].
        labels: True numbers, float [N, numbers].
        names: Name of each number.

    Returns:
        {"summary": {...}, "rows": [...]}. A row has "name", "examples", "mae", the mean absolute error, "rmse", the
        root of the mean squared error, "bias", the mean error, and "r2", which is None for a single image. The
        summary has their means.
    """
    rows = []
    for name, found, true in zip(names, outputs.T.astype(float), labels.T.astype(float), strict=True):
        rows.append(
            {
                "name": name,
                "examples": len(true),
                "mae": float(sklearn.metrics.mean_absolute_error(true, found)),
                "rmse": float(sklearn.metrics.root_mean_squared_error(true, found)),
                "bias": float(np.mean(found - true)),
                "r2": float(sklearn.metrics.r2_score(true, found)) if len(true) > 1 else None,
            }
        )
    keys = ("mae", "rmse", "bias", "r2")
    return {"summary": {key: _mean([row[key] for row in rows]) for key in keys}, "rows": rows}


def list_curves(probabilities: np.ndarray, indicator: np.ndarray) -> list[dict[str, list[float]]]:
    """Return the curves of each class or label with images and without: precision over recall, and ROC.

    Args:
        probabilities: float [N, classes].
        indicator: Whether an image has a class or label, bool [N, classes].

    Returns:
        For each class {"recall", "precision", "false_positive_rate", "true_positive_rate"}, lists of at most 200
        points, or {} if all images have it or none.
    """
    curves = []
    for scores, true in zip(probabilities.T, indicator.T, strict=True):
        if not 0 < true.sum() < len(true):
            curves.append({})
            continue
        precision, recall, _ = sklearn.metrics.precision_recall_curve(true, scores)
        false_rate, true_rate, _ = sklearn.metrics.roc_curve(true, scores)
        curve = _thin({"recall": recall, "precision": precision})
        curves.append(curve | _thin({"false_positive_rate": false_rate, "true_positive_rate": true_rate}))
    return curves


def bin_confidences(confidences: np.ndarray, is_right: np.ndarray) -> list[Row]:
    """Return how often predictions are right, by their probability, in bins of the same width.

    Args:
        confidences: Probabilities, float [N].
        is_right: Whether what they are the probability of is true, bool [N].

    Returns:
        A row for each bin: "from" and "to", the limits of the bin, "examples", "confidence", the mean probability, and
        "accuracy", the share that is true. The last two are None for an empty bin.
    """
    # The upper limit belongs to a bin, as in the source of `describe_classes`.
    places = np.clip(np.ceil(confidences * BINS).astype(int) - 1, 0, BINS - 1)
    rows = []
    for place in range(BINS):
        chosen = places == place
        count = int(chosen.sum())
        row = {"from": place / BINS, "to": (place + 1) / BINS, "examples": count}
        row["confidence"] = float(confidences[chosen].mean()) if count else None
        row["accuracy"] = float(is_right[chosen].mean()) if count else None
        rows.append(row)
    return rows


def _calibration_error(reliability):
    """Return the mean distance between probability and accuracy, weighted by the examples of the bins."""
    total = sum(row["examples"] for row in reliability)
    gaps = [row["examples"] * abs(row["confidence"] - row["accuracy"]) for row in reliability if row["examples"]]
    return sum(gaps) / total


def _list_rows(probabilities, indicator, chosen, names) -> list[Row]:
    rows = []
    for number, name in enumerate(names):
        true, found, scores = indicator[:, number], chosen[:, number], probabilities[:, number]
        hits, examples, predicted = int((true & found).sum()), int(true.sum()), int(found.sum())
        varies = 0 < examples < len(true)
        row = {"name": name, "examples": examples}
        row["precision"] = hits / predicted if predicted else None
        row["recall"] = hits / examples if examples else None
        row["f1"] = 2 * hits / (examples + predicted) if examples else None
        row["average_precision"] = float(sklearn.metrics.average_precision_score(true, scores)) if examples else None
        row["auroc"] = float(sklearn.metrics.roc_auc_score(true, scores)) if varies else None
        rows.append(row)
    return rows


def _average(rows):
    """Return the means over the classes with images. A class that is never predicted has a precision of 0 here."""
    known = [row for row in rows if row["examples"]]
    weights = [row["examples"] for row in known]
    summary = {}
    for key in ("precision", "recall", "f1", "average_precision", "auroc"):
        values = [0.0 if key == "precision" and row[key] is None else row[key] for row in known]
        summary[f"macro_{key}"] = _mean(values)
        if key in ("precision", "recall", "f1"):
            summary[f"weighted_{key}"] = float(np.average(values, weights=weights)) if known else None
    return summary


def _mean(values):
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _find_threshold(scores, true):
    """Return the threshold with the highest F1 score, in the middle between two probabilities, or None."""
    if not 0 < true.sum() < len(true):
        return None
    precision, recall, thresholds = sklearn.metrics.precision_recall_curve(true, scores)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # 0/0 where neither precision nor recall is above 0
        f1 = np.nan_to_num(2 * precision * recall / (precision + recall))[:-1]
    best = int(f1.argmax())
    below = thresholds[best - 1] if best else 0.0
    return float((thresholds[best] + below) / 2)


def _thin(points):
    """Return the points of a curve, at most `_CURVE_POINTS`, with the first and the last one."""
    count = len(next(iter(points.values())))
    kept = np.unique(np.linspace(0, count - 1, min(count, _CURVE_POINTS)).round().astype(int))
    return {name: [round(float(value), 4) for value in values[kept]] for name, values in points.items()}
