"""The input pipelines: from encoded images to the batches of training and evaluation."""

from __future__ import annotations

import math
import socket
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import tensorflow as tf

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.data.batch_sizes import check_batches as check_batches
from efficientnet_tf.data.decode import decode_evaluation, decode_window
from efficientnet_tf.data.failures import Failures
from efficientnet_tf.data.image_formats import read_file
from efficientnet_tf.data.pillow_decoder import explain_failure
from efficientnet_tf.data.policies import apply_policy, make_policy
from efficientnet_tf.data.source import Order, Source, map_with_fallback, without_tuning
from efficientnet_tf.data.windows import center_window, random_window
from efficientnet_tf.ops import image as image_ops

if TYPE_CHECKING:
    from efficientnet_tf.config.schema import Config

# --------------------------------------------------------------------------------------------------- single images


def image_seed(source: Source, config: Config, position: tf.Tensor, id_: tf.Tensor) -> tf.Tensor:
    """Return the seed that determines how an image is augmented in the epoch of a position, int64 [2]."""
    return tf.stack([config.train.seed + position // source.size * 2**32, id_])


def split_seed(seed: tf.Tensor) -> list[tf.Tensor]:
    """Return the seeds of an image, int64 [2] each: crop, flip, policy, erasing, vertical flip, color jitter, shift."""
    return tf.unstack(tf.random.split(seed, 7))


def train_image(encoded: tf.Tensor, seed: tf.Tensor, config: Config) -> tf.Tensor:
    """Decode a random crop of an image, resize it, and augment it as the configuration says.

    `data.crop` is for evaluation. Here it only matters if no random crop is found: then the center crop of evaluation
    is used, or the largest such crop if evaluation uses whole images.

    Args:
        encoded: Bytes of an image file, string scalar.
        seed: Seed from `image_seed`, int64 [2]. It determines the result.
        config: The configuration of the run.

    Returns:
        uint8 [H, W, C] with H, W = config.image_shape.

    Source: paper, section 5.2; official code, `preprocess_for_train`.
    Deviates: Bicubic interpolation uses half-pixel centers (`tf.image.resize`), the official code used TensorFlow 1's.
    Values are rounded to uint8 instead of truncated.
    """
    crop_seed, flip_seed, policy_seed, erase_seed, vertical_seed, jitter_seed, shift_seed = split_seed(seed)
    (height, width), channels = config.image_shape, config.data.channels

    def choose_window(shape):
        fallback = center_window(shape, (height, width), config.crop_padding)
        return random_window(shape, crop_seed, config.augment, fallback, width / height)

    portable = config.data.service is not None  # Its workers are other processes.
    image = decode_window(encoded, channels, choose_window, config.data.background, portable)
    image = tf.image.resize(image, [height, width], config.data.interpolation)
    image = tf.ensure_shape(tf.saturate_cast(tf.round(image), tf.uint8), [height, width, channels])
    if config.augment.flip:
        image = tf.image.stateless_random_flip_left_right(image, flip_seed)
    if config.augment.flip_vertical:
        image = tf.image.stateless_random_flip_up_down(image, vertical_seed)
    if config.augment.shift:
        image = image_ops.random_shift(image, shift_seed, config.augment.shift)
    policy = make_policy(config.augment)
    if policy:
        image = apply_policy(policy, image, policy_seed)
    if config.augment.color_jitter:
        image = image_ops.color_jitter(image, jitter_seed, config.augment.color_jitter)
    if config.augment.erase:
        image = image_ops.random_erase(image, erase_seed, config.augment.erase)
    return image


def eval_image(encoded: tf.Tensor, config: Config, portable: bool = False) -> tf.Tensor:
    """Decode an image and bring it to the size that the network sees in evaluation.

    Args:
        encoded: Bytes of an image file, string scalar.
        config: The configuration of the run.
        portable: As for `decode_window`.

    Returns:
        float32 [H, W, C] with H, W = config.image_shape, in about [0, 255]. See `decode_evaluation`.
    """
    return decode_evaluation(encoded, config.preprocessing, portable)


def make_image_reader(
    convert: Callable[[tf.Tensor], tf.Tensor],
    channels: int = 3,
) -> Callable[[Sequence[str]], tuple[dict[str, tf.Tensor], dict[str, str]]]:
    """Return a function that reads and converts image files.

    Args:
        convert: Function of the bytes of an image file, string scalar, that returns a tensor. It is traced once.
        channels: `data.channels`, for the reasons.

    Returns:
        A function of a sequence of paths. It returns the tensors by path, and the reasons by path for the files that
        cannot be read or decoded.
    """
    decode = tf.function(convert, input_signature=[tf.TensorSpec([], tf.string)], autograph=False)

    def read(paths):
        images, errors = {}, {}
        for path in paths:
            encoded, error = read_file(path)
            if error is None:
                try:
                    images[path] = decode(tf.constant(encoded))
                except (tf.errors.OpError, UnicodeDecodeError):  # the latter for an error that quotes the file
                    error = explain_failure(encoded, channels)
            if error is not None:
                errors[path] = error
        return images, errors

    return read


# ------------------------------------------------------------------------------------------------------- pipelines


@tf.autograph.experimental.do_not_convert  # It would write files: see `add_up` in runtime/strategy.py.
def train_dataset(
    source: Source,
    config: Config,
    failures: Failures,
    first_step: int,
    context: tf.distribute.InputContext,
    first_position: int = 0,
) -> tf.data.Dataset:
    """Return the infinite training batches of one host, from a step on.

    The images of a step and their augmentation depend only on the seed, the epoch and the ids of the images, and not on
    the number of hosts, replicas or threads. An image that cannot be decoded is replaced by another image of its batch
    and recorded.

    Args:
        source: The training images.
        config: The configuration of the run.
        failures: Collects the images that cannot be decoded while the batches are read.
        first_step: Number of steps that are already done, >= 0.
        context: Says which host this is, and how many hosts and replicas there are.
        first_position: Number of images that earlier phases of the run have used, >= 0.

    Returns:
        A dataset of batches for one replica: images, uint8 [B, H, W, C], and labels, [B,
        *source.label_shape], of `source.label_dtype`.
    """
    batch = config.train.batch_size
    per_replica = context.get_per_replica_batch_size(batch)

    def convert(position, id_, payload):
        encoded, label = source.load(payload)
        return train_image(encoded, image_seed(source, config, position, id_), config), label

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
    fallback = tf.zeros((*config.image_shape, config.data.channels), tf.uint8), source.empty_label
    images = map_with_fallback(source.stream(order), convert, fallback)
    batches = images.batch(per_replica, drop_remainder=True)
    if config.data.service:
        batches = _distribute_to_service(batches, config.data.service)
    return _prefetch(batches.map(replace_failed))


def eval_steps(source: Source, config: Config) -> int:
    """Return the number of evaluation batches. The last batch is padded, so that no image is left out."""
    return math.ceil(source.size / config.eval.batch_size)


@tf.autograph.experimental.do_not_convert  # It would write files: see `add_up` in runtime/strategy.py.
def eval_dataset(
    source: Source, config: Config, failures: Failures, context: tf.distribute.InputContext
) -> tf.data.Dataset:
    """Return the evaluation batches of one host: every image of the split once, and padding to full batches.

    Args:
        source: The evaluation images.
        config: The configuration of the run.
        failures: Collects the images that cannot be decoded while the batches are read.
        context: Says which host this is, and how many hosts and replicas there are.

    Returns:
        A dataset of `eval_steps` batches for each replica: images, float32 [B, H, W, C], labels as for
        `train_dataset`, and weights, float32 [B], 1 for an image and 0 for padding and failed images.
    """
    batch = config.eval.batch_size
    per_replica = context.get_per_replica_batch_size(batch)

    def convert(_position, _id, payload):
        encoded, label = source.load(payload)
        return eval_image(encoded, config), label

    def add_weights(positions, ids, images, labels, ok):
        failures.record(tf.boolean_mask(ids, ~ok))
        return images, labels, tf.cast(ok & (positions < source.size), tf.float32)

    order = Order(
        batch=batch,
        steps=eval_steps(source, config),
        host=context.input_pipeline_id,
        hosts=context.num_input_pipelines,
    )
    fallback = tf.zeros((*config.image_shape, config.data.channels)), source.empty_label
    images = map_with_fallback(source.stream(order), convert, fallback)
    return _prefetch(images.batch(per_replica, drop_remainder=True).map(add_weights))


@tf.autograph.experimental.do_not_convert  # It would write files: see `add_up` in runtime/strategy.py.
def sample_images(source: Source, config: Config, failures: Failures, count: int) -> tf.data.Dataset:
    """Return some images of a split as evaluation sees them. They are spread over the split, and always the same.

    Args:
        source: The images.
        config: The configuration of the run.
        failures: Collects the images that cannot be decoded while the images are read. They are left out.
        count: Number of images, >= 1. If the split has fewer, all are returned.

    Returns:
        A dataset of float32 [H, W, C].
    """
    fallback = (tf.zeros((*config.image_shape, config.data.channels)),)

    def convert(_position, _id, payload):
        return (eval_image(source.load(payload)[0], config),)

    def drop_failed(_positions, ids, images, ok):
        failures.record(tf.boolean_mask(ids, ~ok))
        return tf.boolean_mask(images, ok)

    order = Order(batch=1, shuffle=True, steps=min(count, source.size))
    images = map_with_fallback(source.stream(order), convert, fallback)
    return _prefetch(images.batch(config.eval.batch_size).map(drop_failed).unbatch())


def _distribute_to_service(batches, address):
    """Let the workers of a tf.data service make the batches. Each step is made by whichever worker is first.

    With an indexed source, every batch is bit for bit one that the local pipeline makes, and no batch comes twice.
    Workers run ahead, so the first n batches to arrive are not exactly the first n steps, and the batches that a worker
    is working on are lost if it dies. With record files, each worker reads whole epochs by itself: all images come
    equally often, but in other batches.
    """
    host, _, port = address.removeprefix("grpc://").rpartition(":")
    try:
        # TensorFlow itself would try forever.
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise UserError(
            f"data.service={address!r}: cannot connect to a dispatcher at this address: {error}. Start the service, or "
            "leave data.service out."
        ) from None
    service = tf.data.experimental.service
    return batches.apply(service.distribute(service.ShardingPolicy.DYNAMIC, address))


def _prefetch(dataset):
    """Prefetch in a deterministic order."""
    return without_tuning(dataset.prefetch(tf.data.AUTOTUNE))
