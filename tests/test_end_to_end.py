"""The commands as a user runs them, on real files.

Each command runs once as a process of its own. What follows runs in this process, which saves seconds.
"""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
import tiny
from commands import exit_status, find_error, run_here, run_process
from PIL import Image
from sklearn.datasets import load_sample_images

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.evaluate import evaluate_model
from efficientnet_tf.export.load import load_model
from efficientnet_tf.predict import predict_images

TINY = tiny.VARIANT
DIGITS = ["--variant", TINY, "--recipe=digits"]


def variables(model_dir):
    """Return {name: array} of the newest checkpoint."""
    reader = tf.train.load_checkpoint(tf.train.latest_checkpoint(str(model_dir / "checkpoints")))
    names = [n for n in reader.get_variable_to_shape_map() if not n.startswith(("_CHECKPOINTABLE", "save_counter"))]
    return {name: reader.get_tensor(name) for name in names}


def assert_same_run(one, other):
    """Assert that two runs have the same weights, bit for bit, and logged the same metrics."""
    first, second = variables(one), variables(other)
    assert first.keys() == second.keys() and len(first) > 100
    for name, value in first.items():
        np.testing.assert_array_equal(value, second[name], err_msg=name)

    def read_metrics(model_dir):
        lines = map(json.loads, read_metrics_lines(model_dir))
        return [{k: v for k, v in line.items() if k not in ("seconds", "images_per_second")} for line in lines]

    assert read_metrics(one) == read_metrics(other)


