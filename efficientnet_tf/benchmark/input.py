"""How fast training images come: decoding alone, with crop, resize and mirror, and with each policy on top of it."""

import statistics
import sys
import time

POLICIES = ("decode", "none", "randaugment", "autoaugment")


def make_photos(count):
    """Return JPEG files like ImageNet's, about 500x375 pixels and 110 kB, cut from scikit-learn's two photos."""
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
        image += rng.normal(0, 6, (*shape, 1))  # a sensor's grain, for a file of the usual size
        files.append(tf.io.encode_jpeg(tf.saturate_cast(image, tf.uint8), quality=92).numpy())
    return files


def _input_pipeline(source, config, policy):
    """Return a data set of image counts: what training reads, or, for "decode", its random crops merely decoded."""
    import tensorflow as tf

    from efficientnet_tf.config.load import override_config
    from efficientnet_tf.data.decode import center_window, decode_window, random_window
    from efficientnet_tf.data.pipeline import Failures, train_dataset
    from efficientnet_tf.data.source import Order

    if policy != "decode":
        config = override_config(config, [f"augment.policy={policy}"])
        batches = train_dataset(source, config, Failures(source), 0, tf.distribute.InputContext())
        return batches.map(lambda images, labels: tf.shape(images)[0])

    def decode(position, index, payload):
        def window(shape):
            fallback = center_window(shape, config.image_size, config.data.crop_padding)
            return random_window(shape, tf.stack([position, index]), config.augment, fallback)

        image = decode_window(source.load(payload)[0], config.data.channels, window)
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
    """Let the pipelines that are not read fill their buffers: they would take processor time from the one that is."""
    busy = True
    while busy:
        used = time.process_time()
        time.sleep(0.1)
        busy = time.process_time() - used > 0.02


def _images_per_second(iterator, warmup, seconds):
    """Read for `warmup` seconds, which empties what was made ahead, and then for `seconds`, which count."""
    _wait_until_idle()
    start = time.perf_counter()
    while time.perf_counter() - start < warmup:
        next(iterator)
    start, images = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        images += next(iterator)
    return images / (time.perf_counter() - start)


def measure_input(sizes, threads, rounds, seconds, photos=256):
    """Measure the training input: decoding alone, crop + resize + mirror, and each policy on top of it.

    Args:
        sizes: sequence of int, image sides in pixels.
        threads: sequence of int, threads of tf.data.
        rounds: int >= 1, turns that everything is measured in.
        seconds: float > 0, length of a measurement; half as long goes before it.
        photos: int >= 1, number of different images.

    Yields:
        dict: size, threads, policy, images_per_second (median), low, high, of_decode (share of the rate of decoding
        alone), of_none (share of the rate without a policy).
    """
    from tqdm import tqdm

    from efficientnet_tf.config.load import load_config
    from efficientnet_tf.data.source import source_from_bytes

    source = source_from_bytes(make_photos(photos), [i % 10 for i in range(photos)], "0123456789", "photo")
    total = len(sizes) * len(threads) * (rounds + 1) * len(POLICIES)
    with tqdm(total=total, unit="measurement", file=sys.stderr) as bar:
        for size in sizes:
            config = load_config("b0", "imagenet", [f"data.image_size={size}", "train.batch_size=32"])
            for count in threads:
                bar.set_description(f"{size} pixels, {count} threads")
                iterators = {policy: _start(_input_pipeline(source, config, policy), count) for policy in POLICIES}
                rates = {policy: [] for policy in POLICIES}
                for turn in range(rounds + 1):
                    for policy, iterator in iterators.items():
                        rate = _images_per_second(iterator, seconds / 2, seconds)
                        if turn:  # the first turn is for tf.data, which finds its settings by trying
                            rates[policy].append(rate)
                        bar.update()
                yield from _summarise(size, count, rates)


def _summarise(size, threads, rates):
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
