"""Strategies for every device, and the messages for devices that are missing."""

import http.server
import json
import re
import socket
import subprocess
import sys
import threading
import time

import keras
import pytest
import tensorflow as tf
import tiny

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.data.source import without_tuning
from efficientnet_tf.runtime.strategy import create_strategy, device_type, dtype_policy, should_jit
from efficientnet_tf.runtime.tpu import check_address

# Runs in a fresh process, because it splits the CPU and looks for TPUs, which TensorFlow cannot undo.
PROGRAM = """
import json, os, sys, time
import tensorflow as tf
from efficientnet_tf.runtime.tpu import connect_tpu
from efficientnet_tf.runtime.strategy import create_strategy
from efficientnet_tf.config.errors import UserError

received = {}
strategy = create_strategy("cpu", replicas=3)
received["replicas"] = strategy.num_replicas_in_sync
received["devices"] = len(tf.config.list_logical_devices("CPU"))
received["fewer"] = create_strategy("auto", replicas=2).num_replicas_in_sync
try:
    create_strategy(replicas=4)
except UserError as error:
    received["more"] = str(error)
for name, (environment, tpu, timeout_seconds) in json.loads(sys.argv[1]).items():
    os.environ |= environment
    start = time.time()
    try:
        connect_tpu(tpu, timeout_seconds)
        received[name] = ["no error", 0]
    except UserError as error:
        received[name] = [str(error), time.time() - start]
    for key in environment:
        del os.environ[key]
print(json.dumps(received))
"""
CLOUD = {"/computeMetadata/v1/project/project-id": b"project", "/computeMetadata/v1/instance/zone": b"zones/zone-a"}


class Metadata(http.server.BaseHTTPRequestHandler):
    """The two answers of Google Cloud's metadata server that TensorFlow asks for."""

    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(CLOUD[self.path])

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def received():
    """Return what a fresh process received: replica counts, and {name: [error message, seconds]}. It stays offline."""
    with (
        socket.socket() as closed,
        socket.create_server(("127.0.0.1", 0)) as silent,  # the system accepts connections, but nobody answers
        http.server.ThreadingHTTPServer(("127.0.0.1", 0), Metadata) as metadata,
    ):
        closed.bind(("127.0.0.1", 0))  # bound but not listening, so connections are refused
        threading.Thread(target=metadata.serve_forever, daemon=True).start()
        nobody, mute, cloud = (f"127.0.0.1:{s.getsockname()[1]}" for s in (closed, silent, metadata.socket))
        attempts = {
            "local": ({}, "local", 20),
            "refused": ({}, f"grpc://{nobody}", 20),
            "silent address": ({}, f"grpc://{mute}", 1),
            "other server": ({}, f"grpc://{cloud}", 1),
            "no port": ({}, "grpc://127.0.0.1:http", 20),
            "empty": ({}, "", 20),
            "empty, named": ({"TPU_NAME": f"grpc://{nobody}"}, "", 20),
            "off cloud": ({"GCE_METADATA_HOST": nobody}, "my-tpu", 20),
            "silent cloud": ({"GCE_METADATA_HOST": mute}, "my-tpu", 1),
            "no client": ({"GCE_METADATA_HOST": cloud}, "my-tpu", 20),
        }
        command = [sys.executable, "-c", PROGRAM, json.dumps(attempts)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
        metadata.shutdown()
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_cpu_is_split_into_replicas(received):
    assert (received["replicas"], received["devices"], received["fewer"]) == (3, 3, 2)


def test_replicas_after_tensorflow_has_used_the_cpu(received):
    assert received["more"].startswith("replicas=4 cannot be set after TensorFlow has used the CPU.")


@pytest.mark.parametrize(
    ("name", "problem", "advice"),
    [
        ("local", "finds no TPU", r"no other TensorFlow is installed .* pip install 'efficientnet_tf\[tpu\]'"),
        ("refused", "cannot be reached .*refused", "Check that the TPU is running"),
        ("silent address", "did not answer as a TPU within 1 seconds", "Check that the TPU is running.*firewall"),
        ("other server", "did not answer as a TPU within 1 seconds", "that the address is right"),
        ("no port", "'127.0.0.1:http' is not an address", "grpc://address:8470"),
        ("empty", "no TPU is named here or in the environment .*TPU_NAME", "'local' on a TPU VM"),
        ("empty, named", "cannot be reached .*refused", "Check that the TPU is running"),
        ("off cloud", "metadata server, .* does not answer", "on a VM in the TPU's project"),
        ("silent cloud", "did not return the TPU's address within 1 seconds", "grpc://address:8470"),
        ("no client", "package cloud-tpu-client", r"pip install 'efficientnet_tf\[tpu\]'"),
    ],
)
def test_missing_tpu(received, name, problem, advice):
    message, seconds = received[name]
    assert re.match(f"tpu=.*{problem}.*{advice}", message), message
    assert "\n" not in message and len(message) < 450
    assert seconds < (6 if "1 seconds" in problem else 20)


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (
            type("ApplicationDefaultCredentialsError", (Exception,), {})("None."),
            "gcloud auth application-default login",
        ),
        (ValueError("Could not lookup TPU metadata from name 'my-tpu'. Please"), "gcloud compute tpus list"),
        (RuntimeError('TPU "my-tpu" is not yet ready; state: "CREATING"'), "Wait until .* says READY"),
        (KeyError("ipAddress"), "there is no TPU. Use 'local' on a TPU VM"),
    ],
)
def test_errors_of_google_cloud(monkeypatch, error, advice):
    """Raised as by TensorFlow's resolver, because there is no account to ask with."""

    def fail(_):
        raise error

    monkeypatch.setattr(tf.distribute.cluster_resolver, "TPUClusterResolver", fail)
    with pytest.raises(UserError, match=rf"^tpu=my-tpu: .*{advice}.* \({type(error).__name__}: "):
        create_strategy("tpu", tpu="my-tpu")


