"""Computes the accuracy of each class and writes it as a table."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from efficientnet_tf.runtime.files import write_output
from efficientnet_tf.runtime.tables import format_csv


def per_class(counts: np.ndarray, class_names: Sequence[str]) -> list[dict[str, Any]]:
    """Return the accuracy of every class.

    Args:
        counts: Number of images by true class and predicted class, int [classes, classes].
        class_names: Name of each class.

    Returns:
        A row for each class: `{"class": name, "examples": int, "correct": int, "accuracy": float}`. The accuracy is in
        [0, 1], or None if the class has no examples.
    """
    rows = []
    for label, name in enumerate(class_names):
        examples, correct = int(counts[label].sum()), int(counts[label, label])
        accuracy = correct / examples if examples else None
        rows.append({"class": name, "examples": examples, "correct": correct, "accuracy": accuracy})
    return rows


def write_per_class(path: str, rows: Sequence[dict[str, Any]]) -> None:
    """Write the rows of `per_class` to a file, local or gs://.

    Args:
        path: Path of the file. A name that ends in .json gives JSON, any other CSV, in which a class name that a
            spreadsheet would run as a formula has an apostrophe in front, see `runtime.tables`.
        rows: The rows.

    Raises:
        UserError: If the file cannot be written.
    """
    text = json.dumps(rows, indent=1) if path.endswith(".json") else format_csv(list(rows[0]), rows)
    write_output("per_class", path, text)
