"""Networks that compute as if in int8, in floating point: for quantization-aware training, and for what it exports.

Batch norm is folded into the convolutions with its stored statistics. Each kernel is rounded to 255 values per output
channel, evenly spaced around zero, up to the largest weight of the channel. Each tensor that a runtime would store is
rounded to 256 values between two limits, of which training learns the moving averages.

Source: Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference",
2018, section 3. Deviates: Batch norm keeps its statistics, and limits follow every step from the first one on.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
from keras import ops

from efficientnet_tf.models import normalization
from efficientnet_tf.models.folding import copy_without_norms, fold_weights
from efficientnet_tf.models.from_config import TARGETS
from efficientnet_tf.runtime.strategy import on_host
from efficientnet_tf.runtime.variables import read_values

MOMENTUM = 0.99  # of the moving averages of limits
PIXELS = "pixels"  # name of the tensor that the network gets
PIXEL_LIMITS = (0.0, 255.0)
SIGMOID = (0.0, 255 / 256)  # LiteRT has no other limits for it
_RELUS = (keras.activations.relu, keras.activations.relu6)  # which runtimes compute together with the layer before
_PASSING = (keras.layers.ZeroPadding2D, keras.layers.Reshape)  # These change no value.


def round_tensor(x: Any, low: Any, high: Any) -> Any:
    """Round a tensor to 256 evenly spaced values, of which zero is one. The gradient passes between the limits.

    Args:
        x: float32, any shape.
        low: Smallest value, float scalar <= 0.
        high: Largest value, float scalar > low, >= 0. Both limits move by up to half a step, so that zero is exact.
    """
    return keras.quantizers.fake_quant_with_min_max_vars(x, low, high)


def round_kernel(layer: keras.layers.Layer, kernel: Any) -> Any:
    """Round the kernel of a layer to 255 values per output channel. The gradient passes."""
    shape = kernel.shape
    if isinstance(layer, keras.layers.DepthwiseConv2D):
        kernel = ops.reshape(
            kernel, shape[:3]
        )  # Not every backend of Keras has limits along another axis than the last.
    axes = list(range(len(kernel.shape) - 1))
    largest: Any = ops.stop_gradient(ops.maximum(ops.max(ops.abs(kernel), axes), 1e-12))
    rounded: Any = keras.quantizers.fake_quant_with_min_max_vars(kernel, -largest, largest, narrow_range=True, axis=-1)
    return ops.reshape(rounded, shape)


class LearnedRounding(keras.layers.Layer):
    """Rounds a tensor like int8, and learns its limits in training. Until it has seen a batch, it changes nothing.

    Attributes:
        limits: The smallest and the largest value, float32 [2].
        learns: Whether training moves the limits.
    """

    def __init__(self, learns: bool = True, **options):
        super().__init__(**options)
        self.learns = learns

    def build(self, input_shape):
        """Create the limits."""
        self.limits = self.add_weight(name="limits", shape=(2,), initializer="zeros", trainable=False, dtype="float32")

    def call(self, x, training=False):
        """Round."""
        limits: Any = ops.convert_to_tensor(self.limits)
        if training and self.learns:
            seen: Any = ops.stop_gradient(ops.stack([ops.minimum(ops.min(x), 0.0), ops.maximum(ops.max(x), 0.0)]))
            limits = ops.where(_is_known(limits), MOMENTUM * limits + (1 - MOMENTUM) * seen, seen)
            self.limits.assign(limits)
        # Both branches are computed. Without valid limits, the gradient of the first would not be finite.
        is_known = _is_known(limits)
        valid: Any = ops.where(is_known, limits, ops.convert_to_tensor([0.0, 1.0]))
        return ops.where(is_known, round_tensor(x, valid[0], valid[1]), x)


def _is_known(limits):
    return limits[1] > limits[0]


class FixedRounding(keras.layers.Layer):
    """Rounds a tensor like int8, between limits that are given."""

    def __init__(self, low: float, high: float, **options):
        super().__init__(**options)
        self.low, self.high = low, high

    def call(self, x):
        """Round."""
        return round_tensor(x, self.low, self.high)


def copy_for_int8(
    model: keras.Model,
    make_rounding: Callable[[str], keras.layers.Layer],
    make_layer: Callable[[Any], keras.layers.Layer] | None = None,
    keep_float: Sequence[str] = (),
) -> tuple[Any, Mapping[str, keras.layers.Layer]]:
    """Return a copy of a model without batch norm and dropout that rounds every tensor that a runtime would store.

    Args:
        model: A float32 model of `build_model`.
        make_rounding: Returns the layer that rounds a tensor, given its name.
        make_layer: For an export: returns the layer that stands for a layer of the folded model, which is given to it
            without an activation if it has a kernel. Layers in float are not given to it.
        keep_float: Names of convolutions and dense layers that compute in float, see `find_float_region`.

    Returns:
        The copy, whose weights are not set, and the batch norms by the name of their convolution.
    """
    folded, norms = copy_without_norms(model, for_export=make_layer is not None)
    in_float = find_float_region(folded, keep_float) | {TARGETS}  # Numbers may have very different ranges.
    makers = {id(layer.output): layer.name for layer in folded.layers}
    readers = _list_readers(folded)
    rounded: dict[str, Any] = {}  # results of layers in float, as the layers in int8 read them

    def is_fused(name):
        """Whether the only reader of a layer is a ReLU in int8."""
        after = readers[name]
        is_relu = len(after) == 1 and getattr(after[0], "activation", None) in _RELUS
        return is_relu and not hasattr(after[0], "kernel") and after[0].name not in in_float

    def enter(old, x):
        """Return an input of a layer in int8, given the tensor of the folded model that it stands for."""
        maker = makers[id(old)]
        if maker not in in_float:
            return x
        if maker not in rounded:
            rounded[maker] = make_rounding(maker)(x)
        return rounded[maker]

    def copy(layer):
        if layer.name in in_float:
            return type(layer).from_config(layer.get_config())
        changes = {"activation": "linear"} if hasattr(layer, "kernel") else {}
        new: Any = type(layer).from_config(layer.get_config() | changes)
        new = make_layer(new) if make_layer else new
        if isinstance(layer, keras.layers.Activation) and layer.activation not in _RELUS:
            new.activation = _rounded(layer.activation)
        return new

    def call(layer, x, **options):
        name = layer.name
        if name in in_float:
            return layer(x, **options)
        x = keras.tree.map_structure(enter, folded.get_layer(name).input, x)
        if name == normalization.LAYER:
            x = make_rounding(PIXELS)(x)
        y = layer(x, **options)
        if isinstance(layer, _PASSING) or is_fused(name):
            return y
        activation = getattr(folded.get_layer(name), "activation", None)
        if hasattr(layer, "kernel") and activation not in (None, keras.activations.linear):
            if activation not in _RELUS:
                y = make_rounding(f"{name}_sum")(y)
            y = keras.layers.Activation(_rounded(activation), name=f"{name}_activation", dtype="float32")(y)
            if activation is keras.activations.sigmoid:
                return y
        return make_rounding(name)(y)

    return keras.models.clone_model(folded, clone_function=copy, call_function=call), norms


def find_float_region(model: keras.Model, keep_float: Sequence[str]) -> set[str]:
    """Return the layers of a model that must compute in float so that some of them do.

    These are the layers themselves, and all layers without a kernel before and after them. If the input of a layer were
    rounded to int8 on its way, keeping the layer in float would gain nothing.

    Args:
        model: A model without batch norm.
        keep_float: Names of the convolutions and dense layers to keep in float.

    Returns:
        Names of layers.
    """
    readers = _list_readers(model)
    after = {name: [layer.name for layer in each] for name, each in readers.items()}
    before: dict[str, list[str]] = {layer.name: [] for layer in model.layers}
    for name, each in after.items():
        for reader in each:
            before[reader].append(name)
    region = set(keep_float)
    for neighbors in (before, after):
        front = list(keep_float)
        reached = set(front)
        while front:
            near = map(model.get_layer, neighbors[front.pop()])
            new = {layer.name for layer in near if not hasattr(layer, "kernel")} - reached
            reached |= new
            front.extend(new)
        region |= reached
    return region


def _list_readers(model):
    """Return the layers that read the result of each layer, by its name."""
    makers = {id(layer.output): layer.name for layer in model.layers}
    readers: dict[str, list[Any]] = {layer.name: [] for layer in model.layers}
    for layer in model.layers:
        for tensor in keras.tree.flatten(layer.input):
            if makers[id(tensor)] != layer.name:  # An input layer is its own input.
                readers[makers[id(tensor)]].append(layer)
    return readers


def _rounded(activation):
    """Return an activation whose sigmoid is rounded."""
    if activation is keras.activations.sigmoid:
        return _rounded_sigmoid
    return activation if activation in _RELUS else _rounded_swish


@keras.saving.register_keras_serializable("efficientnet_tf")
def _rounded_sigmoid(x):
    return round_tensor(ops.sigmoid(x), *SIGMOID)


@keras.saving.register_keras_serializable("efficientnet_tf")
def _rounded_swish(x):
    return x * _rounded_sigmoid(x)


class QuantizedNetwork:
    """The network that quantization-aware training computes, as a function of values like a Keras model.

    Args:
        model: The float32 model that owns the weights.
        learns: Whether training moves the limits.

    Attributes:
        limits: The limits of all tensors, list of keras.Variable, float32 [2]. They only lend their names: a training
            state owns variables of the same paths.
        trainable_variables: Those of the model.
        non_trainable_variables: Those of the model, and `limits`.
        statistics: What training updates without a gradient: the limits, if it moves them.
    """

    def __init__(self, model: keras.Model, learns: bool = True):

        def make_rounding(name):
            options: dict[str, Any] = {"name": f"{name}_limits", "dtype": "float32"}
            return FixedRounding(*PIXEL_LIMITS, **options) if name == PIXELS else LearnedRounding(learns, **options)

        with on_host():
            self._copy, self._norms = copy_for_int8(model, make_rounding)
        self._model = model
        self.limits = [layer.limits for layer in self._copy.layers if isinstance(layer, LearnedRounding)]
        self.trainable_variables = list(model.trainable_variables)
        self.non_trainable_variables = [*model.non_trainable_variables, *self.limits]
        self.statistics = self.limits if learns else []
        self.output_shape = model.output_shape

    def stateless_call(
        self, trainable: Sequence[Any], others: Sequence[Any], images: Any, training: bool = False
    ) -> tuple[Any, list[Any]]:
        """Compute the logits of images, and new values of `non_trainable_variables`."""
        copy, variables = self._copy, [*self.trainable_variables, *self.non_trainable_variables]
        values = dict(zip(map(id, variables), [*trainable, *others], strict=True))

        def read(variable):
            return values[id(variable)]

        for layer in copy.layers:
            if layer.weights and not isinstance(layer, LearnedRounding):
                old, norm = self._model.get_layer(layer.name), self._norms.get(layer.name)
                kernel, *rest = fold_weights(old, norm, read)
                values |= zip(map(id, layer.weights), [round_kernel(layer, kernel), *rest], strict=True)
        groups = ([values[id(v)] for v in each] for each in (copy.trainable_variables, copy.non_trainable_variables))
        logits, updated = copy.stateless_call(*groups, images, training=training)
        values |= zip(map(id, copy.non_trainable_variables), updated, strict=True)
        return logits, [values[id(v)] for v in self.non_trainable_variables]


class QuantizedInference:
    """Computes the logits of a quantized network, like `folding.Inference`.

    Args:
        model: The model that owns the weights.
        limits: The limits of `QuantizedNetwork.limits`, in its order.
    """

    def __init__(self, model: keras.Model, limits: Sequence[keras.Variable]):
        self._network = QuantizedNetwork(model, learns=False)
        self._groups = model.trainable_variables, [*model.non_trainable_variables, *limits]

    def __call__(self, images: Any) -> Any:
        """Return the logits of images, [B, classes]."""
        return self.with_values({})(images)

    def with_values(self, stands_for: Mapping[int, keras.Variable]) -> Callable[[Any], Any]:
        """Return a function like this one that reads other variables: {id(variable): the one to read instead}."""

        def compute(images):
            trainable, others = (read_values([stands_for.get(id(v), v) for v in group]) for group in self._groups)
            return self._network.stateless_call(trainable, others, images)[0]

        return compute
