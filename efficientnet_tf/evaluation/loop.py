"""The two loops on the device, training and evaluation, and the step inside each: what a replica does with a batch.

A loop is one tf.function around `strategy.run`, its length a tensor: one trace, and no way back to the host between
steps. The model is called as a pure function of its variables (`stateless_call`). So gradients, batch-norm statistics
and seeds are in this file's hands, where Keras 3 under tf.distribute would keep statistics that differ between replicas
and give all replicas the same dropout masks.
"""

import functools

import numpy as np
import tensorflow as tf

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.data.pipeline import Failures, eval_dataset, eval_steps
from efficientnet_tf.models.variables import batch_norm_statistics
from efficientnet_tf.runtime.strategy import distribute_batches
from efficientnet_tf.runtime.variables import read_values


def make_eval_loop(logits_of, classes, strategy, several=False, confusion=False):
    """Make the function that evaluates for some steps without coming back to the host.

    Args:
        logits_of: as of `make_evaluator`.
        classes: int >= 2.
        strategy: tf.distribute.Strategy.
        several: bool; an example has one label and others that count as right behind it.
        confusion: bool; count predictions by class, too.

    Returns:
        A tf.function from (iterator of (images float32 [B, S, S, C], labels int32 [B] or [B, K], weights float32 [B])
        for each replica; steps, int32 scalar) to float32 [4, or 6 with `several`, and classes**2 with `confusion`]:
        sums over all examples, each times its weight.
    """
    totals = 4 + 2 * several  # and the confusion matrix, all in one vector: one reduction over replicas a step

    @tf.autograph.experimental.do_not_convert
    def replica_step(images, labels, weights):
        labels, right = (labels[:, 0], labels[:, 1:]) if several else (labels, None)
        logits = tf.cast(logits_of(images), tf.float32)
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
        true = tf.gather(logits, labels, batch_dims=1)[:, None]
        # How many classes come before the label: of equal ones the first, as in argmax. Nothing is behind a NaN.
        behind = tf.where(tf.range(classes) < labels[:, None], logits < true, logits <= true)
        rank = classes - tf.reduce_sum(tf.cast(behind, tf.int32), axis=1)
        values = [tf.ones_like(losses), losses, tf.cast(rank < 1, tf.float32), tf.cast(rank < 5, tf.float32)]
        is_nan = tf.reduce_any(tf.math.is_nan(logits), axis=1)
        predicted = tf.where(is_nan, classes, tf.argmax(logits, axis=1, output_type=tf.int32))
        if several:
            values.append(tf.cast(tf.reduce_any(right != -1, axis=1), tf.float32))
            values.append(tf.cast(tf.reduce_any(right == predicted[:, None], axis=1), tf.float32))
        sums = tf.reduce_sum(tf.where(weights > 0, tf.stack(values), 0.0), axis=1)
        if confusion:  # a product of ones and zeros, exact on every device, in bfloat16, too; a NaN's row is zero
            true = tf.one_hot(labels, classes) * weights[:, None]
            counts = tf.matmul(true, tf.one_hot(predicted, classes), transpose_a=True)
            sums = tf.concat([sums, tf.reshape(counts, [-1])], axis=0)
        return sums

    @tf.function
    def loop(iterator, steps):
        sums = tf.zeros([totals + confusion * classes**2])
        for _ in tf.range(steps):
            sums += strategy.reduce("SUM", strategy.run(replica_step, args=next(iterator)), axis=None)
        return sums

    return loop


def make_evaluator(logits_of, source, config, strategy, confusion=False):
    """Make a function that evaluates a classifier on a source; every example counts exactly once.

    Args:
        logits_of: from images float32 [B, S, S, C], pixels in [0, 255], to logits [B, classes]; called in a replica.
        source: sources.Source; one label an example, or several that count as right behind it.
        config: config.Config.
        strategy: tf.distribute.Strategy.
        confusion: bool; count predictions by class, too.

    Returns:
        A function without arguments that returns {"examples": int, "loss": float, "top1": float, "top5": float}: loss
        is the mean cross-entropy without label smoothing, top1 and top5 are shares in [0, 1]. With several labels
        beside them "real_examples", those with any, and "real", the share of these whose prediction is among them; with
        `confusion` int64 [classes, classes] of that name, true classes down, predicted ones across. It raises UserError
        where an image cannot be decoded, no example has several labels, or logits to be counted by class are NaN.

    Deviates: the official code drops the last, partial batch; here it is filled up and the filling weighs 0.
    """
    classes, several = len(source.class_names), bool(source.label_shape)
    totals = 4 + 2 * several
    loop = make_eval_loop(logits_of, classes, strategy, several, confusion)

    failures = Failures(source)

    @functools.cache  # tracing it takes half a second, each time that a run evaluates
    def batches():
        return distribute_batches(strategy, lambda context: eval_dataset(source, config, failures, context))

    def evaluate():
        steps = tf.constant(eval_steps(source, config))
        sums = loop(iter(batches()), steps).numpy().astype(float)
        count, loss, top1, top5, *real = sums[:totals]
        failures.check(max_fraction=0)
        if count != source.size:
            raise RuntimeError(f"evaluation counted {count:g} of {source.size} examples")
        result = {"examples": int(count), "loss": loss / count, "top1": top1 / count, "top5": top5 / count}
        if several:
            if not real[0]:
                raise UserError(f"none of the {source.size} examples has labels to be held against")
            result |= {"real": real[1] / real[0], "real_examples": int(real[0])}
        if confusion:
            result["confusion"] = sums[totals:].reshape(classes, classes).astype(np.int64)
            if result["confusion"].sum() != count:
                raise UserError(f"{count - result['confusion'].sum():g} examples have NaN among their logits, no class")
        return result

    return evaluate


def make_classifiers(state):
    """Return {"raw": ..., "ema": ...}: `logits_of` of a state's weights and of their average, for `make_evaluator`."""
    model = state.model

    def make(trainable, statistics):
        stands_for = {id(v): s for v, s in zip(batch_norm_statistics(model), statistics, strict=True)}
        others = [stands_for.get(id(v), v) for v in model.non_trainable_variables]

        def logits_of(images):
            return model.stateless_call(read_values(trainable), read_values(others), images, training=False)[0]

        return logits_of

    classifiers = {"raw": make(model.trainable_variables, batch_norm_statistics(model))}
    if state.ema:
        classifiers["ema"] = make(state.ema.trainable, state.ema.statistics)
    return classifiers


def make_evaluators(state, source, config, strategy):
    """Return {"raw": ..., "ema": ...}: what `make_evaluator` makes, of a state's weights and of their average."""
    classifiers = make_classifiers(state)
    return {kind: make_evaluator(logits_of, source, config, strategy) for kind, logits_of in classifiers.items()}
