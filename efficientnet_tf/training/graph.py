"""The graph that training takes: a model's own, with layers in it that know of replicas. The model itself stays plain.

Dropout draws by an image's place in the whole batch, so that a run is the same on any number of replicas; batch norm
may take its mean and variance over the images of several; and on a processor the layers that take most of the time are
those of `fused`.
"""

import math

import keras
import tensorflow as tf

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.ops import fused_cpu, random
from efficientnet_tf.runtime.strategy import device_type, on_host, replica_count, should_jit

# Fewer values stay in the caches: their passes over memory do not pay for the tenth of a second that XLA takes a shape.
MANY_VALUES = 2**20


def batch_norm_group_size(config, strategy):
    """Return how many replicas share batch norm's statistics: `train.batch_norm_group` as a number.

    Args:
        config: config.Config.
        strategy: tf.distribute.Strategy.

    Returns:
        int >= 1, a divisor of the number of replicas.

    Raises:
        UserError: for groups that do not divide the replicas, or that go with neither XLA nor accumulation.

    Source: official code, `TpuBatchNormalization`, for "auto".
    """
    asked, replicas = config.train.batch_norm_group, replica_count(strategy)
    if asked == "auto":
        group = 1 if replicas <= 8 else max(8, replicas // 8)
    else:
        group = replicas if asked == "all" else asked
    if replicas % group:
        raise UserError(
            f"train.batch_norm_group={asked}: groups of {group} do not divide {replicas} replicas: give a divisor"
        )
    if group > 1 and config.train.accumulate > 1:
        raise UserError(
            f"train.batch_norm_group={asked} makes {group} replicas meet, which train.accumulate="
            f"{config.train.accumulate} cannot: set one of them to 1"
        )
    if group > 1 and config.train.jit_compile == "on":
        raise UserError(
            f"train.batch_norm_group={asked} makes {group} replicas meet, which train.jit_compile=on cannot compile: "
            "set it to auto"
        )
    return group


def make_training_graph(model, config, strategy):
    """Copy a model for training; the model itself where nothing in it would be another layer.

    Args:
        model: keras.Model.
        config: config.Config.
        strategy: tf.distribute.Strategy.

    Returns:
        A keras.Model with the same names, to be called in a replica, whose seeds are those of `draws`; its variables,
        in the host's memory, lend theirs alone.

    Raises:
        UserError: for a `train.batch_norm_group` that the strategy cannot have.
    """
    group = batch_norm_group_size(config, strategy)
    others, rows = {keras.layers.Dropout: _Dropout}, {}
    if group > 1:
        others[keras.layers.BatchNormalization] = _SharedBatchNormalization
    # XLA fuses by itself; other devices have not been measured.
    if device_type(strategy) == "CPU" and not should_jit(config.train.jit_compile, strategy):
        others |= {keras.layers.Conv2D: _Conv2D, keras.layers.DepthwiseConv2D: _DepthwiseConv2D}
        rows = {} if group > 1 else {layer.name: row for row in _rows(model) for layer in row}
    if not rows and not any(type(layer) in others for layer in model.layers):
        return model

    def copy(layer):
        new = others.get(type(layer), type(layer)).from_config(layer.get_config())
        if layer.name in rows and layer.weights:
            new.build(layer.input.shape)  # here, so that variables keep their paths
        if isinstance(new, _SharedBatchNormalization):
            new.group, new.groups = group, replica_count(strategy) // group
        return new

    copies = {}

    def call(layer, inputs, *more, **settings):
        if layer.name not in rows:
            return layer(inputs, *more, **settings)
        copies[layer.name] = layer
        names = [member.name for member in rows[layer.name]]
        if layer.name != names[-1]:
            return inputs  # on to the last, which all of them wait for
        return _Row([copies.pop(name) for name in names])(keras.tree.flatten(inputs)[0])

    with on_host():
        return keras.models.clone_model(model, clone_function=copy, call_function=call)


def _rows(model):
    """Return lists of layers that `_Row` can stand for, each batch norm that trains with those around it."""
    readers = {layer.name: [node.operation for node in layer._outbound_nodes] for layer in model.layers}

    def is_swish(layer):
        return isinstance(layer, keras.layers.Activation) and layer.activation is keras.activations.silu

    rows = []
    for norm in model.layers:
        if not isinstance(norm, keras.layers.BatchNormalization) or not norm.trainable or len(norm.input.shape) != 4:
            continue
        before, after = norm.input._keras_history.operation, readers[norm.name]
        row = [norm]
        if len(after) == 1 and is_swish(after[0]):
            row += after
            excite = [layer for layer in readers[after[0].name] if isinstance(layer, keras.layers.Multiply)]
            if excite:
                expand = excite[0].input[1]._keras_history.operation
                reduce = expand.input._keras_history.operation
                row += [reduce.input._keras_history.operation, reduce, expand, *excite]
            elif _is_widening(before):
                row = [before, *row]
        rows.append(row)
    return rows


def _is_product(conv):
    """Tell whether a convolution is a product of matrices, and faster as one: in bfloat16 it is not."""
    return (conv.kernel_size, conv.strides, conv.groups) == ((1, 1), (1, 1), 1) and conv.compute_dtype == "float32"


def _is_widening(layer):
    return (
        isinstance(layer, keras.layers.Conv2D)
        and _is_product(layer)
        and not layer.use_bias
        and layer.activation is keras.activations.linear
        and layer.input.shape[-1] < layer.filters
    )


class _Row(keras.layers.Layer):
    """Layers one after the other as one operation of `fused`: batch norm, and what there is before and behind it.

    Either a 1x1 convolution, batch norm, swish; or batch norm, swish, and the four layers of squeeze-and-excite; or
    batch norm with swish or alone. Where there are fewer than MANY_VALUES, batch norm alone.
    """

    def __init__(self, row):
        super().__init__(name=f"{row[0].name}_to_{row[-1].name}", dtype=row[0].dtype_policy)
        self.conv = row.pop(0) if isinstance(row[0], keras.layers.Conv2D) else None
        self.norm, *rest = row
        self.swish, self.squeeze_excite = rest[:1], rest[1:]

    def call(self, x, training=None):
        norm, epsilon = self.norm, self.norm.epsilon
        if not training:
            return self._behind(norm(self._before(x), training=False))
        gamma, beta = tf.cast(norm.gamma, tf.float32), tf.cast(norm.beta, tf.float32)
        channels = self.conv.filters if self.conv else x.shape[-1]
        if math.prod([*x.shape[:-1], channels]) < MANY_VALUES:
            x, *moments = fused_cpu.batch_norm(self._before(x), gamma, beta, epsilon, swish=False)
            x = self._behind(x)
        elif self.conv:
            x, *moments = fused_cpu.conv_batch_norm_swish(x, tf.cast(self.conv.kernel, x.dtype), gamma, beta, epsilon)
        elif self.squeeze_excite:
            _, reduce, expand, _ = self.squeeze_excite

            def gate_of(means, weights):
                inner, _ = reduce.stateless_call(weights[:2], [], means)
                return expand.stateless_call(weights[2:], [], inner)[0]

            weights = [tf.cast(v, x.dtype) for v in (*reduce.weights, *expand.weights)]
            x, *moments = fused_cpu.batch_norm_squeeze_excite(x, gamma, beta, epsilon, gate_of, weights)
        else:
            x, *moments = fused_cpu.batch_norm(x, gamma, beta, epsilon, bool(self.swish))
        for moving, new in zip((norm.moving_mean, norm.moving_variance), moments, strict=True):
            moving.assign(moving * norm.momentum + new * (1 - norm.momentum))
        return x

    def _before(self, x):
        return self.conv(x) if self.conv else x

    def _behind(self, x):
        for swish in self.swish:
            x = swish(x)
        if self.squeeze_excite:
            squeeze, reduce, expand, excite = self.squeeze_excite
            x = excite([x, expand(reduce(squeeze(x)))])
        return x


class _Dropout(keras.layers.Dropout):
    """Keras's dropout, but that an image's mask follows from the image's place in the batch."""

    def call(self, inputs, training=False):
        if not training or not self.rate:
            return inputs
        sides = zip(self.noise_shape or inputs.shape, inputs.shape, strict=True)
        shape = [whole if side is None else side for side, whole in sides]
        numbers = random.uniform(self.seed_generator.next(), shape[0], math.prod(shape[1:]))
        scale = tf.where(numbers < self.rate, 0.0, 1 / (1 - self.rate))
        return inputs * tf.cast(tf.reshape(scale, shape), inputs.dtype)


class _Conv2D(keras.layers.Conv2D):
    """Keras's, but where it is a product of matrices by `fused`."""

    def convolution_op(self, inputs, kernel):
        if not _is_product(self):
            return super().convolution_op(inputs, kernel)
        return fused_cpu.pointwise_conv(inputs, tf.convert_to_tensor(kernel))


class _DepthwiseConv2D(keras.layers.DepthwiseConv2D):
    """Keras's, by `fused`."""

    def call(self, inputs):
        if self.padding != "same":
            return super().call(inputs)
        return fused_cpu.depthwise_conv(inputs, tf.cast(self.kernel, inputs.dtype), self.strides[0])


class _SharedBatchNormalization(keras.layers.BatchNormalization):
    """Keras's batch norm with the moments of a group.

    Source: official code, `TpuBatchNormalization`: Var[x] = E[x^2] - E[x]^2 of the replicas' moments.
    Deviates from Keras's `synchronized`: that has no groups, and reduces three times a layer.
    """

    def _moments(self, inputs, mask):
        mean, variance = super()._moments(inputs, mask)
        context = tf.distribute.get_replica_context()
        own = context.replica_id_in_sync_group // self.group
        # No strategy but the TPU's reduces within groups: each group has a row of its own in what all of them sum up.
        row = tf.one_hot(own, self.groups)[:, None, None] / self.group
        moments = context.all_reduce("SUM", row * tf.stack([mean, variance + mean**2]))
        mean, square = tf.unstack(tf.gather(moments, own))
        return mean, tf.maximum(square - mean**2, 0.0)
