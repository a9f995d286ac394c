"""Classifies and explains the images of concurrent requests with one model."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.data.image_formats import MOST_PIXELS, describe_bomb, find_kind
from efficientnet_tf.data.pillow_decoder import read_declared_size
from efficientnet_tf.evaluation.occlusion import occlusion_map
from efficientnet_tf.export.loaded import LoadedModel, sigmoid, softmax
from efficientnet_tf.runtime.hardware import available_cores
from efficientnet_tf.serving.batching import Batcher


class Explanation(NamedTuple):
    """Where the model sees a class in an image.

    Attributes:
        label: Name of the class.
        probability: Its probability.
        method: "class activation map" or "occlusion map".
        heat: The map over the crop, float32 [h, w].
        crop: The crop that the model saw, as a PNG file.
    """

    label: str
    probability: float
    method: str
    heat: np.ndarray
    crop: bytes


class Classifier:
    """A model, a queue in front of it, and threads that decode images.

    Args:
        model: A model of `load_model`.
        most_images: Largest batch, at least 1.
        delay_seconds: How long an image may wait for others to share its batch.
        most_pixels: Width times height of the largest image that is decoded.
        longest_queue: Number of images that may wait.
        observe: Called after each batch with its number of images and its duration in seconds.
    """

    def __init__(
        self,
        model: LoadedModel,
        most_images: int = 32,
        delay_seconds: float = 0.002,
        most_pixels: int = MOST_PIXELS,
        longest_queue: int = 512,
        observe: Callable[[int, float], None] = lambda images, seconds: None,
    ):
        self.model = model
        self.class_names = model.class_names
        self.input_shape = model.config.input_shape
        self.most_images = most_images
        self._most_pixels = most_pixels
        for count in dict.fromkeys((1, most_images)):  # The first batch of a size takes longest.
            model(np.zeros([count, *self.input_shape], np.float32))
        self._batcher = Batcher(model, most_images, delay_seconds, longest_queue, observe)
        self._threads = ThreadPoolExecutor(available_cores(), "images")
        self._explainer = ThreadPoolExecutor(1, "explanations")  # They take long and must not block other images.

    def waiting(self) -> int:
        """Return the number of images that wait."""
        return self._batcher.waiting()

    async def classify(self, encoded: bytes, top: int) -> list[tuple[str, float]]:
        """Return the most likely classes of an image file with their probabilities, the most likely one first.

        Args:
            encoded: Content of an image file.
            top: Number of classes to return.

        Raises:
            UserError: If the image cannot be decoded or has too many pixels.
            QueueFullError: If too many images wait.
        """
        pixels = await _run(self._threads, self._decode, encoded)
        return self.model.interpret(await self.compute_logits(pixels[None]), top)[0]

    async def compute_logits(self, pixels: np.ndarray) -> np.ndarray:
        """Return the logits of images, float32 [N, classes].

        Args:
            pixels: float32 [N, H, W, C] with N from 1 to `most_images`.

        Raises:
            QueueFullError: If too many images wait.
        """
        return await asyncio.wrap_future(self._batcher.submit(pixels))

    async def explain(self, encoded: bytes, label: str | None) -> Explanation:
        """Compute where the model sees a class in an image file.

        A Keras model gives a class activation map, and any other one an occlusion map.

        Args:
            encoded: Content of an image file.
            label: Name of the class, or None for the most likely one.

        Raises:
            UserError: If the image cannot be decoded, or the class is unknown.
            QueueFullError: If too many images wait.
        """
        if label is not None and label not in self.class_names:
            raise UserError("The model has no class of this name.")
        pixels = await _run(self._threads, self._decode, encoded)
        [logits] = await self.compute_logits(pixels[None])
        number = int(logits.argmax()) if label is None else self.class_names.index(label)
        method, heat = await _run(self._explainer, self._compute_heat, pixels, number)
        compute = sigmoid if self.model.task == "multilabel" else softmax
        probability = float(compute(logits[None])[0, number])
        return Explanation(self.class_names[number], probability, method, heat, _encode_png(pixels))

    def close(self) -> None:
        """Answer what waits, and end all threads."""
        self._explainer.shutdown()
        self._threads.shutdown()
        self._batcher.close()

    def _decode(self, encoded):
        size = read_declared_size(encoded)
        if size is not None and size[0] * size[1] > self._most_pixels:
            bomb = describe_bomb(find_kind(encoded) or "", *size, self._most_pixels)
            raise UserError(f"The image cannot be decoded: {bomb}.")
        return self.model.load_image(encoded)

    def _compute_heat(self, pixels, number):
        if self.model.keras_model is not None:
            from efficientnet_tf.evaluation.attribution import class_activation_map

            try:
                return "class activation map", class_activation_map(self.model.keras_model, pixels[None], number)[0]
            except UserError:  # The network has another head, or its last features are a single pixel.
                pass
        return "occlusion map", occlusion_map(self._compute_in_parts, pixels, number)

    def _compute_in_parts(self, images):
        """Compute many images through the queue, one batch at a time, so that requests get in between."""
        parts = np.split(images, range(self.most_images, len(images), self.most_images))
        return np.concatenate([self._batcher.submit(part).result() for part in parts])


async def _run(threads, function, *args):
    return await asyncio.get_running_loop().run_in_executor(threads, function, *args)


def _encode_png(pixels):
    import PIL.Image

    levels = np.round(np.clip(pixels, 0, 255)).astype(np.uint8)
    file = io.BytesIO()
    PIL.Image.fromarray(levels[..., 0] if levels.shape[-1] == 1 else levels).save(file, "PNG")
    return file.getvalue()
