"""The constructors of `keras.applications`: existing code moves over by changing an import."""

import sys

import keras

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.models.builder import build_model
from efficientnet_tf.weights.load import load_weights


def _released_file(variant, include_top):
    """Return the file that keras.applications has for weights='imagenet'; Keras fetches it where it is not there."""
    table = sys.modules[getattr(keras.applications, f"EfficientNet{variant.upper()}").__module__]
    name = f"efficientnet{variant}{'' if include_top else '_notop'}.h5"
    file_hash = table.WEIGHTS_HASHES[variant][0 if include_top else 1]
    try:
        return keras.utils.get_file(name, table.BASE_WEIGHTS_PATH + name, cache_subdir="models", file_hash=file_hash)
    except Exception as error:  # Keras raises a bare Exception where a download fails
        raise UserError(
            f"weights='imagenet': {name} cannot be had: {str(error)[:300]}. Pass weights=None for random ones, or "
            "the path of any file that `load_weights` reads"
        ) from None


def _constructor(variant):
    """Return a function with the signature of `keras.applications.EfficientNetB0` for a variant."""
    name = f"EfficientNet{variant.upper()}"

    def build(
        include_top=True,
        weights="imagenet",
        input_tensor=None,
        input_shape=None,
        pooling=None,
        classes=1000,
        classifier_activation="softmax",
        name=f"efficientnet{variant}",
    ):
        if weights == "imagenet":
            if include_top and classes != 1000:
                raise UserError(f"weights='imagenet' with the top has 1000 classes, received classes={classes!r}")
            weights = _released_file(variant, include_top)
        model = build_model(
            variant,
            classes,
            # keras.applications, too, takes images of any size where the top is left out.
            input_shape or (None if include_top else (None, None, 3)),
            input_tensor=input_tensor,
            include_top=include_top,
            pooling=pooling,
            classifier_activation=classifier_activation,
            name=name,
        )
        if weights is not None:
            load_weights(model, weights)
        return model

    build.__name__ = build.__qualname__ = name
    build.__doc__ = f"""Build EfficientNet-{variant.upper()} with the signature of `keras.applications.{name}`.

    Arguments, input (pixels in [0, 255]) and output are those of `keras.applications`; see `build_model`.

    `weights` is "imagenet", whose file Keras fetches once, None, or the path of any file that `load_weights` reads.
    """
    return build


EfficientNetB0 = _constructor("b0")
EfficientNetB1 = _constructor("b1")
EfficientNetB2 = _constructor("b2")
EfficientNetB3 = _constructor("b3")
EfficientNetB4 = _constructor("b4")
EfficientNetB5 = _constructor("b5")
EfficientNetB6 = _constructor("b6")
EfficientNetB7 = _constructor("b7")
