"""What a network takes on this machine, measured: time of a forward pass, time and peak memory of training steps."""

import statistics
import time

import numpy as np
import tensorflow as tf

from efficientnet_tf.models.builder import build_model
from efficientnet_tf.runtime.hardware import resident_bytes, track_peak_bytes
from efficientnet_tf.runtime.strategy import distribute_batches
from efficientnet_tf.training.checkpoint import create_state
from efficientnet_tf.training.tensorflow_loop import make_train_loop

IMAGES = 100_000  # as if of a data set: the schedule asks how many


def inference_seconds(spec, size=None, batch=1, classes=1000, channels=3, rounds=10):
    """Time the forward pass of a network with random weights, in float32, from uint8 pixels in memory to logits.

    Args:
        spec: schema.ModelSpec.
        size: int >= 1, image side in pixels; the spec's resolution by default.
        batch: int >= 1.
        classes: int >= 1.
        channels: int >= 1.
        rounds: int >= 1; two more go before them.

    Returns:
        float, seconds a batch: the median of the rounds.
    """
    size = size or spec.resolution
    model = build_model(spec, classes, (size, size, channels))
    forward = tf.function(lambda images: model(images, training=False))
    images = tf.constant(np.random.default_rng(0).integers(0, 256, (batch, size, size, channels), np.uint8))
    seconds = []
    for _ in range(rounds + 2):
        start = time.perf_counter()
        forward(images).numpy()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[2:])


def training_step(config, strategy, classes=1000, steps=3):
    """Time training steps on random images, and watch the memory.

    Args:
        config: config.Config; its batch, image size, optimiser, precision and average count.
        strategy: tf.distribute.Strategy, of one replica.
        classes: int >= 2.
        steps: int >= 1; one more, the first, counts for the memory alone.

    Returns:
        dict: "seconds" a step, the median; "peak_bytes": by how much the process grew from before the model was made
        to the peak of the steps, None where the system does not say.
    """
    before = resident_bytes()
    state = create_state(config, classes, IMAGES, strategy)
    loop = make_train_loop(state, config, strategy)
    rng = np.random.default_rng(0)
    shape = (config.train.batch_size, config.image_size, config.image_size, config.data.channels)
    examples = rng.integers(0, 256, shape, np.uint8), rng.integers(0, classes, shape[0], np.int32)
    batches = iter(distribute_batches(strategy, lambda _: tf.data.Dataset.from_tensors(examples).repeat()))
    loop.get_concrete_function(batches, tf.constant(1))  # what tracing takes for itself is not the steps' peak
    seconds = []
    with track_peak_bytes() as peak:
        for _ in range(steps + 1):
            start = time.perf_counter()
            loop(batches, tf.constant(1)).numpy()
            seconds.append(time.perf_counter() - start)
    grown = peak[0] - before if before is not None and peak[0] is not None else None
    return {"seconds": statistics.median(seconds[1:]), "peak_bytes": grown}
