"""Predictions counted by class: a table of accuracies, and a picture of the confusion matrix."""

import csv
import io
import json

import tensorflow as tf

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.runtime.files import write_text

RIGHT, WRONG = (8, 69, 148), (165, 15, 21)  # colours of a whole row's share, on the diagonal and beside it
GAP, FONT_SIZE, LINE, LONGEST_NAME = 12, 13, 18, 180  # pixels


def per_class(counts, class_names):
    """Return the accuracy of every class.

    Args:
        counts: int [classes, classes], true classes down, predicted ones across.
        class_names: sequence of str.

    Returns:
        A list of {"class": str, "examples": int, "correct": int, "accuracy": float in [0, 1], None without examples}.
    """
    rows = []
    for label, name in enumerate(class_names):
        examples, correct = int(counts[label].sum()), int(counts[label, label])
        accuracy = correct / examples if examples else None
        rows.append({"class": name, "examples": examples, "correct": correct, "accuracy": accuracy})
    return rows


def write_per_class(path, rows):
    """Write what `per_class` returns as CSV, or as JSON where `path` ends so; local or gs://.

    Raises:
        UserError: when it cannot be written.
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
        raise UserError(f"--per_class={path} cannot be written: {str(error)[:300]}") from None
