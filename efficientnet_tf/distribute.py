"""Where a run happens: strategies for TPU, GPU and CPU, and the precision that suits them.

The only file that names a device.
"""

import contextlib
import json
import os
import queue
import re
import socket
import threading
import time

import keras
import tensorflow as tf
from absl import logging

from efficientnet_tf.config import UserError

DEVICES = ("auto", "cpu", "gpu", "tpu")
CONNECT_SECONDS = 20
WAIT_SECONDS = 600  # for workers, which schedulers start one after the other
HTTP2_SETTINGS = bytes(
    [0, 0, 0, 4, 0, 0, 0, 0, 0]
)  # what both sides of HTTP/2, beneath gRPC, begin with (RFC 9113, 3.4)


def create_strategy(device="auto", tpu=None, replicas=1, cluster=False):
    """Create the strategy of a run; it is always one, also for a single device.

    Args:
        device: "auto" (all GPUs, else the CPU), "cpu", "gpu" or "tpu".
        tpu: str or None; "local" for the chips of this machine, a TPU's name, or grpc://address:8470.
        replicas: int >= 1; with the CPU, the number of logical devices to train on as if they were accelerators.
        cluster: bool; join the workers that the environment's TF_CONFIG names, where it names several. All of them must
            do so, and before TensorFlow has computed anything.

    Returns:
        A tf.distribute.Strategy.

    Raises:
        UserError: for a device that is not there, or workers that do not come together.
    """
    if keras.backend.backend() != "tensorflow":
        raise UserError(
            f"Keras runs on the backend {keras.backend.backend()!r}; training and evaluation here are TensorFlow's: "
            "set KERAS_BACKEND=tensorflow"
        )
    if device not in DEVICES:
        raise UserError(f"--device={device}: allowed are {', '.join(DEVICES)}")
    if tpu is not None and device not in ("auto", "tpu"):
        raise UserError(f"--device={device} and --tpu={tpu} contradict each other: give one of them")
    on_tpu = tpu is not None or device == "tpu"
    workers = _read_cluster(os.environ.get("TF_CONFIG", "")) if cluster else []
    if len(workers) > 1:
        if on_tpu or replicas > 1:
            raise UserError("TF_CONFIG names several workers: these have neither --tpu nor --replicas")
        return _cluster_strategy(workers, device)
    gpus = [] if on_tpu or device == "cpu" else tf.config.list_physical_devices("GPU")
    if replicas > 1 and (on_tpu or gpus):
        raise UserError(
            f"--replicas={replicas} divides the CPU; a TPU or GPUs have their own: pass --device=cpu or none"
        )
    if on_tpu:
        return _tpu_strategy(tpu or "")
    if device == "gpu" and not gpus:
        raise UserError(
            "--device=gpu: TensorFlow sees no GPU here. Is the driver installed, and the gpu extra: "
            "pip install 'efficientnet_tf[gpu]'?"
        )
    if gpus:
        names = [f"GPU:{i}" for i in range(len(gpus))]
        return tf.distribute.MirroredStrategy(names) if len(names) > 1 else tf.distribute.OneDeviceStrategy(names[0])
    if replicas == 1:
        return tf.distribute.OneDeviceStrategy("CPU:0")
    cpu = tf.config.list_physical_devices("CPU")[0]
    if len(tf.config.get_logical_device_configuration(cpu) or ()) < replicas:
        try:
            tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * replicas)
        except RuntimeError:
            raise UserError("--replicas must be set before TensorFlow has used the CPU") from None
    return tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(replicas)])


def _read_cluster(text):
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


def _cluster_strategy(addresses, device):
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
        with together(strategy):
            return run(tf.constant(value, tf.int64)).numpy().tolist()

    return gather


@contextlib.contextmanager
def together(strategy):
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


TPU_NAMES = "give 'local' on a TPU VM, the name of a Cloud TPU, or grpc://address:8470"
# What the errors of TensorFlow's resolver hold, type and message, and what to do then.
TPU_ADVICE = {
    "provide a TPU Name": "no TPU is named, neither here nor by KUBE_GOOGLE_CLOUD_TPU_ENDPOINTS, TPU_NAME or "
    "TPU_CONFIG: " + TPU_NAMES,
    "TPUs not found": "this TensorFlow finds no TPU there: is it a TPU VM, and is TensorFlow that of the tpu extra, "
    "pip install 'efficientnet_tf[tpu]', with no other one beside it?",
    "URLError": "a TPU's name needs Google Cloud's metadata server, which does not answer here: run this on a VM in "
    "the TPU's project and zone, or give grpc://address:8470",
    "Google API client": "a TPU's name needs the package cloud-tpu-client: pip install 'efficientnet_tf[tpu]', or give "
    "grpc://address:8470",
    "Credentials": "a TPU's name needs credentials for Google Cloud, and there are none: run 'gcloud auth "
    "application-default login', or give grpc://address:8470",
    "Could not lookup": "Google Cloud does not show a TPU of this name in this VM's project and zone: compare with "
    "'gcloud compute tpus list', or give grpc://address:8470",
    "not yet ready": "the TPU is there but not ready: wait until 'gcloud compute tpus list' says READY",
}


