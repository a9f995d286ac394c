"""The images that a model is evaluated on, and which of its classes they have."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.text import escape
from efficientnet_tf.data.listing import check_data
from efficientnet_tf.data.scan import show
from efficientnet_tf.evaluation.imagenet_labels import match_classes, read_real_labels, with_real_labels
from efficientnet_tf.export.check import read_model
from efficientnet_tf.export.overrides import override_data
from efficientnet_tf.runtime.files import check_path, is_folder

if TYPE_CHECKING:
    from efficientnet_tf.export.loaded import LoadedModel


def locate_data(data_dir: str | None, folder: str | None) -> list[str]:
    """Return the overrides for the arguments of `evaluate_model` that say where the images are.

    Raises:
        UserError: If both are given, or `folder` is not a folder.
    """
    if folder and data_dir:
        raise UserError(
            f"folder={escape(folder)} and data_dir={escape(data_dir)} both say where the images are. Give only one."
        )
    if folder:
        check_path("folder", folder)
        if not is_folder(folder):
            raise UserError(f"folder={escape(folder)} is not a folder. Pass one that has a folder of images per class.")
        return folder_overrides(folder)
    return [f"data.dir={json.dumps(data_dir)}"] if data_dir is not None else []


def folder_overrides(folder: str) -> list[str]:
    """Return the overrides that make a folder of class folders the evaluation split, whatever is next to it."""
    if "://" not in folder:
        folder = os.path.abspath(folder)
    parent, name = (json.dumps(part) for part in os.path.split(folder.rstrip("/")))
    splits = [f"data.train_split={name}", f"data.eval_split={name}"]
    columns = ["data.label_columns=null", "data.weight_column=null"]
    return ["data.source=folder", f"data.dir={parent}", *splits, "data.val_fraction=null", *columns]


def check_evaluation_data(
    model: str, overrides: Sequence[str], real_labels: str | None, check_count: Callable[[int], None]
) -> None:
    """Check the images and the labels as far as possible without TensorFlow. Arguments are those of `EvaluationData`.

    Args:
        model: Path of a local model.
        overrides: Changes of its config.
        real_labels: Path of real.json, or None.
        check_count: Function that raises UserError if there are too many classes.

    Raises:
        UserError: If the images are missing, have classes that the model does not have, or do not fit the labels.
    """
    config, class_names = read_model(model)
    data = override_data(config, overrides).data
    checked = check_data(data, [data.eval_split]).get(data.eval_split)
    # Without the names of the data's classes, the labels are compared with all classes of the model.
    columns = _match_outputs(checked.class_names if checked else class_names, class_names, config.data.task)
    if checked:
        check_count(len(columns))
    if real_labels is not None:
        read_real_labels(real_labels, class_names, columns)


def _match_outputs(names: Sequence[str], model_names: Sequence[str], task: str) -> list[int]:
    """Return the outputs of a model that the names of the data belong to. Only classes can be fewer than the model's.

    Raises:
        UserError: If the model does not have a name.
    """
    if task == "classification":
        return match_classes(names, model_names)
    if list(names) != list(model_names):
        raise UserError(
            f"The data has {show(list(names), 5)}, but the model predicts {show(list(model_names), 5)}. With "
            f"data.task={task}, both must be the same, in the same order."
        )
    return list(range(len(model_names)))


class EvaluationData:
    """The images of an evaluation, and the logits that compete on them.

    Attributes:
        config: Config of the evaluation.
        source: The images and labels.
        class_names: Names of the data's classes, as the model has them.
        columns: Outputs of the model that belong to them.
        check_real_labels: Function that raises UserError if an image had no labels. Call it after the evaluation.

    Raises:
        UserError: As `check_evaluation_data`.
    """

    def __init__(
        self,
        model: LoadedModel,
        overrides: Sequence[str],
        real_labels: str | None,
        check_count: Callable[[int], None],
    ):
        from efficientnet_tf.data.open import open_source

        # Copies in a cache do not have the names of the files, which ReaL needs.
        self.config = override_data(model.config, [*overrides, *(["data.cache=none"] if real_labels else [])])
        self.source = open_source(self.config.data, self.config.data.eval_split, training=False)
        self.columns = _match_outputs(self.source.class_names, model.class_names, model.task)
        self.class_names = [model.class_names[column] for column in self.columns]
        self._has_all_classes = self.class_names == model.class_names
        self._compute_logits = model.logits_in_graph
        self.check_real_labels = lambda: None
        check_count(len(self.class_names))
        if real_labels:
            rows = read_real_labels(real_labels, model.class_names, self.columns)
            self.source, self.check_real_labels = with_real_labels(self.source, rows)

    def select_logits(self, images: Any) -> Any:
        """Return the logits of the data's classes, float32 [N, classes]."""
        from keras import ops

        logits = self._compute_logits(images)
        return logits if self._has_all_classes else ops.take(logits, self.columns, axis=1)
