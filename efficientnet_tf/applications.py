"""The interface of `keras.applications`: existing code moves over by changing an import.

Layer names, arguments, inputs (pixels in [0, 255]) and outputs are those of `keras.applications.efficientnet` and
`keras.applications.efficientnet_v2`. As there, `keras.config.image_data_format()` decides on the order of dimensions.
"""

import inspect
import sys
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from keras import KerasTensor

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.load import load_variant
from efficientnet_tf.config.schema import ModelSpec
from efficientnet_tf.models import builder
from efficientnet_tf.models.data_format import image_shape
from efficientnet_tf.models.normalization import LAYER as NORMALIZATION
from efficientnet_tf.models.normalization import copy_normalization, set_normalization
from efficientnet_tf.weights.keras_methods import accept_keras_weights
from efficientnet_tf.weights.load import load_weights

# The variants with ImageNet weights in keras.applications.
RELEASED = (*(f"b{i}" for i in range(8)), *(f"v2-b{i}" for i in range(4)), "v2-s", "v2-m", "v2-l")


def build_model(
    variant: str | ModelSpec = "b0",
    classes: int = 1000,
    input_shape: Sequence[int | None] | None = None,
    *,
    weights: str | None = None,
    channels: int = 3,
    input_tensor: KerasTensor | None = None,
    include_top: bool = True,
    pooling: str | None = None,
    classifier_activation: Any = None,
    endpoints: Sequence[int] | None = None,
    name: str | None = None,
) -> keras.Model:
    """Build a network.

    Args:
        variant: "b0" ... "b8", "l2", "lite0" ... "lite4", "v2-b0" ... "v2-b3", "v2-s", "v2-m", "v2-l", "v2-xl", another
            name in `configs/`, the path of a variant's YAML file, or a ModelSpec.
        classes: Number of classes, at least 1.
        input_shape: (height, width, channels), or (channels, height, width) if Keras is set to channels first. None for
            height and width accepts images of any size. By default the variant's resolution and `channels`.
        weights: None for random weights, "imagenet" for those that Keras has released (b0-b7, v2-b0-v2-l), or the path
            of any file that `load_weights` reads. The classifier of the file is ignored if the model has none.
        channels: Number of image channels if there is no `input_shape`, at least 1. If it differs from the number of
            values in the variant's `mean`, the average of `mean` and of `std` normalizes every channel.
        input_tensor: Keras tensor to build the model on, instead of `input_shape`.
        include_top: False leaves out dropout and classifier.
        pooling: None, "avg" or "max": what follows the last activation if `include_top` is False.
        classifier_activation: None for logits, or a Keras activation such as "softmax".
        endpoints: Strides out of 2, 4, 8, 16 and 32. The model then has no head and returns a dict
            {"stride4": features [B, H/4, W/4, C], ...} with the last features of each stride.
        name: Name of the model. By default the variant's name, after "efficientnet" for networks of this family.

    Returns:
        A model from pixels [B, H, W, C] in [0, 255], float or uint8, to logits [B, classes], float32. It normalizes the
        pixels itself. Without the top it returns features [B, H/32, W/32, head channels], or [B, head channels] after
        pooling. If `keras.config.image_data_format()` is "channels_first", images and features are [B, C, H, W], which
        TensorFlow supports on GPUs and, with oneDNN, on CPUs. Activations have the precision of the dtype policy.

    Raises:
        UserError: If the variant is unknown, an argument is out of range, or the weights cannot be loaded.

    Source: paper, section 4; official code for padding ("same") and initial weights.

    Example:
        >>> from efficientnet_tf import build_model
        >>> model = build_model("b0", classes=10, input_shape=(64, 64, 3))
        >>> model.output_shape
        (None, 10)
        >>> backbone = build_model("b0", input_shape=(64, 64, 3), endpoints=[8, 16])
        >>> backbone.output["stride8"].shape
        (None, 8, 8, 40)
    """
    spec = load_variant(variant)
    has_classifier = include_top and endpoints is None
    path = _fetch_imagenet_weights(spec.name, classes, has_classifier) if weights == "imagenet" else weights
    model = builder.build_model(
        spec,
        classes,
        input_shape,
        channels=channels,
        input_tensor=input_tensor,
        include_top=include_top,
        pooling=pooling,
        classifier_activation=classifier_activation,
        endpoints=endpoints,
        name=name,
    )
    if path is not None and endpoints is None:
        load_weights(model, path, reset_head=not include_top)
    elif path is not None:
        _load_endpoint_weights(model, spec, path)
    accept_keras_weights(model)
    return model


