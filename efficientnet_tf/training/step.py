"""TODO docstring (from loops)."""

import math

import keras
import tensorflow as tf

from efficientnet_tf.data.mixing import mix_images
from efficientnet_tf.models.variables import batch_norm_statistics, decayed_variables, trained_statistics
from efficientnet_tf.ops import random
from efficientnet_tf.runtime.strategy import replica_count, should_jit
from efficientnet_tf.runtime.variables import read_values
from efficientnet_tf.training.graph import batch_norm_group_size, make_training_graph
from efficientnet_tf.training.optimizers import weight_penalty


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
    replicas, group = replica_count(strategy), batch_norm_group_size(config, strategy)
    graph = make_training_graph(graph or model, config, strategy)
    state_of = {v.path: v for v in (*model.trainable_variables, *batch_norm_statistics(model))}
    trainable = [state_of[v.path] for v in graph.trainable_variables]
    statistics = [state_of[v.path] for v in trained_statistics(graph)]
    held = {v.path: state_of[v.path] for v in graph.non_trainable_variables if v.path in state_of}
    decays = {v.path for v in decayed_variables(model)}
    sizes = [math.prod(v.shape) for v in statistics]

    def forward_backward(weights, constants, seed, images, labels):
        """Return gradients, new statistics, and [loss, accuracy]: a function of its arguments alone."""
        # Beside statistics and what is frozen, a Keras model's other variables are its layers' seeds.
        others = [
            constants[v.path] if v.path in constants else random.derive_seed(seed, 1 + i)
            for i, v in enumerate(graph.non_trainable_variables)
        ]
        targets = tf.one_hot(labels, graph.output_shape[-1])
        images, targets = mix_images(tf.cast(images, tf.float32), targets, seed, config.augment)
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
            loss = tf.reduce_mean(losses) + weight_penalty(config, decayed)
            share = loss / replicas  # the optimiser sums gradients over replicas
        updated = {v.path: u for u, v in zip(updated, graph.non_trainable_variables, strict=True)}
        moving = [updated[v.path] for v in statistics]
        hits = tf.cast(tf.argmax(logits, axis=-1, output_type=tf.int32) == labels, tf.float32)
        return tape.gradient(share, weights), moving, tf.stack([loss, tf.reduce_mean(hits)])

    # A function that XLA compiles by itself cannot wait for other replicas.
    if group == 1 and should_jit(config.train.jit_compile, strategy):
        forward_backward = tf.function(forward_backward, jit_compile=True)

    def accumulate(weights, constants, step, replica, images, labels):
        """Return the means of `forward_backward` over parts of a batch, each as if it were a replica's."""
        parts, place = config.train.accumulate, replica * images.shape[0]

        def take(number, images, labels):
            # What is drawn follows from seed, step and place in the batch: a resumed run draws the same.
            seed = random.make_seed(config.train.seed, step, place + number * images.shape[0])
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
        constants = dict(zip(held, read_values(held.values()), strict=True))
        gradients, moving, metrics = accumulate(read_values(trainable), constants, step, replica, images, labels)
        optimizer.apply(gradients, trainable)
        if replicas > 1 and statistics:
            # Each group of replicas has seen its own images. The mean, in one reduction, keeps all of them the same.
            joined = context.all_reduce("MEAN", tf.concat(moving, axis=0))
            moving = tf.split(joined, sizes)
        for variable, value in zip(statistics, moving, strict=True):
            variable.assign(value)
        if average:
            paths = [v.path for v in (*trainable, *statistics)]
            new = dict(zip(paths, [*read_values(trainable), *moving], strict=True))
            parts = model.trainable_variables, batch_norm_statistics(model)
            average.update(step, *([new.get(v.path) for v in part] for part in parts))
        return metrics

    @tf.function
    def loop(iterator, steps):
        totals = tf.zeros([2])
        for _ in tf.range(steps):
            totals += strategy.reduce("MEAN", strategy.run(replica_step, args=next(iterator)), axis=None)
        return totals / tf.cast(steps, tf.float32)

    return loop
