"""A trained network with the names of its outputs and its preprocessing."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.data.image_formats import has_pillow
from efficientnet_tf.data.load_image import load_image_by_pillow, load_image_by_tensorflow
from efficientnet_tf.export.pixels import batches, check_count, check_pixels
from efficientnet_tf.export.views import check_views, make_views
from efficientnet_tf.runtime.backend import uses_jax
from efficientnet_tf.runtime.hardware import available_cores

if TYPE_CHECKING:
    import keras
    import tensorflow as tf

    from efficientnet_tf.config.preprocessing import Preprocessing
    from efficientnet_tf.config.schema import Config
    from efficientnet_tf.export.formats import Export

_FILES = str | bytes | bytearray | memoryview | os.PathLike  # the types of an image file or its content
FEW_IMAGES = 8  # Up to this many images, running operation by operation is faster than tracing a graph.


class LoadedModel:
    """A trained network with the names of its outputs and its preprocessing. `load_model` creates it.

    Call it on pixels, uint8 or float [N, H, W, C] in [0, 255], to get logits, float32 [N, classes]. A network for
    regression returns the numbers themselves, float32 [N, numbers].

    Attributes:
        class_names: Name of each class, label or number, a list of str in the order of the outputs.
        task: What the outputs mean: "classification", "multilabel" or "regression" (`data.task`).
        config: Config of the run that trained the model.
        image_size: Size of the images that it takes, in pixels: the side of squares, or (height, width).
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
        prepare: Callable[[], Callable[[tf.Tensor], tf.Tensor]] | None = None,
    ):
        self.compute_logits = compute_logits
        self.config = config
        self.class_names = list(class_names)
        self.task = config.data.task
        self.image_size = config.image_size
        self.weights = weights
        self.keras_model = keras_model
        self._prepare = prepare or (lambda: compute_logits)
        self._images = 0  # that were computed so far

    def __call__(self, pixels: Any) -> np.ndarray:
        """Return the logits of images.

        Args:
            pixels: Images as `load_image` returns them, uint8 or float [N, H, W, C] with values in [0, 255].

        Returns:
            Logits, float32 [N, classes].

        Raises:
            UserError: If the images have another shape or type, or values that no image has.
        """
        pixels = check_pixels("pixels", pixels, (None, *self.config.input_shape))
        if not len(pixels):
            return np.zeros([0, len(self.class_names)], np.float32)
        return self._run(pixels)

    def load_image(self, source: str | os.PathLike[str] | bytes) -> np.ndarray:
        """Return the pixels of an image file, cropped and resized as the model was evaluated.

        Args:
            source: Path of an image file, local or gs://, or its content, as for `efficientnet_tf.load_image`.

        Returns:
            Pixels, float32 [H, W, C] in about [0, 255]. Bicubic resizing can leave this range a little.

        Raises:
            UserError: If the file cannot be read or decoded.
        """
        return self._load_image(source, self.config.preprocessing)

    def predict(
        self, images: Any, top: int = 5, batch_size: int = 32, tta: str = "none"
    ) -> list[list[tuple[str, float]]]:
        """Classify images; see `predict_images`."""
        predictions = []
        for answer in self.iterate_predictions(images, top, batch_size, tta):
            if isinstance(answer, UserError):
                raise answer
            predictions.append(answer)
        return predictions

    def iterate_predictions(
        self, images: Any, top: int = 5, batch_size: int = 32, tta: str = "none"
    ) -> Iterator[list[tuple[str, float]] | UserError]:
        """Yield the predictions of each image, in order, batch by batch.

        An image that cannot be read yields the UserError that says why, and the others go on.

        Args:
            images: As for `predict_images`.
            top: As for `predict_images`.
            batch_size: As for `predict_images`.
            tta: As for `predict_images`.

        Yields:
            One list per image, as `predict_images` returns it, or a UserError.
        """
        top, padding, kind = check_count("top", top), self.config.crop_padding, self.config.data.crop
        if check_views(tta) == "crops" and not padding:
            setting = "crop_padding=0" if kind == "center" else f"crop={kind}"
            raise UserError(f"tta=crops needs a border around the crop, and this model has data.{setting}.")
        shape = self.config.image_shape
        with_border = tuple(side + padding for side in shape)
        larger = self.config.preprocessing._replace(image_shape=with_border, crop_padding=0)

        def read(image):
            if tta != "crops":
                return self._read(image)
            if not isinstance(image, _FILES):
                raise UserError("tta=crops needs image files, and received pixels, which are one crop. Use tta=flip.")
            return self._read(image, larger)

        def compute(pixels):
            views = make_views(pixels, shape, tta)
            answers = [self._find_answers(self(np.ascontiguousarray(view))) for view in views]
            return self._list_answers(sum(answers[1:], answers[0]) / len(answers), top)

        yield from self._iterate(images, batch_size, compute, read)

    def embed(self, images: Any, batch_size: int = 32) -> np.ndarray:
        """Return the feature vectors of images, float32 [N, features]; see `iterate_vectors`."""
        vectors = []
        for vector in self.iterate_vectors(images, batch_size):
            if isinstance(vector, UserError):
                raise vector
            vectors.append(vector)
        return np.stack(vectors) if vectors else np.zeros([0, 0], np.float32)

    def iterate_vectors(self, images: Any, batch_size: int = 32) -> Iterator[np.ndarray | UserError]:
        """Yield the feature vector of each image, in order, batch by batch: what the last layer classifies.

        Args:
            images: As for `predict_images`.
            batch_size: As for `predict_images`.

        Yields:
            A vector, float32 [features], or the UserError that says why an image cannot be read.

        Raises:
            UserError: If the model is an exported file, which only has the outputs, or has another head.
        """
        compute = self._compute_vectors
        yield from self._iterate(images, batch_size, lambda pixels: np.asarray(compute(pixels), np.float32))

    def _iterate(self, images, batch_size, compute, read=None):
        """Yield the parts of what `compute` returns for batches of pixels, or the error of an image."""
        with ThreadPoolExecutor(available_cores()) as pool:
            for batch in batches(images, check_count("batch_size", batch_size)):
                batch = list(pool.map(read or self._read, batch))
                pixels = [image for image in batch if not isinstance(image, UserError)]
                answers = iter(compute(np.stack(pixels)) if pixels else ())
                for image in batch:
                    yield image if isinstance(image, UserError) else next(answers)

    def interpret(self, outputs: np.ndarray, top: int = 5) -> list[list[tuple[str, float]]]:
        """Return what outputs mean.

        Args:
            outputs: What calling the model returns, float32 [N, outputs].
            top: Number of classes or labels to return, at least 1.

        Returns:
            For each image a list of (name, probability), the most likely class or label first. The probabilities of
            classes add up to 1, and each label has its own. For regression a list of (name, number), in the order of
            `class_names`.
        """
        return self._list_answers(self._find_answers(outputs), top)

    def _find_answers(self, outputs):
        """Return the probabilities of classes or labels, or the numbers, float32 [N, outputs]."""
        if self.task == "regression":
            return outputs
        return softmax(outputs) if self.task == "classification" else sigmoid(outputs)

    def _list_answers(self, answers, top):
        if self.task == "regression":
            return [list(zip(self.class_names, row.tolist(), strict=True)) for row in answers]
        return rank(answers, self.class_names, top)

    def _read(self, image: Any, preprocessing: Preprocessing | None = None) -> np.ndarray | UserError:
        """Return the pixels of an image, or the error that says why it cannot be read."""
        if not isinstance(image, _FILES):
            return check_pixels("images", image, self.config.input_shape)
        source = bytes(image) if isinstance(image, bytearray | memoryview) else image
        try:
            return self._load_image(source, preprocessing or self.config.preprocessing)
        except UserError as error:
            return error

    def _load_image(self, source, preprocessing):
        return load_image_by_tensorflow(source, preprocessing)

    def _run(self, pixels):
        """Return the logits of images that were checked."""
        self._images += len(pixels)
        compute = self.compute_logits if self._images <= FEW_IMAGES else self._forward
        return np.asarray(compute(pixels), np.float32)

    @functools.cached_property
    def logits_in_graph(self) -> Callable[[tf.Tensor], tf.Tensor]:
        """The function of pixels, float32 [N, H, W, C], to logits that suits many images.

        Get it before you trace it in a graph: its preparation can take a second. It computes the same as
        `compute_logits`, up to rounding.
        """
        return self._prepare()

    @functools.cached_property
    def _forward(self):
        return self._trace(self.logits_in_graph)

    @functools.cached_property
    def _compute_vectors(self):
        if self.keras_model is None:
            raise UserError("An exported file has no feature vectors. Pass the model directory, or its model.keras.")
        import keras

        from efficientnet_tf.models.folding import Inference
        from efficientnet_tf.runtime.strategy import current_device_type

        pools = [layer for layer in self.keras_model.layers if layer.name == "avg_pool"]
        if not pools:
            raise UserError("The network has no layer avg_pool, whose output would be the feature vector.")
        body = keras.Model(self.keras_model.input, pools[0].output)
        return self._trace(Inference(body, current_device_type()))

    def _trace(self, function):
        """Return a graph for batches of any size, traced once. With JAX, a program for each size."""
        if self.keras_model and uses_jax():
            import jax

            return jax.jit(function)
        import tensorflow as tf

        signature = [tf.TensorSpec([None, *self.config.input_shape], tf.float32)]
        return tf.function(function, input_signature=signature, autograph=False)


