"""From encoded bytes to batches: what is done to an image, and the two pipelines that training and evaluation read."""

import math
import socket

import tensorflow as tf

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.data.decode import center_window, decode_window, random_window
from efficientnet_tf.data.policies import apply_policy, make_policy
from efficientnet_tf.data.source import Order, map_or_blank
from efficientnet_tf.ops import image as image_ops

# ------------------------------------------------------------------------------------------------- one image


def _resize(image, config):
    size = config.image_size
    return tf.image.resize(image, [size, size], config.data.interpolation)


def split_seed(seed):
    """Return an image's seeds for crop, mirror, policy and erasing."""
    return tf.unstack(tf.random.experimental.stateless_split(seed, 4))


def train_image(encoded, seed, config):
    """Decode a random crop of an image, resize it, mirror half of them, and apply the policy.

    Args:
        encoded: string scalar, the bytes of an image file.
        seed: int64 [2]; it alone decides how the image is varied.
        config: config.Config.

    Returns:
        uint8 [S, S, C], S = config.image_size.

    Source: paper, section 5.2; official code, `preprocess_for_train`.
    Deviates: today's half-pixel bicubic (`tf.image.resize`), where the official code had TensorFlow 1's; rounded to
    uint8, not cut off.
    """
    crop_seed, flip_seed, policy_seed, erase_seed = split_seed(seed)
    size, channels = config.image_size, config.data.channels

    def window(shape):
        fallback = center_window(shape, config.image_size, config.data.crop_padding)
        return random_window(shape, crop_seed, config.augment, fallback)

    image = _resize(decode_window(encoded, config.data.channels, window), config)
    image = tf.ensure_shape(tf.saturate_cast(tf.round(image), tf.uint8), [size, size, channels])
    if config.augment.flip:
        image = tf.image.stateless_random_flip_left_right(image, flip_seed)
    policy = make_policy(config.augment)
    if policy:
        image = apply_policy(policy, image, policy_seed)
    return image_ops.erase(image, config.augment.erase, erase_seed) if config.augment.erase else image


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

    image = _resize(decode_window(encoded, config.data.channels, window), config)
    return tf.ensure_shape(image, [config.image_size, config.image_size, config.data.channels])


def make_image_reader(convert):
    """Return a function that reads image files and converts each.

    Args:
        convert: function from the bytes of an image file, string scalar, to a tensor.

    Returns:
        A function from paths, a sequence of str, to ({path: tensor}, {path: str, why it cannot be read or decoded}).
    """

    @tf.function(input_signature=[tf.TensorSpec([], tf.string)])
    def load(path):
        return convert(tf.io.read_file(path))

    def read(paths):
        images, errors = {}, {}
        for path in paths:
            try:
                images[path] = load(tf.constant(path))
            except tf.errors.OpError as error:
                # Before the reason stands where in the code, after it where in the graph.
                errors[path] = error.message.partition("\n\t [[")[0].splitlines()[-1]
        return images, errors

    return read


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


def check_batches(config, replicas):
    """Raise UserError where a batch cannot be divided among the replicas, or what is theirs into parts."""
    train_sizes = [("train.batch_size", phase.train.batch_size) for _, phase in config.phases]
    for key, size in (*train_sizes, ("eval.batch_size", config.eval.batch_size)):
        if size % replicas:
            raise UserError(f"{key}={size} cannot be divided among {replicas} replicas: give a multiple of {replicas}")
    parts = config.train.accumulate
    for key, size in train_sizes:
        if size % (replicas * parts):
            raise UserError(
                f"{key}={size} cannot be divided into train.accumulate={parts} parts on {replicas} replicas: give a "
                f"multiple of {replicas * parts}"
            )


