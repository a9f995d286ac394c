"""TODO docstring (from distribute)."""

import contextlib
import json
import re
import socket
import time

import tensorflow as tf
from absl import logging

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.runtime.tpu import CONNECT_SECONDS

WAIT_SECONDS = 600  # for workers, which schedulers start one after the other


def read_cluster(text):
    """Return from a TF_CONFIG its workers' addresses, this one's first; an empty list where there is none."""
    if not text.strip():
        return []
    try:
        config = json.loads(text)
        jobs, task = config.get("cluster") or {}, config.get("task") or {}
        own = jobs[task["type"]][int(task["index"])] if jobs else None
        addresses = [address for job in jobs.values() for address in job]
        is_known = set(jobs) <= {"chief", "worker"} and all(re.fullmatch(r".+:\d{1,5}", a) for a in addresses)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError):
        is_known = False
    if not is_known:
        raise UserError(
            f"TF_CONFIG={text[:300]}: must be as in "
            '{"cluster": {"worker": ["address:port", "address:port"]}, "task": {"type": "worker", "index": 0}}'
        )
    return sorted(addresses, key=lambda address: address != own)


def join_workers(addresses, device):
    """Join the workers at these addresses, this one's first."""
    if device == "gpu" and not tf.config.list_physical_devices("GPU"):
        raise UserError("--device=gpu: TensorFlow sees no GPU on this worker")
    try:
        with socket.create_server(("", int(addresses[0].rpartition(":")[2]))):
            _await_workers(addresses[1:])
        if device == "cpu":
            tf.config.set_visible_devices([], "GPU")
        return tf.distribute.MultiWorkerMirroredStrategy()
    except UserError:
        raise
    except (tf.errors.OpError, RuntimeError, ValueError, OSError) as error:
        raise UserError(f"TF_CONFIG: worker {addresses[0]} cannot join the others: {str(error)[:300]}") from None


def _await_workers(addresses):
    """Wait until all of these take connections, as one's own port must: TensorFlow would be silent for an hour."""
    deadline = time.monotonic() + WAIT_SECONDS
    for address in addresses:
        host, _, port = address.rpartition(":")
        while True:
            try:
                socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
                break
            except OSError as error:
                if time.monotonic() > deadline:
                    raise UserError(
                        f"TF_CONFIG: worker {address} has not come within {WAIT_SECONDS} seconds ({error}): is it "
                        "started, and does a firewall let this machine in?"
                    ) from None
                logging.log_first_n(logging.WARNING, "waiting for worker %s", 1, address)
                time.sleep(0.2)


def is_chief(strategy):
    """Return whether this process is the one among the workers that writes and prints."""
    return strategy.extended.should_checkpoint


def make_gather(strategy):
    """Make the function by which workers agree: it waits for all of them.

    Args:
        strategy: tf.distribute.Strategy.

    Returns:
        A function from an int to the list of the ints with which the workers have called it, one a replica.
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
def report_lost_workers(strategy):
    """Return a context for what all workers compute: where one is gone, the others say so in a UserError."""
    try:
        yield
    except tf.errors.OpError as error:
        lost = isinstance(error, tf.errors.UnavailableError) or "Collective" in error.message
        if not lost or not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
            raise
        why = next((line for line in error.message.splitlines() if "aborted" in line), error.message)
        raise UserError(
            f"another worker of TF_CONFIG is gone ({why[:200]}). What the last checkpoint holds is safe: start the "
            "same command again on all workers"
        ) from None
