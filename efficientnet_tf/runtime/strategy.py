"""Chooses the devices of a run and what suits them: the `tf.distribute` strategy, the precision, and XLA.

Only this package names devices. All other code takes a strategy. With JAX, the step of a run needs no TensorFlow, so it
is only imported where it is used.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import keras

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.runtime.backend import BACKENDS, uses_jax
from efficientnet_tf.runtime.cluster import read_cluster
from efficientnet_tf.runtime.hardware import check_devices

if TYPE_CHECKING:
    import tensorflow as tf


def create_strategy(
    device: str = "auto", tpu: str | None = None, replicas: int = 1, cluster: bool = False
) -> tf.distribute.Strategy:
    """Create the strategy of a run. A single device has one, too.

    Args:
        device: "auto" (all GPUs, or the CPU if there is none), "cpu", "gpu" or "tpu".
        tpu: "local" for the chips of this machine, the name of a Cloud TPU, or grpc://address:8470.
        replicas: Number of logical devices to split the CPU into, at least 1.
        cluster: Whether to join the workers that the environment variable TF_CONFIG lists, or with JAX also those of a
            TPU slice or of Slurm. Every worker must call this before anything is computed.

    Returns:
        The strategy.

    Raises:
        UserError: If the arguments contradict each other, a device is missing, or the workers do not connect.
    """
    on_tpu = tpu is not None or device == "tpu"
    check_devices(device, tpu, replicas, BACKENDS)
    if keras.backend.backend() not in BACKENDS:
        raise UserError(
            f"Keras uses the backend {keras.backend.backend()!r}, but this needs TensorFlow. "
            "Set the environment variable KERAS_BACKEND=tensorflow."
        )
    workers = read_cluster(os.environ.get("TF_CONFIG", "")) if cluster else []
    if uses_jax():
        from efficientnet_tf.runtime.jax_strategy import create_jax_strategy

        return create_jax_strategy("tpu" if on_tpu else device, replicas, cluster)
    import tensorflow as tf

    from efficientnet_tf.runtime.tpu import connect_tpu
    from efficientnet_tf.runtime.workers import join_workers

    if len(workers) > 1:
        if on_tpu or replicas > 1:
            raise UserError(
                "Several workers (TF_CONFIG) can have neither a TPU nor CPU replicas. Leave out the workers, or "
                "tpu and replicas."
            )
        return join_workers(workers, device)
    gpus = [] if on_tpu or device == "cpu" else tf.config.list_physical_devices("GPU")
    if replicas > 1 and (on_tpu or gpus):
        raise UserError(
            f"replicas={replicas} splits the CPU, but this run uses a TPU or GPUs. Use device=cpu, or replicas=1."
        )
    if on_tpu:
        return connect_tpu(tpu or "")
    if device == "gpu" and not gpus:
        raise UserError(
            "device=gpu cannot be used because TensorFlow sees no GPU. Check that the driver is installed, and run "
            "pip install 'efficientnet_tf[gpu]'."
        )
    if not gpus:
        return _split_cpu(replicas)
    names = [f"GPU:{i}" for i in range(len(gpus))]
    return tf.distribute.MirroredStrategy(names) if len(names) > 1 else tf.distribute.OneDeviceStrategy(names[0])


def _split_cpu(replicas: int) -> tf.distribute.Strategy:
    """Return a strategy on the CPU, split into as many logical devices as there are replicas."""
    import tensorflow as tf

    if replicas == 1:
        return tf.distribute.OneDeviceStrategy("CPU:0")
    cpu = tf.config.list_physical_devices("CPU")[0]
    if len(tf.config.get_logical_device_configuration(cpu) or ()) < replicas:
        try:
            tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * replicas)
        except RuntimeError:
            raise UserError(
                f"replicas={replicas} cannot be set after TensorFlow has used the CPU. Create the strategy first."
            ) from None
    return tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(replicas)])


def device_type(strategy: tf.distribute.Strategy) -> str:
    """Return the kind of device that the replicas run on: "TPU", "GPU" or "CPU"."""
    if uses_jax():
        return strategy.device_type
    import tensorflow as tf

    if isinstance(strategy, tf.distribute.TPUStrategy):
        return "TPU"
    return tf.DeviceSpec.from_string(strategy.extended.worker_devices[0]).device_type


def current_device_type() -> str:
    """Return the kind of device of the strategy in whose scope this is called, or without one, of this machine."""
    import tensorflow as tf

    if tf.distribute.has_strategy():
        return device_type(tf.distribute.get_strategy())
    return "GPU" if tf.config.list_physical_devices("GPU") else "CPU"


def describe_devices(strategy: tf.distribute.Strategy) -> str:
    """Return the number and the type of a strategy's devices for people, for example "8 x TPU"."""
    return f"{strategy.num_replicas_in_sync} x {device_type(strategy)}"


