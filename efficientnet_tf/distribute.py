"""Where a run happens: strategies for TPU, GPU and CPU, and the precision that suits them.

The only file that names a device.
"""

import socket

import keras
import tensorflow as tf

from efficientnet_tf.config import UserError

DEVICES = ("auto", "cpu", "gpu", "tpu")
CONNECT_SECONDS = 20


def create_strategy(device="auto", tpu=None, replicas=1):
    """Create the strategy of a run; it is always one, also for a single device.

    Args:
        device: "auto" (all GPUs, else the CPU), "cpu", "gpu" or "tpu".
        tpu: str or None; "local" for the chips of this machine, a TPU's name, or grpc://address:8470.
        replicas: int >= 1; with the CPU, the number of logical devices to train on as if they were accelerators.

    Returns:
        A tf.distribute.Strategy.

    Raises:
        UserError: for a device that is not there.
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


def _tpu_strategy(name):
    """Connect to a TPU. Each way in which that fails becomes one sentence."""
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver(tpu=name)
        if name != "local":
            for address in resolver.cluster_spec().job_tasks("worker"):  # TensorFlow would wait for it without end
                host, _, port = address.rpartition(":")
                socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
            tf.config.experimental_connect_to_cluster(resolver)
        tf.tpu.experimental.initialize_tpu_system(resolver)
    except Exception as error:  # the resolver raises a dozen types, URL errors among them
        first = str(error).strip().splitlines()[0] if str(error).strip() else ""
        raise UserError(
            f"--tpu={name or '(empty)'}: no TPU could be reached ({type(error).__name__}: {first[:200]}). Allowed are "
            "'local' on a TPU VM with the tpu extra installed, the name of a Cloud TPU, or grpc://address:8470"
        ) from None
    return tf.distribute.TPUStrategy(resolver)


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


def on_host():
    """Return a context in which variables are made in the host's memory."""
    return tf.device("CPU:0")