def preprocess_input(x: Any, data_format: str | None = None) -> Any:
    """Return the images unchanged, because the models normalize pixels themselves.

    Args:
        x: Images [B, H, W, C] or [B, C, H, W] with pixels in [0, 255], an array or a tensor.
        data_format: Ignored. It exists because `keras.applications.efficientnet.preprocess_input` has it.

    Returns:
        `x` itself.

    Example:
        >>> import numpy as np
        >>> from efficientnet_tf import preprocess_input
        >>> images = np.zeros([1, 224, 224, 3], "uint8")
        >>> preprocess_input(images) is images
        True
    """
    return x


def decode_predictions(
    preds: Any, top: int = 5, class_names: Sequence[str] | None = None
) -> list[list[tuple[str, str, float]]]:
    """Return the most likely classes of each image.

    Args:
        preds: Scores [N, classes], an array or a tensor, usually probabilities.
        top: Number of classes to return for each image, at least 1.
        class_names: Names of the classes, in the order of the scores. None means the 1,000 classes of ImageNet, whose
            names Keras downloads once.

    Returns:
        For each image a list of `(class id, class name, score)`, the highest score first. The class id is the WordNet
        ID for ImageNet, and the number of the class, as text, if `class_names` are given.

    Raises:
        UserError: If the shape of `preds` does not fit, or the names of ImageNet's classes cannot be downloaded.

    Example:
        >>> import numpy as np
        >>> from efficientnet_tf import decode_predictions
        >>> decode_predictions(np.array([[0.1, 0.7, 0.2]]), top=2, class_names=["cat", "dog", "fox"])
        [[('1', 'dog', 0.7), ('2', 'fox', 0.2)]]
    """
    scores = np.asarray(preds)
    classes = 1000 if class_names is None else len(class_names)
    if scores.ndim != 2 or scores.shape[1] != classes:
        raise UserError(
            f"preds must have shape [N, {classes}], received {list(scores.shape)}. Pass the model's class_names if its "
            "classes are not those of ImageNet."
        )
    if top < 1:
        raise UserError(f"top={top} must be at least 1.")
    if class_names is not None:
        names = list(class_names)
        best = [np.argsort(-row, kind="stable")[:top] for row in scores]
        return [[(str(i), names[i], float(row[i])) for i in order] for row, order in zip(scores, best, strict=True)]
    try:
        decoded = keras.applications.imagenet_utils.decode_predictions(scores, top=top)
    except Exception as error:  # Keras raises a bare Exception if a download fails
        raise UserError(
            f"The names of ImageNet's classes cannot be downloaded: {str(error)[:300]}. Pass class_names, or copy "
            "imagenet_class_index.json from another machine to ~/.keras/models."
        ) from None
    return [[(identifier, name, float(score)) for identifier, name, score in row] for row in decoded]


def _fetch_imagenet_weights(variant: str, classes: int, has_classifier: bool) -> str:
    """Return the path of the file that keras.applications releases. Keras downloads it once."""
    if variant not in RELEASED:
        raise UserError(
            f"weights='imagenet' is not available for {variant}. Keras has released weights for {', '.join(RELEASED)}. "
            "Pass weights=None, or the path of any file that `load_weights` reads."
        )
    if has_classifier and classes != 1000:
        raise UserError(
            f"weights='imagenet' has 1000 classes, received classes={classes!r}. Pass include_top=False, or load the "
            "weights with `load_weights(..., reset_head=True)`."
        )
    table: Any = sys.modules[getattr(keras.applications, _constructor_name(variant)).__module__]
    name = f"efficientnet{variant}{'' if has_classifier else '_notop'}.h5"
    short = variant.removeprefix("v2")  # Keras names the hashes b0, -s and so on
    file_hash = table.WEIGHTS_HASHES[short.replace("-b", "b")][0 if has_classifier else 1]
    try:
        return keras.utils.get_file(name, table.BASE_WEIGHTS_PATH + name, cache_subdir="models", file_hash=file_hash)
    except Exception as error:  # Keras raises a bare Exception if a download fails
        raise UserError(
            f"weights='imagenet': {name} cannot be downloaded: {str(error)[:300]}. Pass weights=None for random "
            "weights, or the path of any file that `load_weights` reads."
        ) from None


