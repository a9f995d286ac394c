"""The functional builder: a stage table and a function for each kind of block make a plain Keras model.

Imports Keras alone, so the same model is built on each of Keras's backends, and a saved model needs nothing of
this package to load. A block reads as its own diagram; layer names are those of `keras.applications`.
"""

import re
import sys

import keras
from keras import layers

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.load import load_variant
from efficientnet_tf.models.blocks import BLOCKS, batch_norm, conv, pad
from efficientnet_tf.scaling.compound import scale_network


def _dense_initializer():
    """U(-1/sqrt(classes), 1/sqrt(classes)) (official code)."""
    return keras.initializers.VarianceScaling(1 / 3, "fan_out", "uniform")


def _normalization(spec, channels):
    """(pixels - mean) / std, in float32 whatever the precision of the rest."""
    mean, std = spec.mean, spec.std
    if len(mean) != channels:  # an image that is not RGB: the average serves every channel
        mean, std = (sum(mean) / len(mean),), (sum(std) / len(std),)
    return layers.Rescaling(
        scale=[1 / s for s in std],
        offset=[-m / s for m, s in zip(mean, std, strict=True)],
        dtype="float32",
        name="normalization",
    )


def build_model(
    variant="b0",
    classes=1000,
    input_shape=None,
    *,
    channels=3,
    input_tensor=None,
    include_top=True,
    pooling=None,
    classifier_activation=None,
    endpoints=None,
    name=None,
):
    """Build an EfficientNet.

    Args:
        variant: str, "b0" ... "b8", "l2", another name in `configs/` or the path of a variant's YAML; or a
            schema.ModelSpec.
        classes: int >= 1, width of the classifier.
        input_shape: (height, width, channels), ints >= 1; None for height and width takes images of any size.
            By default the variant's resolution and `channels`.
        channels: int >= 1, of the images where `input_shape` does not say. For other than as many as the spec's
            `mean` has, the average of `mean` and of `std` normalises every channel.
        input_tensor: a Keras tensor to build on, instead of `input_shape`.
        include_top: bool; False leaves dropout and classifier out.
        pooling: None, "avg" or "max": what follows the last activation where `include_top` is False.
        classifier_activation: None for logits, or a Keras activation such as "softmax".
        endpoints: sequence of strides out of 2, 4, 8, 16, 32: the model then returns a dict
            {"stride4": features [B, H/4, W/4, C], ...}, each the last features at that stride, without the head.
        name: str; by default the variant's name, with "efficientnet" before "b0" ... "l2".

    Returns:
        A `keras.Model` from pixels [B, H, W, C], in [0, 255], float or uint8, to logits [B, classes] in float32.
        Normalisation is inside. Without the top: features [B, H/32, W/32, head channels], or [B, head channels]
        when pooled, in the compute precision. Activations follow `keras.config.dtype_policy()`.

    Raises:
        UserError: for an unknown variant, or for arguments out of range.

    Source: paper, section 4; official code for padding ("same") and initial weights.
    """
    spec = load_variant(variant)
    _check_arguments(classes, input_shape, channels, pooling, input_tensor)
    network = scale_network(spec)
    # Keras walks a model recursively, a frame a layer, when it builds, saves and clones it: L2 has 950 in a row.
    sys.setrecursionlimit(max(sys.getrecursionlimit(), 1000 + 20 * len(network.blocks)))
    inputs = x = input_tensor
    if input_tensor is None:
        inputs = x = layers.Input(input_shape or (spec.resolution, spec.resolution, channels), name="image")
    by_stride, stride = {}, 2

    x = _normalization(spec, x.shape[-1])(x)
    x, padding = pad(x, spec.stem_kernel, 2, spec, "stem_conv")
    x = conv(x, network.stem_channels, spec.stem_kernel, "stem_conv", stride=2, padding=padding)
    x = batch_norm(x, spec, "stem_bn")
    if spec.stem_pool:
        by_stride[stride], stride = x, stride * 2
        x, padding = pad(x, 3, 2, spec, "stem_pool")
        x = layers.MaxPooling2D(3, strides=2, padding=padding, name="stem_pool")(x)
    for block in network.blocks:
        if block.stride == 2:
            by_stride[stride], stride = x, stride * 2
        x = BLOCKS[block.kind](x, block, spec)
    by_stride[stride] = x

    if endpoints is not None:
        if not isinstance(endpoints, list | tuple) or not endpoints or set(endpoints) - set(by_stride):
            raise UserError(f"endpoints={endpoints!r}: allowed are strides out of {sorted(by_stride)}")
        x = {f"stride{s}": by_stride[s] for s in endpoints}
    else:
        if network.head_channels:
            x = conv(x, network.head_channels, 1, "top_conv")
            x = batch_norm(x, spec, "top_bn")
        x = _top(x, spec, classes, classifier_activation) if include_top else _pool(x, pooling)
    if input_tensor is not None:
        sources = keras.utils.get_source_inputs(input_tensor)
        inputs = sources[0] if len(sources) == 1 else sources
    is_published = re.fullmatch(r"[bl]\d", spec.name)
    return keras.Model(inputs, x, name=name or ("efficientnet" * bool(is_published) + spec.name))


def _top(x, spec, classes, activation):
    x = layers.GlobalAveragePooling2D(name="avg_pool")(x)
    if spec.dropout:
        x = layers.Dropout(spec.dropout, name="top_dropout")(x)
    initializer = _dense_initializer()
    return layers.Dense(
        classes, activation=activation, kernel_initializer=initializer, dtype="float32", name="predictions"
    )(x)


def _pool(x, pooling):
    if pooling is None:
        return x
    layer = {"avg": layers.GlobalAveragePooling2D, "max": layers.GlobalMaxPooling2D}[pooling]
    return layer(name=f"{pooling}_pool")(x)


def _check_arguments(classes, input_shape, channels, pooling, input_tensor):
    def positive(value):
        return hasattr(value, "__index__") and not isinstance(value, bool) and value >= 1

    if keras.config.image_data_format() != "channels_last":
        raise UserError("Keras is set to image_data_format='channels_first'; allowed is 'channels_last'")
    if not positive(classes):
        raise UserError(f"classes must be an int >= 1, received {classes!r}")
    if not positive(channels):
        raise UserError(f"channels must be an int >= 1, received {channels!r}")
    if pooling not in (None, "avg", "max"):
        raise UserError(f"pooling must be None, 'avg' or 'max', received {pooling!r}")
    if input_tensor is not None and not keras.backend.is_keras_tensor(input_tensor):
        raise UserError(f"input_tensor must be a Keras tensor, received {type(input_tensor).__name__}")
    if input_shape is not None:
        shape = tuple(input_shape) if isinstance(input_shape, list | tuple) else ()
        if len(shape) != 3 or not positive(shape[2]) or not all(s is None or positive(s) for s in shape[:2]):
            raise UserError(
                f"input_shape must be (height, width, channels), height and width may be None, received {input_shape!r}"
            )
