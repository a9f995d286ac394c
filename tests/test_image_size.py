"""Images that are not square, `data.image_size=[H, W]`, through every command.

What the class is can only be seen at the left and right ends of the images, which a square crop would not show.
"""

import asyncio
import io
import json
import math
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import tensorflow as tf
import tiny
from commands import exit_status
from sklearn.datasets import load_digits

from efficientnet_tf import count_cost, load_model
from efficientnet_tf.evaluate import evaluate_model
from efficientnet_tf.export.export import export_model
from efficientnet_tf.models.model_dir import restore_model
from efficientnet_tf.serving.classifier import Classifier
from efficientnet_tf.training.trainer import train_model

HEIGHT, WIDTH = 16, 40
SHAPE = (HEIGHT, WIDTH)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder of wide images with a digit from 0 to 2 at one of their ends, and noise in between."""
    root = tmp_path_factory.mktemp("wide")
    images, digits = load_digits(n_class=3, return_X_y=True)
    rng = np.random.default_rng(0)
    for number, (image, digit) in enumerate(zip(images, digits, strict=True)):
        pixels = rng.integers(0, 24, (8, 20), dtype=np.uint8)
        digit_pixels = np.round(image.reshape(8, 8) * (255 / 16))
        pixels[:, slice(0, 6) if number % 2 else slice(14, 20)] = digit_pixels[:, 1:7]
        folder = root / ("train" if number < 400 else "val") / "abc"[digit]
        folder.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(np.kron(pixels, np.ones((2, 2), np.uint8))).save(folder / f"{number}.png")
    return root


def make_config(root, *overrides):
    data = ["data.source=folder", f"data.dir={root}", "data.eval_split=val", "data.crop_padding=0"]
    data += [f"data.image_size={[*SHAPE]}", "schedule.warmup_epochs=0.1", "augment.crop_area=[0.9, 1.0]"]
    sizes = ["train.batch_size=32", "train.epochs=16", "eval.every_epochs=16", "augment.flip=false"]
    return tiny.load_config(*data, *sizes, tiny.SHORT, *overrides)


@pytest.fixture(scope="module")
def trained(photos, tmp_path_factory):
    model_dir = str(tmp_path_factory.mktemp("wide") / "run")
    return model_dir, train_model(make_config(photos), model_dir)


def files_of(root):
    return sorted(str(path) for path in (root / "val").rglob("*.png"))


def test_training_sees_both_ends(trained, photos):
    model_dir, results = trained
    assert results["ema"]["top1"] > 0.75, "chance is a third"
    assert evaluate_model(model_dir)["top1"] == pytest.approx(results["ema"]["top1"])
    model, paths = load_model(model_dir), files_of(photos)
    assert model.image_size == SHAPE
    pixels = np.stack([model.load_image(path) for path in paths])
    assert pixels.shape[1:] == (*SHAPE, 3)
    classes = np.array(["abc".index(path.split("/")[-2]) for path in paths])
    assert np.mean(model(pixels).argmax(1) == classes) == pytest.approx(results["ema"]["top1"])
    for tta in ("none", "flip"):
        names = [answer[0][0] for answer in model.predict(paths, top=1, tta=tta)]
        assert np.mean([name == "abc"[number] for name, number in zip(names, classes, strict=True)]) > 0.75


def test_the_wrong_way_round_is_an_error(trained):
    model_dir, _ = trained
    with pytest.raises(ValueError, match=r"\[N, 16, 40, 3\]"):
        load_model(model_dir)(np.zeros([1, WIDTH, HEIGHT, 3], np.uint8))


def test_commands(trained, photos, tmp_path, capsys):
    model_dir, _ = trained
    paths = files_of(photos)[:4]
    assert exit_status("predict", f"--model_dir={model_dir}", f"--output={tmp_path}/p.csv", *paths) == 0
    assert len((tmp_path / "p.csv").read_text().splitlines()) == 5
    assert exit_status("evaluate", f"--model_dir={model_dir}", f"--report={tmp_path}/r.html") == 0
    capsys.readouterr()
    flags = [f"--variant={tiny.VARIANT}", "--recipe=folder", f"--set=data.image_size={[*SHAPE]}"]
    assert exit_status("summary", *flags, "--set=data.dir=x", "--json") == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["resolution"] == [16, 40] and summary["total"]["macs"] == count_cost(tiny.VARIANT, SHAPE).macs
    assert [part["side"] for part in summary["parts"]][:2] == [[8, 20], [8, 20]]
    assert exit_status("summary", *flags, "--set=data.dir=x", f"--picture={tmp_path}/s.png") == 0
    assert "16x40 pixels" in capsys.readouterr().out


def test_pictures_keep_the_shape_of_the_images(trained, photos, tmp_path):
    model_dir, _ = trained
    paths = files_of(photos)[:3]
    assert exit_status("explain", f"--model_dir={model_dir}", f"--output={tmp_path}/e.png", *paths) == 0
    with PIL.Image.open(tmp_path / "e.png") as picture:
        canvas = np.asarray(picture.convert("RGB"))
    maps = (canvas[:, -234:-10] != 255).any(-1).mean(1) > 0.99  # The rows of a map have no white, those of text do.
    starts, ends = np.flatnonzero(np.diff(maps.astype(int)) == 1), np.flatnonzero(np.diff(maps.astype(int)) == -1)
    assert (ends - starts).tolist() == [round(224 * HEIGHT / WIDTH)] * 3
    flags = [f"--variant={tiny.VARIANT}", "--recipe=folder", f"--data_dir={photos}", "--rows=2", "--columns=2"]
    crops = [f"--set=data.image_size={[*SHAPE]}", f"--output={tmp_path}/s.png"]
    assert exit_status("show", *flags, *crops) == 0
    with PIL.Image.open(tmp_path / "s.png") as picture:
        width, height = picture.size
    assert width > 4 * 8 * WIDTH > 4 * 8 * HEIGHT and height < 2 * 8 * WIDTH


def test_serving(trained, photos):
    model_dir, _ = trained
    classifier, path = Classifier(load_model(model_dir)), files_of(photos)[0]
    encoded = Path(path).read_bytes()
    answers, explanation = asyncio.run(classifier.classify(encoded, 3)), asyncio.run(classifier.explain(encoded, None))
    [expected] = load_model(model_dir).predict([path], top=3)
    assert [name for name, _ in answers] == [name for name, _ in expected]
    assert PIL.Image.open(io.BytesIO(explanation.crop)).size == (WIDTH, HEIGHT)
    assert explanation.heat.shape[1] > explanation.heat.shape[0]


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["", ".tflite", ".onnx", ".xml"])
def test_exports(trained, photos, ending, tmp_path):
    model_dir, _ = trained
    output = str(tmp_path / f"net{ending}")
    options = {"precision": "int8", "keep_float": ["block1a_dwconv", "predictions"]} if ending == ".tflite" else {}
    export_model(model_dir, output, **options)
    model, exported = load_model(model_dir), load_model(output)
    assert exported.image_size == SHAPE
    paths = files_of(photos)[:16]
    pixels = np.stack([exported.load_image(path) for path in paths])
    if ending == ".tflite":
        assert np.mean(exported(pixels).argmax(1) == model(pixels).argmax(1)) >= 0.9
    else:
        np.testing.assert_allclose(exported(pixels), model(pixels), rtol=1e-3, atol=1e-3)
    if not ending:
        serve = tf.saved_model.load(output).signatures["serving_bytes"]
        logits = serve(image=tf.stack([tf.io.read_file(path) for path in paths]))["logits"]
        np.testing.assert_allclose(logits, model(pixels), rtol=1e-3, atol=1e-3)


def test_a_teacher_sees_images_of_its_own_shape(trained, photos, tmp_path):
    """The student sees squares, which are resized to the shape of the teacher's images."""
    model_dir, _ = trained
    settings = [f"train.teacher={model_dir}", "data.image_size=16", "train.epochs=0.2", "eval.every_epochs=1"]
    results = train_model(make_config(photos, *settings), str(tmp_path / "student"))
    assert math.isfinite(results["ema"]["loss"])


def test_a_phase_may_have_another_shape(photos, tmp_path):
    phases = "[{until: 0.5, set: {data.image_size: [8, 20], augment.crop_area: [0.5, 1]}}, {until: 1, set: {}}]"
    settings = [f"train.phases={phases}", "train.epochs=1", "eval.every_epochs=1", "train.ema_decay=0"]
    train_model(make_config(photos, *settings), str(tmp_path / "run"))
    assert restore_model(str(tmp_path / "run"))[1].image_shape == SHAPE