def dtype_policy(precision: str, strategy: tf.distribute.Strategy) -> str:
    """Return the name of the Keras dtype policy for the config key `train.precision`.

    Args:
        precision: "auto" (mixed_bfloat16 on TPU, float32 elsewhere) or the name of a policy.
        strategy: Strategy of the run.
    """
    if precision == "auto":
        return "mixed_bfloat16" if device_type(strategy) == "TPU" else "float32"
    return precision


def should_jit(jit_compile: str, strategy: tf.distribute.Strategy) -> bool:
    """Return whether to compile the training step with XLA.

    Args:
        jit_compile: "auto", "on" or "off". "auto" is on for GPUs only: XLA is several times slower on CPUs, and TPUs
            always use it.
        strategy: Strategy of the run.
    """
    if jit_compile == "auto":
        return device_type(strategy) == "GPU"
    return jit_compile == "on"


def distribute_batches(
    strategy: tf.distribute.Strategy, make_dataset: Callable[[tf.distribute.InputContext], tf.data.Dataset]
) -> Iterable:
    """Return the batches of all replicas.

    Args:
        strategy: Strategy of the run.
        make_dataset: Function that returns the dataset of one host from its input context. The dataset's batches are
            those of single replicas.

    Returns:
        An iterable. Each element holds one batch for every replica, as `strategy.run` takes it.
    """
    import tensorflow as tf

    if uses_jax():
        context = tf.distribute.InputContext(strategy.processes, strategy.process, strategy.processes)
        return strategy.divide_batches(make_dataset(context))
    if isinstance(strategy, tf.distribute.OneDeviceStrategy) and device_type(strategy) == "CPU":
        return make_dataset(tf.distribute.InputContext())  # A distributed iterator is not needed here.
    batches = strategy.distribute_datasets_from_function(make_dataset)
    return batches if device_type(strategy) == "TPU" else _UntunedBatches(batches)


class _UntunedBatches:
    """Batches of several replicas whose iterators end at once.

    For each replica, `tf.distribute` iterates over a dataset of its own, whose options cannot be set. TensorFlow tunes
    it in a thread. It wakes this thread before it marks the end of an iterator. A thread that looks too early sleeps
    again, for up to a minute, and whoever drops the iterator waits for it. So iterators are made without this thread.
    """

    def __init__(self, batches: Iterable):
        self._batches = batches

    def __iter__(self) -> Iterator:
        import tensorflow as tf

        options = tf.data.Options()
        options.autotune.enabled = False
        make_iterator = tf.data.Dataset.__iter__
        tf.data.Dataset.__iter__ = lambda self: make_iterator(self.with_options(options))
        try:
            return iter(self._batches)
        finally:
            tf.data.Dataset.__iter__ = make_iterator


def add_up(steps: Any, start: Any, make: Callable[[], Any]) -> Any:
    """Return the sum of what a function returns in each step, as a single loop of the graph.

    AutoGraph would make the same loop of a `for` statement. It would write Python files to do so, which fails where no
    file can be written.

    Args:
        steps: Number of steps, an int32 scalar.
        start: The tensor to which the results are added.
        make: Function that returns a tensor of that shape and type. It is traced once.
    """
    import tensorflow as tf

    def add(step, total):
        return step + 1, total + make()

    return tf.while_loop(lambda step, _: step < steps, add, (tf.zeros_like(steps), start))[1]


def replica_count(strategy: tf.distribute.Strategy) -> int:
    """Return the number of replicas of a strategy.

    A strategy that traces one replica of a simulated TPU slice has an attribute `stands_for`, the number of replicas of
    the slice.
    """
    return getattr(strategy, "stands_for", strategy.num_replicas_in_sync)


def on_host() -> contextlib.AbstractContextManager:
    """Return a context in which variables are created in the memory of the host, or with JAX, of its first device."""
    if uses_jax():
        return contextlib.nullcontext()
    import tensorflow as tf

    return tf.device("CPU:0")
