"""Exports into the model repository of a server: folders for models and versions, as each server wants them.

tf_serving   NAME/VERSION/            a SavedModel, for TensorFlow Serving
ovms         NAME/VERSION/NAME.xml    for OpenVINO Model Server
triton       NAME/VERSION/model.onnx  for Triton, with NAME/config.pbtxt and NAME/classes.txt
"""

from __future__ import annotations

import contextlib
import os
from typing import Any

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.paths import check_model_name
from efficientnet_tf.config.text import escape
from efficientnet_tf.export.check import clean_path
from efficientnet_tf.export.export import export_model
from efficientnet_tf.models.run_directory import format_class_names, read_class_names, read_config
from efficientnet_tf.runtime.files import check_path, exists, is_remote, read_text, write_text

LAYOUTS = ("tf_serving", "ovms", "triton")
_MOST_IMAGES = 32  # that Triton computes together
_DELAY_MICROSECONDS = 2000  # that an image waits in Triton for others


def export_to_repository(
    model_dir: str | os.PathLike[str], output: str, layout: str, name: str, version: int = 1, **settings: Any
) -> dict[str, Any]:
    """Export a model as one version of a model in the repository of a server.

    A server that watches the repository sees a version only when it is complete.

    Args:
        model_dir: A model directory.
        output: Folder of the repository. It is created if it does not exist.
        layout: "tf_serving", "ovms" or "triton".
        name: Name of the model on the server: letters, digits and the characters "._-".
        version: Number of the version, at least 1. The repository must not have it.
        **settings: Arguments of `export_model`, such as `precision`.

    Returns:
        The result of `export_model`.

    Raises:
        UserError: As `export_model`, or if the name is not allowed, or the repository has this version, or has a model
            of this name with other images or classes. Nothing is then left behind.
    """
    if settings.get("io", "float32") != "float32":
        raise UserError(f"io={escape(settings['io'])} does not apply to a layout: servers get pixels as float32.")
    place = find_place(output, layout, name, version)
    texts = _make_triton_texts(clean_path(model_dir), name) if layout == "triton" else {}
    folder = os.path.join(output, name)
    for file, text in texts.items():
        path = os.path.join(folder, file)
        if exists(path) and read_text(path) != text:
            raise UserError(
                f"{escape(path)} belongs to a model with other images or classes. Choose another name, or delete it."
            )
    with _new_folders(os.path.dirname(place)):
        new = [os.path.join(folder, file) for file in texts if not exists(os.path.join(folder, file))]
        try:
            for path in new:
                write_text(path, texts[os.path.basename(path)])
            return export_model(model_dir, place, **settings)
        except BaseException:
            for path in new:
                with contextlib.suppress(OSError):
                    os.remove(path)
            raise


def find_place(output: str, layout: str, name: str, version: int) -> str:
    """Return the path of the export in a repository. Arguments and errors are those of `export_to_repository`."""
    check_path("output", output)
    if is_remote(output):
        raise UserError(f"output={escape(output)} is on gs://. Write the repository locally and copy it.")
    if layout not in LAYOUTS:
        raise UserError(f"layout={escape(layout)} is unknown. Choose one of {', '.join(LAYOUTS)}.")
    check_model_name(name)
    if version < 1:
        raise UserError(f"version={version} must be at least 1.")
    folder = os.path.join(output, name, str(version))
    if os.path.lexists(folder):
        raise UserError(f"version={version}: {escape(folder)} exists. Choose a higher version.")
    file = {"tf_serving": "", "ovms": f"{name}.xml", "triton": "model.onnx"}[layout]
    return os.path.join(folder, file) if file else folder


@contextlib.contextmanager
def _new_folders(folder):
    """Create a folder and those above it for the block, and remove those that are new if the block fails."""
    new, path = [], folder
    while path and not os.path.isdir(path):
        new.append(path)
        path = os.path.dirname(path)
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise UserError(f"output: {escape(folder)} cannot be created: {error.strerror}.") from None
    try:
        yield
    except BaseException:
        for path in new:
            with contextlib.suppress(OSError):  # Another export has written into it.
                os.rmdir(path)
        raise


def _make_triton_texts(model_dir, name):
    """Return {file name: content} of what Triton needs next to the versions."""
    config, class_names = read_config(model_dir), read_class_names(model_dir)
    shape = ", ".join(map(str, config.input_shape))
    text = f'''name: "{name}"
backend: "onnxruntime"
max_batch_size: {_MOST_IMAGES}
input [ {{ name: "image" data_type: TYPE_FP32 dims: [ {shape} ] }} ]
output [
  {{ name: "logits" data_type: TYPE_FP32 dims: [ {len(class_names)} ] label_filename: "classes.txt" }}
]
dynamic_batching {{ max_queue_delay_microseconds: {_DELAY_MICROSECONDS} }}
'''
    return {"config.pbtxt": text, "classes.txt": format_class_names(class_names)}
