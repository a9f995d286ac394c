"""Measure the time of a forward pass, and the time and peak memory of training steps, of one network."""

import statistics
import time
from typing import Any

import numpy as np
import tensorflow as tf

from efficientnet_tf.benchmark.setting import TRAINING_IMAGES
from efficientnet_tf.config.image_size import ImageSize, as_shape
from efficientnet_tf.config.schema import Config, ModelSpec
from efficientnet_tf.models.builder import build_model
from efficientnet_tf.models.data_format import channels_last_scope
from efficientnet_tf.models.folding import Inference
from efficientnet_tf.runtime.hardware import resident_bytes, track_peak_bytes
from efficientnet_tf.runtime.strategy import current_device_type, distribute_batches
from efficientnet_tf.training.state import create_state
from efficientnet_tf.training.tensorflow_loop import make_train_loop


def inference_seconds(
    spec: ModelSpec,
    size: ImageSize | None = None,
    batch: int = 1,
    classes: int = 1000,
    channels: int = 3,
    rounds: int = 10,
) -> float:
    """Return the seconds of one forward pass of a network with random weights, in float32.

    The time runs from uint8 pixels in memory to logits.

    Args:
        spec: The network.
        size: Size of the images in pixels: the side of squares, or (height, width). Defaults to the spec's resolution.
        batch: Images per forward pass, at least 1.
        classes: Number of classes, at least 1.
        channels: Channels of the images, at least 1.
        rounds: Number of forward passes that count, at least 1. Two more come before them to warm up.

    Returns:
        Seconds per batch, the median of the rounds.
    """
    shape = *as_shape(size or spec.resolution), channels
    with channels_last_scope():
        model = build_model(spec, classes, shape)
    forward = tf.function(Inference(model, current_device_type()), autograph=False)
    images = tf.constant(np.random.default_rng(0).integers(0, 256, (batch, *shape), np.uint8))
    seconds = []
    for _ in range(rounds + 2):
        start = time.perf_counter()
        forward(images).numpy()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[2:])


def training_step(
    config: Config, strategy: tf.distribute.Strategy, classes: int = 1000, steps: int = 3
) -> dict[str, Any]:
    """Measure the time and the peak memory of training steps on random images.

    Args:
        config: The config. Its batch size, image size, optimizer, precision and EMA matter.
        strategy: A strategy of one replica.
        classes: Number of classes, at least 2.
        steps: Number of steps that are timed, at least 1. One more comes before them and only counts for the memory.

    Returns:
        A dict with "seconds", the median of a step, and "peak_bytes", the growth of the process from before the model
        was created to the peak of the steps, None if the system does not say.
    """
    before = resident_bytes()
    state = create_state(config, classes, TRAINING_IMAGES, strategy)
    loop: Any = make_train_loop(state, config, strategy)
    rng = np.random.default_rng(0)
    shape = (config.train.batch_size, *config.input_shape)
    batch = rng.integers(0, 256, shape, np.uint8), rng.integers(0, classes, shape[0], np.int32)
    batches = iter(distribute_batches(strategy, lambda _: tf.data.Dataset.from_tensors(batch).repeat()))
    loop.get_concrete_function(batches, tf.constant(1))  # the peak of the steps does not include that of tracing
    seconds = []
    with track_peak_bytes() as peak:
        for _ in range(steps + 1):
            start = time.perf_counter()
            loop(batches, tf.constant(1)).numpy()
            seconds.append(time.perf_counter() - start)
    growth = peak[0] - before if before is not None and peak[0] is not None else None
    return {"seconds": statistics.median(seconds[1:]), "peak_bytes": growth}
