"""Two processes, the workers of one run, train one model. Most of these tests are slow."""

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

from efficientnet_tf.models.stored import find_step
from efficientnet_tf.runtime.backend import BACKENDS

# Batch norm over all replicas and no random masks, so that two workers compute what one does.
SETTINGS = (
    tiny.SHORT,
    "model.dropout=0.0",
    "model.drop_connect=0.0",
    "train.batch_norm_group=all",
    "train.epochs=1",  # 22 steps
    "train.steps_per_loop=2",
    "train.checkpoint_every_epochs=0.2",
    "eval.batch_size=50",  # 360 digits take 8 steps, and the last one has 10.
    "schedule.warmup_epochs=0.2",
    "optimizer.learning_rate=0.016",
)
END_SECONDS = 60  # longest time for a worker to end after another one is gone


def free_addresses():
    with socket.socket() as one, socket.socket() as other:
        for free in (one, other):
            free.bind(("127.0.0.1", 0))
        return [f"127.0.0.1:{free.getsockname()[1]}" for free in (one, other)]


def start(model_dir, *settings, addresses=None, backend="tensorflow"):
    """Start `train` on two workers of this machine, the chief first.

    The chief reads TF_CONFIG. The other one has flags, which mean the same.
    """
    addresses = addresses or free_addresses()
    cluster = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": 0}}
    flags = [f"--workers={','.join(addresses)}", "--worker=1"]
    return [
        start_one(model_dir, *settings, cluster=cluster, backend=backend),
        start_one(model_dir, *settings, flags=flags, backend=backend),
    ]


def start_one(model_dir, *settings, cluster=None, flags=(), backend="tensorflow"):
    environment = os.environ | ({"TF_CONFIG": json.dumps(cluster)} if cluster else {})
    environment |= {"KERAS_BACKEND": backend, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "efficientnet_tf.train", f"--variant={tiny.VARIANT}", "--recipe=digits"]
    command += [f"--model_dir={model_dir}", *flags, *(f"--set={setting}" for setting in (*SETTINGS, *settings))]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process):
    """Return (status, standard output, standard error) of a process once it has ended."""
    out, err = process.communicate(timeout=240)
    return process.returncode, out, err


def saved(model_dir):
    reader = tf.train.load_checkpoint(tf.train.latest_checkpoint(str(model_dir / "checkpoints")))
    names = [n for n in reader.get_variable_to_shape_map() if n.startswith(("model/", "optimizer/", "average/"))]
    return {name: reader.get_tensor(name) for name in names}


def read_metrics(model_dir):
    """Return the lines of metrics.jsonl without times."""
    lines = map(json.loads, (model_dir / "metrics.jsonl").read_text().splitlines())
    return [{key: value for key, value in line.items() if "second" not in key} for line in lines]


@pytest.fixture(scope="module", params=BACKENDS)
def two_workers(request, tmp_path_factory):
    """Return the directory of a run of two workers, what each of them printed, and the library that computes."""
    model_dir = tmp_path_factory.mktemp("two") / "run"
    ended = [finish(worker) for worker in start(model_dir, backend=request.param)]
    assert [status for status, *_ in ended] == [0, 0], ended
    return model_dir, [out for _, out, _ in ended], request.param


@pytest.mark.slow
def test_two_workers_compute_what_one_does(two_workers, tmp_path):
    """All variables agree after 22 steps, up to the order of sums, and every example is evaluated once."""
    model_dir, (chief, other), backend = two_workers
    status, out, err = finish(start_one(tmp_path / "one", backend=backend))
    assert status == 0, err
    two, one = saved(model_dir), saved(tmp_path / "one")
    assert two.keys() == one.keys() and len(one) > 100
    for name, value in one.items():
        np.testing.assert_allclose(two[name], value, rtol=1e-4, atol=5e-5, err_msg=name)
    metrics = read_metrics(model_dir)
    for line, expected in zip(metrics, read_metrics(tmp_path / "one"), strict=True):
        assert line.pop("kind") == expected.pop("kind")
        assert line == pytest.approx(expected, rel=1e-4, abs=1.5 / 360), line
    assert {line.get("examples", 360) for line in metrics} == {360}
    other = [line for line in other.splitlines() if not line.startswith("[Gloo] ")]  # JAX's library for CPUs
    assert "Finished: " in chief and "top-1" in chief and not other
    assert (model_dir / "model.keras").exists()