def test_address_of_a_grpc_server():
    server = tf.distribute.Server({"worker": ["127.0.0.1:0"]}, job_name="worker", task_index=0)
    check_address(server.target.removeprefix("grpc://"), timeout_seconds=20)


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


def test_gpus_are_preferred(monkeypatch):
    """TensorFlow is made to list a GPU, which is not used."""
    find = tf.config.list_physical_devices
    one_gpu = [tf.config.PhysicalDevice("/physical_device:GPU:0", "GPU")]
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: one_gpu if kind == "GPU" else find(kind))
    for device in ("auto", "gpu"):
        strategy = create_strategy(device)
        assert device_type(strategy) == "GPU"
        assert should_jit("auto", strategy)
        assert dtype_policy("auto", strategy) == "float32"
        with pytest.raises(UserError, match="replicas=2 splits the CPU"):
            create_strategy(device, replicas=2)
    assert device_type(create_strategy("cpu")) == "CPU"
    assert create_strategy("cpu", replicas=2).num_replicas_in_sync == 2


def test_no_gpu():
    with pytest.raises(UserError, match=r"device=gpu .* TensorFlow sees no GPU.*efficientnet_tf\[gpu\]"):
        create_strategy("gpu")


def test_unknown_device():
    with pytest.raises(UserError, match="device=cuda is unknown. Use one of auto, cpu, gpu, tpu."):
        create_strategy("cuda")


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_device_and_tpu_contradict_each_other(device):
    with pytest.raises(UserError, match=f"device={device} and tpu=local contradict each other"):
        create_strategy(device, tpu="local")


def test_replicas_are_not_for_tpus():
    with pytest.raises(UserError, match="replicas=2 splits the CPU"):
        create_strategy("tpu", tpu="local", replicas=2)


def test_other_backends_are_refused(monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "torch")
    with pytest.raises(UserError, match="backend 'torch'.*KERAS_BACKEND=tensorflow"):
        create_strategy()


def test_precision_and_xla_follow_the_device():
    cpu = tf.distribute.OneDeviceStrategy("CPU:0")
    tpu = tf.distribute.TPUStrategy.__new__(tf.distribute.TPUStrategy)  # only its class matters
    assert device_type(tpu) == "TPU"
    assert dtype_policy("auto", cpu) == "float32"
    assert dtype_policy("auto", tpu) == "mixed_bfloat16"
    for strategy in (cpu, tpu):
        assert dtype_policy("float32", strategy) == "float32"
        assert dtype_policy("mixed_bfloat16", strategy) == "mixed_bfloat16"
        assert not should_jit("auto", strategy)
        assert should_jit("on", strategy) and not should_jit("off", strategy)


@pytest.mark.slow
def test_dropping_an_iterator_of_several_replicas_does_not_wait():
    """TensorFlow would tune it after 10, 20, 40 ... ms, so that its thread sleeps from 2.55 s to 5.11 s."""
    strategy = tiny.make_strategy(2)
    iterator = tiny.distribute(strategy, lambda context: without_tuning(tf.data.Dataset.range(10**9).batch(2)))
    begun = time.monotonic()
    while time.monotonic() - begun < 2.8:
        next(iterator)
    ended = time.monotonic()
    del iterator
    assert time.monotonic() - ended < 1
