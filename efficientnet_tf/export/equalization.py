"""Scales channels so that they use the range of int8 equally, without changing what the network computes."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
import tensorflow as tf

LARGEST_SCALE = 64.0  # for channels that are almost zero
_KERNEL_LAYERS = (keras.layers.Conv2D, keras.layers.DepthwiseConv2D, keras.layers.Dense)
# A scale per channel passes through these layers.
_TRANSPARENT_LAYERS = (
    *(keras.layers.Add, keras.layers.Dropout, keras.layers.ZeroPadding2D),
    *(keras.layers.GlobalAveragePooling2D, keras.layers.GlobalMaxPooling2D, keras.layers.MaxPooling2D),
)


@dataclass
class _Group:
    """Tensors that must be scaled together, and what reads and writes them.

    Attributes:
        tensors: The tensors that are rounded to int8. The input of an activation is not: runtimes compute it together
            with the convolution.
        writers: Layers whose kernel and bias can be multiplied by the scale.
        readers: Layers whose kernel can be divided by it.
        is_fixed: Whether something else reads or writes the tensors.
    """

    tensors: list[Any] = field(default_factory=list)
    writers: list[keras.layers.Layer] = field(default_factory=list)
    readers: list[keras.layers.Layer] = field(default_factory=list)
    is_fixed: bool = False


def equalize_channels(model: keras.Model, calibration: Iterable[np.ndarray]) -> None:
    """Multiply channels by constants in place so that all channels of a tensor have similar ranges.

    int8 has one step for all channels of a tensor, which a channel with small values cannot use. A constant that the
    layers before a tensor multiply a channel by and the layers after it divide it by cancels out, through additions and
    ReLU. Tensors that other functions read or write, such as ReLU6, swish or squeeze-and-excitation, stay as they are.

    The first convolution also divides by the standard deviation of the pixels. What is left of the normalization is to
    subtract the mean, which keeps pixels that are whole numbers exact in int8.

    Args:
        model: A model of `models.folding.fold_batch_norm`. Its weights are changed.
        calibration: Batches of one image, float32 [1, H, W, C], pixels in [0, 255].

    Source: Nagel et al., "Data-free quantization through weight equalization and bias correction", 2019, section 4.1.
    Deviates: The ranges are those of activations in calibration images, not those of weights.
    """
    groups = [group for group in _find_groups(model) if not group.is_fixed and group.writers and group.readers]
    for group, largest in zip(groups, _measure_largest(model, groups, calibration), strict=True):
        scale = np.minimum(largest.max() / np.maximum(largest, 1e-12), LARGEST_SCALE)
        if isinstance(group.writers[0], keras.layers.Rescaling):
            scale = 1 / np.broadcast_to(group.writers[0].scale, scale.shape)
        for layer in group.writers:
            if isinstance(layer, keras.layers.Rescaling):
                layer.scale, layer.offset = 1.0, (layer.offset * scale).tolist()
                continue
            axis = 2 if isinstance(layer, keras.layers.DepthwiseConv2D) else -1
            layer.kernel.assign(layer.kernel.numpy() * _along(layer, scale, axis))
            if layer.use_bias:
                layer.bias.assign(layer.bias.numpy() * scale)
        for layer in group.readers:
            axis = 0 if isinstance(layer, keras.layers.Dense) else 2
            layer.kernel.assign(layer.kernel.numpy() / _along(layer, scale, axis))


def _along(layer, scale, axis):
    """Return a scale in the shape that broadcasts along one axis of a layer's kernel."""
    shape = [1] * len(layer.kernel.shape)
    shape[axis] = -1
    return scale.reshape(shape)


def _find_groups(model):
    """Return the groups of a model's tensors."""
    groups: dict[int, _Group] = {}

    def find(tensor):
        return groups.setdefault(id(tensor), _Group())

    def join(tensors):
        merged = _Group()
        for group in {id(g): g for g in map(find, tensors)}.values():
            merged.tensors += group.tensors
            merged.writers += group.writers
            merged.readers += group.readers
            merged.is_fixed |= group.is_fixed
            groups.update({key: merged for key, value in groups.items() if value is group})
        return merged

    for layer in model.layers:
        inputs = layer.input if isinstance(layer.input, list) else [layer.input]
        activation = getattr(layer, "activation", None)
        if isinstance(layer, _KERNEL_LAYERS) and activation is keras.activations.linear:
            find(inputs[0]).readers.append(layer)
            find(layer.output).writers.append(layer)
        elif isinstance(layer, keras.layers.Rescaling):
            find(inputs[0]).is_fixed = True
            find(layer.output).writers.append(layer)
        elif isinstance(layer, keras.layers.Activation) and activation is keras.activations.relu:
            group = join([*inputs, layer.output])
            group.tensors = [tensor for tensor in group.tensors if tensor is not inputs[0]]
        elif isinstance(layer, _TRANSPARENT_LAYERS):
            join([*inputs, layer.output])
        else:
            for tensor in (*inputs, layer.output):
                find(tensor).is_fixed = True
        find(layer.output).tensors.append(layer.output)
    for tensor in model.outputs:
        find(tensor).is_fixed = True
    return list({id(group): group for group in groups.values()}.values())


def _measure_largest(model, groups, calibration):
    """Return the largest absolute value of each channel of each group, over all calibration images."""
    tensors = keras.Model(model.inputs, [tensor for group in groups for tensor in group.tensors])

    @tf.function(autograph=False)
    def measure(image):
        values = iter(tensors(image, training=False))
        largest = [[tf.reduce_max(tf.abs(next(values)), tf.range(len(t.shape) - 1)) for t in g.tensors] for g in groups]
        return [tf.reduce_max(tf.stack(each), axis=0) for each in largest]

    totals = None
    for image in calibration:
        measured = [each.numpy() for each in measure(image)]
        totals = measured if totals is None else [np.maximum(a, b) for a, b in zip(totals, measured, strict=True)]
    return totals or []
