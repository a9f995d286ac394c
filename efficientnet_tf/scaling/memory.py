"""The memory of training and inference, and the largest batch that fits, predicted without building anything.

Without XLA, TensorFlow keeps exactly the outputs that `layers` marks as kept until the backward pass. That part is
arithmetic. The rest (the traced program and its kernels, and updates in flight) was measured on a CPU.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from efficientnet_tf.scaling.layers import Layer, find_block

ACTIVATION_BYTES = {"float32": 4, "mixed_bfloat16": 2}
OPTIMIZER_SLOTS = {"rmsprop": 2, "sgd": 1, "adamw": 2, "lamb": 2}  # numbers that an optimizer keeps per weight
WEIGHT_BYTES = 4  # variables are always float32
# These constants were fitted to `summary --measure` on B0 to B3.
PROGRAM_BYTES = 2.2 * 2**20  # trace and kernels of a layer, forward and backward
FORWARD_PROGRAM_BYTES = 0.6 * 2**20  # trace and kernels of a layer, forward only
UPDATES = 2  # copies of the weights that exist besides the gradients while variables are updated


@dataclass(frozen=True)
class Memory:
    """Bytes of memory by purpose.

    Attributes:
        weights: Weights and batch-norm statistics. Training counts them twice, because its graph has its own.
        optimizer: Slot variables of the optimizer.
        ema: Exponential moving average of weights and statistics.
        gradients: Gradients, and updates in flight.
        activations: Activations of the whole batch.
        program: Traced graph and kernels, on a CPU.
    """

    weights: int
    optimizer: int
    ema: int
    gradients: int
    activations: int
    program: int

    @property
    def total(self) -> int:
        """Sum over all purposes, in bytes."""
        return self.weights + self.optimizer + self.ema + self.gradients + self.activations + self.program


def count_kept_bytes(layers: Sequence[Layer], precision: str = "float32", remat: bool = False) -> int:
    """Return the bytes of one image's activations that are kept for the backward pass.

    Args:
        layers: The layers of a network or of a part of it.
        precision: "float32" or "mixed_bfloat16". Pixels and logits are always float32.
        remat: Whether blocks are computed again in the backward pass. Then only what leaves a block is kept, and what
            is inside of two neighbors: one is computed again while the gradients of the other's kernels are computed.
    """
    size = ACTIVATION_BYTES[precision]
    if remat:
        blocks = [list(group) for _, group in itertools.groupby(layers, key=lambda layer: find_block(layer.name))]
        inside = [count_kept_bytes(block, precision) for block in blocks]
        return sum(block[-1].elements * size for block in blocks) + max(map(sum, itertools.pairwise([0, *inside])))
    bytes_of = {"normalization": 4, "dense": 4}
    return sum(layer.elements * bytes_of.get(layer.kind, size) for layer in layers if layer.kept)


def count_training_memory(
    layers: Sequence[Layer],
    batch: int,
    precision: str = "float32",
    optimizer: str = "rmsprop",
    ema: bool = True,
    remat: bool = False,
) -> Memory:
    """Return the predicted peak memory of a training step.

    Args:
        layers: The layers of the network.
        batch: Images per replica, at least 0.
        precision: "float32" or "mixed_bfloat16".
        optimizer: A key of `OPTIMIZER_SLOTS`.
        ema: Whether training keeps an exponential moving average of the weights.
        remat: Whether blocks are computed again in the backward pass.

    Returns:
        A `Memory`. Its activations are those kept for the backward pass and twice the largest one, for the gradients
        that enter and leave a layer.
    """
    params, statistics = sum(layer.params for layer in layers), sum(layer.statistics for layer in layers)
    weights = (params + statistics) * WEIGHT_BYTES
    largest = max(layer.elements for layer in layers) * ACTIVATION_BYTES[precision]
    return Memory(
        weights=2 * weights,
        optimizer=params * WEIGHT_BYTES * OPTIMIZER_SLOTS[optimizer],
        ema=weights * ema,
        gradients=params * WEIGHT_BYTES * (1 + UPDATES),
        activations=batch * (count_kept_bytes(layers, precision, remat) + 2 * largest),
        program=round(len(layers) * PROGRAM_BYTES),
    )


def count_inference_memory(layers: Sequence[Layer], batch: int, precision: str = "float32") -> Memory:
    """Return the predicted peak memory of a forward pass.

    Args:
        layers: The layers of the network.
        batch: Number of images, at least 0.
        precision: "float32" or "mixed_bfloat16".

    Returns:
        A `Memory`. A layer's input and output exist at the same time, together with the input of a residual until it is
        added. Batch norm and activations consist of several operations and hold three tensors of their size.
    """
    weights = sum(layer.params + layer.statistics for layer in layers) * WEIGHT_BYTES
    elementwise = [3 * layer.elements for layer in layers if layer.kind in ("batch_norm", "activation")]
    others = [layer for layer in layers if layer.kind not in ("batch_norm", "activation")]
    held, block_start = [0] * len(others), 0
    for i, layer in enumerate(others):
        if layer.kind == "add":
            if layer.name.endswith("_add"):
                held[block_start + 2 : i + 1] = [others[block_start].elements] * (i - block_start - 1)
            block_start = i
        elif layer.part == "stem":
            block_start = i
    pairs = (others[i - 1].elements + others[i].elements + held[i] for i in range(1, len(others)))
    return Memory(
        weights=weights,
        optimizer=0,
        ema=0,
        gradients=0,
        activations=batch * max(*elementwise, *pairs) * ACTIVATION_BYTES[precision],
        program=round(len(layers) * FORWARD_PROGRAM_BYTES),
    )


def find_largest_batch(
    layers: Sequence[Layer],
    available_bytes: float,
    precision: str = "float32",
    optimizer: str = "rmsprop",
    ema: bool = True,
    remat: bool = False,
) -> int:
    """Return the largest batch whose training step fits, or 0 if none does.

    Args:
        layers: The layers of the network.
        available_bytes: Memory of the device, greater than 0.
        precision: "float32" or "mixed_bfloat16".
        optimizer: A key of `OPTIMIZER_SLOTS`.
        ema: Whether training keeps an exponential moving average of the weights.
        remat: Whether blocks are computed again in the backward pass.
    """
    fixed = count_training_memory(layers, 0, precision, optimizer, ema, remat).total
    per_image = count_training_memory(layers, 1, precision, optimizer, ema, remat).total - fixed
    return max(0, int((available_bytes - fixed) // per_image))
