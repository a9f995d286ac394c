"""From encoded bytes to batches: decode, crop, resize, and the two pipelines that training and evaluation read."""

import math

import tensorflow as tf

from efficientnet_tf import augment
from efficientnet_tf.config import UserError
from efficientnet_tf.sources import Order

# ------------------------------------------------------------------------------------------------- one image


def _decode_window(encoded, channels, choose_window):
    """Decode the part of an image that `choose_window` picks; of a JPEG, that part only.

    Args:
        encoded: string scalar, the bytes of an image file.
        channels: 1 or 3.
        choose_window: from a shape, int32 [3], to a window [y, x, height, width], int32 [4].

    Returns:
        uint8 [height, width, channels].
    """

    def jpeg():
        window = choose_window(tf.io.extract_jpeg_shape(encoded))
        return tf.io.decode_and_crop_jpeg(encoded, window, channels=3)

    def other():
        image = tf.io.decode_image(encoded, channels=3, expand_animations=False)
        y, x, height, width = tf.unstack(choose_window(tf.shape(image)))
        return image[y : y + height, x : x + width]

    image = tf.cond(tf.strings.substr(encoded, 0, 3) == b"\xff\xd8\xff", jpeg, other)
    image = tf.ensure_shape(image, [None, None, 3])
    return tf.image.rgb_to_grayscale(image) if channels == 1 else image  # not every decoder can give grey


