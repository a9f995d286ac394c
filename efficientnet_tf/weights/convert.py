"""Converts weights of any known format to one of this package's formats."""

import contextlib
import io
import json
import os
import zipfile
from collections.abc import Iterator, Sequence
from typing import Any

import h5py
import keras

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.load import dump_config, load_config, override_config
from efficientnet_tf.config.schema import Config
from efficientnet_tf.config.text import escape
from efficientnet_tf.models.builder import build_model
from efficientnet_tf.models.data_format import channels_last_scope
from efficientnet_tf.runtime.files import atomic_output
from efficientnet_tf.weights.formats import check_new_weights, read_weights
from efficientnet_tf.weights.load import HEAD, load_weights
from efficientnet_tf.weights.loaded import CONFIG_ATTRIBUTE, CONFIG_ENTRY, LoadSummary
from efficientnet_tf.weights.names import variable_paths

MAX_CLASSES = 1_000_000  # of a classifier in a file. More would be a mistake or an attack.


def convert_weights(
    variant: str,
    path: str,
    output: str,
    *,
    overrides: Sequence[str] = (),
    classes: int | None = None,
    reset_head: bool = False,
    adapt_channels: bool = False,
    **options: Any,
) -> tuple[LoadSummary, Config]:
    """Read weights of any format, and write them together with the config that they need.

    Args:
        variant: A network such as "b0", "v2-s" or "lite0", or the path of a variant's YAML file.
        path: Path of the weights, see `load_weights`.
        output: A folder for a model directory, or a file that ends in .weights.h5 or .keras.
        overrides: `section.key=value` strings. They take precedence over what the file records.
        classes: Number of classes. None uses that of the file's classifier.
        reset_head: As in `load_weights`.
        adapt_channels: As in `load_weights`.
        **options: `average`, `normalization` and `padding`, as in `load_weights`.

    Returns:
        A summary of what was loaded, and the config that was written.

    Raises:
        UserError: As `load_weights`, and if the output exists or cannot be written.
    """
    check_new_weights(output)
    config = load_config(variant, "imagenet", ["train.ema_decay=0"])
    loaded = read_weights(path, variable_paths(config.model), **options)
    needs = [f"{key}={json.dumps(value)}" for key, value in loaded.needs.items()]
    config = override_config(override_config(config, needs), overrides)
    if classes is None:
        shape = loaded.values[HEAD[1]].shape if HEAD[1] in loaded.values else ()
        if len(shape) != 1 or not 1 <= shape[0] <= MAX_CLASSES:
            reason = " ".join(filter(None, [loaded.head_problem, "Pass classes=N and reset_head for a new one with N "
                                            "classes."]))  # fmt: skip
            raise UserError(f"{escape(str(path))} has no classifier that can be used. {reason}")
        classes = int(shape[0])
    with channels_last_scope():
        model = build_model(config.model, classes, config.input_shape)
    summary = load_weights(model, path, reset_head=reset_head, adapt_channels=adapt_channels, **options)
    try:
        _write(model, config, output)
    except UserError:
        raise
    except Exception as error:  # h5py, Keras and TensorFlow have their own types for a full disk
        code = getattr(error, "errno", None)
        reason = os.strerror(code) if code else " ".join(str(error).split())[:300]
        raise UserError(f"output={escape(output)} cannot be written: {escape(reason).rstrip('.')}.") from None
    return summary, config


def _write(model: keras.Model, config: Config, output: str) -> None:
    """Write a model directory or a file, depending on the end of its name."""
    if output.endswith(".weights.h5"):
        with atomic_output(output) as temporary:
            # On a full disk, HDF5 itself prints tracebacks and can crash. A .keras file is written without it, and
            # contains the weights in the same format.
            with _removed(f"{temporary}.keras"):
                model.save(f"{temporary}.keras")
                with zipfile.ZipFile(f"{temporary}.keras") as archive:
                    content = io.BytesIO(archive.read("model.weights.h5"))
            with h5py.File(content, "a") as file:
                file.attrs[CONFIG_ATTRIBUTE] = dump_config(config)
            with open(temporary, "wb") as file:
                file.write(content.getbuffer())
    elif output.endswith(".keras"):
        with atomic_output(output) as temporary:
            model.save(temporary)
            with zipfile.ZipFile(temporary, "a") as archive:  # Keras ignores entries that it does not know
                archive.writestr(CONFIG_ENTRY, dump_config(config))
    else:
        from efficientnet_tf.models.model_dir import write_model_dir  # needs TensorFlow

        write_model_dir(output, model, config, _class_names(model.output_shape[-1]))


@contextlib.contextmanager
def _removed(path: str) -> Iterator[None]:
    """Remove a file at the end of the block, if it is still there."""
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            os.remove(path)


def _class_names(classes: int) -> list[str]:
    """Return class names for weights that record none: ImageNet's synsets for 1,000 classes, else numbers."""
    if classes == 1000:
        import tensorflow_datasets as tfds

        with tfds.core.tfds_path("datasets/imagenet2012/labels.txt").open() as file:
            return file.read().split()
    return [str(i) for i in range(classes)]
