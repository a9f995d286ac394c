"""The choice of the library that Keras computes with."""

import importlib.util
import json
import os
import socket
import subprocess
import sys

import keras
import pytest

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.runtime.backend import choose_backend, uses_jax
from efficientnet_tf.runtime.hardware import check_devices


def test_the_tests_use_tensorflow(monkeypatch):
    monkeypatch.delenv("KERAS_BACKEND", raising=False)
    for backend in (None, "tensorflow"):
        choose_backend(backend)
        assert os.environ["KERAS_BACKEND"] == keras.backend.backend() == "tensorflow"
    assert not uses_jax()


def test_it_cannot_change_any_more():
    with pytest.raises(UserError, match="backend=jax cannot be chosen any more"):
        choose_backend("jax")


def test_other_backends_are_refused(monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    with pytest.raises(UserError, match="the backend 'torch'.*KERAS_BACKEND=tensorflow"):
        choose_backend(None)


def test_jax_is_missing(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"backend=jax needs JAX.*pip install 'efficientnet_tf\[jax-cpu\]'"):
        choose_backend("jax")


def test_a_tpu_cannot_be_reached_from_elsewhere(monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    check_devices("auto", "local", 1, ["jax"])
    with pytest.raises(UserError, match="tpu=my-tpu is reached through TensorFlow.*tpu=local"):
        check_devices("auto", "my-tpu", 1, ["jax"])
    with pytest.raises(UserError, match="the backend 'jax', but this needs TensorFlow"):
        check_devices("auto", None, 1)


def test_a_missing_device_a_cpu_that_is_in_use_and_a_missing_worker():
    """In a process of its own, because this one has imported Keras."""
    code = (
        "from efficientnet_tf.runtime.backend import choose_backend; choose_backend('jax')\n"
        "from efficientnet_tf.config.errors import UserError\n"
        "from efficientnet_tf.runtime import jax_strategy\n"
        "from efficientnet_tf.runtime.strategy import create_strategy, describe_devices\n"
        "jax_strategy.WAIT_SECONDS = 1\n"
        "for arguments in ({'device': 'gpu'}, {'replicas': 4}, {'cluster': True}):\n"
        "    try:\n"
        "        print(describe_devices(create_strategy(**arguments)))\n"
        "    except UserError as error:\n"
        "        print(error)\n"
    )
    with socket.create_server(("127.0.0.1", 0)) as own, socket.create_server(("127.0.0.1", 0)) as other:
        addresses = [f"127.0.0.1:{server.getsockname()[1]}" for server in (own, other)]
    cluster = json.dumps({"cluster": {"worker": addresses}, "task": {"type": "worker", "index": 0}})
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "TF_CONFIG": cluster}
    environment.pop("KERAS_BACKEND", None)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    missing, in_use, lonely = done.stdout.splitlines()
    assert missing.startswith("device=gpu cannot be used because JAX sees no GPU (")
    assert "pip install 'efficientnet_tf[jax-gpu]'" in missing
    assert in_use == "replicas=4 cannot be set after JAX has used the CPU. Create the strategy first."
    assert f"Worker {addresses[1]} did not appear within 1 seconds" in lonely
