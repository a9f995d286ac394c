"""Where a run happens: strategies for TPU, GPU and CPU, and the precision that suits them.

The only file that names a device.
"""

import os

import keras
import tensorflow as tf

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.runtime.tpu import connect_tpu
from efficientnet_tf.runtime.workers import join_workers, read_cluster

DEVICES = ("auto", "cpu", "gpu", "tpu")


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
    workers = read_cluster(os.environ.get("TF_CONFIG", "")) if cluster else []
    if len(workers) > 1:
        if on_tpu or replicas > 1:
            raise UserError("TF_CONFIG names several workers: these have neither --tpu nor --replicas")
        return join_workers(workers, device)
    gpus = [] if on_tpu or device == "cpu" else tf.config.list_physical_devices("GPU")
    if replicas > 1 and (on_tpu or gpus):
        raise UserError(
            f"--replicas={replicas} divides the CPU; a TPU or GPUs have their own: pass --device=cpu or none"
        )
    if on_tpu:
        return connect_tpu(tpu or "")
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


def distribute_batches(strategy, make_dataset):
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