def read_metrics_lines(model_dir):
    """Return the lines that a run has logged, none if it has not started yet."""
    path = model_dir / "metrics.jsonl"
    return path.read_text().splitlines() if path.exists() else []


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Write a folder of photos, train/ and val/: two classes of crops of two real photos, JPEG and PNG."""
    root = tmp_path_factory.mktemp("photos")
    rng = random.Random(0)
    for name, array in zip(("temple", "flower"), load_sample_images().images, strict=True):
        photo = Image.fromarray(array)
        for split, count in (("train", 24), ("val", 8)):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                x, y = rng.randrange(photo.width - 160), rng.randrange(photo.height - 160)
                photo.crop((x, y, x + 160, y + 120 + i)).save(folder / f"{i}.{('jpg', 'png')[i % 2]}")
    return root


@pytest.fixture(scope="module")
def photos_run(photos, tmp_path_factory):
    """Train a small network on the photos."""
    model_dir = tmp_path_factory.mktemp("runs") / "photos"
    done = run_process(
        "train",
        f"--variant={TINY}",
        "--recipe=folder",
        f"--data_dir={photos}",
        f"--model_dir={model_dir}",
        *("--set", tiny.SHORT),
        *("--set", "train.epochs=20", "--set", "train.batch_size=16", "--set", "eval.batch_size=12"),
        *("--set", "train.ema_decay=0.9", "--set", "eval.every_epochs=10", "--set", "data.image_size=64"),
        *("--set", "optimizer.learning_rate=0.1", "--set", "train.checkpoint_every_epochs=10"),
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"top-1 [\d.]+% \(EMA [\d.]+%\), .* on 16 images", done.stdout)
    return model_dir


def test_evaluate_repeats_the_last_evaluation_of_training(photos_run):
    done = run_process("evaluate", f"--model_dir={photos_run}", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["examples"] == 16
    last = json.loads(read_metrics_lines(photos_run)[-1])
    assert last["kind"] == "eval/ema"
    assert {k: last[k] for k in result} == pytest.approx(result)
    assert result["top1"] > 0.7  # two photos are easy to tell apart


def test_data_with_other_classes_is_refused(photos, photos_run, tmp_path):
    for name in ("flower", "temple", "tower"):
        (tmp_path / "train" / name).mkdir(parents=True)
        (tmp_path / "val" / name).mkdir(parents=True)
        os.link(photos / "val/flower/0.jpg", tmp_path / "val" / name / "0.jpg")
    with pytest.raises(UserError, match=r"3 classes.*flower, temple, tower.*tower"):
        run_here("evaluate", f"--model_dir={photos_run}", f"--data_dir={tmp_path}")


def test_predict_reports_unreadable_files_and_classifies_the_others(photos, photos_run, tmp_path):
    (tmp_path / "text.jpg").write_text("not an image")
    (tmp_path / "empty.png").write_bytes(b"")
    done = run_process("predict", f"--model_dir={photos_run}", "--json", tmp_path, photos / "val/flower")
    assert done.returncode == 1
    assert "text.jpg cannot be decoded: " in done.stderr and "empty.png cannot be decoded: " in done.stderr
    assert "2 file(s) could not be read." in done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [Path(a["path"]).parent.name for a in answers] == ["flower"] * 8
    for answer in answers:
        assert [label["label"] for label in answer["labels"]] in (["flower", "temple"], ["temple", "flower"])
        assert sum(label["probability"] for label in answer["labels"]) == pytest.approx(1, abs=1e-5)


def test_predict_agrees_with_the_saved_keras_model(photos, photos_run):
    """The .keras file loads without custom objects, and gives the probabilities that predict prints."""
    path = photos / "val/temple/0.jpg"
    [answer] = predict_images(photos_run, [path])
    predicted = dict(answer)
    model = keras.models.load_model(photos_run / "model.keras")
    logits = model(load_model(photos_run).load_image(path)[None]).numpy()[0].astype(float)
    expected = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    assert [predicted["flower"], predicted["temple"]] == pytest.approx(expected.tolist(), abs=1e-5)


@pytest.mark.slow
def test_saved_model_serves_pixels_and_files(photos, photos_run, tmp_path):
    output = tmp_path / "exported"
    done = run_process("export", f"--model_dir={photos_run}", f"--output={output}")
    assert done.returncode == 0, done.stderr
    assert "differ by at most" in done.stdout
    assert (output / "assets/classes.txt").read_text().split() == ["flower", "temple"]

    loaded = tf.saved_model.load(str(output))
    model = keras.models.load_model(photos_run / "model.keras")
    pixels = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    for signature, dtype in (("serving_default", np.float32), ("serving_uint8", np.uint8)):
        logits = loaded.signatures[signature](image=tf.constant(pixels.astype(dtype)))["logits"]
        np.testing.assert_allclose(logits, model(pixels.astype(np.float32)), atol=1e-5)
    paths = sorted((photos / "val/temple").iterdir())[:3]
    answer = loaded.signatures["serving_bytes"](image=tf.constant([path.read_bytes() for path in paths]))
    np.testing.assert_allclose(tf.reduce_sum(answer["probabilities"], axis=1), 1, atol=1e-5)

    # The export evaluates and predicts like its run, and is not overwritten.
    strategy = tf.distribute.OneDeviceStrategy("CPU:0")
    evaluated = [evaluate_model(folder, strategy=strategy) for folder in (output, photos_run)]
    assert evaluated[0] == pytest.approx(evaluated[1], abs=1e-5)
    np.testing.assert_allclose(
        [[p for _, p in row] for row in predict_images(output, paths)],
        [[p for _, p in row] for row in predict_images(photos_run, paths)],
        atol=1e-5,
    )
    exported = load_model(output)
    assert exported.weights == "exported" and exported.keras_model is None
    assert exported.class_names == ["flower", "temple"] and exported.image_size == 64
    with pytest.raises(UserError, match="is not an empty folder"):
        run_here("export", f"--model_dir={photos_run}", f"--output={output}")


# Everything that could depend on where a run is interrupted: a policy, mixing, and phases of other sizes and batches.
PHASES = (
    "[{until: 0.5, set: {data.image_size: 24, train.batch_size: 96, model.dropout: 0.1, augment.mixup: 0.2}},"
    " {until: 1.0, set: {augment.cutmix: 1.0, augment.randaugment_level: 4, augment.randaugment_std: 101,"
    " augment.randaugment_increasing: true, augment.color_jitter: 0.4, augment.flip_vertical: true}}]"
)
KILLED = [
    *(*DIGITS, "--set", tiny.SHORT, "--set", "train.epochs=5", "--set", "train.steps_per_loop=3"),
    *("--set", "eval.every_epochs=2", "--set", "train.checkpoint_every_epochs=0.4"),
    *("--set", "augment.policy=randaugment", "--set", "augment.erase=0.2", "--set", f"train.phases={PHASES}"),
]


@pytest.mark.slow
def test_run_that_was_killed_three_times_ends_bit_identical(tmp_path):
    """After SIGKILL at random moments, the same command continues and ends with the same weights."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert run_process("train", *KILLED, f"--model_dir={whole}").returncode == 0
    rng = random.Random(time.time_ns())
    kills = 0
    while kills < 3:
        command = [sys.executable, "-m", "efficientnet_tf.train", *KILLED, f"--model_dir={killed}"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        before = len(read_metrics_lines(killed))
        while len(read_metrics_lines(killed)) <= before and process.poll() is None:
            time.sleep(0.02)
        time.sleep(rng.uniform(0, 1.0))
        process.kill()
        assert process.wait() == -signal.SIGKILL, "the run ended before it could be killed: make it longer"
        kills += 1
    done = run_process("train", *KILLED, f"--model_dir={killed}")
    assert done.returncode == 0, done.stderr
    assert_same_run(whole, killed)


@pytest.mark.slow
def test_sigterm_saves_and_exits_with_status_75(tmp_path, capsys):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    arguments = [*DIGITS, "--set", tiny.SHORT, "--set", "train.epochs=2", "--set", "train.steps_per_loop=2"]
    command = [sys.executable, "-m", "efficientnet_tf.train", *arguments, f"--model_dir={stopped}"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    while not read_metrics_lines(stopped):
        time.sleep(0.02)
    process.terminate()
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 75
    assert "is saved. The same command continues from there." in output
    for model_dir in (stopped, whole):
        assert run_here("train", *arguments, f"--model_dir={model_dir}") == 0
    assert "Continuing from the checkpoint of step" in capsys.readouterr().out
    assert_same_run(whole, stopped)

    # When the run is finished, the same command changes nothing. Another config is refused with a list of differences.
    before, lines = variables(stopped), read_metrics_lines(stopped)
    assert run_here("train", *arguments, f"--model_dir={stopped}") == 0
    assert all(np.array_equal(before[name], value) for name, value in variables(stopped).items())
    assert read_metrics_lines(stopped) == lines and "Finished: " in capsys.readouterr().out
    with pytest.raises(UserError, match=r"(?s)another config.*train\.epochs: 2\.0 -> 5\.0"):
        run_here("train", *DIGITS, "--set", "train.epochs=5", f"--model_dir={stopped}")
    with pytest.raises(UserError, match=r"model\.name: 'tiny' -> 'b0'"):
        run_here("train", "--variant=b0", *arguments[2:], f"--model_dir={stopped}")


@pytest.mark.slow  # test_step covers it without a process
def test_loss_that_is_not_finite_stops_the_run_and_is_not_saved(tmp_path):
    huge = ["optimizer.learning_rate=1e30", "schedule.warmup_epochs=0.2", "train.checkpoint_every_epochs=0.05"]
    arguments = [*DIGITS, *(word for text in huge for word in ("--set", text)), "--set", "train.steps_per_loop=1"]
    done = run_process("train", *arguments, f"--model_dir={tmp_path}")
    message = find_error(done.returncode, done.stderr)
    assert re.match(r"error: The loss is (nan|inf) after step \d+", message)
    saved = [np.asarray(value) for value in variables(tmp_path).values()]
    assert all(np.isfinite(value).all() for value in saved if value.dtype.kind == "f")


@pytest.mark.slow  # test_broken covers it, too, with processes
def test_broken_training_images_stop_the_run_or_are_counted(photos, tmp_path, capsys):
    root = tmp_path / "data"
    for split in ("train", "val"):
        for name in ("flower", "temple"):
            (root / split / name).mkdir(parents=True)
            for path in (photos / split / name).iterdir():
                os.link(path, root / split / name / path.name)
    (root / "train/flower/zero.jpg").write_bytes(b"")
    (root / "train/temple/text.jpg").write_text("a text file")
    arguments = [f"--variant={TINY}", "--recipe=folder", f"--data_dir={root}", "--set", "train.epochs=1"]
    arguments += ["--set", "train.batch_size=10", "--set", "data.image_size=32", "--set", "schedule.warmup_epochs=0"]
    with pytest.raises(UserError, match=r"data\.max_bad_fraction=0\.001 .*(zero|text)\.jpg"):
        run_here("train", *arguments, f"--model_dir={tmp_path / 'strict'}")
    lenient = f"--model_dir={tmp_path / 'lenient'}"
    assert run_here("train", *arguments, "--set", "data.max_bad_fraction=0.1", lenient) == 0
    output = capsys.readouterr().out
    assert "2 of 50 training images could not be read" in output
    assert "zero.jpg" in output and "text.jpg" in output
    (root / "val/flower/zero.jpg").write_bytes(b"")
    with pytest.raises(UserError, match=r"1 of 17 images cannot be read.*zero\.jpg"):
        run_here("evaluate", lenient, "--set", "data.max_bad_fraction=0.05")


MISTAKES = [
    (["--variant=b99"], "unknown variant 'b99'. Allowed are b0"),
    (["--recipe=digit"], "Did you mean 'digits'?"),
    (["--set", "train.epoch=3"], "Did you mean 'epochs'?"),
    (["--set", "data.source=tfds:"], "data.source"),
    (["--recipe=folder"], "needs data.dir"),
    (["--model_dir=/dev/null/run"], "--model_dir=/dev/null/run cannot be written"),
    (["--set", "train.batch_size=33", "--device=cpu", "--replicas=2"], "train.batch_size=33 is not divisible by 2"),
    (["--modeldir=x"], "Did you mean '--model_dir'?"),
]


@pytest.mark.parametrize(("arguments", "expected"), MISTAKES)
def test_mistake_gets_one_clear_message(arguments, expected, tmp_path, capsys):
    status = exit_status("train", f"--variant={TINY}", "--recipe=smoke", f"--model_dir={tmp_path / 'run'}", *arguments)
    assert expected in find_error(status, capsys.readouterr().err)
    assert not (tmp_path / "run").exists()


def test_mistake_in_a_process(tmp_path):
    """Looking for a TPU leaves traces in TensorFlow, so this one needs a process. All it prints is the message."""
    done = run_process("train", f"--variant={TINY}", "--recipe=smoke", f"--model_dir={tmp_path / 'run'}", "--tpu=local")
    assert done.stderr.startswith("error: --tpu=local") and "finds no TPU on this machine" in done.stderr
    assert done.returncode == 1 and not done.stdout and not (tmp_path / "run").exists()


def test_help_in_a_process():
    done = run_process("train", "--help")
    assert done.returncode == 0 and "--model_dir" in done.stdout and not done.stderr


def test_not_a_model_directory(tmp_path, capsys):
    for command, *rest in (["evaluate"], ["predict", TINY], ["export", f"--output={tmp_path / 'out'}"]):
        status = exit_status(command, f"--model_dir={tmp_path}", *rest)
        message = find_error(status, capsys.readouterr().err)
        assert f"--model_dir={tmp_path} is not a model directory" in message
