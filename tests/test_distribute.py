"""Where a run happens: every device that is there is found, every one that is not is one plain sentence."""

import json
import socket
import subprocess
import sys

import keras
import pytest
import tensorflow as tf

from efficientnet_tf import distribute
from efficientnet_tf.config import UserError

# In a process of its own, for it splits the CPU, and looks for TPUs, which leaves traces in TensorFlow.
FRESH = """
import json, sys, time
import tensorflow as tf
from efficientnet_tf.config import UserError
from efficientnet_tf.distribute import create_strategy

told = {}
strategy = create_strategy("cpu", replicas=3)
told["replicas"] = strategy.num_replicas_in_sync
told["devices"] = len(tf.config.list_logical_devices("CPU"))
told["fewer"] = create_strategy("auto", replicas=2).num_replicas_in_sync
for name, arguments in json.loads(sys.argv[1]).items():
    start = time.time()
    try:
        create_strategy(**arguments)
        told[name] = ["no error", 0]
    except UserError as error:
        told[name] = [str(error), time.time() - start]
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def told():
    """Return what a fresh process saw: replicas, and {name: [error, seconds]}."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound and not listening: whoever connects is refused
        attempts = {
            "more": {"replicas": 4},
            "local": {"tpu": "local"},
            "address": {"tpu": f"grpc://127.0.0.1:{closed.getsockname()[1]}"},
            "empty": {"device": "tpu"},
        }
        command = [sys.executable, "-c", FRESH, json.dumps(attempts)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_cpu_is_split_into_replicas(told):
    assert (told["replicas"], told["devices"], told["fewer"]) == (3, 3, 2)


def test_replicas_after_tensorflow_has_started(told):
    message, _ = told["more"]
    assert message == "--replicas must be set before TensorFlow has used the CPU"


@pytest.mark.parametrize(
    ("name", "cause"), [("local", "TPUs not found"), ("address", "refused"), ("empty", "TPU Name")]
)
def test_tpu_that_is_not_there(told, name, cause):
    message, seconds = told[name]
    assert message.startswith("--tpu=") and "no TPU could be reached" in message and cause in message
    assert "'local' on a TPU VM" in message and "grpc://address:8470" in message
    assert "\n" not in message
    assert seconds < 20


@pytest.mark.parametrize("device", ["auto", "cpu"])
def test_one_cpu(device):
    strategy = distribute.create_strategy(device)
    assert isinstance(strategy, tf.distribute.OneDeviceStrategy)
    assert strategy.num_replicas_in_sync == 1
    assert distribute.device_type(strategy) == "CPU"


@pytest.mark.parametrize("replicas", [2, 4])
def test_several_cpus(replicas):
    strategy = distribute.create_strategy("cpu", replicas=replicas)
    assert isinstance(strategy, tf.distribute.MirroredStrategy)
    assert strategy.num_replicas_in_sync == replicas
    assert distribute.device_type(strategy) == "CPU"


def test_gpus_come_first_where_there_are_any(monkeypatch):
    """As seen on a machine with one GPU; none of it is used."""
    find = tf.config.list_physical_devices
    one_gpu = [tf.config.PhysicalDevice("/physical_device:GPU:0", "GPU")]
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: one_gpu if kind == "GPU" else find(kind))
    for device in ("auto", "gpu"):
        strategy = distribute.create_strategy(device)
        assert distribute.device_type(strategy) == "GPU"
        assert distribute.should_jit("auto", strategy)
        assert distribute.dtype_policy("auto", strategy) == "float32"
        with pytest.raises(UserError, match="--replicas=2 divides the CPU"):
            distribute.create_strategy(device, replicas=2)
    assert distribute.device_type(distribute.create_strategy("cpu")) == "CPU"
    assert distribute.create_strategy("cpu", replicas=2).num_replicas_in_sync == 2


def test_no_gpu():
    with pytest.raises(UserError, match=r"--device=gpu: TensorFlow sees no GPU here.*efficientnet_tf\[gpu\]"):
        distribute.create_strategy("gpu")


def test_unknown_device():
    with pytest.raises(UserError, match="--device=cuda: allowed are auto, cpu, gpu, tpu"):
        distribute.create_strategy("cuda")


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_device_and_tpu_contradict_each_other(device):
    with pytest.raises(UserError, match=f"--device={device} and --tpu=local contradict each other"):
        distribute.create_strategy(device, tpu="local")


def test_replicas_are_not_for_tpus():
    with pytest.raises(UserError, match="--replicas=2 divides the CPU"):
        distribute.create_strategy("tpu", tpu="local", replicas=2)


def test_other_backends_are_refused(monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with pytest.raises(UserError, match="backend 'jax'.*KERAS_BACKEND=tensorflow"):
        distribute.create_strategy()


def test_precision_and_xla_follow_the_device():
    cpu = tf.distribute.OneDeviceStrategy("CPU:0")
    tpu = tf.distribute.TPUStrategy.__new__(tf.distribute.TPUStrategy)  # its class is all that is looked at
    assert distribute.device_type(tpu) == "TPU"
    assert distribute.dtype_policy("auto", cpu) == "float32"
    assert distribute.dtype_policy("auto", tpu) == "mixed_bfloat16"
    for strategy in (cpu, tpu):
        assert distribute.dtype_policy("float32", strategy) == "float32"
        assert distribute.dtype_policy("mixed_bfloat16", strategy) == "mixed_bfloat16"
        assert not distribute.should_jit("auto", strategy)
        assert distribute.should_jit("on", strategy) and not distribute.should_jit("off", strategy)
