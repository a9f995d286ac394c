"""Where a run happens: every device that is there is found, every one that is not is one plain sentence."""

import http.server
import json
import re
import socket
import subprocess
import sys
import threading

import keras
import pytest
import tensorflow as tf

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.runtime import tpu as tpu_lib
from efficientnet_tf.runtime.strategy import create_strategy, device_type, dtype_policy, should_jit

# In a process of its own, for it splits the CPU, and looks for TPUs, which leaves traces in TensorFlow.
FRESH = """
import json, os, sys, time
import tensorflow as tf
from efficientnet_tf.runtime import tpu
from efficientnet_tf.runtime.strategy import create_strategy
from efficientnet_tf.config.errors import UserError

told = {}
strategy = create_strategy("cpu", replicas=3)
told["replicas"] = strategy.num_replicas_in_sync
told["devices"] = len(tf.config.list_logical_devices("CPU"))
told["fewer"] = create_strategy("auto", replicas=2).num_replicas_in_sync
for name, (environment, arguments) in json.loads(sys.argv[1]).items():
    tpu.CONNECT_SECONDS = 2 if name.startswith("silent") else 20
    os.environ |= environment
    start = time.time()
    try:
        create_strategy(**arguments)
        told[name] = ["no error", 0]
    except UserError as error:
        told[name] = [str(error), time.time() - start]
    for key in environment:
        del os.environ[key]
print(json.dumps(told))
"""
CLOUD = {"/computeMetadata/v1/project/project-id": b"project", "/computeMetadata/v1/instance/zone": b"zones/zone-a"}


class Metadata(http.server.BaseHTTPRequestHandler):
    """Google Cloud's metadata server, as far as it is asked."""

    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(CLOUD[self.path])

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def told():
    """Return what a fresh process saw: replicas, and {name: [error, seconds]}. Nothing leaves this machine."""
    with (
        socket.socket() as closed,
        socket.create_server(("127.0.0.1", 0)) as silent,  # the system takes connections, nobody answers
        http.server.ThreadingHTTPServer(("127.0.0.1", 0), Metadata) as metadata,
    ):
        closed.bind(("127.0.0.1", 0))  # bound and not listening: whoever connects is refused
        threading.Thread(target=metadata.serve_forever, daemon=True).start()
        nobody, mute, cloud = (f"127.0.0.1:{s.getsockname()[1]}" for s in (closed, silent, metadata.socket))
        attempts = {
            "more": ({}, {"replicas": 4}),
            "local": ({}, {"tpu": "local"}),
            "refused": ({}, {"tpu": f"grpc://{nobody}"}),
            "silent address": ({}, {"tpu": f"grpc://{mute}"}),
            "other server": ({}, {"tpu": f"grpc://{cloud}"}),
            "no port": ({}, {"tpu": "grpc://127.0.0.1:http"}),
            "empty": ({}, {"device": "tpu"}),
            "empty, named": ({"TPU_NAME": f"grpc://{nobody}"}, {"tpu": ""}),
            "off cloud": ({"GCE_METADATA_HOST": nobody}, {"tpu": "my-tpu"}),
            "silent cloud": ({"GCE_METADATA_HOST": mute}, {"tpu": "my-tpu"}),
            "no client": ({"GCE_METADATA_HOST": cloud}, {"tpu": "my-tpu"}),
        }
        command = [sys.executable, "-c", FRESH, json.dumps(attempts)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
        metadata.shutdown()
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_cpu_is_split_into_replicas(told):
    assert (told["replicas"], told["devices"], told["fewer"]) == (3, 3, 2)


def test_replicas_after_tensorflow_has_started(told):
    message, _ = told["more"]
    assert message == "--replicas must be set before TensorFlow has used the CPU"


@pytest.mark.parametrize(
    ("name", "what", "advice"),
    [
        ("local", "finds no TPU", r"is TensorFlow that of the tpu extra, pip install 'efficientnet_tf\[tpu\]'"),
        ("refused", "cannot be reached .*refused", "is the TPU running"),
        ("silent address", "has not answered within 2 seconds", "is the TPU running.*firewall"),
        ("other server", "answers, but not as a TPU does", "is this its address"),
        ("no port", "'127.0.0.1:http' is no address", "grpc://address:8470"),
        ("empty", "no TPU is named, neither here nor by .*TPU_NAME", "'local' on a TPU VM"),
        ("empty, named", "cannot be reached .*refused", "is the TPU running"),
        ("off cloud", "metadata server, which does not answer", "on a VM in the TPU's project"),
        ("silent cloud", "has not told the TPU's address within 2 seconds", "grpc://address:8470"),
        ("no client", "needs the package cloud-tpu-client", r"pip install 'efficientnet_tf\[tpu\]'"),
    ],
)
def test_tpu_that_is_not_there(told, name, what, advice):
    message, seconds = told[name]
    assert re.match(f"--tpu=.*{what}.*{advice}", message), message
    assert "\n" not in message and len(message) < 450
    assert seconds < (5 if name.startswith("silent") else 20)


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (
            type("ApplicationDefaultCredentialsError", (Exception,), {})("None."),
            "gcloud auth application-default login",
        ),
        (ValueError("Could not lookup TPU metadata from name 'my-tpu'. Please"), "gcloud compute tpus list"),
        (RuntimeError('TPU "my-tpu" is not yet ready; state: "CREATING"'), "wait until .* says READY"),
        (KeyError("ipAddress"), "no TPU is reached: give 'local' on a TPU VM"),
    ],
)
def test_what_google_cloud_says_of_a_tpu(monkeypatch, error, advice):
    """As TensorFlow's resolver raises it; there is no account to ask with."""

    def fail(_):
        raise error

    monkeypatch.setattr(tf.distribute.cluster_resolver, "TPUClusterResolver", fail)
    with pytest.raises(UserError, match=rf"^--tpu=my-tpu: .*{advice}.* \({type(error).__name__}: "):
        create_strategy("tpu", tpu="my-tpu")


