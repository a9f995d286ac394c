"""Shows where in an image a model sees a class: class activation maps and Grad-CAM."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from efficientnet_tf.config.errors import UserError, closest_names
from efficientnet_tf.config.text import escape, shorten
from efficientnet_tf.models.data_format import data_format_of
from efficientnet_tf.runtime.backend import gradient

LAST_LAYER = "top_activation"  # its mean is the input of the classifier


def class_activation_map(model: keras.Model, images: Any, classes: int | Sequence[int] | None = None) -> np.ndarray:
    """Return what each position of the last features adds to the logit of a class.

    map[h, w] is the sum over c of features[h, w, c] * kernel[c, class]. The mean of a map plus the bias of the class is
    exactly the logit, because averaging and the classifier are both linear.

    Args:
        model: Model with the head of `build_model`: a layer `avg_pool`, then a dense layer `predictions`.
        images: Pixels, uint8 or float [B, H, W, C] in [0, 255], or [B, C, H, W] if the model has channels first.
        classes: Number of the class to explain, or one number per image. The default is the most likely class of each
            image.

    Returns:
        Maps, float32 [B, h, w]. Negative values speak against the class.

    Raises:
        UserError: If the model has another head, a class is out of range, or the last features are a single pixel.

    Source: Zhou et al. 2016, https://arxiv.org/abs/1512.04150.

    Example:
        >>> import numpy as np
        >>> from efficientnet_tf import build_model, class_activation_map
        >>> model = build_model("b0", classes=10, input_shape=(96, 96, 3))
        >>> images = np.zeros([2, 96, 96, 3], np.uint8)
        >>> class_activation_map(model, images, classes=7).shape
        (2, 3, 3)
    """
    dense, pool = _find_classifier(model), _layers_by_name(model).get("avg_pool")
    source = dense.input
    dropouts = {id(each.output): each.input for each in model.layers if isinstance(each, keras.layers.Dropout)}
    while id(source) in dropouts:
        source = dropouts[id(source)]
    if not isinstance(pool, keras.layers.GlobalAveragePooling2D) or source is not pool.output:
        raise UserError(
            f"model {model.name!r} has no layer 'avg_pool' in front of 'predictions'. Use Grad-CAM instead."
        )
    features = keras.Model(model.input, pool.input)(images, training=False)
    features: Any = ops.cast(_channels_last(model, features), "float32")
    _check_size(features.shape, "the input of 'avg_pool'")
    chosen = _choose_classes(_compute_logits(dense, ops.mean(features, axis=[1, 2])), classes)
    weights = ops.take(ops.cast(dense.kernel, "float32"), chosen, axis=1)
    return np.asarray(ops.einsum("bhwc,cb->bhw", features, weights))


def grad_cam(
    model: keras.Model,
    images: Any,
    layer: str = LAST_LAYER,
    classes: int | Sequence[int] | None = None,
) -> np.ndarray:
    """Return Grad-CAM at a layer: the sum of its channels, each weighted by its mean gradient, without negative values.

    At `top_activation` this is the positive part of `class_activation_map`, divided by the number of positions.

    Args:
        model: Model that ends in a dense layer `predictions`.
        images: Pixels, uint8 or float [B, H, W, C] in [0, 255], or [B, C, H, W] if the model has channels first.
        layer: Name of a layer with output [B, h, w, c] or [B, c, h, w].
        classes: Number of the class to explain, or one number per image. The default is the most likely class of each
            image.

    Returns:
        Maps, float32 [B, h, w], at least 0.

    Raises:
        UserError: If the model ends in another layer, the layer is unknown or its output has a single pixel, or a class
            is out of range.

    Source: Selvaraju et al. 2017, https://arxiv.org/abs/1610.02391, equations 1 and 2, for the logit before softmax.

    Example:
        >>> import numpy as np
        >>> from efficientnet_tf import build_model, grad_cam
        >>> model = build_model("b0", classes=10, input_shape=(96, 96, 3))
        >>> images = np.zeros([2, 96, 96, 3], np.uint8)
        >>> grad_cam(model, images, layer="block3b_add").shape
        (2, 12, 12)
    """
    dense, layers = _find_classifier(model), _layers_by_name(model)
    if layer not in layers:
        names = [name for name, each in layers.items() if _has_size(_output_shape(model, each))]
        raise UserError(
            f"unknown layer={escape(shorten(layer))}. Similar names are {', '.join(closest_names(layer, names))}."
        )
    _check_size(_output_shape(model, layers[layer]), f"layer={layer}")
    pixels: Any = ops.cast(images, "float32")
    inner = layers[layer].output
    # A residual branch needs the image as well, because the connection around it begins before the layer.
    rest = keras.Model([*model.inputs, inner], dense.input)
    features = keras.Model(model.input, inner)(pixels, training=False)

    def compute_logits(features):
        return _compute_logits(dense, rest([pixels, features], training=False))

    chosen = _choose_classes(compute_logits(features), classes)

    def score(features):
        return ops.sum(ops.take_along_axis(compute_logits(features), chosen[:, None], axis=1))

    values: Any = ops.cast(_channels_last(model, features), "float32")
    _check_size(values.shape, f"layer={layer}")
    gradients = ops.cast(_channels_last(model, gradient(score, features)), "float32")
    weights = ops.mean(gradients, axis=[1, 2])
    return np.asarray(ops.relu(ops.einsum("bhwc,bc->bhw", values, weights)))


def _layers_by_name(model: keras.Model) -> dict[str, Any]:
    return {layer.name: layer for layer in model.layers}


def _find_classifier(model: keras.Model) -> keras.layers.Dense:
    dense = _layers_by_name(model).get("predictions")
    if not isinstance(dense, keras.layers.Dense):
        raise UserError(f"model {model.name!r} has no classifier. It needs a dense layer named 'predictions'.")
    return dense


def _compute_logits(dense: keras.layers.Dense, pooled: Any) -> Any:
    """Return the output of the classifier, float32 [B, classes], without its activation."""
    pooled, kernel, bias = (ops.cast(x, "float32") for x in (pooled, dense.kernel, dense.bias))
    products: Any = ops.matmul(pooled, kernel)
    return products + bias


def _choose_classes(logits: Any, classes: Any) -> np.ndarray:
    """Return the class to explain for each image, int [B]."""
    images, count = logits.shape
    if classes is None:
        return np.argmax(np.asarray(logits), axis=1)
    try:
        chosen = np.asarray(classes)
    except ValueError:  # sequences of different lengths
        chosen = np.array("")
    if not np.issubdtype(chosen.dtype, np.integer) or chosen.shape not in ((), (images,)):
        raise UserError(
            f"classes={shorten(repr(classes))} is neither an integer nor a sequence of {images} integers, one each."
        )
    if np.any((chosen < 0) | (chosen >= count)):
        raise UserError(
            f"classes={shorten(repr(classes))} is out of range. The model has the classes 0 to {count - 1}."
        )
    return np.broadcast_to(chosen, [images])


def _channels_last(model: keras.Model, features: Any) -> Any:
    """Return features of a model as [B, h, w, c]."""
    return ops.transpose(features, [0, 2, 3, 1]) if data_format_of(model) == "channels_first" else features


def _output_shape(model: keras.Model, layer: Any) -> Sequence[int | None]:
    """Return the shape of a layer's output, with channels last."""
    shape = tuple(layer.output.shape)
    is_first = len(shape) == 4 and data_format_of(model) == "channels_first"
    return (shape[0], *shape[2:], shape[1]) if is_first else shape


def _has_size(shape: Sequence[int | None]) -> bool:
    """Return whether a shape is that of feature maps with more than one pixel."""
    return len(shape) == 4 and tuple(shape[1:3]) != (1, 1)


def _check_size(shape: Sequence[int | None], name: str) -> None:
    if not _has_size(shape):
        raise UserError(
            f"{name} has no height and width, its output is {list(shape[1:])}. Use Grad-CAM at an earlier layer, or "
            "larger images."
        )
