"""Opens any model of this package for use: a model directory, a SavedModel, or a file for another runtime."""

from __future__ import annotations

import collections
import functools
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.export.check import check_model, find_kind

if TYPE_CHECKING:
    import keras
    import tensorflow as tf

    from efficientnet_tf.config.schema import Config

__all__ = ["LoadedModel", "check_model", "find_kind", "find_weights", "load_cached", "load_model"]

CACHED_MODELS = 2  # models that `load_cached` keeps in memory

ImageSource = str | os.PathLike[str] | bytes | np.ndarray


class LoadedModel:
    """A trained classifier with its class names and its preprocessing. `load_model` creates it.

    Call it on pixels, uint8 or float [N, S, S, C] in [0, 255], to get logits, float32 [N, classes].

    Attributes:
        class_names: Name of each class, a list of str in the order of the logits.
        config: Config of the run that trained the model.
        image_size: Side S of the images that it takes, in pixels.
        weights: Which weights it has: "ema" or "raw" for a model directory, "exported" for an export.
        keras_model: The `keras.Model`, or None for an export.

    Example:
        >>> import numpy as np
        >>> from efficientnet_tf import load_model
        >>> model = load_model("runs/digits")
        >>> model.image_size, model.class_names[:3]
        (32, ['0', '1', '2'])
        >>> model(np.zeros([2, 32, 32, 3])).shape
        (2, 10)
    """

    def __init__(
        self,
        compute_logits: Callable[[tf.Tensor], tf.Tensor],
        config: Config,
        class_names: Sequence[str],
        weights: str,
        keras_model: keras.Model | None = None,
    ):
        self.compute_logits = compute_logits
        self.config = config
        self.class_names = list(class_names)
        self.image_size = config.image_size
        self.weights = weights
        self.keras_model = keras_model

    def __call__(self, pixels: Any) -> np.ndarray:
        """Return the logits of images.

        Args:
            pixels: Images as `load_image` returns them, uint8 or float [N, S, S, C] with values in [0, 255].

        Returns:
            Logits, float32 [N, classes].

        Raises:
            UserError: If the images have another shape.
        """
        pixels = np.asarray(pixels)
        if pixels.ndim != 4 or pixels.shape[1:] != self._image_shape:
            size, channels = self._image_shape[1:]
            raise UserError(
                f"pixels has shape {list(pixels.shape)}, but the model takes [N, {size}, {size}, {channels}]. "
                "Use its load_image to read image files."
            )
        return self._forward(pixels.astype(np.float32)).numpy()

    def load_image(self, source: str | os.PathLike[str] | bytes) -> np.ndarray:
        """Return the pixels of an image file, cropped and resized as the model was evaluated.

        Args:
            source: Path of a JPEG, PNG, GIF, BMP or WebP file, local or gs://, or the content of such a file.

        Returns:
            Pixels, float32 [S, S, C] in about [0, 255]. Bicubic resizing can leave this range a little.

        Raises:
            UserError: If the file cannot be read or decoded.
        """
        from efficientnet_tf.data.load_image import load_image

        data = self.config.data
        return load_image(
            source,
            self.image_size,
            channels=data.channels,
            crop_padding=data.crop_padding,
            interpolation=data.interpolation,
        )

    def predict(self, images: Any, top: int = 5, batch_size: int = 32) -> list[list[tuple[str, float]]]:
        """Classify images; see `predict_images`."""
        predictions = []
        for answer in self.iterate_predictions(images, top, batch_size):
            if isinstance(answer, UserError):
                raise answer
            predictions.append(answer)
        return predictions

    def iterate_predictions(
        self, images: Any, top: int = 5, batch_size: int = 32
    ) -> Iterator[list[tuple[str, float]] | UserError]:
        """Yield the predictions of each image, in order, batch by batch.

        An image that cannot be read yields the UserError that says why, and the others go on.

        Args:
            images: As for `predict_images`.
            top: As for `predict_images`.
            batch_size: As for `predict_images`.

        Yields:
            One list of (class name, probability) per image, or a UserError.
        """
        import tensorflow as tf

        for name, value in (("top", top), ("batch_size", batch_size)):
            if value < 1:
                raise UserError(f"{name}={value} must be at least 1.")
        if isinstance(images, str | bytes | os.PathLike):
            images = [images]
        for start in range(0, len(images), batch_size):
            batch = [self._read(image) for image in images[start : start + batch_size]]
            pixels = [image for image in batch if not isinstance(image, UserError)]
            rows = iter(())
            if pixels:
                probabilities = tf.nn.softmax(self(np.stack(pixels)))
                values, indices = tf.math.top_k(probabilities, min(top, len(self.class_names)))
                rows = zip(indices.numpy(), values.numpy(), strict=True)
            for image in batch:
                if isinstance(image, UserError):
                    yield image
                else:
                    classes, values = next(rows)
                    yield [(self.class_names[i], float(p)) for i, p in zip(classes, values, strict=True)]

    def _read(self, image: ImageSource) -> np.ndarray | UserError:
        if isinstance(image, str | bytes | os.PathLike):
            try:
                return self.load_image(image)
            except UserError as error:
                return error
        pixels = np.asarray(image, np.float32)
        if pixels.shape != self._image_shape:
            raise UserError(
                f"images has an array of shape {list(pixels.shape)}, but the model takes {list(self._image_shape)}. "
                "Pass the path or the bytes of an image file to have it cropped and resized."
            )
        return pixels

    @property
    def _image_shape(self):
        return (self.image_size, self.image_size, self.config.data.channels)

    @functools.cached_property
    def _forward(self):
        """A graph for batches of any size, traced once."""
        import tensorflow as tf

        return tf.function(self.compute_logits, input_signature=[tf.TensorSpec([None, *self._image_shape], tf.float32)])


