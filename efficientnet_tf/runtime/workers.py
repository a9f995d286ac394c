"""Joins the workers of a run on several hosts, and tells a worker that is gone from other errors."""

import contextlib
import logging
import socket
import time
from collections.abc import Callable, Iterator

import tensorflow as tf

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.text import find_reason
from efficientnet_tf.runtime.backend import uses_jax
from efficientnet_tf.runtime.cluster import read_cluster
from efficientnet_tf.runtime.tpu import CONNECT_SECONDS

__all__ = ["LostWorkerError", "is_chief", "join_workers", "make_gather", "read_cluster", "report_lost_workers"]


class LostWorkerError(UserError):
    """Another worker of the run is gone."""


WAIT_SECONDS = 600  # schedulers start workers one after the other

_logger = logging.getLogger(__name__)


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
            _await_workers(addresses[1:], timeout_seconds)
        if device == "cpu":
            tf.config.set_visible_devices([], "GPU")
        return tf.distribute.MultiWorkerMirroredStrategy()
    except UserError:
        raise
    except (tf.errors.OpError, RuntimeError, ValueError, OSError) as error:
        raise UserError(f"TF_CONFIG: worker {addresses[0]} cannot join the others: {find_reason(error)}") from None


def _await_workers(addresses, timeout_seconds):
    """Wait until all addresses accept connections. TensorFlow itself would wait for an hour without a message."""
    deadline = time.monotonic() + timeout_seconds
    for address in addresses:
        host, _, port = address.rpartition(":")
        is_announced = False
        while True:
            try:
                socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
                break
            except OSError as error:
                if time.monotonic() > deadline:
                    raise UserError(
                        f"TF_CONFIG: worker {address} did not appear within {timeout_seconds} seconds ({error}). Check "
                        "that it is started and that no firewall blocks this machine."
                    ) from None
                if not is_announced:
                    _logger.warning("waiting for worker %s", address)
                    is_announced = True
                time.sleep(0.2)


def is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Return whether this process is the worker that writes files and prints."""
    return strategy.is_chief if uses_jax() else strategy.extended.should_checkpoint


def make_gather(strategy: tf.distribute.Strategy) -> Callable[[int], list[int]]:
    """Return a function that exchanges an integer with all workers and waits for them.

    Args:
        strategy: Strategy of the run.

    Returns:
        A function. Every worker calls it with its own value, and receives the list of all values, one per replica.
    """
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return lambda value: [value]

    def place(value):
        context = tf.distribute.get_replica_context()
        own = tf.one_hot(context.replica_id_in_sync_group, strategy.num_replicas_in_sync, dtype=tf.int64)
        return context.all_reduce("SUM", own * value)

    run = tf.function(lambda value: strategy.experimental_local_results(strategy.run(place, args=(value,)))[0])

    def gather(value):
        with report_lost_workers(strategy):
            return run(tf.constant(value, tf.int64)).numpy().tolist()

    return gather


@contextlib.contextmanager
def report_lost_workers(strategy: tf.distribute.Strategy) -> Iterator[None]:
    """Return a context for computations of all workers. If another one is gone, it raises a `LostWorkerError`."""
    try:
        yield
    except tf.errors.OpError as error:
        is_lost = isinstance(error, tf.errors.UnavailableError) or "Collective" in error.message
        if not is_lost or not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
            raise
        why = next((line for line in error.message.split("\n") if "aborted" in line), error.message)
        raise LostWorkerError(
            f"another worker of TF_CONFIG is gone ({why[:200]}). The last checkpoint is safe. Start the same command "
            "again on all workers."
        ) from None
