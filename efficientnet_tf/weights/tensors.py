"""Tensors in files: described by their metadata, and read only if the model needs exactly this name and shape."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

# None stands for any size.
Shapes = Mapping[str, tuple[int | None, ...]]

MAX_TENSORS = 100_000


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file that was not read.

    Attributes:
        shape: Its shape, as the file declares it.
        dtype: Its type, as the file declares it, for messages.
        read: Function that returns the numbers as long as the file is open. None if the type is not a number.
    """

    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], np.ndarray] | None

    def transpose(self, axes: tuple[int, ...]) -> "StoredTensor":
        """Return the tensor with its axes in another order."""
        read = self.read
        return StoredTensor(
            tuple(self.shape[axis] for axis in axes),
            self.dtype,
            None if read is None else lambda: read().transpose(axes),
        )


def read_needed(tensors: Mapping[str, StoredTensor], shapes: Shapes) -> dict[str, "np.ndarray | StoredTensor"]:
    """Read the tensors that a model needs, as float32. The others stay unread.

    Args:
        tensors: The tensors of an open file, under this package's names.
        shapes: {name: shape} of the model's variables. The size of an axis may be None, which fits any size.

    Raises:
        ValueError: If a tensor that is needed contains something else than floating-point numbers, or cannot be read.
    """
    values: dict[str, np.ndarray | StoredTensor] = {}
    for name, tensor in tensors.items():
        wanted = shapes.get(name)
        fits = wanted is not None and len(wanted) == len(tensor.shape)
        fits = fits and all(w in (None, size) for w, size in zip(wanted or (), tensor.shape, strict=False))
        values[name] = _read(name, tensor) if fits else tensor
    return values


def _read(name, tensor):
    if tensor.read is None:
        raise ValueError(f"{name} contains {tensor.dtype}, not floating-point numbers")
    array = tensor.read()
    if array.shape != tensor.shape:
        raise ValueError(f"{name} declares the shape {tensor.shape} but has {array.shape}")
    if array.dtype.kind != "f":
        raise ValueError(f"{name} contains {tensor.dtype}, not floating-point numbers")
    with np.errstate(over="ignore"):  # becomes infinite, which is refused later with the name
        return np.ascontiguousarray(array, np.float32)


def put_tensor(tensors: dict[str, StoredTensor], name: str, tensor: StoredTensor) -> None:
    """Add a tensor.

    Raises:
        ValueError: If the name is there already, because two tensors of the file mean the same variable.
    """
    if name in tensors:
        raise ValueError(f"it contains {name} twice")
    tensors[name] = tensor
