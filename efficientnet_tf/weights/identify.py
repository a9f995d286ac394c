"""Recognizes the network of a weight file or of a model, to say what was found when the two do not fit."""

import math
from collections import Counter
from collections.abc import Iterable

from efficientnet_tf.config.load import list_variants, load_variant
from efficientnet_tf.config.schema import ModelSpec
from efficientnet_tf.scaling.layers import list_layers


def find_variant(shapes: Iterable[tuple[int, ...]]) -> str | None:
    """Return the variant of this package whose convolutions have these sizes, or None.

    Only the number of weights of each convolution counts. So it does not matter how another library names and orders
    the layers and the axes of their kernels, and how many classes there are.

    Args:
        shapes: Shapes of the variables, in any order. Those that do not have four axes are ignored.
    """
    sizes = Counter(math.prod(shape) for shape in shapes if len(shape) == 4)
    return next((name for name in list_variants() if _kernel_sizes(load_variant(name)) == sizes), None)


def _kernel_sizes(spec: ModelSpec) -> Counter[int]:
    """Return how often each number of weights occurs among the convolutions of a network."""
    convolutions = [layer for layer in list_layers(spec) if "kernel" in layer.variables and layer.kind != "dense"]
    return Counter(layer.params - ("bias" in layer.variables) * layer.channels for layer in convolutions)
