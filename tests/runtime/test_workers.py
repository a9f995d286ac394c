"""The cluster of TF_CONFIG: which values are accepted, and the messages for workers that do not connect."""

import json
import logging
import socket

import pytest
import tensorflow as tf

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.runtime.strategy import create_strategy
from efficientnet_tf.runtime.workers import is_chief, join_workers, make_gather, read_cluster

CLUSTER = {"worker": ["127.0.0.1:1", "127.0.0.1:2"]}


@pytest.fixture
def addresses():
    """Return two free addresses of this machine."""
    with socket.socket() as one, socket.socket() as other:
        for free in (one, other):
            free.bind(("127.0.0.1", 0))
        return [f"127.0.0.1:{free.getsockname()[1]}" for free in (one, other)]


@pytest.mark.parametrize(
    "text",
    [
        "worker",
        "[]",
        json.dumps({"cluster": CLUSTER}),
        json.dumps({"cluster": {"worker": ["127.0.0.1", "127.0.0.1"]}, "task": {"type": "worker", "index": 0}}),
        json.dumps({"cluster": CLUSTER, "task": {"type": "worker", "index": 2}}),
        json.dumps({"cluster": CLUSTER, "task": {"type": "chief", "index": 0}}),
        json.dumps({"cluster": CLUSTER | {"ps": ["127.0.0.1:3"]}, "task": {"type": "worker", "index": 0}}),
    ],
)
def test_invalid_tf_config(text):
    with pytest.raises(UserError, match=r'^TF_CONFIG=.* is not a list of workers. Use \{"cluster": \{"worker"'):
        read_cluster(text)


def test_own_address_comes_first():
    cluster = {"chief": ["a:1"], "worker": ["b:2", "c:3"]}
    assert read_cluster(json.dumps({"cluster": cluster, "task": {"type": "worker", "index": 1}})) == [
        *("c:3", "a:1", "b:2")
    ]
    assert read_cluster(" ") == []


def test_single_worker_is_no_cluster(monkeypatch):
    for cluster in ({}, {"worker": ["127.0.0.1:1"]}, {"chief": ["127.0.0.1:1"]}):
        task = {"type": next(iter(cluster), "worker"), "index": 0}
        monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": cluster, "task": task}))
        strategy = create_strategy("cpu", cluster=True)
        assert isinstance(strategy, tf.distribute.OneDeviceStrategy)
        assert is_chief(strategy) and make_gather(strategy)(7) == [7]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tpu": "local"}, "several workers, which can have neither a TPU nor CPU replicas"),
        ({"replicas": 2}, "several workers, which can have neither a TPU nor CPU replicas"),
        ({"device": "gpu"}, "device=gpu cannot be used because TensorFlow sees no GPU on this worker"),
    ],
)
def test_arguments_that_contradict_a_cluster(monkeypatch, arguments, message):
    monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": CLUSTER, "task": {"type": "worker", "index": 1}}))
    with pytest.raises(UserError, match=message):
        create_strategy(**arguments, cluster=True)


def test_missing_worker(addresses, caplog):
    own, other = addresses
    message = f"^TF_CONFIG: worker {other} did not appear within 1 seconds.*refused.* Check that it is started"
    with caplog.at_level(logging.WARNING), pytest.raises(UserError, match=message):
        join_workers([own, other], "cpu", timeout_seconds=1)
    assert caplog.messages == [f"waiting for worker {other}"]  # once, although it tried several times


def test_worker_that_cannot_start(monkeypatch, addresses):
    own, other = addresses
    cluster = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": 0}}
    monkeypatch.setenv("TF_CONFIG", json.dumps(cluster))
    with socket.create_server(("127.0.0.1", int(other.rpartition(":")[2]))):
        tf.constant(1) + 1  # the cluster must be joined before TensorFlow computes anything
        with pytest.raises(UserError, match=f"worker {own} cannot join the others: .*program startup"):
            join_workers([own, other], "cpu")
        with pytest.raises(UserError, match=f"worker {other} cannot join the others: .*in use"):
            join_workers([other, own], "cpu")