def example_seed(source, config, position, id_):
    """Return the seed, int64 [2], of an example in the epoch of a position: it decides how the image is varied."""
    return tf.stack([config.train.seed + position // source.size * 2**32, id_])


def train_dataset(source, config, failures, first_step, context, first_position=0):
    """Make the training batches of one host, without end, from a step on.

    Which examples form step s, and how each is varied, follows from seed, epoch and id alone, whatever the number of
    hosts, replicas and threads. An image that cannot be decoded is replaced by another of its batch and recorded.

    Args:
        source: sources.Source.
        config: config.Config.
        failures: Failures, filled while the batches are read.
        first_step: int >= 0, steps done already.
        context: tf.distribute.InputContext.
        first_position: int >= 0, images that the run had used before step 0, in earlier phases.

    Returns:
        A dataset of per-replica batches (images uint8 [B, S, S, C], labels int32 [B]).
    """
    batch, size = config.train.batch_size, config.image_size
    per_replica = context.get_per_replica_batch_size(batch)

    def convert(position, id_, payload):
        encoded, label = source.load(payload)
        return train_image(encoded, example_seed(source, config, position, id_), config), label

    def replace_failed(_, ids, images, labels, ok):
        failures.record(tf.boolean_mask(ids, ~ok))
        good = tf.where(ok)[:, 0]
        with tf.control_dependencies([tf.debugging.assert_positive(tf.size(good), "no image of a batch can be read")]):
            rows = tf.where(ok, tf.range(per_replica, dtype=tf.int64), good[0])
        return tf.gather(images, rows), tf.gather(labels, rows)

    order = Order(
        batch=batch,
        shuffle=True,
        seed=config.train.seed,
        first_step=first_step,
        first_position=first_position,
        host=context.input_pipeline_id,
        hosts=context.num_input_pipelines,
    )
    blank = tf.zeros((size, size, config.data.channels), tf.uint8), 0
    batches = map_or_blank(source.stream(order), convert, blank).batch(per_replica, drop_remainder=True)
    if config.data.service:
        batches = _on_service(batches, config.data.service)
    return _finish(batches.map(replace_failed))


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
        A dataset of `eval_steps` per-replica batches for each replica: (images float32 [B, S, S, C], labels int32 [B]
        or [B, *source.label_shape], weights float32 [B]: 1 for an example, 0 for padding).
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
    blank = tf.zeros((size, size, config.data.channels)), tf.zeros(source.label_shape, tf.int32)
    examples = map_or_blank(source.stream(order), convert, blank)
    return _finish(examples.batch(per_replica, drop_remainder=True).map(weigh))


def sample_images(source, config, failures, count):
    """Read some images of a split, spread over it and always the same ones, as evaluation sees them.

    Args:
        source: sources.Source.
        config: config.Config.
        failures: Failures, filled while the images are read; what it holds is left out.
        count: int >= 1; all images where the split has no more.

    Returns:
        A dataset of float32 [S, S, C].
    """
    blank = (tf.zeros((config.image_size, config.image_size, config.data.channels)),)

    def convert(_position, _id, payload):
        return (eval_image(source.load(payload)[0], config),)

    def drop_failed(_positions, ids, images, ok):
        failures.record(tf.boolean_mask(ids, ~ok))
        return tf.boolean_mask(images, ok)

    order = Order(batch=1, shuffle=True, steps=min(count, source.size))
    examples = map_or_blank(source.stream(order), convert, blank)
    return _finish(examples.batch(config.eval.batch_size).map(drop_failed).unbatch())


def _on_service(batches, address):
    """Let a tf.data service's workers make the batches: each step is made by one of them, whoever comes first.

    Of an indexed source a batch is bit for bit one that the local pipeline makes, and none comes twice; workers run
    ahead, so that the first n to arrive are not quite the first n steps, and what a worker that dies had begun is lost.
    Of record files each worker reads whole epochs of its own: examples come equally often, in other batches.
    """
    host, _, port = address.removeprefix("grpc://").rpartition(":")
    try:
        # TensorFlow itself would try for ever.
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise UserError(f"data.service={address!r}: no dispatcher can be reached there: {error}") from None
    service = tf.data.experimental.service
    return batches.apply(service.distribute(service.ShardingPolicy.DYNAMIC, address))


def _finish(dataset):
    options = tf.data.Options()
    options.deterministic = True
    # What would find out how many cores to take may sleep through the end of an iterator, up to a minute: TensorFlow
    # 2.21 wakes it before the end is marked. All of them are right from the start, for there is one parallel step.
    options.autotune.enabled = False
    options.autotune.initial_parallelism = 2**31 - 1  # no more than there are cores
    return dataset.prefetch(tf.data.AUTOTUNE).with_options(options)