def _load_endpoint_weights(model: keras.Model, spec: ModelSpec, path: str) -> None:
    """Load weights into a model with endpoints, which has only a part of the network that the file is for."""
    shape = model.get_layer(NORMALIZATION).input.shape[1:]
    network = builder.build_model(spec, 1, shape, include_top=False)
    load_weights(network, path, reset_head=True)
    for theirs in network.layers:
        ours = next((layer for layer in model.layers if layer.name == theirs.name), None)
        if ours is not None and theirs.weights:
            ours.set_weights(theirs.get_weights())
    copy_normalization(network, model)


_DOCUMENTATION = """Build EfficientNet-{title} with the interface of `keras.applications`.

Every layer name of {reference} exists. {layers}

Args:
    include_top: False leaves out pooling, dropout and classifier.
    weights: None for random weights, {weights}
    input_tensor: Keras tensor to build the model on, instead of `input_shape`.
    input_shape: (height, width, channels), or (channels, height, width) if Keras is set to channels first. None accepts
        any height and width. By default they are {resolution}, or None if `include_top` is False, with 3 channels.
    pooling: None, "avg" or "max": what follows the last activation if `include_top` is False.
    classes: Number of classes, at least 1.
    classifier_activation: A Keras activation, or None for logits.
{preprocessing}    name: Name of the model.

Returns:
    A model from pixels [B, H, W, C] or [B, C, H, W] in [0, 255], float or uint8, to float32 probabilities [B, classes].

Raises:
    UserError: If an argument is out of range, or the weights cannot be loaded.

Example:
    >>> from efficientnet_tf import {constructor}, load_variant
    >>> load_variant("{key}").resolution
    {resolution}
    >>> model = {constructor}(weights=None, classes=10){skip}
    >>> model.output_shape{skip}
    (None, 10)
"""
_LAYERS = """The layers `*_pad`, `*_se_reshape`, `rescaling` and `rescaling_1`
pass their input through, because their neighbors do their work. All other layers from `stem_conv` on have the outputs
of Keras's, except that `*_se_squeeze` has the shape [B, 1, 1, C].

`model.set_weights(keras_model.get_weights())` and `model.load_weights(keras_file)` work, although Keras's model has
three variables more: its pixel normalization. The reverse does not work. A model that was cloned or saved and loaded
again takes only its own variables, and refuses those of Keras. The function `load_weights` loads a file of
`keras.applications` into such a copy, too."""
_LAYERS_V2 = """The layers `*_se_reshape` and `rescaling` pass their
input through, because their neighbors do their work. All other layers from `stem_conv` on have the outputs of Keras's,
except that `*_se_squeeze` has the shape [B, 1, 1, C]. The variables are those of Keras's model, in the same order. The
drop rates grow up to 0.2 over all blocks of the network. Those of Keras's B1 to B3 grow further."""
_PREPROCESSING = (
    "    include_preprocessing: False leaves the pixels as they are, because you normalize them yourself.\n"
)
_RELEASED_WEIGHTS = """"imagenet" for those that Keras has released, or the path of any file that
        `load_weights` reads. The classifier of the file is ignored if `include_top` is False."""
_OTHER_WEIGHTS = """or the path of any file that `load_weights` reads. The classifier of the file is
        ignored if `include_top` is False. Keras has released no ImageNet weights for this variant."""


def _constructor_name(variant: str) -> str:
    """Return "EfficientNetB0" for b0, "EfficientNetV2B0" for v2-b0 and "EfficientNetLite0" for lite0."""
    return "EfficientNet" + "".join(part.capitalize() for part in variant.split("-"))


