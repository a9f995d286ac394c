"""Images of five channels through every command. What the class is can only be seen in the last channel."""

import numpy as np
import pytest
import tensorflow as tf
import tifffile
import tiny
from commands import exit_status
from sklearn.datasets import load_digits

from efficientnet_tf import load_model
from efficientnet_tf.config.errors import UserError
from efficientnet_tf.evaluate import evaluate_model
from efficientnet_tf.export.export import export_model
from efficientnet_tf.models.model_dir import restore_model
from efficientnet_tf.training.trainer import train_model

CHANNELS = 5
SIZES = {"train": 400, "val": 100}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder of digits from 0 to 2 in the last of five channels. Half of the files are TIFF, half .npy."""
    root = tmp_path_factory.mktemp("stacks")
    images, digits = load_digits(n_class=3, return_X_y=True)
    rng = np.random.default_rng(0)
    for number, (image, digit) in enumerate(zip(images, digits, strict=True)):
        split = "train" if number < SIZES["train"] else "val"
        folder = root / split / "abc"[digit]
        folder.mkdir(parents=True, exist_ok=True)
        stack = rng.integers(0, 64, (16, 16, CHANNELS), dtype=np.uint8)
        stack[..., -1] = np.kron(np.round(image.reshape(8, 8) * (255 / 16)), np.ones((2, 2)))
        if number % 2:
            np.save(folder / f"{number}.npy", stack)
        else:
            tifffile.imwrite(folder / f"{number}.tif", stack, photometric="minisblack", planarconfig="contig")
    return root


def make_config(root, *overrides):
    data = [
        "data.source=folder",
        f"data.dir={root}",
        "data.eval_split=val",
        "schedule.warmup_epochs=0.1",
        f"data.channels={CHANNELS}",
        "data.image_size=16",
    ]
    sizes = ["train.batch_size=32", "train.epochs=16", "eval.every_epochs=16", "data.crop=squash"]
    return tiny.load_config(*data, *sizes, "augment.flip=false", "augment.crop_area=[0.8, 1.0]", tiny.SHORT, *overrides)


@pytest.fixture(scope="module")
def trained(photos, tmp_path_factory):
    model_dir = str(tmp_path_factory.mktemp("stacks") / "run")
    return model_dir, train_model(make_config(photos), model_dir)


def files_of(root):
    return sorted(str(path) for path in (root / "val").rglob("*.*"))


def test_training_sees_the_last_channel(trained, photos):
    model_dir, results = trained
    assert results["ema"]["top1"] > 0.9, "chance is a third"
    assert evaluate_model(model_dir)["top1"] == pytest.approx(results["ema"]["top1"])
    model = load_model(model_dir)
    pixels = np.stack([model.load_image(path) for path in files_of(photos)])
    assert pixels.shape[1:] == (16, 16, CHANNELS)
    classes = np.array(["abc".index(path.split("/")[-2]) for path in files_of(photos)])
    assert np.mean(model(pixels).argmax(1) == classes) == pytest.approx(results["ema"]["top1"])
    pixels[..., -1] = pixels[..., 0]
    assert np.mean(model(pixels).argmax(1) == classes) < 0.6


def test_commands(trained, photos, tmp_path, capsys):
    model_dir, _ = trained
    paths = files_of(photos)[:4]
    assert exit_status("predict", f"--model_dir={model_dir}", f"--output={tmp_path}/p.csv", *paths) == 0
    assert len((tmp_path / "p.csv").read_text().splitlines()) == 5
    assert exit_status("explain", f"--model_dir={model_dir}", f"--output={tmp_path}/e.png", *paths) == 0
    flags = [f"--variant={tiny.VARIANT}", "--recipe=folder", f"--data_dir={photos}", "--set=data.image_size=16"]
    plain = ["--set=augment.policy=none", f"--set=data.channels={CHANNELS}"]
    assert exit_status("show", *flags, *plain, f"--output={tmp_path}/s.png") == 0
    assert exit_status("evaluate", f"--model_dir={model_dir}", f"--report={tmp_path}/r.html") == 0
    capsys.readouterr()
    assert exit_status("serve", f"--model_dir={model_dir}") == 1
    assert "sees images of 5 channels" in capsys.readouterr().err
    (tmp_path / "photo.png").write_bytes(tf.io.encode_png(np.zeros([16, 16, 3], np.uint8)).numpy())
    for command in (["predict"], ["explain", f"--output={tmp_path}/f.png"]):
        assert exit_status(*command, f"--model_dir={model_dir}", str(tmp_path / "photo.png")) == 1
        assert "data.channels=5 needs TIFF or .npy files, and this is a PNG image" in capsys.readouterr().err


def test_colors_cannot_be_changed(photos):
    for setting in ("augment.policy=randaugment", "augment.color_jitter=0.4"):
        with pytest.raises(UserError, match="change colors, so they are not for data.channels=5"):
            make_config(photos, setting)


def test_files_of_other_channels_are_counted_with_their_cause(photos, tmp_path):
    config = make_config(photos, "data.channels=6", "train.epochs=1")
    with pytest.raises(UserError, match="the (NumPy|TIFF) image has 5 channels, and data.channels=6 are needed"):
        train_model(config, str(tmp_path / "run"))


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["", ".tflite", ".onnx", ".xml"])
def test_exports(trained, photos, ending, tmp_path):
    model_dir, _ = trained
    output = str(tmp_path / f"net{ending}")
    export_model(model_dir, output, "int8" if ending == ".tflite" else "float32")
    model, exported = load_model(model_dir), load_model(output)
    pixels = np.stack([exported.load_image(path) for path in files_of(photos)[:8]])
    if ending == ".tflite":
        assert np.mean(exported(pixels).argmax(1) == model(pixels).argmax(1)) >= 0.75
    else:
        np.testing.assert_allclose(exported(pixels), model(pixels), rtol=1e-3, atol=1e-3)
    if not ending:
        assert set(tf.saved_model.load(output).signatures) == {"serving_default", "serving_uint8"}


def test_a_run_can_start_from_weights_for_three_channels(photos, tmp_path, capsys):
    """The first convolution is adapted: the same sum over the channels."""
    settings = ["data.image_size=16", "train.epochs=2", "eval.every_epochs=2", "train.ema_decay=0"]
    config = tiny.load_config(tiny.SHORT, *settings)
    train_model(config, str(tmp_path / "color"))
    start = [f"train.init_from={tmp_path}/color", "train.epochs=0.1", "optimizer.learning_rate=1e-9"]
    train_model(make_config(photos, *start, "schedule.warmup_epochs=0", "train.ema_decay=0"), str(tmp_path / "run"))
    assert "adapted from 3 to 5 channels" in capsys.readouterr().out
    color, five = (restore_model(str(tmp_path / name), raw=True)[0] for name in ("color", "run"))
    kernels = [model.get_layer("stem_conv").kernel.numpy() for model in (color, five)]
    np.testing.assert_allclose(kernels[1].sum(2), kernels[0][:, :, np.arange(5) % 3].sum(2) * 3 / 5, atol=1e-5)
    np.testing.assert_allclose(kernels[1], kernels[0][:, :, np.arange(5) % 3] * 3 / 5, atol=1e-5)
