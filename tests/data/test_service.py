"""Test training batches from a real tf.data service: a dispatcher and two workers in separate processes."""

import hashlib
import socket
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest
import tensorflow as tf
import tiny

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.load import load_config
from efficientnet_tf.data.open import open_source
from efficientnet_tf.data.pipeline import Failures, train_dataset
from efficientnet_tf.training.trainer import train_model

pytestmark = pytest.mark.slow  # It starts the processes of a data service.

DISPATCHER = """
import sys
import tensorflow as tf
service = tf.data.experimental.service
server = service.DispatchServer(service.DispatcherConfig(port=0))
print(server.target, flush=True)
sys.stdin.read()
"""
WORKER = """
import sys
import tensorflow as tf
service = tf.data.experimental.service
server = service.WorkerServer(service.WorkerConfig(dispatcher_address=sys.argv[1]))
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def address():
    """Start a service and return its address. Its processes also end when this process does."""
    processes = []

    def start(code, *arguments):
        command = [sys.executable, "-c", code, *arguments]
        processes.append(
            subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )
        )
        return processes[-1]

    try:
        target = start(DISPATCHER).stdout.readline().strip()
        assert target.startswith("grpc://")
        workers = [start(WORKER, target.removeprefix("grpc://")) for _ in range(2)]
        assert [worker.stdout.readline() for worker in workers] == ["ready\n"] * 2
        yield target
    finally:
        for process in reversed(processes):
            process.kill()
            process.communicate()


def read(run, steps, failures=None, first_step=0):
    """Return [(digest of the images, labels), ...] of training batches."""
    source = open_source(run.data, run.data.train_split, training=True)
    failures = failures or Failures(source)
    batches = train_dataset(source, run, failures, first_step, tf.distribute.InputContext())
    return [
        (hashlib.sha256(images.numpy().tobytes()).hexdigest(), tuple(labels.numpy()))
        for images, labels in batches.take(steps)
    ]


SETTINGS = ["data.image_size=16", "train.batch_size=64", "augment.erase=0.5"]
STEPS = 22  # of 64 images: an epoch of 1,437 digits except for 29
AHEAD = 40  # more than two workers prepare in advance


def digits(*settings):
    return tiny.load_config(*SETTINGS, *settings)


@pytest.fixture(scope="module")
def local():
    return read(digits(), STEPS + AHEAD)


@pytest.mark.parametrize("first_step", [0, 7])
def test_batches_are_those_of_a_local_run(address, local, first_step):
    """Each batch comes once and bit for bit, including augmentation, in any order. None is of an earlier step."""
    remote = read(digits(f"data.service={address}"), STEPS, first_step=first_step)
    assert len(set(remote)) == STEPS
    steps = [local.index(batch) for batch in remote]
    assert set(steps) <= set(range(first_step, first_step + STEPS + AHEAD))
    assert len(set(local)) == len(local)


def test_images_in_memory_are_sent_to_the_workers(address, local):
    remote = read(digits(f"data.service={address}", "data.cache=memory"), 5)
    assert set(remote) <= set(local[: 5 + AHEAD])


def test_each_worker_reads_all_record_files(address, tmp_path):
    """Every image comes equally often after whole epochs of both workers, but in other batches than locally."""
    for index in range(4):
        with tf.io.TFRecordWriter(str(tmp_path / f"train-{index:05d}-of-00004")) as writer:
            for number in range(index * 10, index * 10 + 10):
                encoded = tf.io.encode_png(np.full([8, 8, 3], number, np.uint8)).numpy()
                features = {
                    "image/encoded": tf.train.Feature(bytes_list=tf.train.BytesList(value=[encoded])),
                    "image/class/label": tf.train.Feature(int64_list=tf.train.Int64List(value=[number + 1])),
                }
                example = tf.train.Example(features=tf.train.Features(feature=features))
                writer.write(example.SerializeToString())
    run = tiny.load_config(
        *("data.source=records", f"data.dir={tmp_path}", "data.classes=40", "data.image_size=8"),
        *("train.batch_size=8", f"data.service={address}"),
    )
    labels = np.concatenate([batch[1] for batch in read(run, 5 * 40)])
    counts = np.bincount(labels, minlength=40)
    assert counts.sum() == 5 * 40 * 8
    # 40 epochs in total. Each worker is somewhere within its own epoch.
    assert np.all(np.abs(counts - 40) <= 2)


def test_broken_images_are_recorded(address, tmp_path):
    rng = np.random.default_rng(0)
    for number in range(40):
        path = tmp_path / "train" / "ab"[number % 2] / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)
    broken = [tmp_path / "train/a/04.png", tmp_path / "train/b/33.png"]
    for path in broken:
        path.write_bytes(b"not an image")
    settings = [f"data.dir={tmp_path}", "data.image_size=8", "train.batch_size=8", f"data.service={address}"]
    run = tiny.load_config(*settings, recipe="folder")
    source = open_source(run.data, "train", training=True)
    failures = Failures(source)
    read(run, 25, failures)
    assert failures.names() == [str(path) for path in broken]
    with pytest.raises(UserError, match="2 of 40 images cannot.*04.png: .*33.png: this is a text file"):
        failures.check(1e-3)


@pytest.mark.slow
def test_training_over_the_service(address, tmp_path):
    run = tiny.load_config(
        *(f"data.service={address}", "train.epochs=0.5", "schedule.warmup_epochs=0", "train.ema_decay=0.0", tiny.SHORT)
    )
    result = train_model(run, str(tmp_path), tiny.make_strategy(1))
    assert result["finished"] and result["step"] == 11 and result["raw"]["examples"] == 360
    assert (tmp_path / "model.keras").exists()


@pytest.mark.parametrize("host", ["127.0.0.1", "no-such-host.invalid"])
def test_unreachable_service_is_an_error(host):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        wrong = f"grpc://{host}:{free.getsockname()[1]}"
        with pytest.raises(
            UserError, match=f"data.service='{wrong}': cannot connect to a dispatcher at this address: "
        ):
            read(digits(f"data.service={wrong}"), 1)


@pytest.mark.parametrize(
    "wrong", ["localhost:5050", "grpc://localhost", "grpc://:5050", "http://localhost:5050", "5050"]
)
def test_invalid_address(wrong):
    with pytest.raises(UserError, match="data.service: .*received"):
        load_config("b0", "digits", [f"data.service={wrong}"])


def test_invalid_port():
    with pytest.raises(UserError, match="The port of an address must be from 1 to 65535"):
        digits("data.service=grpc://localhost:99999")