def _tpu_strategy(name):
    """Connect to a TPU. Each way in which that fails becomes one sentence."""
    try:
        if name == "local":
            resolver = tf.distribute.cluster_resolver.TPUClusterResolver("local")
        else:
            resolver, addresses = _resolve_tpu(name)
            for address in addresses:
                _knock(address)
            tf.config.experimental_connect_to_cluster(resolver)
        tf.tpu.experimental.initialize_tpu_system(resolver)
    except UserError as error:
        raise UserError(f"--tpu={name}: {error}") from None
    except Exception as error:  # the resolver raises a dozen types, some of packages that may not be installed
        told = f"{type(error).__name__}: {error}"
        advice = next(
            (advice for part, advice in TPU_ADVICE.items() if part in told), f"no TPU is reached: {TPU_NAMES}"
        )
        raise UserError(f"--tpu={name}: {advice} ({told.strip().splitlines()[0][:200]})") from None
    return tf.distribute.TPUStrategy(resolver)


def _resolve_tpu(name):
    """Return TensorFlow's resolver of a TPU and the addresses of its hosts, or raise what the resolver raises."""
    answer = queue.SimpleQueue()

    def ask():
        try:
            resolver = tf.distribute.cluster_resolver.TPUClusterResolver(name)
            answer.put((resolver, resolver.cluster_spec().job_tasks("worker")))
        except Exception as error:
            answer.put(error)

    # TensorFlow asks Google Cloud without a limit of time: a thread can be left behind.
    threading.Thread(target=ask, daemon=True).start()
    try:
        found = answer.get(timeout=CONNECT_SECONDS)
    except queue.Empty:
        raise UserError(
            f"Google Cloud has not told the TPU's address within {CONNECT_SECONDS} seconds: run this on a VM in the "
            "TPU's project and zone, or give grpc://address:8470"
        ) from None
    if isinstance(found, Exception):
        raise found
    return found


def _knock(address):
    """Raise UserError unless a gRPC server answers at "host:port": TensorFlow itself would wait for it without end."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise UserError(f"{address!r} is no address: give grpc://address:8470")
    check = "is the TPU running, is this its address, and does a firewall let this machine in?"
    try:
        with socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS) as connection:
            connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + HTTP2_SETTINGS)
            head = connection.recv(len(HTTP2_SETTINGS), socket.MSG_WAITALL)
    except TimeoutError:
        raise UserError(f"{address} has not answered within {CONNECT_SECONDS} seconds: {check}") from None
    except OSError as error:
        raise UserError(f"{address} cannot be reached ({error}): {check}") from None
    if head[3:4] != HTTP2_SETTINGS[3:4]:
        raise UserError(f"{address} answers, but not as a TPU does: {check}")


def device_type(strategy):
    """Return "TPU", "GPU" or "CPU": where the replicas run."""
    if isinstance(strategy, tf.distribute.TPUStrategy):
        return "TPU"
    return tf.DeviceSpec.from_string(strategy.extended.worker_devices[0]).device_type


def dtype_policy(precision, strategy):
    """Return the Keras dtype policy for `train.precision`; "auto" is bfloat16 on TPU."""
    if precision == "auto":
        return "mixed_bfloat16" if device_type(strategy) == "TPU" else "float32"
    return precision


def should_jit(jit_compile, strategy):
    """Return whether to compile the replica's passes by XLA. It is several times slower on CPU; TPU does it anyway."""
    if jit_compile == "auto":
        return device_type(strategy) == "GPU"
    return jit_compile == "on"


def batches(strategy, make_dataset):
    """Return what gives, with `iter`, an iterator over what each host reads, a batch for every replica at a time.

    Args:
        strategy: tf.distribute.Strategy.
        make_dataset: function of a tf.distribute.InputContext to a dataset of per-replica batches.
    """
    if isinstance(strategy, tf.distribute.OneDeviceStrategy) and device_type(strategy) == "CPU":
        # There is nowhere to bring the batches, and the iterator that brings them may take a minute to end: TensorFlow
        # wakes its tuning thread before it has marked the end, and where that looks too early, it sleeps again.
        return make_dataset(tf.distribute.InputContext())
    return strategy.distribute_datasets_from_function(make_dataset)


def replica_count(strategy):
    """Return the number of a strategy's replicas; of one that is traced alone, those of the TPU that it stands for."""
    return getattr(strategy, "stands_for", strategy.num_replicas_in_sync)


def on_host():
    """Return a context in which variables are made in the host's memory."""
    return tf.device("CPU:0")
