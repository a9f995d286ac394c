"""The JAX engine trains as the TensorFlow engine does, step by step, from the same weights and the same images."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import recast
import tensorflow as tf
import tiny
from commands import run_process

from efficientnet_tf.models.from_config import build_from_config
from efficientnet_tf.models.model_dir import write_model_dir
from efficientnet_tf.runtime.backend import BACKENDS

SCRIPT = Path(__file__).with_name("engine_run.py")
STEPS = 20


def train(folder, backend, *overrides, devices=1, variant=tiny.VARIANT):
    """Train in a process of its own. Return {name: value}: losses, and what training has changed."""
    output = folder / f"{backend}{devices}.npz"
    arguments = {
        "variant": variant,
        "weights": str(folder / "weights.npz"),
        "steps": STEPS,
        "output": str(output),
    }
    environment = os.environ | {
        "KERAS_BACKEND": backend,
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join([str(SCRIPT.parents[1]), os.environ.get("PYTHONPATH", "")]),
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}",
    }
    done = subprocess.run(
        [sys.executable, SCRIPT, json.dumps(arguments | {"overrides": overrides})],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    with np.load(output) as values:
        return dict(values)


def assert_same(one, other):
    """Losses agree within 1e-5, and all else within 1e-4, relative to the largest value of each variable."""
    assert set(one) == set(other)
    np.testing.assert_allclose(other.pop("losses"), one.pop("losses"), rtol=1e-5, atol=1e-6)
    for name, value in one.items():
        limit = max(1e-6, 1e-4 * np.abs(value).max(initial=0))
        np.testing.assert_allclose(other[name], value, rtol=0, atol=limit, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        ("augment.mixup=0.2", "model.dropout=0.2", "optimizer.clip_norm=1.0", "train.ema_decay=0.99"),
        pytest.param(
            (
                *("augment.mixup=0.2", "augment.cutmix=1.0", "optimizer.name=adamw", "optimizer.epsilon=1e-6"),
                *(tiny.SHORT, "optimizer.agc=0.01", "train.accumulate=2", "train.loss=bce", "train.ema_decay=0"),
            ),
            marks=pytest.mark.nightly,
        ),
    ],
    ids=["rmsprop", "adamw"],
)
def test_both_engines_take_the_same_steps(tmp_path, settings):
    settings = ("train.batch_size=32", "model.drop_connect=0.2", *settings)
    tensorflow = train(tmp_path, "tensorflow", *settings)
    jax = train(tmp_path, "jax", *settings)
    assert len(jax["losses"]) == STEPS
    assert_same(tensorflow, jax)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["multilabel", pytest.param("regression", marks=pytest.mark.nightly)])
def test_both_engines_learn_labels_and_numbers(tmp_path, task):
    recast.write_table(tmp_path, train=200)
    settings = ["train.batch_size=32", "data.source=table", f"data.dir={tmp_path}", f"data.task={task}", tiny.SHORT]
    settings += ["train.loss=asymmetric"] if task == "multilabel" else ["data.label_columns=value", "train.loss=huber"]
    tensorflow = train(tmp_path, "tensorflow", *settings)
    assert_same(tensorflow, train(tmp_path, "jax", *settings))


@pytest.mark.slow
def test_both_engines_learn_from_a_teacher(tmp_path):
    config = tiny.load_config("train.ema_decay=0", "data.image_size=40")
    model = tiny.randomize(build_from_config(config, 10))
    write_model_dir(str(tmp_path / "teacher"), model, config, [*"0123456789"])
    settings = ["train.batch_size=32", f"train.teacher={tmp_path}/teacher", "train.class_weights=balanced", tiny.SHORT]
    settings += ["train.teacher_features=2", "data.image_size=[24, 32]"]
    tensorflow = train(tmp_path, "tensorflow", *settings)
    assert_same(tensorflow, train(tmp_path, "jax", *settings))


@pytest.mark.nightly
@pytest.mark.parametrize("backend", BACKENDS)
def test_an_engine_that_computes_blocks_again_takes_the_same_steps(tmp_path, backend):
    settings = ["train.batch_size=32", "model.dropout=0.2", "train.adversarial_steps=1", tiny.SHORT]
    assert_same(train(tmp_path, backend, *settings), train(tmp_path, backend, *settings, "train.remat=true"))


@pytest.mark.slow
def test_both_engines_train_for_int8(tmp_path):
    """Rounding turns the smallest difference into a whole step now and then, so they cannot be as close as in float."""
    config = tiny.load_config("train.ema_decay=0")
    model = tiny.randomize(build_from_config(config, 10))
    write_model_dir(str(tmp_path / "float"), model, config, [*"0123456789"])
    settings = ["train.batch_size=32", f"train.init_from={tmp_path}/float", "train.quantize=int8", tiny.SHORT]
    tensorflow, jax = (train(tmp_path, backend, *settings) for backend in ("tensorflow", "jax"))
    np.testing.assert_allclose(jax["losses"], tensorflow["losses"], rtol=2e-4)
    limits = [name for name in tensorflow if name.endswith("/limits")]
    assert len(limits) > 10 and set(tensorflow) == set(jax)
    for name in limits:
        assert tensorflow[name][1] > tensorflow[name][0]
        np.testing.assert_allclose(jax[name], tensorflow[name], atol=1e-3 * np.ptp(tensorflow[name]), err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [1, pytest.param(2, marks=pytest.mark.nightly)])
def test_both_engines_learn_from_adversarial_images(tmp_path, accumulate):
    settings = ["train.batch_size=32", "train.adversarial_steps=2", "model.dropout=0.2", "augment.mixup=0.2"]
    settings += [tiny.SHORT, f"train.accumulate={accumulate}", "train.ema_decay=0.99"]
    tensorflow = train(tmp_path, "tensorflow", *settings)
    assert sum(name.startswith("auxiliary/") for name in tensorflow) == 28
    assert_same(tensorflow, train(tmp_path, "jax", *settings))


@pytest.mark.nightly
def test_both_engines_take_the_same_steps_with_b0(tmp_path):
    settings = (
        *("data.image_size=64", "train.batch_size=8", "train.ema_decay=0.99", "optimizer.clip_norm=1.0"),
        *("augment.mixup=0.2", "model.drop_connect=0.2", "model.dropout=0.2"),
    )
    tensorflow = train(tmp_path, "tensorflow", *settings, variant="b0")
    assert_same(tensorflow, train(tmp_path, "jax", *settings, variant="b0"))


@pytest.mark.slow
@pytest.mark.parametrize("adversarial_steps", [0, pytest.param(2, marks=pytest.mark.nightly)])
def test_eight_devices_equal_one(tmp_path, adversarial_steps):
    """With the batch-norm statistics of all images, and with one part of the batch each, which TensorFlow refuses."""
    settings = ("train.batch_size=32", "model.drop_connect=0.2", "augment.mixup=0.2", "train.batch_norm_group=all")
    settings += (f"train.adversarial_steps={adversarial_steps}",)
    one = train(tmp_path, "jax", tiny.SHORT, *settings)
    assert_same(one, train(tmp_path, "jax", tiny.SHORT, *settings, devices=8))


def test_a_step_needs_no_tensorflow():
    """On a machine with a GPU, the benchmark runs the engine where only JAX is installed."""
    modules = "training.jax_loop training.state evaluation.jax_loop runtime.jax_strategy".split()
    code = "import sys; sys.modules['tensorflow'] = None\n" + "\n".join(f"import efficientnet_tf.{m}" for m in modules)
    environment = os.environ | {"KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# Trains a run in a directory until a step, with the engine of Keras's backend.
UNTIL = """
import sys
import tiny
from efficientnet_tf.runtime.strategy import create_strategy
from efficientnet_tf.training.trainer import Callback, train_model