@pytest.mark.slow
def test_killed_worker_ends_the_other_and_the_run_resumes(two_workers, tmp_path):
    """First the other worker is killed, then the chief. The resumed run ends bit-identical to an undisturbed one."""
    expected, _, backend = two_workers
    model_dir, addresses = tmp_path / "run", free_addresses()
    for victim, last_step in ((1, 4), (0, 13)):
        workers = start(model_dir, addresses=addresses, backend=backend)
        wait_for(model_dir / "checkpoints" / f"step-{last_step}.index", workers)
        workers[victim].kill()
        killed = time.monotonic()
        status, _, err = finish(workers[1 - victim])
        assert time.monotonic() - killed < END_SECONDS
        if (backend, victim) == ("jax", 0):  # JAX aborts the process when the first worker is gone.
            assert status in (1, -signal.SIGABRT) and re.search("another (worker is gone|task died)", err), err
        else:
            assert status == 1 and "Traceback" not in err
            assert re.search("error: another worker is gone.*Start the same command again", err), err
        workers[victim].communicate()
    workers = start(model_dir, addresses=addresses, backend=backend)
    (status, out, err), (other, *_) = [finish(worker) for worker in workers]
    assert (status, other) == (0, 0), err
    assert re.search(r"Continuing from the checkpoint of step \d+ of 22", out)
    one, two = saved(model_dir), saved(expected)
    assert one.keys() == two.keys()
    for name, value in one.items():
        np.testing.assert_array_equal(value, two[name], err_msg=name)
    assert [line for line in read_metrics(model_dir) if line["kind"] != "train"] == [
        line for line in read_metrics(expected) if line["kind"] != "train"
    ]


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["tensorflow", pytest.param("jax", marks=pytest.mark.nightly)])
def test_signal_to_one_worker_stops_both_at_the_same_step(backend, tmp_path):
    model_dir = tmp_path / "run"
    workers = start(model_dir, "train.epochs=50", backend=backend)
    wait_for(model_dir / "metrics.jsonl", workers)
    wait_for(model_dir / "checkpoints" / "step-4.index", workers)
    workers[1].send_signal(signal.SIGTERM)
    (status, out, err), (other, *_) = [finish(worker) for worker in workers]
    assert (status, other) == (75, 75), err
    step = int(re.search(r"Stopped. Step (\d+) of \d+ is saved", out)[1])
    assert (model_dir / "checkpoints" / f"step-{step}.index").exists()


@pytest.mark.slow
def test_two_workers_choose_the_same_checkpoint_and_end_early_together(tmp_path):
    """A rate of almost 0 changes nothing, so that the first evaluation stays the best."""
    settings = ("optimizer.learning_rate=1e-30", "train.ema_decay=0", "eval.every_epochs=0.1")
    workers = start(tmp_path, *settings, "model.batch_norm_momentum=0.999999", "eval.best=top1", "eval.patience=2")
    (status, out, err), (other, *_) = [finish(worker) for worker in workers]
    assert (status, other) == (0, 0), err
    assert "Stopped early after step 7 of 22: no better top-1 in 2 evaluations" in out
    assert find_step(str(tmp_path), "best") == 2


@pytest.mark.slow
def test_workers_with_different_configs_both_refuse(tmp_path):
    """Each worker names the section that differs, and nothing is saved."""
    model_dir, cluster = tmp_path / "run", {"worker": free_addresses()}
    workers = [
        start_one(
            model_dir,
            f"train.seed={seed}",
            cluster={"cluster": cluster, "task": {"type": "worker", "index": seed}},
        )
        for seed in range(2)
    ]
    for status, out, err in map(finish, workers):
        assert status == 1 and "Traceback" not in err and out == "", err
        assert re.search("workers have different configs, in the sections train.*same flags", err), err
    assert not list(model_dir.rglob("step-*"))


def wait_for(path: Path, workers):
    for _ in range(1200):
        if path.exists():
            return
        assert all(worker.poll() is None for worker in workers), [finish(worker) for worker in workers]
        time.sleep(0.1)
    pytest.fail(f"{path} did not appear")
