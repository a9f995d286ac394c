"""Measure how fast training images arrive: decoding alone, then with crop, resize and mirror, then with each policy."""

import statistics
import time
from collections.abc import Iterator, Sequence
from typing import Any

from efficientnet_tf.runtime.terminal import ProgressBar

POLICIES = ("decode", "none", "randaugment", "autoaugment")


def make_photos(count: int) -> list[bytes]:
    """Return JPEG files like those of ImageNet, about 500x375 pixels and 110 kB, cut from scikit-learn's two photos."""
    import numpy as np
    import tensorflow as tf
    from sklearn.datasets import load_sample_images

    photos, rng = load_sample_images().images, np.random.default_rng(0)
    files = []
    for _ in range(count):
        photo = photos[rng.integers(len(photos))]
        height, width = (int(side * rng.uniform(0.55, 1.0)) for side in photo.shape[:2])
        y, x = rng.integers(photo.shape[0] - height + 1), rng.integers(photo.shape[1] - width + 1)
        shape = (375, 500) if rng.random() < 0.75 else (500, 375)
        image = tf.image.resize(photo[y : y + height, x : x + width], shape, "bicubic")
        image += rng.normal(0, 6, (*shape, 1))  # the noise of a sensor, which gives a file of the usual size
        files.append(tf.io.encode_jpeg(tf.saturate_cast(image, tf.uint8), quality=92).numpy())
    return files


def measure_input(
    sizes: Sequence[int], threads: Sequence[int], rounds: int, seconds: float, photos: int = 256
) -> Iterator[dict[str, Any]]:
    """Measure the training input for each image size, number of threads and policy.

    Args:
        sizes: Image sides in pixels.
        threads: Numbers of threads of tf.data.
        rounds: Number of rounds that count, at least 1.
        seconds: Length of one measurement, above 0. A warm-up of half that time comes before each.
        photos: Number of different images, at least 1.

    Yields:
        A dict for each policy with size, threads, policy, images_per_second (the median of the rounds), low, high,
        of_decode (share of the rate of decoding alone) and of_none (share of the rate without a policy).
    """
    from efficientnet_tf.config.load import load_config
    from efficientnet_tf.data.source import source_from_bytes

    source = source_from_bytes(make_photos(photos), [i % 10 for i in range(photos)], "0123456789", "photo")
    total = len(sizes) * len(threads) * (rounds + 1) * len(POLICIES)
    with ProgressBar(total, "input", "measurements") as bar:
        for size in sizes:
            config = load_config("b0", "imagenet", [f"data.image_size={size}", "train.batch_size=32"])
            for count in threads:
                bar.describe(f"{size} pixels, {count} threads")
                iterators = {policy: _start(_make_pipeline(source, config, policy), count) for policy in POLICIES}
                rates = {policy: [] for policy in POLICIES}
                for round_index in range(rounds + 1):
                    for policy, iterator in iterators.items():
                        rate = measure_rate(iterator, seconds / 2, seconds)
                        if round_index:  # in the first round tf.data still tunes itself
                            rates[policy].append(rate)
                        bar.advance()
                yield from summarize_rates(size, count, rates)


def summarize_rates(size: int, threads: int, rates: dict[str, list[float]]) -> Iterator[dict[str, Any]]:
    """Yield the row of each policy.

    Args:
        size: Image side in pixels.
        threads: Number of threads of tf.data.
        rates: Images per second in each round, by policy.

    Yields:
        The dicts of `measure_input`.
    """
    median = {policy: statistics.median(values) for policy, values in rates.items()}
    for policy, values in rates.items():
        yield {
            "size": size,
            "threads": threads,
            "policy": policy,
            "images_per_second": round(median[policy], 1),
            "low": round(min(values), 1),
            "high": round(max(values), 1),
            "of_decode": round(median[policy] / median["decode"], 3),
            "of_none": round(median[policy] / median["none"], 3),
        }


def _make_pipeline(source, config, policy):
    """Return a dataset of image counts: the training input, or for "decode" only its decoded random crops."""
    import tensorflow as tf

    from efficientnet_tf.config.load import override_config
    from efficientnet_tf.data.decode import decode_window
    from efficientnet_tf.data.pipeline import Failures, train_dataset
    from efficientnet_tf.data.source import Order
    from efficientnet_tf.data.windows import center_window, random_window

    if policy != "decode":
        config = override_config(config, [f"augment.policy={policy}"])
        batches = train_dataset(source, config, Failures(source), 0, tf.distribute.InputContext())
        return batches.map(lambda images, labels: tf.shape(images)[0])

    def decode(position, index, payload):
        def window(shape):
            fallback = center_window(shape, config.image_shape, config.crop_padding)
            return random_window(shape, tf.stack([position, index]), config.augment, fallback)

        image = decode_window(source.load(payload)[0], config.data.channels, window, config.data.background)
        return tf.shape(image)[0]

    order = Order(batch=config.train.batch_size, shuffle=True)
    sizes = source.stream(order).map(decode, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    return sizes.batch(config.train.batch_size).map(tf.size).prefetch(tf.data.AUTOTUNE)


def _start(pipeline, threads):
    import tensorflow as tf

    options = tf.data.Options()
    options.threading.private_threadpool_size = threads
    options.threading.max_intra_op_parallelism = 1
    return pipeline.with_options(options).as_numpy_iterator()


def _wait_until_idle():
    """Wait until the pipelines that are not read have filled their buffers and no longer use the CPU."""
    busy = True
    while busy:
        used = time.process_time()
        time.sleep(0.1)
        busy = time.process_time() - used > 0.02


def measure_rate(iterator, warmup_seconds, seconds):
    """Return images per second of an iterator of counts over `seconds`, after a warm-up that empties the buffers."""
    _wait_until_idle()
    start = time.perf_counter()
    while time.perf_counter() - start < warmup_seconds:
        next(iterator)
    start, images = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        images += next(iterator)
    return images / (time.perf_counter() - start)
