"""Joins the workers of a run on several hosts, and tells a worker that is gone from other errors."""

import atexit
import contextlib
import os
import re
import socket
from collections.abc import Callable, Iterator

import numpy as np
import tensorflow as tf

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.text import find_reason
from efficientnet_tf.runtime.backend import uses_jax
from efficientnet_tf.runtime.cluster import WAIT_SECONDS, await_workers, read_cluster

__all__ = ["LostWorkerError", "is_chief", "join_workers", "make_gather", "read_cluster", "report_lost_workers"]

_LOST = re.compile("gloo|nccl|unavailable|connection|deadline_exceeded|heartbeat", re.IGNORECASE)  # in errors of JAX


class LostWorkerError(UserError):
    """Another worker of the run is gone."""


def join_workers(
    addresses: list[str], device: str, timeout_seconds: float = WAIT_SECONDS
) -> tf.distribute.MultiWorkerMirroredStrategy:
    """Wait for the other workers and connect to them.

    Args:
        addresses: Addresses of all workers of TF_CONFIG as "host:port", that of this worker first.
        device: "auto", "cpu" or "gpu".
        timeout_seconds: Longest time to wait for the other workers.

    Returns:
        A strategy on the devices of all workers.

    Raises:
        UserError: If a worker is missing, or this worker cannot be started.
    """
    if device == "gpu" and not tf.config.list_physical_devices("GPU"):
        raise UserError("device=gpu cannot be used because TensorFlow sees no GPU on this worker. Check its driver.")
    try:
        # The own port must be open while this worker waits, because the others wait for it.
        with socket.create_server(("", int(addresses[0].rpartition(":")[2]))):
            await_workers(addresses[1:], timeout_seconds)
        if device == "cpu":
            tf.config.set_visible_devices([], "GPU")
        return tf.distribute.MultiWorkerMirroredStrategy()
    except UserError:
        raise
    except (tf.errors.OpError, RuntimeError, ValueError, OSError) as error:
        raise UserError(f"Worker {addresses[0]} cannot join the others: {find_reason(error)}") from None


def is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Return whether this process is the worker that writes files and prints."""
    return strategy.is_chief if uses_jax() else strategy.extended.should_checkpoint


def make_gather(strategy: tf.distribute.Strategy) -> Callable[[int], list[int]]:
    """Return a function that exchanges an integer with all workers and waits for them.

    Args:
        strategy: Strategy of the run.

    Returns:
        A function. Every worker calls it with its own value, and receives the list of all values, one per replica, or
        one per worker with JAX.
    """
    if uses_jax():
        return lambda value: [value] if strategy.processes == 1 else _gather_with_jax(strategy, value)
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return lambda value: [value]

    def place(value):
        context = tf.distribute.get_replica_context()
        own = tf.one_hot(context.replica_id_in_sync_group, strategy.num_replicas_in_sync, dtype=tf.int64)
        return context.all_reduce("SUM", own * value)

    def run_on_all(value):
        return strategy.experimental_local_results(strategy.run(place, args=(value,)))[0]

    run = tf.function(run_on_all, autograph=False)

    def gather(value):
        with report_lost_workers(strategy):
            return run(tf.constant(value, tf.int64)).numpy().tolist()

    return gather


def _gather_with_jax(strategy, value):
    from jax.experimental import multihost_utils

    halves = np.array([value], np.int64).view(np.int32)  # JAX has integers of 32 bits.
    with report_lost_workers(strategy):
        gathered = np.ascontiguousarray(multihost_utils.process_allgather(halves), np.int32)
    return gathered.view(np.int64).reshape(-1).tolist()


@contextlib.contextmanager
def report_lost_workers(strategy: tf.distribute.Strategy) -> Iterator[None]:
    """Return a context for computations of all workers. If another one is gone, it raises a `LostWorkerError`."""
    try:
        yield
    except Exception as error:
        why = _find_loss(error, strategy)
        if why is None:
            raise
        if uses_jax():
            # At its end, the process would wait for the others, and JAX would then abort it.
            atexit.register(lambda: os._exit(1))
        raise LostWorkerError(
            f"another worker is gone ({why[:200]}). The last checkpoint is safe. Start the same command again on all "
            "workers."
        ) from None


def _find_loss(error, strategy):
    """Return the line of an error that says that another worker is gone, or None if it says something else."""
    lines = str(getattr(error, "message", error)).split("\n")
    if uses_jax():
        is_lost = strategy.processes > 1 and isinstance(error, RuntimeError) and _LOST.search(lines[0])
        return lines[0] if is_lost else None
    if not isinstance(error, tf.errors.OpError) or not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return None
    is_lost = isinstance(error, tf.errors.UnavailableError) or "Collective" in error.message
    return next((line for line in lines if "aborted" in line), lines[0]) if is_lost else None
