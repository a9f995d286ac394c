"""The constructors of `keras.applications`: existing code moves over by changing an import."""

from efficientnet_tf.config import UserError
from efficientnet_tf.models import build_model
from efficientnet_tf.weights import load_weights


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
            raise UserError(
                "weights='imagenet': this package brings no weights and downloads none. Pass weights=None for random "
                "ones, or the path of a file: keras.applications' own .h5, or any that `load_weights` reads."
            )
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

    Deviates: `weights` is None or a path; "imagenet" is an error, for nothing is downloaded.
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