class Stop(Callback):
    def after_loop(self, trainer, metrics):
        if trainer.step >= int(sys.argv[2]):
            trainer.stop()

settings = ["train.epochs=3", "train.batch_size=300", "train.steps_per_loop=1", "train.ema_decay=0.9", tiny.SHORT]
train_model(tiny.load_config(*settings, "model.dropout=0.2"), sys.argv[1], create_strategy("cpu"), callbacks=[Stop()])
"""


def continue_run(model_dir, backend, until):
    environment = os.environ | {"KERAS_BACKEND": backend, "JAX_PLATFORMS": "cpu"}
    environment["PYTHONPATH"] = os.pathsep.join([str(SCRIPT.parents[1]), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-c", UNTIL, str(model_dir), str(until)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [json.loads(line) for line in (model_dir / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if line["kind"] == "train"}


def evaluate(model_dir, backend):
    done = run_process("evaluate", f"--backend={backend}", "--device=cpu", f"--model_dir={model_dir}", "--json")
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def read_checkpoint(model_dir, step):
    reader = tf.train.load_checkpoint(str(model_dir / "checkpoints" / f"step-{step}"))
    names = [name for name, shape in reader.get_variable_to_shape_map().items() if shape]
    return {name: reader.get_tensor(name) for name in names}


@pytest.mark.slow
def test_a_run_is_resumed_by_either_engine(tmp_path):
    """The same bits with the same engine, and nearly the same numbers with the other one."""
    first = tmp_path / "first"
    continue_run(first, "tensorflow", 5)
    for name in ("whole", "stopped"):
        shutil.copytree(first, tmp_path / name)
    whole = continue_run(tmp_path / "whole", "jax", 10)
    assert list(whole) == list(range(1, 11))
    continue_run(tmp_path / "stopped", "jax", 8)
    shutil.copytree(tmp_path / "stopped", tmp_path / "returned")
    assert continue_run(tmp_path / "stopped", "jax", 10) == whole
    expected = read_checkpoint(tmp_path / "whole", 10)
    for name, value in read_checkpoint(tmp_path / "stopped", 10).items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)
    results = [evaluate(tmp_path / "whole", backend) for backend in BACKENDS]
    assert results[1] == pytest.approx(results[0], rel=1e-5)
    assert continue_run(tmp_path / "returned", "tensorflow", 10) == pytest.approx(whole, rel=1e-5)
    for variable, value in read_checkpoint(tmp_path / "returned", 10).items():
        np.testing.assert_allclose(value, expected[variable], rtol=1e-4, atol=1e-5, err_msg=variable)
