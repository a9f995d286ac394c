"""What int8 does to a network, whatever the runtime: which layers lose most by it, and what stays float with one."""

import keras
import numpy as np
import tensorflow as tf
from keras import ops

BATCH = 32


class _Rounding(keras.layers.Layer):
    """While `on`, what int8 leaves of a tensor: 256 steps from the least to the greatest value that calibration saw."""

    def build(self, input_shape):
        self.low, self.high, self.on = (
            self.add_weight(shape=(), initializer="zeros", trainable=False, name=name) for name in ("low", "high", "on")
        )

    def call(self, inputs):
        step = ops.maximum((self.high - self.low) / 255, 1e-12)
        rounded = self.low + step * ops.round((ops.clip(inputs, self.low, self.high) - self.low) / step)
        return ops.where(self.on > 0, rounded, inputs)


def layers_with_weights(model):
    """Return the names of a model's convolutions and dense layers, in the order of the data: list of str."""
    return [layer.name for layer in model.layers if hasattr(layer, "kernel")]


def measure_losses(model, calibration, images):
    """Measure for each convolution and dense layer what is lost where it alone computes in int8.

    Its input and output take 256 values over the calibration's range, its weights 255 a channel: what a quantiser does
    at its simplest. Runtimes fuse and clip differently; which layers suffer is the same.

    Args:
        model: keras.Model of `folding.fold_batch_norm`.
        calibration: iterable of float32 [1, S, S, C], pixels in [0, 255].
        images: float32 [N, S, S, C] to measure on.

    Returns:
        {layer's name: error of the logits, root mean square as a share of the logits' standard deviation}, the greatest
        first.
    """
    names = layers_with_weights(model)

    def call(layer, x, **options):
        if layer.name not in names:
            return layer(x, **options)
        return _Rounding(name=f"{layer.name}_out")(layer(_Rounding(name=f"{layer.name}_in")(x), **options))

    probe = keras.models.clone_model(model, call_function=call)
    for layer in model.layers:
        probe.get_layer(layer.name).set_weights(layer.get_weights())
    roundings = {name: [probe.get_layer(f"{name}_{end}") for end in ("in", "out")] for name in names}
    _calibrate(probe, [rounding for both in roundings.values() for rounding in both], calibration)

    forward = tf.function(lambda batch: probe(batch, training=False))

    def logits():
        return np.concatenate([forward(images[i : i + BATCH]).numpy() for i in range(0, len(images), BATCH)])

    exact, losses = logits(), {}
    for name in names:
        layer = probe.get_layer(name)
        kernel = layer.kernel.numpy()
        layer.kernel.assign(_round_kernel(kernel, layer))
        for rounding in roundings[name]:
            rounding.on.assign(1.0)
        losses[name] = float(np.sqrt(np.mean((logits() - exact) ** 2)) / exact.std())
        layer.kernel.assign(kernel)
        for rounding in roundings[name]:
            rounding.on.assign(0.0)
    return dict(sorted(losses.items(), key=lambda item: -item[1]))


def _calibrate(probe, roundings, calibration):
    """Set the range of each rounding to that of its inputs over the calibration."""
    tensors = keras.Model(probe.inputs, [rounding.input for rounding in roundings])

    @tf.function
    def ranges(image):
        return tf.stack([[tf.reduce_min(x), tf.reduce_max(x)] for x in tensors(image, training=False)])

    found = np.stack([ranges(image).numpy() for image in calibration])
    for rounding, low, high in zip(roundings, found[..., 0].min(axis=0), found[..., 1].max(axis=0), strict=True):
        rounding.low.assign(low)
        rounding.high.assign(high)


def _round_kernel(kernel, layer):
    """Round weights to 255 steps around zero, of a size of its own for each output channel."""
    channel = 2 if isinstance(layer, keras.layers.DepthwiseConv2D) else kernel.ndim - 1
    others = tuple(axis for axis in range(kernel.ndim) if axis != channel)
    step = np.maximum(np.abs(kernel).max(axis=others, keepdims=True) / 127, 1e-12)
    return np.round(kernel / step) * step


# ------------------------------------------------------------------------------------------------- layers kept in float


def fingerprint(kernel):
    """Return what tells a kernel from others however an exporter has laid it out."""
    return np.sort(np.asarray(kernel, np.float32), axis=None).tobytes()


def kernels_of(model):
    """Return {fingerprint: name} of a model's convolutions and dense layers."""
    return {fingerprint(model.get_layer(name).kernel): name for name in layers_with_weights(model)}


def float_region(operations, keep):
    """Return the operations of an exported network that compute in float for some layers to do so.

    They are the layers' own and all before and behind them up to the next layers: what had been rounded to int8 on its
    way to a layer would leave nothing to keep.

    Args:
        operations: {name: ([names of the operations that it reads], name of its layer; None where it has no kernel)}.
        keep: sequence of str, layers.

    Returns:
        set of str.
    """
    own = {name for name, (_, layer) in operations.items() if layer in keep}
    lost = set(keep) - {operations[name][1] for name in own}
    if lost:
        raise RuntimeError(f"not found in the exported network: {', '.join(sorted(lost))}")
    before = {name: reads for name, (reads, _) in operations.items()}
    behind = {name: [] for name in operations}
    for name, reads in before.items():
        for other in reads:
            behind[other].append(name)
    region = set(own)
    for ways in (before, behind):
        reached, front = set(own), list(own)
        while front:
            new = {name for name in ways[front.pop()] if operations[name][1] is None} - reached
            reached |= new
            front.extend(new)
        region |= reached
    return region