def center_window(shape, image_size, padding):
    """Choose the evaluation crop: a centred square of side size/(size + padding) of the shorter side.

    Args:
        shape: int32 [3], the image's height, width, channels.
        image_size: int, side of the network's input, pixels.
        padding: int >= 0.

    Returns:
        int32 [4]: y, x, height, width, pixels.

    Source: official code, `_decode_and_center_crop`; the fraction is .875 at 224 pixels and padding 32.
    """
    height, width = shape[0], shape[1]
    share = image_size / (image_size + padding)
    side = tf.cast(share * tf.cast(tf.minimum(height, width), tf.float32), tf.int32)
    side = tf.maximum(side, 1)
    return tf.stack([(height - side + 1) // 2, (width - side + 1) // 2, side, side])


def random_window(shape, seed, augment, fallback):
    """Choose a training crop of random area and aspect; after ten vain attempts, `fallback`.

    Args:
        shape: int32 [3], the image's height, width, channels.
        seed: int64 [2].
        augment: config.AugmentConfig.
        fallback: int32 [4], a window.

    Returns:
        int32 [4]: y, x, height, width, pixels.

    Source: official code, `distorted_bounding_box_crop` with the whole image as the object.
    """
    begin, size, _ = tf.image.stateless_sample_distorted_bounding_box(
        shape,
        tf.zeros([1, 0, 4]),
        seed=seed,
        min_object_covered=0.1,
        aspect_ratio_range=augment.crop_aspect,
        area_range=augment.crop_area,
        max_attempts=10,
        use_image_if_no_bounding_boxes=True,
    )
    window = tf.stack([begin[0], begin[1], size[0], size[1]])
    failed = tf.reduce_all(size[:2] == shape[:2])  # the operation answers with the whole image
    return tf.where(failed & (augment.crop_area[0] < 1), fallback, window)


def _resize(image, config):
    size = config.image_size
    return tf.image.resize(image, [size, size], config.data.interpolation)


def train_image(encoded, seed, config):
    """Decode a random crop of an image, resize it, mirror half of them, and apply the policy.

    Args:
        encoded: string scalar, the bytes of an image file.
        seed: int64 [2]; it alone decides how the image is varied.
        config: config.Config.

    Returns:
        uint8 [S, S, C], S = config.image_size.

    Source: paper, section 5.2; official code, `preprocess_for_train`.
    Deviates: today's half-pixel bicubic (`tf.image.resize`), where the official code had TensorFlow 1's.
    """
    crop_seed, flip_seed, policy_seed, erase_seed = tf.unstack(tf.random.experimental.stateless_split(seed, 4))
    size, channels = config.image_size, config.data.channels

    def window(shape):
        fallback = center_window(shape, config.image_size, config.data.crop_padding)
        return random_window(shape, crop_seed, config.augment, fallback)

    image = _resize(_decode_window(encoded, config.data.channels, window), config)
    image = tf.ensure_shape(tf.saturate_cast(tf.round(image), tf.uint8), [size, size, channels])
    if config.augment.flip:
        image = tf.image.stateless_random_flip_left_right(image, flip_seed)
    policy = augment.make_policy(config.augment)
    if policy:
        image = augment.apply_policy(policy, image, policy_seed)
    return augment.erase(image, config.augment.erase, erase_seed) if config.augment.erase else image


def eval_image(encoded, config):
    """Decode the centre crop of an image and resize it.

    Args:
        encoded: string scalar, the bytes of an image file.
        config: config.Config.

    Returns:
        float32 [S, S, C], pixels in about [0, 255] (bicubic overshoots), S = config.image_size.

    Source: official code, `preprocess_for_eval`.
    """

    def window(shape):
        return center_window(shape, config.image_size, config.data.crop_padding)

    image = _resize(_decode_window(encoded, config.data.channels, window), config)
    return tf.ensure_shape(image, [config.image_size, config.image_size, config.data.channels])


# ------------------------------------------------------------------------------------------------- pipelines


class Failures:
    """The examples that could not be read or decoded: filled inside tf.data, asked from Python."""

    def __init__(self, source):
        self.source = source
        self._ids = tf.lookup.experimental.MutableHashTable(tf.int64, tf.int64, -1)

    def record(self, ids):
        """Note int64 [N] ids; runs inside tf.data."""
        self._ids.insert(ids, ids)

    def names(self):
        """Return the names of the failed examples, sorted."""
        return sorted(self.source.describe(int(i)) for i in self._ids.export()[0].numpy())

    def check(self, max_fraction):
        """Raise UserError where more than `max_fraction` of the source's examples have failed."""
        count, size = int(self._ids.size()), self.source.size
        if count > max_fraction * size:
            names = self.names()
            more = f" and {count - 10} more" if count > 10 else ""
            raise UserError(
                f"{count} of {size} images cannot be read or decoded, more than data.max_bad_fraction={max_fraction:g}"
                f" allows: {', '.join(names[:10])}{more}"
            )


def _map_or_mark(examples, convert, shape, dtype):
    """Map (position, id, payload) to (position, id, image, label, ok); what fails comes out with ok = False.

    An example is a data set of one of its own, for that is where tf.data lets an error be dropped; the blank behind it
    comes through only then. Order and count thus stay those of the positions, whatever fails.
    """

    def one(position, id_, payload):
        good = tf.data.Dataset.from_tensors((position, id_, payload)).map(
            lambda p, i, x: (p, i, *convert(p, i, x), True)
        )
        blank = (position, id_, tf.zeros(shape, dtype), tf.constant(0), False)
        return good.ignore_errors().concatenate(tf.data.Dataset.from_tensors(blank)).take(1)

    return examples.interleave(one, cycle_length=16, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)


def check_batches(config, replicas):
    """Raise UserError where a batch cannot be divided among the replicas."""
    for key, size in (("train.batch_size", config.train.batch_size), ("eval.batch_size", config.eval.batch_size)):
        if size % replicas:
            raise UserError(f"{key}={size} cannot be divided among {replicas} replicas: give a multiple of {replicas}")


def train_dataset(source, config, failures, first_step, context):
    """Make the training batches of one host, without end, from a step on.

    Which examples form step s, and how each is varied, follows from seed, epoch and id alone, whatever the number of
    hosts, replicas and threads. An image that cannot be decoded is replaced by another of its batch and recorded.

    Args:
        source: sources.Source.
        config: config.Config.
        failures: Failures, filled while the batches are read.
        first_step: int >= 0, steps done already.
        context: tf.distribute.InputContext.

    Returns:
        A dataset of per-replica batches (images uint8 [B, S, S, C], labels int32 [B]).
    """
    batch, size = config.train.batch_size, config.image_size
    per_replica = context.get_per_replica_batch_size(batch)
    seed = config.train.seed

    def convert(position, id_, payload):
        encoded, label = source.load(payload)
        return train_image(encoded, tf.stack([seed + position // source.size * 2**32, id_]), config), label

    def replace_failed(_, ids, images, labels, ok):
        failures.record(tf.boolean_mask(ids, ~ok))
        good = tf.where(ok)[:, 0]
        with tf.control_dependencies([tf.debugging.assert_positive(tf.size(good), "no image of a batch can be read")]):
            rows = tf.where(ok, tf.range(per_replica, dtype=tf.int64), good[0])
        return tf.gather(images, rows), tf.gather(labels, rows)

    order = Order(
        batch=batch,
        shuffle=True,
        seed=seed,
        first_step=first_step,
        host=context.input_pipeline_id,
        hosts=context.num_input_pipelines,
    )
    examples = _map_or_mark(source.stream(order), convert, (size, size, config.data.channels), tf.uint8)
    return _finish(examples.batch(per_replica, drop_remainder=True).map(replace_failed))


def eval_steps(source, config):
    """Return the number of evaluation batches: the last one is filled up, no example is left out."""
    return math.ceil(source.size / config.eval.batch_size)


def eval_dataset(source, config, failures, context):
    """Make the evaluation batches of one host: every example of the split once, and padding to full batches.

    Args:
        source: sources.Source.
        config: config.Config.
        failures: Failures, filled while the batches are read.
        context: tf.distribute.InputContext.

    Returns:
        A dataset of `eval_steps` per-replica batches for each replica: (images float32 [B, S, S, C], labels int32 [B],
        weights float32 [B]: 1 for an example, 0 for padding).
    """
    batch, size = config.eval.batch_size, config.image_size
    per_replica = context.get_per_replica_batch_size(batch)

    def convert(_position, _id, payload):
        encoded, label = source.load(payload)
        return eval_image(encoded, config), label

    def weigh(positions, ids, images, labels, ok):
        failures.record(tf.boolean_mask(ids, ~ok))
        return images, labels, tf.cast(ok & (positions < source.size), tf.float32)

    order = Order(
        batch=batch,
        steps=eval_steps(source, config),
        host=context.input_pipeline_id,
        hosts=context.num_input_pipelines,
    )
    examples = _map_or_mark(source.stream(order), convert, (size, size, config.data.channels), tf.float32)
    return _finish(examples.batch(per_replica, drop_remainder=True).map(weigh))


def _finish(dataset):
    options = tf.data.Options()
    options.deterministic = True
    return dataset.prefetch(tf.data.AUTOTUNE).with_options(options)
