"""Several hosts: TF_CONFIG, and two real processes that train one model."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tiny

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.runtime import strategy as strategy_lib
from efficientnet_tf.runtime import workers as workers_lib

# Whether a batch is normalised as one or in two halves, and whose masks fall where, is all that would tell them apart.
SETTINGS = (
    tiny.SHORT,
    "model.dropout=0.0",
    "model.drop_connect=0.0",
    "train.batch_norm_group=all",
    "train.epochs=1",  # 22 steps
    "train.steps_per_loop=2",
    "train.checkpoint_every_epochs=0.2",
    "eval.batch_size=50",  # 360 digits in 8 steps, the last with 10 of them
    "schedule.warmup_epochs=0.2",
    "optimizer.learning_rate=0.016",
)
END_SECONDS = 60  # within which a worker ends once another is gone


def free_addresses():
    with socket.socket() as one, socket.socket() as other:
        for free in (one, other):
            free.bind(("127.0.0.1", 0))
        return [f"127.0.0.1:{free.getsockname()[1]}" for free in (one, other)]


def start(model_dir, *settings, addresses=None):
    """Start `train` on two workers of this machine; return the processes, the chief first."""
    cluster = {"worker": addresses or free_addresses()}
    return [
        start_one(model_dir, *settings, cluster={"cluster": cluster, "task": {"type": "worker", "index": i}})
        for i in range(2)
    ]


def start_one(model_dir, *settings, cluster=None):
    environment = os.environ | ({"TF_CONFIG": json.dumps(cluster)} if cluster else {})
    command = [sys.executable, "-m", "efficientnet_tf.train", f"--variant={tiny.VARIANT}", "--recipe=digits"]
    command += [f"--model_dir={model_dir}", *(f"--set={setting}" for setting in (*SETTINGS, *settings))]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process):
    """Return (status, standard output, standard error) of a process once it has ended."""
    out, err = process.communicate(timeout=240)
    return process.returncode, out, err


def saved(model_dir):
    reader = tf.train.load_checkpoint(tf.train.latest_checkpoint(str(model_dir / "checkpoints")))
    names = [n for n in reader.get_variable_to_shape_map() if n.startswith(("model/", "optimizer/", "average/"))]
    return {name: reader.get_tensor(name) for name in names}


def lines(model_dir):
    told = map(json.loads, (model_dir / "metrics.jsonl").read_text().splitlines())
    return [{key: value for key, value in line.items() if "second" not in key} for line in told]


@pytest.fixture(scope="module")
def two_workers(tmp_path_factory):
    """Return the directory of a run of two workers, and what each of them printed."""
    model_dir = tmp_path_factory.mktemp("two") / "run"
    ended = [finish(worker) for worker in start(model_dir)]
    assert [status for status, *_ in ended] == [0, 0], ended
    return model_dir, [out for _, out, _ in ended]


@pytest.mark.slow
def test_two_workers_are_one(two_workers, tmp_path):
    """Weights, slots, statistics and averages after 22 steps, up to the order of sums; every example counted once."""
    model_dir, (chief, other) = two_workers
    status, out, err = finish(start_one(tmp_path / "one"))
    assert status == 0, err
    two, one = saved(model_dir), saved(tmp_path / "one")
    assert two.keys() == one.keys() and len(one) > 100
    for name, value in one.items():
        np.testing.assert_allclose(two[name], value, rtol=1e-4, atol=5e-5, err_msg=name)
    told = lines(model_dir)
    assert len(told) == len(lines(tmp_path / "one"))
    for line, expected in zip(told, lines(tmp_path / "one"), strict=True):
        assert line.pop("kind") == expected.pop("kind")
        assert line == pytest.approx(expected, rel=1e-4, abs=1.5 / 360), line
    assert {line.get("examples", 360) for line in told} == {360}
    assert "finished: " in chief and "top-1" in chief and other == ""
    assert (model_dir / "model.keras").exists()


@pytest.mark.slow
def test_a_killed_worker_ends_the_others_and_both_go_on(two_workers, tmp_path):
    """First the worker, then the chief is killed; started again, the run ends as if nothing had been, bit for bit."""
    model_dir, addresses = tmp_path / "run", free_addresses()
    for victim, last_step in ((1, 4), (0, 12)):
        workers = start(model_dir, addresses=addresses)
        wait_for(model_dir / "checkpoints" / f"step-{last_step}.index", workers)
        workers[victim].kill()
        killed = time.monotonic()
        status, _, err = finish(workers[1 - victim])
        assert time.monotonic() - killed < END_SECONDS
        assert status == 1 and "Traceback" not in err
        assert re.search("error: another worker of TF_CONFIG is gone.*start the same command again", err), err
        workers[victim].communicate()
    workers = start(model_dir, addresses=addresses)
    (status, out, err), (other, *_) = [finish(worker) for worker in workers]
    assert (status, other) == (0, 0), err
    assert re.search(r"going on from the checkpoint of step \d+ of 22", out)
    expected, _ = two_workers
    one, two = saved(model_dir), saved(expected)
    assert one.keys() == two.keys()
    for name, value in one.items():
        np.testing.assert_array_equal(value, two[name], err_msg=name)
    assert [line for line in lines(model_dir) if line["kind"] != "train"] == [
        line for line in lines(expected) if line["kind"] != "train"
    ]


@pytest.mark.slow
def test_a_signal_to_one_worker_stops_all_at_the_same_step(tmp_path):
    model_dir = tmp_path / "run"
    workers = start(model_dir, "train.epochs=50")
    wait_for(model_dir / "metrics.jsonl", workers)
    wait_for(model_dir / "checkpoints" / "step-4.index", workers)
    workers[1].send_signal(signal.SIGTERM)
    (status, out, err), (other, *_) = [finish(worker) for worker in workers]
    assert (status, other) == (75, 75), err
    step = int(re.search(r"stopped by a signal: step (\d+) of \d+ is saved", out)[1])
    assert (model_dir / "checkpoints" / f"step-{step}.index").exists()


def wait_for(path: Path, workers):
    for _ in range(1200):
        if path.exists():
            return
        assert all(worker.poll() is None for worker in workers), [finish(worker) for worker in workers]
        time.sleep(0.1)
    pytest.fail(f"{path} has not appeared")


# ---------------------------------------------------------------------------------------------------- TF_CONFIG

CLUSTER = {"worker": ["127.0.0.1:1", "127.0.0.1:2"]}


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
def test_tf_config_that_cannot_be(monkeypatch, text):
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(UserError, match=r'^TF_CONFIG=.*: must be as in \{"cluster": \{"worker"'):
        strategy_lib.create_strategy("cpu", cluster=True)


def test_one_worker_is_no_cluster(monkeypatch):
    for cluster in ({}, {"worker": ["127.0.0.1:1"]}, {"chief": ["127.0.0.1:1"]}):
        task = {"type": next(iter(cluster), "worker"), "index": 0}
        monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": cluster, "task": task}))
        strategy = strategy_lib.create_strategy("cpu", cluster=True)
        assert isinstance(strategy, tf.distribute.OneDeviceStrategy)
        assert workers_lib.is_chief(strategy) and workers_lib.make_gather(strategy)(7) == [7]


def test_what_a_cluster_does_not_go_with(monkeypatch):
    addresses = free_addresses()
    config = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": 1}}
    monkeypatch.setenv("TF_CONFIG", json.dumps(config))
    for arguments in ({"tpu": "local"}, {"replicas": 2}):
        with pytest.raises(UserError, match="several workers: these have neither --tpu nor --replicas"):
            strategy_lib.create_strategy(**arguments, cluster=True)
    with pytest.raises(UserError, match="sees no GPU on this worker"):
        strategy_lib.create_strategy("gpu", cluster=True)
    monkeypatch.setattr(workers_lib, "WAIT_SECONDS", 1)
    with pytest.raises(
        UserError, match=f"^TF_CONFIG: worker {addresses[0]} has not come within 1 seconds.*refused.*is it started"
    ):
        strategy_lib.create_strategy("cpu", cluster=True)
    with socket.create_server(("127.0.0.1", int(addresses[0].rpartition(":")[2]))):
        tf.constant(1) + 1
        with pytest.raises(UserError, match=f"worker {addresses[1]} cannot join the others: .*program startup"):
            strategy_lib.create_strategy("cpu", cluster=True)
        config["task"]["index"] = 0
        monkeypatch.setenv("TF_CONFIG", json.dumps(config))
        with pytest.raises(UserError, match=f"worker {addresses[0]} cannot join the others: .*in use"):
            strategy_lib.create_strategy("cpu", cluster=True)
