"""The two loops on the device, training and evaluation, and the step inside each: what a replica does with a batch.

A loop is one tf.function around `strategy.run`, its length a tensor: one trace, and no way back to the host between
steps. The model is called as a pure function of its variables (`stateless_call`). So gradients, batch-norm statistics
and seeds are in this file's hands, where Keras 3 under tf.distribute would keep statistics that differ between replicas
and give all replicas the same dropout masks.
"""

import functools
import math

import keras
import numpy as np
import tensorflow as tf

from efficientnet_tf import augment, data, distribute, draws, optim, train_graph
from efficientnet_tf.config import UserError


def _values(variables):
    return [tf.convert_to_tensor(v.value) for v in variables]


def make_train_loop(state, config, strategy, graph=None):
    """Make the function that trains for some steps without coming back to the host.

    Args:
        state: checkpoint.State, created in the strategy's scope.
        config: config.Config.
        strategy: tf.distribute.Strategy.
        graph: a keras.Model that lends the state's weights its graph, made for another image size, other drop rates
            or with layers frozen; the state's model by default. What trains in it trains: of the rest, weights,
            slots, statistics and averages stay as they are, to the last bit.

    Returns:
        A tf.function from (iterator of (images uint8 [B, S, S, C], labels int32 [B]) for each replica; steps, int32
        scalar) to float32 [2]: loss, weight decay included, and top-1 accuracy, means over steps and replicas.

    Raises:
        UserError: for a `train.batch_norm_group` that the strategy cannot have.

    Source: paper, section 5.2, and the official code; the items of the recipe stand in `optim`.
    """
    model, optimizer, average = state.model, state.optimizer, state.average
    replicas, group = distribute.replica_count(strategy), train_graph.group_size(config, strategy)
    graph = train_graph.make(graph or model, config, strategy)
    state_of = {v.path: v for v in (*model.trainable_variables, *optim.statistics(model))}
    trainable = [state_of[v.path] for v in graph.trainable_variables]
    statistics = [state_of[v.path] for v in optim.moving_statistics(graph)]
    held = {v.path: state_of[v.path] for v in graph.non_trainable_variables if v.path in state_of}
    decays = {v.path for v in optim.decayed_variables(model)}
    sizes = [math.prod(v.shape) for v in statistics]

    def forward_backward(weights, constants, seed, images, labels):
        """Return gradients, new statistics, and [loss, accuracy]: a function of its arguments alone."""
        # Beside statistics and what is frozen, a Keras model's other variables are its layers' seeds.
        others = [
            constants[v.path] if v.path in constants else draws.fork(seed, 1 + i)
            for i, v in enumerate(graph.non_trainable_variables)
        ]
        targets = tf.one_hot(labels, graph.output_shape[-1])
        images, targets = augment.mix(tf.cast(images, tf.float32), targets, seed, config.augment)
        with tf.GradientTape() as tape:
            tape.watch(weights)
            logits, updated = graph.stateless_call(weights, others, images, training=True)
            losses = keras.losses.categorical_crossentropy(
                targets,
                logits,
                from_logits=True,
                label_smoothing=config.train.label_smoothing,
            )
            decayed = [w for w, v in zip(weights, trainable, strict=True) if v.path in decays]
            loss = tf.reduce_mean(losses) + optim.weight_penalty(config, decayed)
            share = loss / replicas  # the optimiser sums gradients over replicas
        updated = {v.path: u for u, v in zip(updated, graph.non_trainable_variables, strict=True)}
        moving = [updated[v.path] for v in statistics]
        hits = tf.cast(tf.argmax(logits, axis=-1, output_type=tf.int32) == labels, tf.float32)
        return tape.gradient(share, weights), moving, tf.stack([loss, tf.reduce_mean(hits)])

    # A function that XLA compiles by itself cannot wait for other replicas.
    if group == 1 and distribute.should_jit(config.train.jit_compile, strategy):
        forward_backward = tf.function(forward_backward, jit_compile=True)

    def accumulate(weights, constants, step, replica, images, labels):
        """Return the means of `forward_backward` over parts of a batch, each as if it were a replica's."""
        parts, place = config.train.accumulate, replica * images.shape[0]

        def take(number, images, labels):
            # What is drawn follows from seed, step and place in the batch: a resumed run draws the same.
            seed = draws.make_seed(config.train.seed, step, place + number * images.shape[0])
            return forward_backward(weights, constants, seed, images, labels)

        if parts == 1:
            return take(0, images, labels)

        def add(sums, part):
            return tf.nest.map_structure(tf.add, sums, take(*part))

        split = (tf.reshape(x, [parts, -1, *x.shape[1:]]) for x in (images, labels))
        zeros = [tf.zeros_like(w) for w in weights], [tf.zeros(v.shape) for v in statistics], tf.zeros([2])
        # One after the other, for the memory of one.
        sums = tf.foldl(add, (tf.range(parts, dtype=tf.int64), *split), zeros, parallel_iterations=1)
        return tf.nest.map_structure(lambda total: total / parts, sums)

    @tf.autograph.experimental.do_not_convert  # it would rewrite all the code below, Keras's, too: seconds
    def replica_step(images, labels):
        if images.shape[0] is None:  # what the iterators of several workers say
            size = config.train.batch_size // replicas
            images, labels = (tf.ensure_shape(x, [size, *x.shape[1:]]) for x in (images, labels))
        context = tf.distribute.get_replica_context()
        step = tf.convert_to_tensor(optimizer.iterations.value)  # its value now: a cast would give the variable itself
        replica = tf.cast(context.replica_id_in_sync_group, tf.int64)
        constants = dict(zip(held, _values(held.values()), strict=True))
        gradients, moving, metrics = accumulate(_values(trainable), constants, step, replica, images, labels)
        optimizer.apply(gradients, trainable)
        if replicas > 1 and statistics:
            # Each group of replicas has seen its own images. The mean, in one reduction, keeps all of them the same.
            joined = context.all_reduce("MEAN", tf.concat(moving, axis=0))
            moving = tf.split(joined, sizes)
        for variable, value in zip(statistics, moving, strict=True):
            variable.assign(value)
        if average:
            paths = [v.path for v in (*trainable, *statistics)]
            new = dict(zip(paths, [*_values(trainable), *moving], strict=True))
            parts = model.trainable_variables, optim.statistics(model)
            average.update(step, *([new.get(v.path) for v in part] for part in parts))
        return metrics

    @tf.function
    def loop(iterator, steps):
        totals = tf.zeros([2])
        for _ in tf.range(steps):
            totals += strategy.reduce("MEAN", strategy.run(replica_step, args=next(iterator)), axis=None)
        return totals / tf.cast(steps, tf.float32)

    return loop


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

    failures = data.Failures(source)

    @functools.cache  # tracing it takes half a second, each time that a run evaluates
    def batches():
        return distribute.batches(strategy, lambda context: data.eval_dataset(source, config, failures, context))

    def evaluate():
        steps = tf.constant(data.eval_steps(source, config))
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
        stands_for = {id(v): s for v, s in zip(optim.statistics(model), statistics, strict=True)}
        others = [stands_for.get(id(v), v) for v in model.non_trainable_variables]

        def logits_of(images):
            return model.stateless_call(_values(trainable), _values(others), images, training=False)[0]

        return logits_of

    classifiers = {"raw": make(model.trainable_variables, optim.statistics(model))}
    if state.average:
        classifiers["ema"] = make(state.average.trainable, state.average.statistics)
    return classifiers


def make_evaluators(state, source, config, strategy):
    """Return {"raw": ..., "ema": ...}: what `make_evaluator` makes, of a state's weights and of their average."""
    classifiers = make_classifiers(state)
    return {kind: make_evaluator(logits_of, source, config, strategy) for kind, logits_of in classifiers.items()}
