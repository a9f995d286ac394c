"""The cluster of TF_CONFIG: which values are accepted, and the messages for workers that do not connect."""

import json
import logging
import re
import socket

import pytest
import tensorflow as tf

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.runtime.cluster import describe_cluster
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


def cluster(jobs, **task):
    return json.dumps({"cluster": jobs, "task": {"type": "worker", "index": 0, **task}})


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("worker", "it is not JSON"),
        ("{" * 100_000, "it is not JSON"),
        ('{"cluster": {"worker": [1' + "0" * 10_000 + "]}}", "it is not JSON"),
        ("[]", "it is not an object"),
        ("5", "it is not an object"),
        ('"text"', "it is not an object"),
        (json.dumps({"cluster": ["a:1"]}), "must be objects"),
        (json.dumps({"cluster": CLUSTER, "task": "worker"}), "must be objects"),
        (json.dumps({"cluster": CLUSTER}), "task.type is 'None'"),
        (cluster({"worker": []}), "must list at least one address"),
        (cluster({"worker": "a:1"}), "must list at least one address"),
        (cluster({"worker": {"0": "a:1"}}), "must list at least one address"),
        (cluster({"worker": ["127.0.0.1", "127.0.0.1"]}), "'127.0.0.1' is not an address"),
        (cluster({"worker": ["a:1", 7]}), "'7' is not an address"),
        (cluster({"worker": ["a:1", None]}), "'None' is not an address"),
        (cluster({"worker": ["a:1", ":2"]}), "':2' is not an address"),
        (cluster({"worker": ["a:1", "b:http"]}), "'b:http' is not an address"),
        (cluster({"worker": ["a:1", "b:-1"]}), "'b:-1' is not an address"),
        (cluster({"worker": ["a:1", "b c:1"]}), "'b c:1' is not an address"),
        (cluster({"worker": ["a:1", "http://b:1"]}), "is not an address"),
        (cluster({"worker": ["a:1", "b\u001b:1"]}), r"'b\\x1b:1' is not an address"),
        (cluster({"worker": ["a:1", "b:\u0661"]}), "is not an address"),
        (cluster({"worker": ["a:1", "b:0"]}), "has the port 0. Ports are from 1 to 65535"),
        (cluster({"worker": ["a:1", "b:70000"]}), "has the port 70000"),
        (cluster({"worker": ["a:1", "b:" + "9" * 10_000]}), "is not an address"),
        (cluster({"worker": ["a:1", "b:2", "a:1"]}), "a:1 is listed twice"),
        (cluster({"chief": ["a:1"], "worker": ["a:1"]}), "a:1 is listed twice"),
        (cluster({"chief": ["a:1", "b:1"]}, type="chief"), "only one chief"),
        (cluster(CLUSTER, index=2), "task.index is 2. The job worker has the indices 0 to 1"),
        (cluster(CLUSTER, index=-1), "task.index is -1"),
        (cluster(CLUSTER, index=None), "task.index is None"),
        (cluster(CLUSTER, index=True), "task.index is True"),
        (cluster(CLUSTER, index=0.5), "task.index is 0.5"),
        (cluster(CLUSTER, index="x"), "task.index is x"),
        (cluster(CLUSTER, index=[0]), r"task.index is \[0\]"),
        (cluster(CLUSTER, type="chief"), "task.type is 'chief'"),
        (cluster(CLUSTER, type=[]), r"task.type is '\[\]'"),
        (cluster(CLUSTER | {"ps": ["127.0.0.1:3"]}), "has a job 'ps'"),
    ],
)
def test_invalid_tf_config(text, reason):
    with pytest.raises(
        UserError, match=rf'^TF_CONFIG=.* is not a list of workers: .*{reason}.* Use \{{"cluster": '
    ) as caught:
        read_cluster(text)
    assert len(str(caught.value)) < 800


@pytest.mark.parametrize(
    ("addresses", "own", "message"),
    [
        (["a:1", "b:2"], None, "workers=a:1,b:2 needs worker, the place of this machine in that list: 0 to 1"),
        ([], 0, "worker=0 needs workers, the addresses of all machines"),
        (["a:1", "b:2"], 2, "worker=2 is not in workers=a:1,b:2. Use 0 to 1"),
        (["a", "b:2"], 0, "workers=a,b:2: 'a' is not an address of the form host:port"),
        (["a:1", "a:1"], 0, "workers=a:1,a:1: the address a:1 is listed twice"),
    ],
)
def test_flags_that_describe_no_cluster(addresses, own, message):
    with pytest.raises(UserError, match=re.escape(message)):
        describe_cluster(addresses, own)


def test_flags_describe_a_cluster():
    assert read_cluster(describe_cluster(["a:1", "b:2"], 1)) == ["b:2", "a:1"]


def test_own_address_comes_first():
    cluster = {"chief": ["a:1"], "worker": ["b:2", "c:3"]}
    assert read_cluster(json.dumps({"cluster": cluster, "task": {"type": "worker", "index": 1}})) == [
        *("c:3", "a:1", "b:2")
    ]
    assert read_cluster(json.dumps({"cluster": cluster, "task": {"type": "chief", "index": "0"}}))[0] == "a:1"
    for text in (" ", "{}", '{"cluster": {}}', '{"cluster": null, "task": null}'):
        assert read_cluster(text) == []


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
        ({"tpu": "local"}, "Several workers .* can have neither a TPU nor CPU replicas"),
        ({"replicas": 2}, "Several workers .* can have neither a TPU nor CPU replicas"),
        ({"device": "gpu"}, "device=gpu cannot be used because TensorFlow sees no GPU on this worker"),
    ],
)
def test_arguments_that_contradict_a_cluster(monkeypatch, arguments, message):
    monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": CLUSTER, "task": {"type": "worker", "index": 1}}))
    with pytest.raises(UserError, match=message):
        create_strategy(**arguments, cluster=True)


def test_missing_worker(addresses, caplog):
    own, other = addresses
    message = f"^Worker {other} did not appear within 1 seconds.*refused.* Check that it is started"
    with caplog.at_level(logging.WARNING), pytest.raises(UserError, match=message):
        join_workers([own, other], "cpu", timeout_seconds=1)
    assert caplog.messages == [f"waiting for worker {other}"]  # once, although it tried several times


def test_worker_that_cannot_start(monkeypatch, addresses):
    own, other = addresses
    cluster = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": 0}}
    monkeypatch.setenv("TF_CONFIG", json.dumps(cluster))
    with socket.create_server(("127.0.0.1", int(other.rpartition(":")[2]))):
        tf.constant(1) + 1  # the cluster must be joined before TensorFlow computes anything
        with pytest.raises(UserError, match=f"Worker {own} cannot join the others: .*program startup"):
            join_workers([own, other], "cpu")
        with pytest.raises(UserError, match=f"Worker {other} cannot join the others: .*in use"):
            join_workers([other, own], "cpu")
