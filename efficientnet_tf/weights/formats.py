"""Reads a weight file of any format. The content of the file decides the format, not its name.

The result includes what the weights need to give the right predictions: how pixels are normalized, how convolutions
pad, and how images are cropped.

Files may come from strangers: nothing in them is run, imported or followed to another file, and only tensors with a
name and a shape that the model has are read. Everything that a reader or a library raises becomes a `UserError` here.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.text import escape
from efficientnet_tf.runtime import files
from efficientnet_tf.runtime.hub import fetch
from efficientnet_tf.weights.checkpoints import read_export, read_model_dir, read_tf1
from efficientnet_tf.weights.keras_files import read_h5, read_keras
from efficientnet_tf.weights.loaded import NORMALIZATIONS, LoadedWeights
from efficientnet_tf.weights.tensors import Shapes
from efficientnet_tf.weights.timm_files import read_safetensors, read_torch


def read_weights(
    path: str,
    variables: Shapes | Sequence[str],
    *,
    average: bool = True,
    normalization: str | None = None,
    padding: str | None = None,
) -> LoadedWeights:
    """Read a weight file.

    Args:
        path: A file, a folder, the prefix of a TensorFlow checkpoint, or a model on the Hugging Face Hub,
            hf://user/name.
        variables: {path: shape} of the model's variables, from the input to the output, because other libraries number
            layers where this package names them. None in a shape fits any size. Given only the paths, no tensor is
            read: the result then has shapes and needs.
        average: True reads the EMA of the weights if the file has one, False reads the raw weights.
        normalization: "imagenet" or "advprop" to override how pixels are normalized. TensorFlow 1 checkpoints do not
            record it.
        padding: "same" or "symmetric" for a timm file whose name does not say which.

    Returns:
        The weights under this package's names.

    Raises:
        UserError: If the file cannot be read, has an unknown format, contains something that is refused, or does not
            say how the model pads.
    """
    path = os.fspath(path)
    files.check_path("path", path, hub=True)
    path = fetch(path)
    if normalization is not None and normalization not in NORMALIZATIONS:
        raise UserError(f"normalization={normalization} is unknown. Allowed are {', '.join(NORMALIZATIONS)}.")
    if padding not in (None, "same", "symmetric"):
        raise UserError(f"padding={padding} is unknown. Allowed are same and symmetric.")
    shapes = variables if isinstance(variables, Mapping) else {}
    read = _choose_reader(path)
    try:
        loaded = read(path, list(variables), shapes, average=average, padding=padding)
    except UserError:
        raise
    except Exception as error:  # each library has its own types, and damaged files raise any of them
        reason = _describe_error(error)
        raise UserError(f"{escape(path)} cannot be read as {_FORMATS[read]}: {reason}.") from None
    if normalization is not None:
        notes = (*loaded.notes, f"pixel normalization set to {normalization}")
        loaded = replace(loaded, needs=loaded.needs | NORMALIZATIONS[normalization], notes=notes)
    return loaded


def check_weights(path: str, variables: Sequence[str], **options: Any) -> None:
    """Raise UserError if a weight file cannot be read, as far as this can be known without TensorFlow.

    Of checkpoints, model directories and exports, only the names of their files are read. Nothing is checked on gs://.

    Args:
        path: As for `read_weights`.
        variables: The paths of the model's variables.
        **options: As for `read_weights`.
    """
    path = fetch(path)
    if not files.is_remote(path) and _choose_reader(path) in (read_h5, read_keras, read_safetensors, read_torch):
        read_weights(path, variables, **options)


def check_new_weights(output: str) -> None:
    """Raise UserError before the work starts if the output exists or has no place."""
    files.check_path("output", output)
    if os.path.lexists(output):
        raise UserError(f"output={escape(output)} exists. Choose another path, because nothing is overwritten.")
    if output.endswith((".h5", ".keras")):
        files.check_output("output", output, [".weights.h5", ".keras"])


def _describe_error(error: Exception) -> str:
    """Return the reason in one line, with visible characters only."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, MemoryError):
        return "it declares more than the memory can hold"
    if isinstance(error, UnicodeDecodeError):
        return f"the byte 0x{error.object[error.start]:02x} is not UTF-8"
    text = " ".join(str(error).split()) or type(error).__name__
    return escape(text[:300].rstrip("."))


def _choose_reader(path):
    """Return the function that reads the format of a path."""
    if path.endswith(".index") or files.exists(f"{path}.index"):
        return read_tf1
    if files.is_folder(path):
        return _choose_folder_reader(path)
    if not files.is_remote(path) and not os.path.lexists(path):
        raise UserError(f"{escape(path)} does not exist: there is no file, folder or checkpoint with this name.")
    if files.is_remote(path):
        raise UserError(
            f"{escape(path)} is a remote file. Only folders and TensorFlow checkpoints can be read remotely. Copy the "
            "file to this machine first."
        )
    return _choose_file_reader(path)


def _choose_folder_reader(path):
    names = files.list_folder(path)
    if "config.yaml" in names:
        return read_model_dir
    if "saved_model.pb" in names:
        return read_export
    if "model.safetensors" in names:
        return read_safetensors
    if "checkpoint" in names or any(name.endswith(".index") for name in names):
        return read_tf1
    raise UserError(
        f"{escape(path)} is not a model directory or an export, and contains neither model.safetensors nor a "
        f"TensorFlow checkpoint. It contains {[escape(name) for name in names[:10]]}."
    )


def _choose_file_reader(path):
    files.check_file(path)
    try:
        with open(path, "rb") as file:
            head = file.read(512)
    except OSError as error:
        raise UserError(f"{escape(path)}: cannot be read: {os.strerror(error.errno or 0)}.") from None
    if not head:
        raise UserError(f"{escape(path)}: the file is empty.")
    if head.startswith(b"\x89HDF\r\n\x1a\n"):
        return read_h5
    if head[8:9] == b"{":
        return read_safetensors
    if head.startswith(b"PK"):
        return read_keras if _has_member(path, "model.weights.h5") else read_torch
    if head.startswith(b"\x80"):
        return read_torch
    raise UserError(
        f"{escape(path)} has an unknown format. Known formats are .h5 and .keras files of Keras, safetensors and .pth "
        "files of timm and efficientnet_pytorch, TensorFlow 1 checkpoints, and model directories and exports of this "
        "package."
    )


def _has_member(path, name):
    from efficientnet_tf.runtime.archives import open_archive

    try:
        with open_archive(path) as archive:
            return name in archive.namelist()
    except Exception as error:
        raise UserError(f"{escape(path)} cannot be read: {_describe_error(error)}.") from None


_FORMATS = {
    read_model_dir: "a model directory",
    read_export: "an export of this package",
    read_h5: "Keras weights",
    read_keras: "a Keras model",
    read_tf1: "a TensorFlow checkpoint",
    read_safetensors: "safetensors",
    read_torch: "a PyTorch file",
}