class LoadedFile(LoadedModel):
    """A `.tflite`, `.onnx` or `.xml` file in its own runtime. Only `compute_logits`, for graphs, imports TensorFlow."""

    def __init__(self, export: Export):
        super().__init__(self._compute_in_graph, export.config, export.class_names, "exported")
        self._export = export

    def _compute_in_graph(self, images):
        import tensorflow as tf

        logits = tf.numpy_function(self._export.compute_logits, [images], tf.float32)
        return tf.ensure_shape(logits, [None, len(self.class_names)])

    def _run(self, pixels):
        return self._export.compute_logits(pixels)

    def _load_image(self, source, preprocessing):
        # Without Pillow, TensorFlow decodes the image. The pixels are the same, see `data.evaluation_crop`.
        load = load_image_by_pillow if has_pillow() else load_image_by_tensorflow
        return load(source, preprocessing)


def rank(probabilities: np.ndarray, names: Sequence[str], top: int) -> list[list[tuple[str, float]]]:
    """Return the most likely classes or labels of each image with their probabilities, the most likely one first.

    Args:
        probabilities: float32 [N, classes].
        names: Name of each class or label.
        top: Number of classes to return, at least 1.
    """
    ranked = []
    for row in probabilities:
        best = np.argsort(-row, kind="stable")[:top]
        ranked.append([(names[label], float(row[label])) for label in best])
    return ranked


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Return the probability of each label, float32 [N, labels]."""
    return (0.5 * (1 + np.tanh(0.5 * logits.astype(np.float64)))).astype(np.float32)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return the probabilities of logits, float32 [N, classes]."""
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True), dtype=np.float64)
    return (exponentials / exponentials.sum(axis=1, keepdims=True)).astype(np.float32)