def _construct(
    variant: str,
    include_top: bool = True,
    weights: str | None = "imagenet",
    input_tensor: KerasTensor | None = None,
    input_shape: Sequence[int | None] | None = None,
    pooling: str | None = None,
    classes: int = 1000,
    classifier_activation: Any = "softmax",
    include_preprocessing: bool = True,
    name: str | None = None,
) -> keras.Model:
    """Build a variant from the arguments of `keras.applications`."""
    path = _fetch_imagenet_weights(variant, classes, include_top) if weights == "imagenet" else weights
    model = builder.build_model(
        variant,
        classes,
        input_shape or (None if include_top else image_shape(None, None, 3)),
        input_tensor=input_tensor,
        include_top=include_top,
        pooling=pooling,
        classifier_activation=classifier_activation,
        name=name,
        keras_layers=True,
    )
    if path is not None:
        load_weights(model, path, reset_head=not include_top)
    if not include_preprocessing:
        set_normalization(model, (0.0,), (1.0,))
    accept_keras_weights(model)
    return model


def _make_constructor(variant: str) -> Callable[..., keras.Model]:
    """Return the constructor of a variant. Its `weights` default to "imagenet" if Keras has released some."""
    constructor, is_v2 = _constructor_name(variant), variant.startswith("v2-")
    defaults = {"weights": "imagenet" if variant in RELEASED else None, "name": f"efficientnet{variant}"}
    left_out = ("variant",) if is_v2 else ("variant", "include_preprocessing")
    signature = inspect.signature(_construct)
    parameters = [p for p in signature.parameters.values() if p.name not in left_out]
    signature = signature.replace(parameters=[p.replace(default=defaults.get(p.name, p.default)) for p in parameters])

    def build(*arguments: Any, **named: Any) -> keras.Model:
        bound = signature.bind(*arguments, **named)
        bound.apply_defaults()
        return _construct(variant, **bound.arguments)

    build.__name__ = build.__qualname__ = constructor
    build.__signature__ = signature  # pyright: ignore[reportFunctionMemberAccess] - `inspect` documents it.
    build.__doc__ = _DOCUMENTATION.format(
        title=variant.upper().replace("LITE", "Lite"),
        reference=f"`keras.applications.{constructor}`" if variant in RELEASED else "the models of Keras",
        layers=_LAYERS_V2 if is_v2 else _LAYERS,
        weights=_RELEASED_WEIGHTS if variant in RELEASED else _OTHER_WEIGHTS,
        preprocessing=_PREPROCESSING if is_v2 else "",
        resolution=load_variant(variant).resolution,
        constructor=constructor,
        key=variant,
        skip="" if variant == "b0" else "  # doctest: +SKIP",  # the larger models take too long for a test
    )
    return build


EfficientNetB0 = _make_constructor("b0")
EfficientNetB1 = _make_constructor("b1")
EfficientNetB2 = _make_constructor("b2")
EfficientNetB3 = _make_constructor("b3")
EfficientNetB4 = _make_constructor("b4")
EfficientNetB5 = _make_constructor("b5")
EfficientNetB6 = _make_constructor("b6")
EfficientNetB7 = _make_constructor("b7")
EfficientNetB8 = _make_constructor("b8")
EfficientNetL2 = _make_constructor("l2")
EfficientNetLite0 = _make_constructor("lite0")
EfficientNetLite1 = _make_constructor("lite1")
EfficientNetLite2 = _make_constructor("lite2")
EfficientNetLite3 = _make_constructor("lite3")
EfficientNetLite4 = _make_constructor("lite4")
EfficientNetV2B0 = _make_constructor("v2-b0")
EfficientNetV2B1 = _make_constructor("v2-b1")
EfficientNetV2B2 = _make_constructor("v2-b2")
EfficientNetV2B3 = _make_constructor("v2-b3")
EfficientNetV2S = _make_constructor("v2-s")
EfficientNetV2M = _make_constructor("v2-m")
EfficientNetV2L = _make_constructor("v2-l")
