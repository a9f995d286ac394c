"""Makes the page of an evaluation: metrics, curves, calibration, confusion and the worst mistakes."""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from efficientnet_tf.evaluation.details import list_curves
from efficientnet_tf.visualization.page import make_page

CONTENT = Path(__file__).with_suffix(".html")
MOST_MISTAKES = 24
_MOST_CURVES, _MOST_POINTS, _MOST_CELLS = 8, 3000, 100
_LARGEST_PICTURE = 160  # pixels


@dataclass(frozen=True)
class Evaluated:
    """All outputs of an evaluation.

    Attributes:
        task: What they mean, `data.task`.
        names: Names of the data's classes, labels or numbers.
        scores: Probabilities or numbers, float [N, outputs].
        labels: Class of each image, int [N], or labels or numbers, float [N, outputs].
        places: Where each image comes in the order of the evaluation, int [N].
    """

    task: str
    names: Sequence[str]
    scores: np.ndarray
    labels: np.ndarray
    places: np.ndarray


@dataclass(frozen=True)
class Mistake:
    """An image that the model got wrong.

    Attributes:
        row: Its row in the outputs.
        place: Where it comes in the order of the evaluation.
        true: What is right.
        predicted: What the model says.
    """

    row: int
    place: int
    true: str
    predicted: str


def find_mistakes(evaluated: Evaluated, std: Sequence[float] | None = None) -> list[Mistake]:
    """Return the worst mistakes, the worst one first.

    They are those of which the model was most certain: the images with the highest loss. With numbers, they are those
    with the largest errors in units of the standard deviation.

    Args:
        evaluated: All outputs.
        std: Standard deviation of each number.
    """
    scores, labels = evaluated.scores.astype(float), evaluated.labels
    rows = np.arange(len(scores))
    if evaluated.task == "classification":
        losses = -np.log(np.maximum(scores[rows, labels], 1e-30))
        is_wrong = scores.argmax(axis=1) != labels
    elif evaluated.task == "multilabel":
        losses = -np.log(np.maximum(np.where(labels > 0.5, scores, 1 - scores), 1e-30)).mean(axis=1)
        is_wrong = ((scores > 0.5) != (labels > 0.5)).any(axis=1)
    else:
        losses = (np.abs(scores - labels) / np.array(std or 1.0)).mean(axis=1)
        is_wrong = losses > 0
    worst = sorted(rows[is_wrong], key=lambda row: -losses[row])[:MOST_MISTAKES]
    return [Mistake(int(row), int(evaluated.places[row]), *_describe(evaluated, row)) for row in worst]


def _describe(evaluated, row):
    """Return the true and the predicted label of an image as texts."""
    names, scores, labels = evaluated.names, evaluated.scores[row], evaluated.labels[row]
    if evaluated.task == "classification":
        found = int(scores.argmax())
        return names[int(labels)], f"{names[found]} ({scores[found]:.1%})"
    if evaluated.task == "multilabel":
        true = ", ".join(name for name, label in zip(names, labels, strict=True) if label > 0.5)
        found = [f"{name} ({score:.1%})" for name, score in zip(names, scores, strict=True) if score > 0.5]
        return true or "no label", ", ".join(found) or "no label"
    true, found = (
        ", ".join(f"{name} {value:.4g}" for name, value in zip(names, values, strict=True))
        for values in (labels, scores)
    )
    return true, found


def make_evaluation_report(
    title: str,
    status: str,
    evaluated: Evaluated,
    details: dict[str, Any],
    confusion: np.ndarray | None,
    mistakes: Sequence[tuple[Mistake, np.ndarray, str]],
) -> str:
    """Return the page as one HTML text, which needs no network.

    Args:
        title: Its title.
        status: What was evaluated.
        evaluated: All outputs.
        details: What `evaluation.details` returns for them.
        confusion: Images by true class and predicted class, int [classes, classes], or None.
        mistakes: For each mistake its image, float [H, W, C], and its name.
    """
    read = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    data = {
        "title": title,
        "status": f"{status} Written on {read}.",
        "task": evaluated.task,
        "summary": [{"metric": key, "value": value} for key, value in details["summary"].items()],
        "rows": details["rows"],
        "reliability": details.get("reliability", []),
        "curves": _choose_curves(evaluated, details),
        "numbers": _sample_numbers(evaluated),
        "confusion": None,
        "mistakes": [
            {"picture": _encode(pixels), "true": mistake.true, "predicted": mistake.predicted, "name": name}
            for mistake, pixels, name in mistakes
        ],
    }
    if confusion is not None and len(confusion) <= _MOST_CELLS:
        data["confusion"] = {"names": list(evaluated.names), "counts": confusion.tolist()}
    return make_page(CONTENT, data)


def _choose_curves(evaluated, details):
    """Return the curves of the classes or labels with the lowest average precision."""
    if evaluated.task == "regression":
        return []
    rows = details["rows"]
    known = [number for number, row in enumerate(rows) if row["auroc"] is not None]
    chosen = sorted(known, key=lambda number: rows[number]["average_precision"])[:_MOST_CURVES]
    labels = evaluated.labels
    indicator = labels[:, None] == np.array(chosen) if labels.ndim == 1 else labels[:, chosen] > 0.5
    curves = list_curves(evaluated.scores[:, chosen], indicator) if chosen else []
    return [{"name": rows[number]["name"], **curve} for number, curve in zip(chosen, curves, strict=True)]


def _sample_numbers(evaluated):
    """Return true and predicted numbers of some images."""
    if evaluated.task != "regression":
        return []
    step = max(1, len(evaluated.scores) // _MOST_POINTS)
    return [
        {"name": name, "true": true[::step].tolist(), "predicted": found[::step].tolist()}
        for name, true, found in zip(
            evaluated.names, evaluated.labels.astype(float).T, evaluated.scores.astype(float).T, strict=True
        )
    ]


def _encode(pixels):
    """Return an image as the address of an element img."""
    import PIL.Image

    levels = np.round(np.clip(pixels, 0, 255)).astype(np.uint8)
    image = PIL.Image.fromarray(levels[..., 0] if levels.shape[-1] == 1 else levels)
    image.thumbnail((_LARGEST_PICTURE, _LARGEST_PICTURE))
    file = io.BytesIO()
    image.convert("RGB").save(file, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
