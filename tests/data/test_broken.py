"""Train on a dataset in which one image in a hundred is broken, each in another way."""

import os
import re
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest
import tensorflow as tf
import tiny

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.load import override_config
from efficientnet_tf.data.open import open_source
from efficientnet_tf.data.pipeline import Failures, train_dataset
from efficientnet_tf.evaluation.loop import make_evaluator

INTACT = 800


CAUSES = {
    "zero.jpg": "the file is empty",
    "header.jpg": "the JPEG image is truncated",
    "text.jpg": "this is an HTML page, not an image",
    "random.png": "this is not an image in a known format",
    "cut.png": "the PNG image is truncated",
    "garbage.png": "the PNG image",
    "empty.gif": "the GIF image is damaged",
    "gone.jpg": "no such file",
}


def write_broken(folder, intact_png):
    """Write eight files that cannot be decoded and return their names."""
    rng = np.random.default_rng(1)
    contents = {
        "zero.jpg": b"",
        "header.jpg": b"\xff\xd8\xff\xe0\x00\x10JFIF\x00\x01",
        "text.jpg": b"<html><body>404 Not Found</body></html>",
        "random.png": rng.bytes(500),
        "cut.png": intact_png[: len(intact_png) // 2],
        "garbage.png": intact_png[:8] + rng.bytes(400),
        "empty.gif": b"GIF89a\x08\x00\x08\x00\x00\x00\x00;",
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    (folder / "gone.jpg").symlink_to("deleted.jpg")
    return sorted([*contents, "gone.jpg"])


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Write 800 intact and 8 broken images to train/, and intact ones to val/. Return the root and the broken paths."""
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for split, count in (("train", INTACT), ("val", 20)):
        for number in range(count):
            name = "ab"[number % 2]
            (root / split / name).mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(0, 128, (12, 12, 3), dtype=np.uint8)
            pixels[..., number % 2] += 100
            PIL.Image.fromarray(pixels).save(root / split / name / f"{number}.jpg")
    PIL.Image.fromarray(pixels).save(root / "intact.png")
    broken = write_broken(root / "train/a", (root / "intact.png").read_bytes())
    assert len(broken) == 8 and len(list((root / "train").rglob("*.*"))) == INTACT + 8
    return root, [str(root / "train/a" / name) for name in broken]


def train(root, model_dir, *more):
    settings = ["data.image_size=16", "train.batch_size=8", "train.epochs=1", "schedule.warmup_epochs=0"]
    settings += [tiny.SHORT, "train.ema_decay=0.0", *more]
    flags = [flag for setting in settings for flag in ("--set", setting)]
    command = [sys.executable, "-m", "efficientnet_tf.train", f"--variant={tiny.VARIANT}", "--recipe=folder"]
    command += [f"--data_dir={root}", f"--model_dir={model_dir}", "--device=cpu", *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)


@pytest.mark.slow
def test_training_stops_by_default_and_names_broken_images(photos, tmp_path):
    root, broken = photos
    done = train(root, tmp_path / "run")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    message = done.stderr[done.stderr.index("error: ") :]
    found = re.match(
        r"error: (\d) of 808 images cannot be read or decoded, more than data.max_bad_fraction=0.001 allows: (.*)",
        message,
    )
    named = [part.partition(": ")[0] for part in found[2].strip().split("; ")]
    assert len(named) == int(found[1]) > 0 and set(named) <= set(broken)
    assert not (tmp_path / "run/model.keras").exists()


@pytest.mark.slow
def test_training_with_a_higher_limit_counts_broken_images_exactly(photos, tmp_path):
    """One epoch of 101 steps of 8 images reads all 808 images."""
    root, broken = photos
    done = train(root, tmp_path / "run", "data.max_bad_fraction=0.02")
    assert done.returncode == 0, done.stderr
    said = done.stdout + done.stderr
    assert "8 of 808 training images could not be read and were left out: " in said
    assert all(name in said for name in broken)
    assert (tmp_path / "run/model.keras").exists()


def test_limit_is_exceeded_by_the_last_broken_image(photos):
    """Eight of 808 are more than 0.98% and not more than 8 / 808."""
    root, broken = photos
    run = tiny.load_config(f"data.dir={root}", "data.image_size=16", "train.batch_size=8", recipe="folder")
    source = open_source(run.data, "train", training=True)
    failures = Failures(source)
    for _ in train_dataset(source, run, failures, 0, tf.distribute.InputContext()).take(101):
        pass
    assert failures.names() == broken
    failures.check(8 / 808)
    with pytest.raises(UserError, match="8 of 808 images cannot be read or decoded") as caught:
        failures.check(0.0098)
    assert all(name in str(caught.value) for name in broken)


def test_evaluation_has_the_same_limit(photos):
    root, broken = photos
    run = tiny.load_config(f"data.dir={root}", "data.image_size=16", "model.dropout=0.0", recipe="folder")
    source = open_source(run.data, "train", training=False)

    def evaluate(limit):
        config = override_config(run, [f"data.max_bad_fraction={limit}"])
        strategy = tiny.make_strategy(1)
        return make_evaluator(lambda images: tf.reduce_mean(images, [1, 2])[:, :2], source, config, strategy)()

    assert evaluate(0.00991)["examples"] == INTACT
    with pytest.raises(UserError, match="8 of 808 images cannot be read or decoded, more than .*=0.0098") as caught:
        evaluate(0.0098)
    assert all(f"{name}: {CAUSES[os.path.basename(name)]}" in str(caught.value) for name in broken)