def load_model(path: str | os.PathLike[str], raw: bool = False) -> LoadedModel:
    """Load a trained or exported model with its class names and its preprocessing.

    Args:
        path: A model directory, its `model.keras`, or an export of this package: the folder of a SavedModel, or a
            `.tflite`, `.onnx` or `.xml` file, which its own runtime then runs on the CPU.
        raw: Whether to load the weights without EMA. Only a model directory has them.

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
    path = os.fspath(path).rstrip("/")
    kind = find_kind(path)
    if raw and kind != "model_dir":
        raise UserError(f"{path} contains one set of weights only. Pass the model directory to load the raw weights.")
    openers = {"file": _open_file, "saved_model": _open_saved_model, "keras": _open_keras_file}
    return openers[kind](path) if kind in openers else _open_model_dir(path, raw)


def find_weights(path: str | os.PathLike[str], raw: bool = False) -> str:
    """Return the `weights` attribute, "ema", "raw" or "exported", of what `load_model` would load.

    Raises:
        UserError: If there is no model at `path`.
    """
    from efficientnet_tf.models.model_dir import read_config

    path = os.fspath(path).rstrip("/")
    kind = find_kind(path)
    if kind in ("file", "saved_model"):
        return "exported"
    config = read_config(os.path.dirname(path) if kind == "keras" else path)
    return "ema" if config.train.ema_decay and not raw else "raw"


def load_cached(path: str | os.PathLike[str]) -> LoadedModel:
    """Return `load_model(path)`, or the same object as last time if the files at `path` have not changed.

    The last two models are kept in memory.
    """
    path = os.fspath(path).rstrip("/")
    if "://" not in path:
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
    import tensorflow as tf

    from efficientnet_tf.models.model_dir import list_checkpoints

    kind, file = find_kind(path), path
    if kind == "saved_model":
        file = os.path.join(path, "saved_model.pb")
    if kind == "model_dir":
        file = f"{next(iter(list_checkpoints(path).values()), path)}.index"
    if not tf.io.gfile.exists(file):
        return None
    stat = tf.io.gfile.stat(file)
    return file, stat.mtime_nsec, stat.length


def _open_model_dir(path, raw):
    from efficientnet_tf.models.model_dir import restore_model

    model, config, class_names = restore_model(path, raw)
    return _wrap_keras_model(model, config, class_names, find_weights(path, raw))


def _open_keras_file(path):
    import keras
    import tensorflow as tf

    from efficientnet_tf.models.model_dir import read_class_names, read_config

    folder = os.path.dirname(path)
    if not tf.io.gfile.exists(path):
        raise UserError(f"{path} does not exist.")
    config, class_names = read_config(folder), read_class_names(folder)
    try:
        model = keras.saving.load_model(path, compile=False)
    except (ValueError, OSError) as error:
        raise UserError(f"{path} cannot be opened by Keras: {str(error)[:300]}") from None
    return _wrap_keras_model(model, config, class_names, find_weights(path))


def _wrap_keras_model(model, config, class_names, weights):
    return LoadedModel(lambda images: model(images, training=False), config, class_names, weights, model)


def _open_file(path):
    import tensorflow as tf

    from efficientnet_tf.config.load import parse_config
    from efficientnet_tf.export.formats import open_export

    run, texts = open_export(path)
    class_names = texts["classes.txt"].splitlines()

    def compute_logits(images):
        logits = tf.numpy_function(run, [images], tf.float32)
        return tf.ensure_shape(logits, [None, len(class_names)])

    return LoadedModel(compute_logits, parse_config(texts["config.yaml"], path), class_names, "exported")


def _open_saved_model(path):
    import tensorflow as tf

    from efficientnet_tf.models.model_dir import read_class_names, read_config

    loaded, assets = tf.saved_model.load(path), os.path.join(path, "assets")

    def compute_logits(images):
        return loaded.signatures["serving_default"](image=images)["logits"]

    return LoadedModel(compute_logits, read_config(assets), read_class_names(assets), "exported")
