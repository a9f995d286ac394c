"""Opens any model of this package for use: a model directory, a SavedModel, or a file for another runtime.

A file for another runtime is opened and used without importing TensorFlow.
Only what `check` and `record` have accepted reaches TensorFlow or another runtime.
"""

from __future__ import annotations

import collections
import os
import threading
from typing import Any

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.text import escape
from efficientnet_tf.export.check import SIDE_FILES, check_model, clean_path, find_kind
from efficientnet_tf.export.loaded import LoadedFile, LoadedModel
from efficientnet_tf.export.metadata import list_files
from efficientnet_tf.runtime import files

__all__ = ["LoadedModel", "check_model", "find_kind", "find_weights", "load_cached", "load_model"]

CACHED_MODELS = 2  # models that `load_cached` keeps in memory


def load_model(path: str | os.PathLike[str], raw: bool = False, checkpoint: str | int | None = None) -> LoadedModel:
    """Load a trained or exported model with its class names and its preprocessing.

    Args:
        path: A model directory, its `model.keras`, or an export of this package: the folder of a SavedModel, or a
            `.tflite`, `.onnx` or `.xml` file, which its own runtime then runs on the CPU.
        raw: Whether to load the weights without EMA. Only a model directory has them.
        checkpoint: Checkpoint of a model directory: "best", "newest" or the number of a step. The default is the best
            one if `eval.best` chooses one, else the newest.

    Returns:
        The model.

    Raises:
        UserError: If there is no model at `path`, it cannot be read, or its runtime is not installed.

    Example:
        >>> from efficientnet_tf import load_model
        >>> model = load_model("runs/digits")
        >>> logits = model(model.load_image("seven.png")[None])
        >>> model.class_names[logits[0].argmax()]
        '7'
    """
    path = clean_path(path, "path")
    kind = check_model(path, "path", checkpoint)
    if raw and kind != "model_dir":
        raise UserError(
            f"{escape(path)} contains one set of weights only. Pass the model directory to load the raw weights."
        )
    openers = {"file": _open_file, "saved_model": _open_saved_model, "keras": _open_keras_file}
    return openers[kind](path) if kind in openers else _open_model_dir(path, raw, checkpoint)


def find_weights(path: str | os.PathLike[str], raw: bool = False) -> str:
    """Return the `weights` attribute, "ema", "raw" or "exported", of what `load_model` would load.

    Raises:
        UserError: If there is no model at `path`.
    """
    from efficientnet_tf.models.run_directory import read_config

    path = clean_path(path, "path")
    kind = find_kind(path)
    if kind in ("file", "saved_model"):
        return "exported"
    config = read_config(os.path.dirname(path) if kind == "keras" else path)
    return "ema" if config.train.ema_decay and not raw else "raw"


def load_cached(path: str | os.PathLike[str]) -> LoadedModel:
    """Return `load_model(path)`, or the same object as last time if the files at `path` have not changed.

    The last two models are kept in memory.
    """
    path = clean_path(path, "path")
    if not files.is_remote(path):
        path = os.path.abspath(path)
    with _cache_lock:
        version = _find_version(path)
        cached_version, model = _cache.pop(path, (None, None))
        if model is None or cached_version != version:
            model = load_model(path)
        _cache[path] = version, model
        while len(_cache) > CACHED_MODELS:
            _cache.popitem(last=False)
        return model


_cache: collections.OrderedDict[str, tuple[Any, LoadedModel]] = collections.OrderedDict()
_cache_lock = threading.Lock()


def _find_version(path):
    """Return a value that changes when the model at a path is written again."""
    from efficientnet_tf.models.run_directory import list_checkpoints

    kind, folder = find_kind(path), os.path.dirname(path)
    if kind == "file":
        parts = list_files(path)
    elif kind == "keras":
        parts = [path, *(os.path.join(folder, name) for name in SIDE_FILES)]
    elif kind == "saved_model":
        names = ("saved_model.pb", "variables/variables.index", *(f"assets/{name}" for name in SIDE_FILES))
        parts = [os.path.join(path, name) for name in names]
    else:
        newest = [f"{prefix}.index" for prefix in list(list_checkpoints(path).values())[:1]]
        parts = [*newest, *(os.path.join(path, name) for name in SIDE_FILES)]
    return [_find_version_of_file(part) for part in parts]


def _find_version_of_file(path):
    if not files.is_remote(path):
        try:
            status = os.stat(path)
        except OSError:
            return None
        return path, status.st_mtime_ns, status.st_size, status.st_ino
    import tensorflow as tf

    if not tf.io.gfile.exists(path):
        return None
    stat = tf.io.gfile.stat(path)
    return path, stat.mtime_nsec, stat.length


def _open_model_dir(path, raw, checkpoint):
    from efficientnet_tf.models.model_dir import restore_model

    model, config, class_names = restore_model(path, raw, checkpoint)
    return _wrap_keras_model(model, config, class_names, find_weights(path, raw))


def _open_keras_file(path):
    from efficientnet_tf.export.keras_file import read_keras_file

    return _wrap_keras_model(*read_keras_file(path), find_weights(path))


def _wrap_keras_model(model, config, class_names, weights):
    def compute_logits(images):
        return model(images, training=False)

    def prepare():
        from efficientnet_tf.models.folding import Inference
        from efficientnet_tf.runtime.strategy import current_device_type

        return Inference(model, current_device_type())

    return LoadedModel(compute_logits, config, class_names, weights, model, prepare)


def _open_file(path):
    from efficientnet_tf.export.formats import open_export

    return LoadedFile(open_export(path))


def _open_saved_model(path):
    from efficientnet_tf.export.saved_model import open_saved_model

    return LoadedModel(*open_saved_model(path), "exported")
