"""What memory a network takes in training and in inference, and the largest batch that fits: counted, nothing is built.

TensorFlow without XLA keeps, for the backward pass, exactly the outputs that `complexity` marks as kept: that part is
arithmetic. What it needs beside them (the traced program and its kernels, updates in flight) was measured on a CPU.
"""

from dataclasses import dataclass

PRECISIONS = {"float32": 4, "mixed_bfloat16": 2}  # bytes of an activation
SLOTS = {"rmsprop": 2, "sgd": 1, "adamw": 2, "lamb": 2}  # numbers that an optimiser keeps for each weight
WEIGHT_BYTES = 4  # variables are float32 in either precision
# Measured by `summary --measure` on B0 to B3: what a layer's trace and kernels take, forward and backward; and how many
# copies of the weights, beside the gradients, are on their way into the variables at once.
PROGRAM_BYTES = 2.2 * 2**20
FORWARD_PROGRAM_BYTES = 0.6 * 2**20
UPDATES = 2


@dataclass(frozen=True)
class Memory:
    """Bytes by purpose."""

    weights: int  # with batch norm's statistics; in training twice, for the graph that training takes has its own
    optimizer: int  # its slots
    average: int  # the moving average of weights and statistics
    gradients: int  # and updates in flight
    activations: int  # of the batch
    program: int  # traced graph and kernels; of the CPU

    @property
    def total(self):
        """All of it, in bytes."""
        return self.weights + self.optimizer + self.average + self.gradients + self.activations + self.program


def kept_bytes(layers, precision="float32"):
    """Return the bytes of one image's activations that wait for the backward pass.

    Args:
        layers: sequence of complexity.Layer, the network or a part of it.
        precision: str, "float32" or "mixed_bfloat16"; pixels and logits are float32 in either.
    """
    size = PRECISIONS[precision]
    bytes_of = {"normalization": 4, "dense": 4}
    return sum(layer.elements * bytes_of.get(layer.kind, size) for layer in layers if layer.kept)


def training_memory(layers, batch, precision="float32", optimizer="rmsprop", average=True):
    """Count the peak memory of a training step.

    Args:
        layers: list of complexity.Layer.
        batch: int >= 0, images a replica.
        precision: str, "float32" or "mixed_bfloat16".
        optimizer: str, a key of SLOTS.
        average: bool, whether a moving average is kept.

    Returns:
        Memory. Activations are those kept for the backward pass, and two more of the largest: the gradients that come
        to a layer and leave it.
    """
    params, statistics = sum(layer.params for layer in layers), sum(layer.statistics for layer in layers)
    weights = (params + statistics) * WEIGHT_BYTES
    largest = max(layer.elements for layer in layers) * PRECISIONS[precision]
    return Memory(
        weights=2 * weights,
        optimizer=params * WEIGHT_BYTES * SLOTS[optimizer],
        average=weights * average,
        gradients=params * WEIGHT_BYTES * (1 + UPDATES),
        activations=batch * (kept_bytes(layers, precision) + 2 * largest),
        program=round(len(layers) * PROGRAM_BYTES),
    )


def inference_memory(layers, batch, precision="float32"):
    """Count the peak memory of a forward pass.

    Args:
        layers: list of complexity.Layer.
        batch: int >= 0, images.
        precision: str, "float32" or "mixed_bfloat16".

    Returns:
        Memory. A layer's input and output live together, and beside them the input of a residual until it is added;
        batch norm and activations, several operations each, hold three tensors of their size.
    """
    weights = sum(layer.params + layer.statistics for layer in layers) * WEIGHT_BYTES
    elementwise = [3 * layer.elements for layer in layers if layer.kind in ("batch_norm", "activation")]
    moving = [layer for layer in layers if layer.kind not in ("batch_norm", "activation")]
    held, begin = [0] * len(moving), 0
    for i, layer in enumerate(moving):
        if layer.kind == "add":
            if layer.name.endswith("_add"):
                held[begin + 2 : i + 1] = [moving[begin].elements] * (i - begin - 1)
            begin = i
        elif layer.part == "stem":
            begin = i
    pairs = (moving[i - 1].elements + moving[i].elements + held[i] for i in range(1, len(moving)))
    return Memory(
        weights=weights,
        optimizer=0,
        average=0,
        gradients=0,
        activations=batch * max(*elementwise, *pairs) * PRECISIONS[precision],
        program=round(len(layers) * FORWARD_PROGRAM_BYTES),
    )


def largest_batch(layers, available, **options):
    """Return the largest batch whose training step fits, 0 where none does.

    Args:
        layers: list of complexity.Layer.
        available: number > 0, bytes.
        **options: precision, optimizer, average, as of `training_memory`.
    """
    fixed = training_memory(layers, 0, **options).total
    image = training_memory(layers, 1, **options).total - fixed
    return max(0, int((available - fixed) // image))
