"""Evaluates a network under `tf.distribute`. Every image of a split counts exactly once."""

import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from efficientnet_tf.config.load import override_config
from efficientnet_tf.config.schema import Config
from efficientnet_tf.data.failures import Failures
from efficientnet_tf.data.pipeline import eval_dataset, eval_steps
from efficientnet_tf.data.source import Source
from efficientnet_tf.evaluation.metrics import Metrics, choose_metrics
from efficientnet_tf.runtime.backend import uses_jax
from efficientnet_tf.runtime.strategy import add_up, distribute_batches

_BLOCKS = 100  # of steps, in an evaluation whose progress is reported
Classifier = Callable[[tf.Tensor], tf.Tensor]
"""Function of images float32 [B, H, W, C], pixels in [0, 255], to logits [B, classes]."""


def make_eval_loop(
    classifiers: Sequence[Classifier],
    metrics: Metrics,
    strategy: tf.distribute.Strategy,
    variables: Sequence[keras.Variable] = (),
):
    """Make the function that evaluates for some steps without coming back to the host.

    Args:
        classifiers: The classifiers, which are called in a replica.
        metrics: What is counted.
        strategy: Where to run.
        variables: With JAX: the variables that the classifiers read.

    Returns:
        A `tf.function` of an iterator of per-replica batches (images float32 [B, H, W, C], labels [B, ...], weights
        float32 [B]), a number of steps, int32 scalar, and sums to add to, float32 [classifiers, metrics.size], or None.
        It returns the sums over all images, of the same shape. With JAX, a Python function that does the same.
    """
    if uses_jax():
        from efficientnet_tf.evaluation import jax_loop

        return jax_loop.make_eval_loop(classifiers, metrics, strategy, variables)

    def replica_step(images, labels, weights):
        rows = []
        for logits_of in classifiers:
            with tf.control_dependencies(rows[-1:]):  # One after the other, so that they take the memory of one.
                rows.append(metrics.sum_up(tf.cast(logits_of(images), tf.float32), labels, weights))
        return tf.stack(rows)

    @tf.function(autograph=False)
    def loop(iterator, steps, sums=None):
        if sums is None:
            sums = tf.zeros([len(classifiers), metrics.size])

        def step():
            return strategy.reduce("SUM", strategy.run(replica_step, args=next(iterator)), axis=None)

        return add_up(steps, sums, step)

    return loop


def make_evaluator(
    logits_of: Classifier,
    source: Source,
    config: Config,
    strategy: tf.distribute.Strategy,
    confusion: bool = False,
    report: Callable[[int], Any] | None = None,
    variables: Sequence[keras.Variable] = (),
) -> Callable[[], dict[str, Any]]:
    """Make a function that evaluates a network on a source.

    Args:
        logits_of: The classifier, which is called in a replica.
        source: The images. Each has one label, or several that count as correct (`Source.label_shape`).
        config: The config that says how images are cropped and batched. A batch size that is no multiple of the number
            of replicas is rounded up to one, which changes no result.
        strategy: Where to run.
        confusion: Whether to count predictions by class.
        report: Function that is called now and then with the number of images that were evaluated since the last call.
        variables: As for `make_eval_loop`.

    Returns:
        A function without arguments that returns {"examples": int, "loss": float, "top1": float, "top5": float}. The
        loss is the mean cross-entropy without label smoothing. The accuracies are in [0, 1]. Of up to five classes
        there is no "top5", for it would be 1. With data.task=multilabel, there are "f1" and "exact" instead, and with
        data.task=regression "mae" and "r2": see `evaluation.metrics`. Images that cannot be decoded are left out and
        named in a line of the log; "unreadable" is their number, if there are any. If images have several labels that
        count as correct, there are also
        "real_examples", how many have any, and "real", the share of these whose prediction is among them. With
        `confusion` there is also int64 [classes, classes] of that name, with true classes as rows and predictions as
        columns. The function raises UserError if more images than data.max_bad_fraction allows cannot be decoded, if
        no image has several labels, or if logits to be counted by class are NaN.

    Deviates: the official code drops the last, partial batch. Here it is padded, and the padding has weight 0.
    """
    evaluate = make_joint_evaluator({"": logits_of}, source, config, strategy, confusion, report, variables)
    return lambda: evaluate()[""]


