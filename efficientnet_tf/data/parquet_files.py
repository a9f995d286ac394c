"""Lists the images of Parquet files as the `datasets` library of Hugging Face writes them. Imports no TensorFlow."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from efficientnet_tf.config.errors import UserError, suggest
from efficientnet_tf.config.text import check_class_names, escape, normalize_name
from efficientnet_tf.data.columns import convert_columns, convert_weight_column, label_columns
from efficientnet_tf.data.labels import describe_labels
from efficientnet_tf.data.scan import show
from efficientnet_tf.data.shards import download_shards, find_shards, read_classes
from efficientnet_tf.runtime.parquet import open_parquet, read_column

if TYPE_CHECKING:
    from efficientnet_tf.config.schema import DataConfig

_USUAL_NAMES = ("image", "img")  # of the column with the images
_LARGEST_GROUP_BYTES = 2**31  # A row group is read as a whole.


class RowGroup(NamedTuple):
    """Rows of a file that are read together.

    Attributes:
        path: The file.
        number: Number of the group in its file.
        rows: Number of rows.
        bytes: Bytes of its columns before compression.
    """

    path: str
    number: int
    rows: int
    bytes: int


@dataclass(frozen=True)
class ParquetListing:
    """The images of a split.

    Attributes:
        groups: The row groups that have rows, in the order of the files.
        column: Name of the column with the images.
        labels: Label of each row, as `listing.Listing` has them.
        class_names: Names of the classes 0, 1, ..., or of the labels or numbers.
        remarks: Sentences that the user should read.
        weights: Weight of each row, as `listing.Listing` has them.
    """

    groups: list[RowGroup]
    column: str
    labels: np.ndarray
    class_names: list[str]
    remarks: list[str]
    weights: np.ndarray | None


def list_parquet(data: DataConfig, split: str) -> ParquetListing:
    """List the images of a split, and check all labels. The images are not read.

    `shards.find_shards` says which files a split has. Images are in the column `image` or `img`, or in the only column
    that can have them, as bytes or as {bytes, path}. Labels are in `data.label_columns`, by default in `label`. Classes
    with numbers are named by what `datasets` stores with the columns, or by `classes.txt`, or `data.class_names`.

    Args:
        data: The section `data` of the configuration. Its source is "parquet".
        split: Name of the split.

    Raises:
        UserError: If there are no such files, they are damaged, or have no images or labels.
    """
    data = download_shards(data, ".parquet")
    train = find_shards(data, data.train_split, ".parquet")
    labels, class_names, where = _read_labels(data, train, None)
    if data.task == "classification":
        check_class_names(class_names, escape(where))
    paths, remarks = train, describe_labels(labels, class_names, escape(where))
    if split != data.train_split:
        paths, remarks = find_shards(data, split, ".parquet"), []
        labels, _, where = _read_labels(data, paths, class_names)
    groups, columns = [], set()
    for path in paths:
        file = open_parquet(path)
        columns.add(_find_images(file, path))
        groups += _list_groups(file, path)
    if len(columns) > 1:
        raise UserError(f"{escape(where)}: the images are in columns of different names: {show(sorted(columns))}.")
    if sum(group.rows for group in groups) != len(labels):
        raise UserError(f"{escape(where)} changed while it was read. Try again.")
    column = columns.pop()
    _check_first(groups[0], column)
    weights = None
    if data.weight_column is not None and split == data.train_split:
        weights = convert_weight_column(_read_values(paths, data.weight_column, "weight_column"), data, where)
    return ParquetListing(groups, column, labels, class_names, remarks, weights)


def read_images(group: RowGroup, column: str) -> list[bytes]:
    """Return the encoded image of each row. It is empty if there is none."""
    images = open_parquet(group.path).read_row_group(group.number, columns=[column]).column(column).combine_chunks()
    images = images.field("bytes") if _is_struct(images.type) else images
    return [image or b"" for image in images.to_pylist()]


# ---------------------------------------------------------------------------------------------------------- columns


def _find_images(file, path):
    """Return the name of the column with the images."""
    found = [field.name for field in file.schema_arrow if _can_be_image(field.type)]
    usual = [name for name in _USUAL_NAMES if name in found]
    if len(found) == 1 or usual:
        return (usual or found)[0]
    has = ", ".join(f"{escape(field.name)} ({escape(str(field.type))[:60]})" for field in file.schema_arrow)
    problem = "several columns could have the images" if found else "no column has images"
    raise UserError(f"{escape(path)}: {problem}. It needs a column `image` of bytes or {{bytes, path}}; it has {has}.")


def _can_be_image(kind):
    import pyarrow.types as types

    if _is_struct(kind):
        return kind.get_field_index("bytes") >= 0
    return types.is_binary(kind) or types.is_large_binary(kind)


def _is_struct(kind):
    import pyarrow.types as types

    return types.is_struct(kind)


def _list_groups(file, path):
    groups = []
    for number in range(file.metadata.num_row_groups):
        found = file.metadata.row_group(number)
        if found.total_byte_size > _LARGEST_GROUP_BYTES:
            raise UserError(
                f"{escape(path)}: a row group has {found.total_byte_size / 2**30:.1f} GiB, and is read as a whole. "
                "Write the file again with fewer rows in a group, for example row_group_size=100."
            )
        if found.num_rows:
            groups.append(RowGroup(path, number, found.num_rows, found.total_byte_size))
    return groups


def _check_first(group, column):
    """Raise UserError if the first image is not in the file."""
    try:
        images = read_images(group, column)
    except Exception as error:
        raise UserError(f"{escape(group.path)}: the first images cannot be read: {escape(str(error)[:300])}") from None
    if not any(images):
        raise UserError(
            f"{escape(group.path)}: the column {escape(column)} has no bytes in its first {group.rows} rows, only "
            "paths or nothing. Embed the images in the files: with `datasets`, `push_to_hub` does."
        )


def _read_labels(data, paths, names):
    """Return the labels of some files, the names of the classes, and what to call the files in messages."""
    columns = {name: _read_values(paths, name, "label_columns") for name in label_columns(data)}
    classes = None
    for path in paths:
        classes = classes or _read_class_names(open_parquet(path), next(iter(columns)))
    where = paths[0] if len(paths) == 1 else f"{os.path.dirname(paths[0])}, {len(paths):,} files"
    if not next(iter(columns.values())):
        raise UserError(f"{escape(where)} has no rows.")
    return *convert_columns(columns, data, where, classes or read_classes(data), names), where


def _read_values(paths, name, key) -> list[Any]:
    """Return the values of a column in some files. `key` is the setting that names the column, for messages."""
    values = []
    for path in paths:
        file = open_parquet(path)
        if name not in file.schema_arrow.names:
            found = [field.name for field in file.schema_arrow if not _can_be_image(field.type)]
            hint = f" Set data.{key}=[{escape(found[0])}]." if len(found) == 1 else suggest(name, found)
            raise UserError(f"{escape(path)} has no column {escape(name)}; it has {show(found, 10)}.{hint}")
        values += read_column(file, name, path).to_pylist()
    return values


def _read_class_names(file, column):
    """Return the names of the classes that `datasets` stores with a column, or None."""
    metadata = file.schema_arrow.metadata or {}
    try:
        feature = json.loads(metadata[b"huggingface"])["info"]["features"][column]
        feature = feature.get("feature", feature)  # of a list
        names = feature["names"]
        names = list(names.values()) if isinstance(names, dict) else names
        return [normalize_name(name) for name in names] or None
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
        return None
