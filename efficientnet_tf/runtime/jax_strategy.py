"""The devices of a run with JAX, all in one row, over which each batch is divided."""

import collections
import contextlib
import os
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.text import escape, find_reason
from efficientnet_tf.runtime.cluster import WAIT_SECONDS, await_workers, read_rank

AXIS = "devices"
_SHUTDOWN_SECONDS = 10  # how long the end of a process waits for that of the others
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
        # The devices of a process are neighbors, so that the images of a process are, too.
        devices = sorted(devices or jax.devices(), key=lambda device: (device.process_index, device.id))
        self.mesh = Mesh(np.array(devices), (AXIS,))
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
        """Return arrays that are on every device. All processes call it with the same values."""
        sharding = NamedSharding(self.mesh, P())
        if self.processes == 1:
            return jax.device_put(values, sharding)

        def place(value):
            if isinstance(value, jax.Array) and not value.is_fully_addressable:
                return value  # of a loop before
            local = np.asarray(value)
            return jax.make_array_from_callback(local.shape, sharding, lambda index: local[index])

        return jax.tree.map(place, values)

    def compile(self, function: Callable, batches: int, donate: bool = False) -> Any:
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


def create_jax_strategy(device: str, replicas: int, cluster: bool = False) -> JaxStrategy:
    """Return the strategy for all devices of a kind.

    Args:
        device: "auto" for what JAX finds, "cpu", "gpu" or "tpu".
        replicas: Number of devices to split the CPU into, at least 1. Only for the CPU.
        cluster: Whether to join the other processes of the run: see `join_processes`.

    Raises:
        UserError: If there is no such device, the CPU cannot be split any more, or a process is missing.
    """
    with contextlib.suppress(ImportError):  # The step of a run needs no TensorFlow.
        import tensorflow as tf

        # It only reads images here, and must not take the memory of a GPU.
        tf.config.set_visible_devices([], "GPU")
    if replicas > 1:
        device = "cpu"
        try:
            jax.config.update("jax_num_cpu_devices", replicas)
        except RuntimeError:
            raise UserError(
                f"replicas={replicas} cannot be set after JAX has used the CPU. Create the strategy first."
            ) from None
    if cluster:
        join_processes(os.environ.get("TF_CONFIG", ""), device == "tpu", WAIT_SECONDS)
    try:
        devices = jax.devices(None if device == "auto" else device)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"device={device} cannot be used because JAX sees no {device.upper()} ({escape(reason)}). Check its "
            f"driver, and run pip install 'efficientnet_tf[jax-{device}]'."
        ) from None
    if replicas > 1 and len(devices) != replicas * jax.process_count():
        raise UserError(f"replicas={replicas} cannot be set after JAX has used the CPU. Create the strategy first.")
    return JaxStrategy(devices)


def join_processes(tf_config: str, on_tpu: bool, timeout_seconds: float) -> None:
    """Connect to the other processes of a run, if there are any. Call this before JAX computes anything.

    Args:
        tf_config: Content of the environment variable TF_CONFIG, whose workers are joined. If it is empty, JAX finds
            the processes of a TPU slice and of Slurm by itself.
        on_tpu: Whether to look for the other hosts of a TPU slice.
        timeout_seconds: Longest time to wait for the others.

    Raises:
        UserError: If TF_CONFIG is invalid, a process is missing, or this process cannot be started.
    """
    addresses, own = read_rank(tf_config)
    settings: dict[str, Any] = {
        "initialization_timeout": round(timeout_seconds),
        "shutdown_timeout_seconds": _SHUTDOWN_SECONDS,
    }
    name = f"Worker {addresses[own]}" if addresses else "This process"
    try:
        if len(addresses) > 1:
            # The first worker opens its port when it has seen those of all others, which are open until then.
            if own == 0:
                await_workers(addresses[1:], timeout_seconds)
            else:
                with socket.create_server(("", int(addresses[own].rpartition(":")[2]))):
                    await_workers(addresses[:1], timeout_seconds)
            jax.distributed.initialize(addresses[0], len(addresses), own, **settings)
        elif on_tpu or int(os.environ.get("SLURM_NTASKS") or 1) > 1:
            jax.distributed.initialize(**settings)
    except UserError:
        raise
    except (RuntimeError, OSError) as error:
        raise UserError(f"{name} cannot join the others: {find_reason(error)}") from None
    except ValueError:
        pass  # JAX finds no cluster, so there is only this machine.


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
