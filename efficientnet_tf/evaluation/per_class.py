"""Computes the accuracy of each class and writes it as a table."""

import csv
import io
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.runtime.files import write_text


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
        path: Path of the file. A name that ends in .json gives JSON, any other CSV.
        rows: The rows.

    Raises:
        UserError: If the file cannot be written.
    """
    text = io.StringIO(newline="")
    if path.endswith(".json"):
        json.dump(rows, text, indent=1)
    else:
        table = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
    try:
        write_text(path, text.getvalue())
    except (tf.errors.OpError, OSError) as error:
        raise UserError(f"per_class={path} cannot be written: {str(error)[:300]}") from None
