"""Finds out what kind of model is at a path and what is wrong with it, before TensorFlow or another runtime starts.

Nothing here loads a model. Commands call `check_model` first, so that a wrong path is an error within a second.
"""

import os

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.schema import Config
from efficientnet_tf.config.text import escape, shorten
from efficientnet_tf.export.formats import read_exported
from efficientnet_tf.export.keras_file import check_archive
from efficientnet_tf.export.metadata import read_metadata
from efficientnet_tf.models.run_directory import (
    check_checkpoint,
    is_complete,
    list_checkpoints,
    read_class_names,
    read_config,
)
from efficientnet_tf.runtime import files
from efficientnet_tf.runtime.files import check_path
from efficientnet_tf.runtime.hub import fetch

FILE_ENDINGS = (".tflite", ".onnx", ".xml")
SIDE_FILES = ("config.yaml", "classes.txt")
_SIDE_FILE_LIMIT_BYTES = 16 * 2**20


def find_kind(path: str) -> str:
    """Return what kind of model a path means: "model_dir", "keras", "saved_model" or "file".

    Args:
        path: A path, local or gs://, without a slash at its end. There may be nothing at it.
    """
    if path.endswith(FILE_ENDINGS):
        return "file"
    if path.endswith(".keras"):
        return "keras"
    return "saved_model" if files.exists(os.path.join(path, "saved_model.pb")) else "model_dir"


def check_model(path: str | os.PathLike[str], argument: str = "model_dir", checkpoint: str | int | None = None) -> str:
    """Check that there is a model that `load_model` can open, as far as this can be known without its runtime.

    Args:
        path: What `load_model` takes. On gs:// only the kind is found out, which imports TensorFlow.
        argument: Name of the argument that holds the path, for error messages.
        checkpoint: The checkpoint that is asked for, as for `load_model`. Only a model directory has several.

    Returns:
        The kind, as `find_kind`.

    Raises:
        UserError: If there is no model, or a part of it is missing or cannot be read.
    """
    path = clean_path(path, argument)
    kind = find_kind(path)
    if checkpoint is not None and kind != "model_dir":
        raise UserError(
            f"checkpoint={shorten(escape(str(checkpoint)))}: {escape(path)} contains one model only. Pass the model "
            "directory to choose a checkpoint."
        )
    if files.is_remote(path):
        return kind
    if kind == "file":
        read_metadata(path)
        return kind
    if kind == "keras":
        files.check_file(path)
        _check_side_files(os.path.dirname(path), path)
        check_archive(path)
        return kind
    if not files.is_folder(path):
        files.check_file(path)  # names what is there instead
        raise UserError(
            f"{argument}={escape(path)} is a file. Pass the model directory of a run, its model.keras, the folder of "
            f"a SavedModel, or a file that ends in {', '.join(FILE_ENDINGS)}. Convert a file of weights by "
            "`efficientnet-tf weights` first."
        )
    if kind == "saved_model":
        files.check_file(os.path.join(path, "saved_model.pb"))
        _check_side_files(os.path.join(path, "assets"), path)
        return kind
    if not files.exists(os.path.join(path, "config.yaml")):
        read_config(path)  # says what is missing
    _check_side_files(path, path)
    checkpoints = list_checkpoints(path)
    if not checkpoints:
        raise UserError(f"{argument}={escape(path)} has no checkpoint yet.")
    if not any(map(is_complete, checkpoints.values())):
        raise UserError(f"None of the {len(checkpoints)} checkpoints in {escape(path)} can be read: parts are missing.")
    check_checkpoint(path, checkpoint)
    return kind


def read_model(path: str) -> tuple[Config, list[str]]:
    """Return the config and the class names of a local model that `check_model` accepts, without its runtime."""
    path = clean_path(path)
    kind = find_kind(path)
    if kind == "file":
        return read_exported(path)[:2]
    folder = {"keras": os.path.dirname(path), "saved_model": os.path.join(path, "assets")}.get(kind, path)
    return read_config(folder), read_class_names(folder)


def clean_path(path: str | os.PathLike[str], argument: str = "model_dir") -> str:
    """Return a path as text, without a slash at its end, or raise UserError if it cannot be a path.

    Of a model on the Hugging Face Hub, this is the folder into which it was downloaded.
    """
    if not isinstance(path, str | os.PathLike):
        raise UserError(f"{argument} must be a path, received {type(path).__name__}.")
    text = os.fsdecode(path)
    check_path(argument, text, hub=True)
    return fetch(text).rstrip("/") or "/"


def _check_side_files(folder, model):
    """Raise UserError unless the config and the class names of a model are in a folder and can be read."""
    for name in SIDE_FILES:
        path = os.path.join(folder, name)
        if not files.exists(path):
            raise UserError(
                f"{escape(model)} cannot be used, because there is no {escape(path)}. A model of this package comes "
                f"with {' and '.join(SIDE_FILES)}. Copy both with it."
            )
        files.read_bytes(path, _SIDE_FILE_LIMIT_BYTES)
    read_config(folder)
    read_class_names(folder)
