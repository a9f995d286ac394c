"""The devices of a run with JAX, all in one row, over which each batch is divided."""

import collections
import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
import tensorflow as tf
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.text import escape

AXIS = "devices"
_STEPS_AHEAD = 2  # how many steps the host may be ahead of the devices. Each holds its batch in their memory.


class JaxStrategy:
    """The counterpart of `tf.distribute.Strategy`: where a run computes with JAX.

    Attributes:
        mesh: All devices of all processes.
        num_replicas_in_sync: Number of devices, each of which computes a part of the batch.
        processes: Number of processes. Each reads its own part of the batches.
        process: Number of this process.
    """

    def __init__(self, devices: Sequence[Any] | None = None):
        self.mesh = Mesh(np.array(devices or jax.devices()), (AXIS,))
        self.num_replicas_in_sync = self.mesh.size
        self.processes, self.process = jax.process_count(), jax.process_index()

    @property
    def is_chief(self) -> bool:
        """Whether this process writes files and prints."""
        return self.process == 0

    @property
    def device_type(self) -> str:
        """The kind of the devices: "TPU", "GPU" or "CPU"."""
        return self.mesh.devices.flat[0].platform.upper()

    def scope(self) -> contextlib.AbstractContextManager:
        """Return a context in which variables are created. Loops move them to the devices."""
        return contextlib.nullcontext()

    def replicate(self, values: Any) -> Any:
        """Return arrays that are on every device."""
        return jax.device_put(values, NamedSharding(self.mesh, P()))

    def compile(self, function: Callable, batches: int, donate: bool = False) -> Callable:
        """Compile a function that each device calls with its part of a batch.

        Args:
            function: A function of values that are the same on every device, and of `batches` arrays whose first axis
                is divided over the devices. It must return the same values on every device.
            batches: How many of the arguments are divided, counted from the last one.
            donate: Whether the memory of the first argument can be used for the result.
        """

        def run(*arguments):
            shared = len(arguments) - batches
            specs = (P(),) * shared + (P(AXIS),) * batches
            mapped = jax.shard_map(function, mesh=self.mesh, in_specs=specs, out_specs=P(), check_vma=False)
            return mapped(*arguments)

        return jax.jit(run, donate_argnums=0 if donate else ())

    def divide_batches(self, dataset: Iterable) -> "DividedBatches":
        """Return the batches of this process's dataset as arrays that are divided over all devices."""
        return DividedBatches(dataset, NamedSharding(self.mesh, P(AXIS)))


def create_jax_strategy(device: str, replicas: int) -> JaxStrategy:
    """Return the strategy for all devices of a kind.

    Args:
        device: "auto" for what JAX finds, "cpu", "gpu" or "tpu".
        replicas: Number of devices to split the CPU into, at least 1. Only for the CPU.

    Raises:
        UserError: If there is no such device, or the CPU cannot be split any more.
    """
    # TensorFlow only reads images here. It must not take the memory of a GPU.
    tf.config.set_visible_devices([], "GPU")
    if replicas > 1:
        device = "cpu"
        try:
            jax.config.update("jax_num_cpu_devices", replicas)
        except RuntimeError:
            raise UserError(
                f"replicas={replicas} cannot be set after JAX has used the CPU. Create the strategy first."
            ) from None
    try:
        devices = jax.devices(None if device == "auto" else device)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"device={device} cannot be used because JAX sees no {device.upper()} ({escape(reason)}). Check its "
            f"driver, and run pip install 'efficientnet_tf[jax-{device}]'."
        ) from None
    if replicas > 1 and len(devices) != replicas:
        raise UserError(f"replicas={replicas} cannot be set after JAX has used the CPU. Create the strategy first.")
    return JaxStrategy(devices)


class DividedBatches:
    """The batches of a dataset, each as a tuple of arrays with a sharding."""

    def __init__(self, dataset: Iterable, sharding: NamedSharding):
        self._dataset, self._sharding = dataset, sharding

    def __iter__(self) -> Iterator[tuple[jax.Array, ...]]:
        for batch in self._dataset:
            yield tuple(jax.make_array_from_process_local_data(self._sharding, np.asarray(part)) for part in batch)


def average_in_group(values: jax.Array, group: int) -> jax.Array:
    """Return the mean of values over groups of neighboring devices. Call it in a function that devices run.

    Args:
        values: Values of this device.
        group: Number of devices in a group, a divisor of the number of devices.
    """
    devices = range(jax.lax.axis_size(AXIS))
    groups = [list(devices[start : start + group]) for start in range(0, len(devices), group)]
    return jax.lax.pmean(values, AXIS, axis_index_groups=groups)


class StepQueue:
    """Keeps the host from running too far ahead of the devices, which would fill their memory with batches."""

    def __init__(self):
        self._results = collections.deque()

    def add(self, result: jax.Array) -> None:
        """Add the result of a step that was started. It is waited for when more steps have been started."""
        self._results.append(result)
        if len(self._results) > _STEPS_AHEAD:
            jax.block_until_ready(self._results.popleft())
