"""Parameters, multiply-adds, memory and receptive fields of a network, counted without building it."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from efficientnet_tf.config.image_size import ImageSize
from efficientnet_tf.config.load import load_variant
from efficientnet_tf.config.schema import ModelSpec
from efficientnet_tf.scaling.compound import scale_network
from efficientnet_tf.scaling.layers import Layer, list_layers
from efficientnet_tf.scaling.memory import count_inference_memory, count_training_memory


@dataclass(frozen=True)
class Cost:
    """Parameters and multiply-adds of a part of a network.

    Attributes:
        trainable_params: Parameters that training changes by gradients.
        statistics: Moving means and variances of batch norm.
        macs: Multiply-adds for one image, of convolutions (including squeeze-and-excitation) and dense layers.
    """

    trainable_params: int = 0
    statistics: int = 0
    macs: int = 0

    def __add__(self, other: "Cost") -> "Cost":
        """Return the cost of two parts together."""
        return Cost(
            self.trainable_params + other.trainable_params,
            self.statistics + other.statistics,
            self.macs + other.macs,
        )

    @property
    def total_params(self) -> int:
        """Trainable parameters and batch-norm statistics."""
        return self.trainable_params + self.statistics


class NetworkCost(Mapping[str, Cost]):
    """What a network costs: parameters, multiply-adds and memory.

    As a mapping it holds the `Cost` of each part, in the order of the network: "stem", "stage1", ..., "head" and, last,
    "total".

    Args:
        layers: The layers of the network.
    """

    def __init__(self, layers: Iterable[Layer]):
        self.layers = tuple(layers)
        self._parts = sum_by(self.layers, "part")

    def __getitem__(self, part: str) -> Cost:
        return self._parts[part]

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)

    def __repr__(self) -> str:
        return f"NetworkCost(params={self.params:,}, macs={self.macs:,})"

    @property
    def params(self) -> int:
        """Trainable parameters."""
        return self["total"].trainable_params

    @property
    def total_params(self) -> int:
        """Trainable parameters and batch-norm statistics."""
        return self["total"].total_params

    @property
    def macs(self) -> int:
        """Multiply-adds for one image."""
        return self["total"].macs

    def training_bytes(
        self, batch: int, precision: str = "float32", optimizer: str = "rmsprop", ema: bool = True
    ) -> int:
        """Return the predicted peak memory of a training step, in bytes.

        Args:
            batch: Images per replica, at least 0.
            precision: "float32" or "mixed_bfloat16".
            optimizer: "rmsprop", "sgd", "adamw" or "lamb".
            ema: Whether training keeps an exponential moving average of the weights.
        """
        return count_training_memory(self.layers, batch, precision, optimizer, ema).total

    def inference_bytes(self, batch: int, precision: str = "float32") -> int:
        """Return the predicted peak memory of a forward pass, in bytes.

        Args:
            batch: Number of images, at least 0.
            precision: "float32" or "mixed_bfloat16".
        """
        return count_inference_memory(self.layers, batch, precision).total


def sum_by(layers: Iterable[Layer], key: str) -> dict[str, Cost]:
    """Return the cost of layers, added up by one of their fields.

    Args:
        layers: The layers to add up.
        key: "part" or "kind".

    Returns:
        A dict from each value of the field, in the order of the network, to its `Cost`. The last key is "total".
    """
    sums = {}
    for layer in layers:
        cost = sums.setdefault(getattr(layer, key), [0, 0, 0])
        cost[0] += layer.params
        cost[1] += layer.statistics
        cost[2] += layer.macs
    parts = {name: Cost(*cost) for name, cost in sums.items()}
    return parts | {"total": sum(parts.values(), Cost())}


def count_cost(
    spec: str | ModelSpec, resolution: ImageSize | None = None, classes: int = 1000, channels: int = 3
) -> NetworkCost:
    """Return the parameters, multiply-adds and memory of a network without building it.

    Args:
        spec: The network: a `ModelSpec`, the name of a variant, or the path of a variant file.
        resolution: Size of the images in pixels, at least 1: the side of squares, or (height, width). Defaults to that
            of the network.
        classes: Number of classes, at least 1.
        channels: Channels of the images, at least 1.

    Raises:
        UserError: If the variant is unknown or its file is invalid.

    Source: the paper prints multiply-adds of convolutions and dense layers as "FLOPS".

    Example:
        >>> from efficientnet_tf import count_cost
        >>> cost = count_cost("b0")
        >>> cost
        NetworkCost(params=5,288,548, macs=385,814,752)
        >>> cost["head"].trainable_params
        1693160
        >>> f"{cost.training_bytes(batch=32) / 2**30:.1f} GiB"
        '2.8 GiB'
    """
    return NetworkCost(list_layers(load_variant(spec), resolution, classes, channels))


def compute_receptive_fields(spec: ModelSpec) -> dict[str, tuple[int, int]]:
    """Return the receptive field and the stride of each part's outputs, ignoring squeeze-and-excitation.

    Args:
        spec: The network.

    Returns:
        A dict from "stem", "stage1", ... to `(receptive field, stride)`, both in pixels of the input.
    """
    network = scale_network(spec)
    kernels = {"stem": [(spec.stem_kernel, spec.stem_stride)] + [(3, 2)] * spec.stem_pool}
    for number, stage in enumerate(network.stages, 1):
        kernels[f"stage{number}"] = [(block.kernel, block.stride) for block in stage]
    field, total_stride, fields = 1, 1, {}
    for part, pairs in kernels.items():
        for kernel, stride in pairs:
            field += (kernel - 1) * total_stride
            total_stride *= stride
        fields[part] = field, total_stride
    return fields
