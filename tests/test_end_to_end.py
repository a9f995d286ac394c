"""The commands as a user runs them: real files, and each command as a real process.

What a command does a second time, and need not be a process for, is done in this one.
"""

import importlib
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
from PIL import Image
from sklearn.datasets import load_sample_images

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.data.pipeline import eval_image
from efficientnet_tf.evaluate import evaluate_model
from efficientnet_tf.models.model_dir import read_config
from efficientnet_tf.predict import predict_images

TINY = str(Path(__file__).parent / "tiny.yaml")
DIGITS = ["--variant", TINY, "--recipe=digits"]


def run(command, *arguments, timeout=240, **options):
    """Run `python -m efficientnet_tf.<command>` and return the finished process."""
    return subprocess.run(
        [sys.executable, "-m", f"efficientnet_tf.{command}", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        **options,
    )


def run_here(command, *arguments):
    """Do what `python -m efficientnet_tf.<command>` does, in this process; return the exit status, None for 0."""
    module = importlib.import_module(f"efficientnet_tf.{command}")
    if not hasattr(module, "main"):  # a package, whose command is its __main__
        module = importlib.import_module(f"efficientnet_tf.{command}.__main__")
    return module.main(module.make_parser().parse_args([*map(str, arguments)]))


def error_of(done):
    """Return the error a command ended with: one message, no traceback."""
    assert done.returncode not in (0, 75), done.stdout
    assert "Traceback" not in done.stderr, done.stderr
    return done.stderr[done.stderr.index("error: ") :]


def variables(model_dir):
    """Return {name: array} of the newest checkpoint."""
    reader = tf.train.load_checkpoint(tf.train.latest_checkpoint(str(model_dir / "checkpoints")))
    names = [n for n in reader.get_variable_to_shape_map() if not n.startswith(("_CHECKPOINTABLE", "save_counter"))]
    return {name: reader.get_tensor(name) for name in names}


def assert_same_run(one, other):
    """Assert that two runs ended with the same numbers, bit for bit, and told the same on the way."""
    first, second = variables(one), variables(other)
    assert first.keys() == second.keys() and len(first) > 100
    for name, value in first.items():
        np.testing.assert_array_equal(value, second[name], err_msg=name)

    def told(model_dir):
        lines = map(json.loads, (model_dir / "metrics.jsonl").read_text().splitlines())
        return [{k: v for k, v in line.items() if k not in ("seconds", "images_per_second")} for line in lines]

    assert told(one) == told(other)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Make a folder of photos: two classes cut from two real photos, JPEG and PNG, train/ and val/."""
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
    """Train the tiny variant on the photos."""
    model_dir = tmp_path_factory.mktemp("runs") / "photos"
    done = run(
        "train",
        f"--variant={TINY}",
        "--recipe=folder",
        f"--data_dir={photos}",
        f"--model_dir={model_dir}",
        *("--set", "train.epochs=20", "--set", "train.batch_size=16", "--set", "eval.batch_size=12"),
        *("--set", "train.ema_decay=0.9", "--set", "eval.every_epochs=10", "--set", "data.image_size=64"),
        *("--set", "optimizer.learning_rate=0.1", "--set", "train.checkpoint_every_epochs=10"),
    )
    assert done.returncode == 0, done.stderr
    assert "ema: top-1" in done.stdout and "on 16 examples" in done.stdout
    return model_dir


def test_folder_of_photos_trains_and_evaluates(photos_run):
    done = run("evaluate", f"--model_dir={photos_run}", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["examples"] == 16
    last = [json.loads(line) for line in (photos_run / "metrics.jsonl").read_text().splitlines()][-1]
    assert last["kind"] == "eval/ema"
    assert {k: last[k] for k in result} == pytest.approx(result)
    assert result["top1"] > 0.7  # two photos are easily told apart


def test_data_of_other_classes_are_refused(photos, photos_run, tmp_path):
    for name in ("flower", "temple", "tower"):
        (tmp_path / "train" / name).mkdir(parents=True)
        (tmp_path / "val" / name).mkdir(parents=True)
        os.link(photos / "val/flower/0.jpg", tmp_path / "val" / name / "0.jpg")
    message = r"the data has the 3 classes flower, temple, tower, \.\.\., the model 2: flower, temple"
    with pytest.raises(UserError, match=message):
        run_here("evaluate", f"--model_dir={photos_run}", f"--data_dir={tmp_path}")


def test_predict_names_what_it_cannot_read_and_does_the_rest(photos, photos_run, tmp_path):
    (tmp_path / "text.jpg").write_text("not an image")
    (tmp_path / "empty.png").write_bytes(b"")
    done = run("predict", f"--model_dir={photos_run}", "--json", tmp_path, photos / "val/flower")
    assert done.returncode == 1
    assert "text.jpg: cannot be read" in done.stderr and "empty.png: cannot be read" in done.stderr
    assert "2 file(s) could not be read" in done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [Path(a["path"]).parent.name for a in answers] == ["flower"] * 8
    for answer in answers:
        assert [label["label"] for label in answer["labels"]] in (["flower", "temple"], ["temple", "flower"])
        assert sum(label["probability"] for label in answer["labels"]) == pytest.approx(1, abs=1e-5)


def test_predict_agrees_with_the_saved_keras_model(photos, photos_run):
    """The .keras file loads without custom objects, and predict says what it says."""
    path = photos / "val/temple/0.jpg"
    [answer] = predict_images(str(photos_run), [str(path)])
    said = dict(answer)
    model = keras.models.load_model(photos_run / "model.keras")
    image = eval_image(tf.io.read_file(str(path)), read_config(str(photos_run)))
    logits = model(image[None]).numpy()[0].astype(float)
    expected = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    assert [said["flower"], said["temple"]] == pytest.approx(expected.tolist(), abs=1e-5)


def test_export_serves_pixels_and_files(photos, photos_run, tmp_path):
    output = tmp_path / "exported"
    done = run("export", f"--model_dir={photos_run}", f"--output={output}")
    assert done.returncode == 0, done.stderr
    assert "differ by at most" in done.stdout
    assert (output / "assets/classes.txt").read_text().split() == ["flower", "temple"]

    loaded = tf.saved_model.load(str(output))
    model = keras.models.load_model(photos_run / "model.keras")
    pixels = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    for signature, dtype in (("serving_default", np.float32), ("serving_uint8", np.uint8)):
        logits = loaded.signatures[signature](image=tf.constant(pixels.astype(dtype)))["logits"]
        np.testing.assert_allclose(logits, model(pixels.astype(np.float32)), atol=1e-5)
    files = [path.read_bytes() for path in sorted((photos / "val/temple").iterdir())[:3]]
    answer = loaded.signatures["serving_bytes"](image=tf.constant(files))
    np.testing.assert_allclose(tf.reduce_sum(answer["probabilities"], axis=1), 1, atol=1e-5)

    # The export is evaluated like the run it comes from, and is not written over.
    strategy = tf.distribute.OneDeviceStrategy("CPU:0")
    evaluated = [evaluate_model(str(folder), strategy=strategy) for folder in (output, photos_run)]
    assert evaluated[0] == pytest.approx(evaluated[1], abs=1e-5)
    with pytest.raises(UserError, match="is not an empty folder"):
        run_here("export", f"--model_dir={photos_run}", f"--output={output}")


# With all that could depend on where a run was interrupted: policy, mixing, and phases of other sizes and batches.
PHASES = (
    "[{until: 0.5, set: {data.image_size: 24, train.batch_size: 96, model.dropout: 0.1, augment.mixup: 0.2}},"
    " {until: 1.0, set: {augment.cutmix: 1.0, augment.randaugment_level: 4}}]"
)
KILLED = [
    *(*DIGITS, "--set", "train.epochs=8", "--set", "train.steps_per_loop=3", "--set", "eval.every_epochs=2"),
    *("--set", "train.checkpoint_every_epochs=0.4", "--set", "augment.policy=randaugment"),
    *("--set", "augment.erase=0.2", "--set", f"train.phases={PHASES}"),
]


@pytest.mark.slow
def test_killed_three_times_ends_bit_identical(tmp_path):
    """SIGKILL at random moments, the same command again, the same weights in the end."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert run("train", *KILLED, f"--model_dir={whole}").returncode == 0
    rng = random.Random(time.time_ns())
    kills = 0
    while kills < 3:
        command = [sys.executable, "-m", "efficientnet_tf.train", *KILLED, f"--model_dir={killed}"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        before = len(_steps_told(killed))
        while len(_steps_told(killed)) <= before and process.poll() is None:
            time.sleep(0.02)
        time.sleep(rng.uniform(0, 1.0))
        process.kill()
        assert process.wait() == -signal.SIGKILL, "the run ended before it could be killed: make it longer"
        kills += 1
    done = run("train", *KILLED, f"--model_dir={killed}")
    assert done.returncode == 0, done.stderr
    assert_same_run(whole, killed)


def _steps_told(model_dir):
    try:
        return (model_dir / "metrics.jsonl").read_text().splitlines()
    except FileNotFoundError:
        return []


def test_sigterm_saves_says_so_and_exits_with_its_own_status(tmp_path, capsys):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    arguments = [*DIGITS, "--set", "train.epochs=2", "--set", "train.steps_per_loop=2"]
    command = [sys.executable, "-m", "efficientnet_tf.train", *arguments, f"--model_dir={stopped}"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    while not _steps_told(stopped):
        time.sleep(0.02)
    process.terminate()
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 75
    assert "is saved; the same command goes on from there" in output
    for model_dir in (stopped, whole):
        assert run_here("train", *arguments, f"--model_dir={model_dir}") == 0
    assert "going on from the checkpoint of step" in capsys.readouterr().out
    assert_same_run(whole, stopped)

    # Finished: the same command again trains no more and says the same; another config is refused with its diff.
    before, told = variables(stopped), _steps_told(stopped)
    assert run_here("train", *arguments, f"--model_dir={stopped}") == 0
    assert all(np.array_equal(before[name], value) for name, value in variables(stopped).items())
    assert _steps_told(stopped) == told and "finished: " in capsys.readouterr().out
    with pytest.raises(UserError, match=r"(?s)another config.*train\.epochs: 2\.0 -> 5\.0"):
        run_here("train", *DIGITS, "--set", "train.epochs=5", f"--model_dir={stopped}")
    with pytest.raises(UserError, match=r"model\.name: 'tiny' -> 'b0'"):
        run_here("train", "--variant=b0", *arguments[2:], f"--model_dir={stopped}")


@pytest.mark.slow  # test_loops does it without a process
def test_a_loss_that_is_not_finite_stops_the_run_and_is_not_saved(tmp_path):
    huge = ["optimizer.learning_rate=1e30", "schedule.warmup_epochs=0.2", "train.checkpoint_every_epochs=0.05"]
    arguments = [*DIGITS, *(word for text in huge for word in ("--set", text)), "--set", "train.steps_per_loop=1"]
    message = error_of(run("train", *arguments, f"--model_dir={tmp_path}"))
    assert re.match(r"error: the loss is (nan|inf) after step \d+", message)
    saved = [np.asarray(value) for value in variables(tmp_path).values()]
    assert all(np.isfinite(value).all() for value in saved if value.dtype.kind == "f")


@pytest.mark.slow  # test_broken does it, too
def test_broken_training_images_stop_the_run_or_are_counted(photos, tmp_path, capsys):
    """In this process; test_broken starts processes."""
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
    said = capsys.readouterr().out
    assert "2 of 50 training images could not be read" in said
    assert "zero.jpg" in said and "text.jpg" in said
    (root / "val/flower/zero.jpg").write_bytes(b"")
    with pytest.raises(UserError, match=r"1 of 17 images cannot be read.*zero\.jpg"):
        run_here("evaluate", lenient)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--variant=b99"], "unknown variant 'b99'. Allowed are b0"),
        (["--recipe=digit"], "Did you mean 'digits'?"),
        (["--set", "train.epoch=3"], "Did you mean 'epochs'?"),
        (["--set", "data.source=tfds:"], "data.source"),
        (["--recipe=folder"], "needs data.dir"),
        (["--model_dir=/dev/null/run"], "cannot be written"),
        (["--tpu=local"], "TensorFlow finds no TPU on this machine"),
        (["--set", "train.batch_size=33", "--device=cpu", "--replicas=2"], "train.batch_size=33 cannot be divided"),
        (["--modeldir=x"], "Did you mean '--model_dir'?"),
    ],
)
def test_a_mistake_gets_one_clear_message(arguments, expected, tmp_path):
    done = run("train", f"--variant={TINY}", "--recipe=smoke", f"--model_dir={tmp_path}", *arguments)
    assert expected in error_of(done)
    assert not (tmp_path / "config.yaml").exists()


@pytest.mark.parametrize("command", ["train", "evaluate", "predict", "export"])
def test_help_imports_no_tensorflow(command):
    code = (
        "import runpy, sys\n"
        f"sys.argv = ['x', '--help']\n"
        "try:\n"
        f"    runpy.run_module('efficientnet_tf.{command}', run_name='__main__')\n"
        "except SystemExit as end:\n"
        "    assert not end.code\n"
        "assert not {'tensorflow', 'keras'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--model_dir" in done.stdout


@pytest.mark.slow
def test_not_a_model_directory(tmp_path):
    for command, *rest in (["evaluate"], ["predict", TINY], ["export", f"--output={tmp_path / 'out'}"]):
        assert "is not a model directory" in error_of(run(command, f"--model_dir={tmp_path}", *rest))
