"""Labels of sets made for a model's classes: fewer of them, numbers for their names, several that are right.

ImageNet-A and -R have 200 of the 1,000 classes, ImageNet-V2's folders are named 0 ... 999, and ImageNet-ReaL says of
every validation image which classes are in it.
"""

import dataclasses
import json

import numpy as np
import tensorflow as tf

from efficientnet_tf.config.errors import UserError, suggest
from efficientnet_tf.data.source import Order
from efficientnet_tf.runtime.files import read_text

# In a file's name, its folders aside. Sources name examples inside tf.data, so this is RE2's spelling.
_NUMBER = r"^(?:.*/)?[^/]*ILSVRC2012_val_([0-9]{8})(?:[^0-9/][^/]*)?$"
_NONE, _OTHER = -1, -2  # no label; one that no prediction is equal to


def _places(names, class_names):
    """Return {name: column of the model}: by the model's names, or by number where only `names` are numbers."""
    numbers = all(n.isdecimal() for n in names) and not any(n.isdecimal() for n in class_names)
    return {name: i for i, name in enumerate(map(str, range(len(class_names))) if numbers else class_names)}


def match_classes(names, class_names):
    """Find the model's logits that stand for a data set's classes.

    Args:
        names: sequence of str, the data's classes: names that the model knows, or all label numbers, 0 ... classes - 1
            (as ImageNet-V2's folders; not where the model's own names are numbers).
        class_names: list of str, the model's.

    Returns:
        list of int, the column of each of `names`; list(range(classes)) where both are the same.

    Raises:
        UserError: for names that the model does not know.
    """
    places = _places(names, class_names)
    unknown = [name for name in names if name not in places]
    if unknown:
        numbers = f", or its label numbers 0 to {len(class_names) - 1}" if "0" in places else ""
        more = f" and {len(unknown) - 10} more" if len(unknown) > 10 else ""
        raise UserError(
            f"the data has the {len(names)} classes {', '.join(names[:5])}, ..., the model {len(class_names)}: "
            f"{', '.join(class_names[:5])}, ... Allowed are classes that the model knows{numbers}; it does not know "
            f"{', '.join(unknown[:10])}{more}." + suggest(unknown[0], places)
        )
    return [places[name] for name in names]


def read_real_labels(path, class_names, columns):
    """Read ImageNet-ReaL's labels.

    Args:
        path: str, real.json: a list with a list of label numbers for each image, ILSVRC2012_val_00000001 first.
        class_names: list of str, the model's.
        columns: list of int, the model's columns that the data's classes stand for.

    Returns:
        int32 [images + 1, K]: in row n the labels of image n, as numbers of the data's classes; behind them -1. A class
        that the data has not is -2. Row 0 is of no image.

    Raises:
        UserError: for a file that cannot be read, is no such list, or has labels that the model has not.

    Source: Beyer et al. 2020, https://arxiv.org/abs/2006.07159.
    """
    try:
        lists = json.loads(read_text(path))
    except (tf.errors.OpError, ValueError) as error:
        raise UserError(f"--real_labels={path} cannot be read as JSON: {str(error)[:300]}") from None
    if not isinstance(lists, list) or not lists:
        raise UserError(f"--real_labels={path}: expected a list of lists of label numbers, received {str(lists)[:80]}")
    for number, labels in enumerate(lists, 1):
        if not isinstance(labels, list) or not all(type(label) is int for label in labels):
            raise UserError(
                f"--real_labels={path}: expected a list of label numbers for image {number}, received "
                f"{json.dumps(labels)[:80]}"
            )
    used = sorted({label for labels in lists for label in labels})
    places = _places([str(label) for label in used if label >= 0], class_names)
    unknown = [label for label in used if str(label) not in places]
    if unknown:
        raise UserError(
            f"--real_labels={path}: the model has {len(class_names)} classes, allowed are the labels 0 to "
            f"{len(class_names) - 1}; received {', '.join(map(str, unknown[:10]))}"
        )
    label_of = {column: label for label, column in enumerate(columns)}
    rows = np.full([len(lists) + 1, max(1, *map(len, lists), 1)], _NONE, np.int32)
    for number, labels in enumerate(lists, 1):
        rows[number, : len(labels)] = [label_of.get(places[str(label)], _OTHER) for label in labels]
    return rows


def with_real_labels(source, rows):
    """Let a source give, behind each example's label, the labels of the image that its file name numbers.

    Args:
        source: sources.Source of ImageNet's validation images, or some of them.
        rows: what `read_real_labels` returns.

    Returns:
        (Source whose labels are int32 [1 + K]; a function that raises UserError where examples had no number, to be
        called once all were read).

    Raises:
        UserError: where the source does not know its files' names, or the first example's name has no number.
    """
    what = f"ILSVRC2012_val_00000001 to {len(rows) - 1:08d}"
    if source.file_name is None:
        raise UserError(
            f"--real_labels needs examples with file names that contain {what}; these have none, such as "
            f"{source.describe(0)!r}"
        )
    unnumbered = tf.lookup.experimental.MutableHashTable(tf.string, tf.int64, 0)  # filled inside tf.data

    def load(payload):
        encoded, label = source.load(payload)
        name = source.file_name(payload)
        numbered = tf.strings.regex_full_match(name, _NUMBER)
        digits = tf.where(numbered, tf.strings.regex_replace(name, _NUMBER, r"\1"), "0")
        number = tf.strings.to_number(digits, tf.int32)
        number = tf.where(number < len(rows), number, 0)
        names = tf.boolean_mask([name], [number == 0])
        unnumbered.insert(names, tf.ones_like(names, tf.int64))
        return encoded, tf.concat([[label], tf.gather(rows, number)], axis=0)

    def check():
        names = sorted(name.decode(errors="replace") for name in unnumbered.export()[0].numpy())
        if names:
            raise UserError(
                f"--real_labels: examples need {what} in their file names; {len(names)} names have no such number: "
                f"{', '.join(map(repr, names[:10]))}{', ...' if len(names) > 10 else ''}"
            )

    for _, _, payload in source.stream(Order(batch=1, steps=1)):
        load(payload)
        check()
    return dataclasses.replace(source, load=load, label_shape=(1 + rows.shape[1],)), check
