"""The two loops on the device, training and evaluation, and the step inside each: what a replica does with a batch.

A loop is one tf.function around `strategy.run`, its length a tensor: one trace, and no way back to the host between
steps. The model is called as a pure function of its variables (`stateless_call`). So gradients, batch-norm statistics
and dropout masks are in this file's hands, where Keras 3 under tf.distribute would keep statistics that differ
between replicas and give all replicas the same masks.
"""

import math

import keras
import tensorflow as tf

from efficientnet_tf import augment, data, distribute, optim


def _values(variables):
    return [tf.convert_to_tensor(v.value) for v in variables]


def make_train_loop(state, config, strategy, graph=None):
    """Make the function that trains for some steps without coming back to the host.

    Args:
        state: checkpoint.State, created in the strategy's scope.
        config: config.Config.
        strategy: tf.distribute.Strategy.
        graph: a keras.Model that lends the state's weights its graph, made for another image size or other drop
            rates; the state's model by default.

    Returns:
        A tf.function from (iterator of (images uint8 [B, S, S, C], labels int32 [B]) for each replica; steps, int32
        scalar) to float32 [2]: loss, weight decay included, and top-1 accuracy, means over steps and replicas.

    Source: paper, section 5.2, and the official code; the items of the recipe stand in `optim`.
    """
    model, optimizer, average = state.model, state.optimizer, state.average
    graph = graph or model
    replicas = strategy.num_replicas_in_sync
    trainable, statistics = model.trainable_variables, optim.statistics(model)
    decays = {id(v) for v in optim.decayed_variables(model)}
    is_statistic = {id(v) for v in optim.statistics(graph)}
    sizes = [math.prod(v.shape) for v in statistics]

    def forward_backward(weights, moving, seed, images, labels):
        """Return gradients, new statistics, and [loss, accuracy]: a function of its arguments alone."""
        # Beside statistics, a Keras model's other variables are its layers' seeds.
        moving = iter(moving)
        others = [
            next(moving) if id(v) in is_statistic else seed + tf.constant([i, 0], tf.int64) * 2**32
            for i, v in enumerate(graph.non_trainable_variables)
        ]
        targets = tf.one_hot(labels, graph.output_shape[-1])
        images, targets = augment.mix(tf.cast(images, tf.float32), targets, seed + [2**47, 0], config.augment)
        with tf.GradientTape() as tape:
            tape.watch(weights)
            logits, updated = graph.stateless_call(weights, others, images, training=True)
            losses = keras.losses.categorical_crossentropy(
                targets,
                logits,
                from_logits=True,
                label_smoothing=config.train.label_smoothing,
            )
            decayed = [w for w, v in zip(weights, trainable, strict=True) if id(v) in decays]
            loss = tf.reduce_mean(losses) + optim.weight_penalty(config, decayed)
            share = loss / replicas  # the optimiser sums gradients over replicas
        moving = [u for u, v in zip(updated, graph.non_trainable_variables, strict=True) if id(v) in is_statistic]
        hits = tf.cast(tf.argmax(logits, axis=-1, output_type=tf.int32) == labels, tf.float32)
        return tape.gradient(share, weights), moving, tf.stack([loss, tf.reduce_mean(hits)])

    if distribute.should_jit(config.train.jit_compile, strategy):
        forward_backward = tf.function(forward_backward, jit_compile=True)

    def replica_step(images, labels):
        context = tf.distribute.get_replica_context()
        step = tf.convert_to_tensor(optimizer.iterations.value)  # its value now: a cast would give the variable itself
        replica = tf.cast(context.replica_id_in_sync_group, tf.int64)
        # Masks differ from layer to layer, step to step and replica to replica, and a resumed run draws the same ones.
        seed = tf.stack([config.train.seed + replica * 2**48, step])
        gradients, moving, metrics = forward_backward(_values(trainable), _values(statistics), seed, images, labels)
        optimizer.apply(gradients, trainable)
        if replicas > 1:
            # Each replica has seen its own images. The mean, in one reduction, keeps all of them the same.
            joined = context.all_reduce("MEAN", tf.concat(moving, axis=0))
            moving = tf.split(joined, sizes)
        for variable, value in zip(statistics, moving, strict=True):
            variable.assign(value)
        if average:
            average.update(step, _values(trainable), moving)
        return metrics

    @tf.function
    def loop(iterator, steps):
        totals = tf.zeros([2])
        for _ in tf.range(steps):
            totals += strategy.reduce("MEAN", strategy.run(replica_step, args=next(iterator)), axis=None)
        return totals / tf.cast(steps, tf.float32)

    return loop


def make_evaluator(logits_of, source, config, strategy):
    """Make a function that evaluates a classifier on a source; every example counts exactly once.

    Args:
        logits_of: from images float32 [B, S, S, C], pixels in [0, 255], to logits [B, classes]; called in a replica.
        source: sources.Source.
        config: config.Config.
        strategy: tf.distribute.Strategy.

    Returns:
        A function without arguments that returns {"examples": int, "loss": float, "top1": float, "top5": float}: loss
        is the mean cross-entropy without label smoothing, top1 and top5 are shares in [0, 1]. It raises UserError
        where an image cannot be decoded.

    Deviates: the official code drops the last, partial batch; here it is filled up and the filling weighs 0.
    """

    def replica_step(images, labels, weights):
        logits = tf.cast(logits_of(images), tf.float32)
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
        true = tf.gather(logits, labels, batch_dims=1)[:, None]
        # How many classes come before the label: of equal ones the first, as in argmax. Nothing is behind a NaN.
        classes = tf.shape(logits)[1]
        behind = tf.where(tf.range(classes) < labels[:, None], logits < true, logits <= true)
        rank = classes - tf.reduce_sum(tf.cast(behind, tf.int32), axis=1)
        values = [tf.ones_like(losses), losses, tf.cast(rank < 1, tf.float32), tf.cast(rank < 5, tf.float32)]
        return tf.reduce_sum(tf.where(weights > 0, tf.stack(values), 0.0), axis=1)

    @tf.function
    def loop(iterator, steps):
        sums = tf.zeros([4])
        for _ in tf.range(steps):
            sums += strategy.reduce("SUM", strategy.run(replica_step, args=next(iterator)), axis=None)
        return sums

    def evaluate():
        failures = data.Failures(source)
        batches = strategy.distribute_datasets_from_function(
            lambda context: data.eval_dataset(source, config, failures, context)
        )
        steps = tf.constant(data.eval_steps(source, config))
        count, loss, top1, top5 = loop(iter(batches), steps).numpy().astype(float)
        failures.check(max_fraction=0)
        if count != source.size:
            raise RuntimeError(f"evaluation counted {count:g} of {source.size} examples")
        return {"examples": int(count), "loss": loss / count, "top1": top1 / count, "top5": top5 / count}

    return evaluate


def make_evaluators(state, source, config, strategy):
    """Return {"raw": ..., "ema": ...}: what `make_evaluator` makes, of a state's weights and of their average."""
    model = state.model

    def make(trainable, statistics):
        stands_for = {id(v): s for v, s in zip(optim.statistics(model), statistics, strict=True)}
        others = [stands_for.get(id(v), v) for v in model.non_trainable_variables]

        def logits_of(images):
            return model.stateless_call(_values(trainable), _values(others), images, training=False)[0]

        return make_evaluator(logits_of, source, config, strategy)

    evaluators = {"raw": make(model.trainable_variables, optim.statistics(model))}
    if state.average:
        evaluators["ema"] = make(state.average.trainable, state.average.statistics)
    return evaluators