def make_joint_evaluator(
    classifiers: Mapping[str, Classifier],
    source: Source,
    config: Config,
    strategy: tf.distribute.Strategy,
    confusion: bool = False,
    report: Callable[[int], Any] | None = None,
    variables: Sequence[keras.Variable] = (),
) -> Callable[[], dict[str, dict[str, Any]]]:
    """Make a function that evaluates several classifiers on the same images, which are read and decoded once.

    Args:
        classifiers: The classifiers by name.
        source: As for `make_evaluator`, like the other arguments.
        config: As for `make_evaluator`.
        strategy: As for `make_evaluator`.
        confusion: As for `make_evaluator`.
        report: As for `make_evaluator`.
        variables: As for `make_eval_loop`.

    Returns:
        A function without arguments that returns {name: result}. The results are those of `make_evaluator`.
    """
    metrics = choose_metrics(config, source, confusion)
    loop = make_eval_loop(list(classifiers.values()), metrics, strategy, variables)
    failures, reported = Failures(source), set()
    config = _fit_batch(config, strategy.num_replicas_in_sync)

    @functools.cache  # Tracing the pipeline takes half a second, and a run evaluates many times.
    def batches():
        return distribute_batches(strategy, lambda context: eval_dataset(source, config, failures, context))

    def sum_up(iterator, steps):
        if report is None:  # The host does not interrupt the device.
            return loop(iterator, tf.constant(steps))
        # Without these zeros, the loop would be traced twice: for no sums, and for those of the first block.
        sums = np.zeros([len(classifiers), metrics.size], np.float32)
        block = max(steps // _BLOCKS, 1)
        for start in range(0, steps, block):
            end = min(start + block, steps)
            sums = loop(iterator, tf.constant(end - start), sums)
            before, done = (min(step * config.eval.batch_size, source.size) for step in (start, end))
            report(done - before)
        return sums

    def evaluate():
        failures.clear()
        sums = np.asarray(sum_up(iter(batches()), eval_steps(source, config))).astype(float)
        bad = source.size - int(sums[0, 0])  # on all hosts, so that all raise the error or none
        _check_failures(failures, bad, config, reported)
        results = (metrics.read(row, source.size) for row in sums)
        return dict(zip(classifiers, results, strict=True))

    return evaluate


def collect_outputs(
    compute: Callable[[np.ndarray], np.ndarray],
    source: Source,
    config: Config,
    report: Callable[[int], Any] = lambda images: None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the outputs for all images of a source that can be read, and their labels, in this process.

    Args:
        compute: Function of images, float32 [N, H, W, C], to outputs, float32 [N, outputs].
        source: The images.
        config: The config that says how images are cropped and batched.
        report: Function that is called after each batch with its number of images.

    Returns:
        Outputs, float32 [N, outputs]; labels, [N, ...]; and where each image comes in the order of the evaluation, int
        [N].

    Raises:
        UserError: If more images than data.max_bad_fraction allows cannot be decoded.
    """
    failures = Failures(source)
    outputs, labels, places = [], [], []
    dataset = eval_dataset(source, config, failures, tf.distribute.InputContext())
    for number, (images, batch_labels, weights) in enumerate(dataset.as_numpy_iterator()):
        good = weights > 0
        outputs.append(compute(images[good]))
        labels.append(batch_labels[good])
        places.append(number * len(weights) + np.flatnonzero(good))
        report(int(good.sum()))
    found = np.concatenate(places)
    _check_failures(failures, source.size - len(found), config, set())
    return np.concatenate(outputs), np.concatenate(labels), found


def _check_failures(failures, bad, config, reported):
    """Raise UserError if too many images failed. Otherwise name them, unless they were reported before."""
    failures.check_count(bad, config.data.max_bad_fraction)
    if bad and not reported.issuperset(names := failures.names()):
        reported.update(names)
        logging.getLogger(__name__).warning(
            "%d of %d evaluation images could not be read and were left out: %s.",
            bad, failures.source.size, failures.describe(),
        )  # fmt: skip


def _fit_batch(config, replicas):
    """Return the config with a batch size for evaluation that all replicas can share."""
    batch = -(-config.eval.batch_size // replicas) * replicas
    return config if batch == config.eval.batch_size else override_config(config, [f"eval.batch_size={batch}"])