def test_a_grpc_server_lets_in():
    """A real one; what follows is TensorFlow's business."""
    server = tf.distribute.Server({"worker": ["127.0.0.1:0"]}, job_name="worker", task_index=0)
    tpu_lib._knock(server.target.removeprefix("grpc://"))


@pytest.mark.parametrize("device", ["auto", "cpu"])
def test_one_cpu(device):
    strategy = create_strategy(device)
    assert isinstance(strategy, tf.distribute.OneDeviceStrategy)
    assert strategy.num_replicas_in_sync == 1
    assert device_type(strategy) == "CPU"


@pytest.mark.parametrize("replicas", [2, 4])
def test_several_cpus(replicas):
    strategy = create_strategy("cpu", replicas=replicas)
    assert isinstance(strategy, tf.distribute.MirroredStrategy)
    assert strategy.num_replicas_in_sync == replicas
    assert device_type(strategy) == "CPU"


def test_gpus_come_first_where_there_are_any(monkeypatch):
    """As seen on a machine with one GPU; none of it is used."""
    find = tf.config.list_physical_devices
    one_gpu = [tf.config.PhysicalDevice("/physical_device:GPU:0", "GPU")]
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: one_gpu if kind == "GPU" else find(kind))
    for device in ("auto", "gpu"):
        strategy = create_strategy(device)
        assert device_type(strategy) == "GPU"
        assert should_jit("auto", strategy)
        assert dtype_policy("auto", strategy) == "float32"
        with pytest.raises(UserError, match="--replicas=2 divides the CPU"):
            create_strategy(device, replicas=2)
    assert device_type(create_strategy("cpu")) == "CPU"
    assert create_strategy("cpu", replicas=2).num_replicas_in_sync == 2


def test_no_gpu():
    with pytest.raises(UserError, match=r"--device=gpu: TensorFlow sees no GPU here.*efficientnet_tf\[gpu\]"):
        create_strategy("gpu")


def test_unknown_device():
    with pytest.raises(UserError, match="--device=cuda: allowed are auto, cpu, gpu, tpu"):
        create_strategy("cuda")


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_device_and_tpu_contradict_each_other(device):
    with pytest.raises(UserError, match=f"--device={device} and --tpu=local contradict each other"):
        create_strategy(device, tpu="local")


def test_replicas_are_not_for_tpus():
    with pytest.raises(UserError, match="--replicas=2 divides the CPU"):
        create_strategy("tpu", tpu="local", replicas=2)


def test_other_backends_are_refused(monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with pytest.raises(UserError, match="backend 'jax'.*KERAS_BACKEND=tensorflow"):
        create_strategy()


def test_precision_and_xla_follow_the_device():
    cpu = tf.distribute.OneDeviceStrategy("CPU:0")
    tpu = tf.distribute.TPUStrategy.__new__(tf.distribute.TPUStrategy)  # its class is all that is looked at
    assert device_type(tpu) == "TPU"
    assert dtype_policy("auto", cpu) == "float32"
    assert dtype_policy("auto", tpu) == "mixed_bfloat16"
    for strategy in (cpu, tpu):
        assert dtype_policy("float32", strategy) == "float32"
        assert dtype_policy("mixed_bfloat16", strategy) == "mixed_bfloat16"
        assert not should_jit("auto", strategy)
        assert should_jit("on", strategy) and not should_jit("off", strategy)
