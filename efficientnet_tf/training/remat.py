"""Training that keeps less in memory: what a block computes inside is computed again in the backward pass."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from efficientnet_tf.models.variables import trained_statistics
from efficientnet_tf.runtime.backend import uses_jax
from efficientnet_tf.runtime.strategy import on_host
from efficientnet_tf.scaling.layers import find_block


class RecomputingNetwork:
    """A network as a function of values, of which the forward pass keeps only what leaves a block.

    The last part, from the last block on, is kept as a whole: its backward pass comes first.

    Args:
        graph: The model whose layers compute. It must not be used in any other way.

    Attributes:
        trainable_variables: Those of the graph.
        non_trainable_variables: Those of the graph.
        statistics: What training updates without a gradient.
        output_shape: That of the graph.

    Source: Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016, section 3.
    """

    def __init__(self, graph: keras.Model):
        ends = [graph.input, *_find_ends(graph), graph.output]
        with on_host():
            self._parts = [keras.Model(*pair) for pair in zip(ends, ends[1:], strict=False)]
        self.trainable_variables = graph.trainable_variables
        self.non_trainable_variables = graph.non_trainable_variables
        self.statistics = trained_statistics(graph)
        self.output_shape = graph.output_shape

    def stateless_call(
        self, trainable: Sequence[Any], others: Sequence[Any], images: Any, training: bool = False
    ) -> tuple[Any, list[Any]]:
        """Compute the logits of images, and new values of `non_trainable_variables`."""
        variables = [*self.trainable_variables, *self.non_trainable_variables]
        values = dict(zip(map(id, variables), [*trainable, *others], strict=True))
        x = images
        for part in self._parts:
            weights, rest = (
                [values[id(v)] for v in group] for group in (part.trainable_variables, part.non_trainable_variables)
            )
            compute = _make_function(part, rest, training)
            x, updated = (compute if part is self._parts[-1] else _recompute(compute))(x, *weights)
            values |= zip(map(id, part.non_trainable_variables), updated, strict=True)
        return x, [values[id(v)] for v in self.non_trainable_variables]


def _make_function(part, others, training):
    """Return the function of a part's input and weights. Gradients pass through these only."""

    def compute(x, *weights):
        result: Any = part.stateless_call(weights, others, x, training=training)
        x, updated = result
        # TensorFlow wants new tensors, even of values that stay the same.
        return x, [ops.stop_gradient(value) for value in updated]

    return compute


def _recompute(function):
    """Return a function whose gradient calls it again."""
    if uses_jax():
        import jax

        return jax.checkpoint(function)
    import tensorflow as tf

    return tf.recompute_grad(function)


def _find_ends(graph):
    """Return the tensors that leave a block, where nothing else is read later."""
    last_readers = {
        id(tensor): index for index, layer in enumerate(graph.layers) for tensor in keras.tree.flatten(layer.input)
    }
    ends, live = [], {}
    for index, (layer, following) in enumerate(zip(graph.layers, graph.layers[1:], strict=False)):
        live[id(layer.output)] = layer.output
        live = {key: tensor for key, tensor in live.items() if last_readers[key] > index}
        if find_block(layer.name) != find_block(following.name) and len(live) == 1:
            ends += live.values()
    return ends
