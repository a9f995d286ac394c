"""Every form of a model sees the same part of a photo, whatever `data.crop` says. Neither is a square."""

import os

import numpy as np
import pytest
import tensorflow as tf
import tiny
from crops import compute_crop, decode_whole, make_picture, save

from efficientnet_tf.evaluate import evaluate_model
from efficientnet_tf.export.export import export_model
from efficientnet_tf.export.load import load_model
from efficientnet_tf.export.loaded import softmax
from efficientnet_tf.models.from_config import build_from_config
from efficientnet_tf.models.model_dir import restore_model, write_model_dir

SIZE, BACKGROUND, NAMES = (32, 44), (9, 200, 30), ["tall", "wide"]
CROPS = ["center", "squash", "pad"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Return a folder with two classes of one photo each: a tall JPEG, and a wide PNG with transparent pixels."""
    folder = tmp_path_factory.mktemp("photos")
    files = {
        "tall": save(make_picture("RGB", (120, 50)), "JPEG", subsampling=0),
        "wide": save(make_picture("RGBA", (41, 130))),
    }
    for name, encoded in files.items():
        (folder / "val" / name).mkdir(parents=True)
        (folder / "val" / name / "0").with_suffix(".png" if name == "wide" else ".jpg").write_bytes(encoded)
    return folder


@pytest.fixture(scope="module", params=CROPS)
def run(request, photos, tmp_path_factory):
    """Return a model directory, the paths of the photos, and the logits of the views that formulas give."""
    crop = request.param
    options = [f"data.crop={crop}", f"data.background={list(BACKGROUND)}", "train.ema_decay=0", f"data.dir={photos}"]
    options += [f"data.image_size={[*SIZE]}", *(["data.crop_padding=0"] if crop == "center" else [])]
    config = tiny.load_config(tiny.SHORT, *options, recipe="folder")
    model_dir = str(tmp_path_factory.mktemp("runs") / crop)
    write_model_dir(model_dir, tiny.randomize(build_from_config(config, 2)), config, NAMES)
    paths = sorted(str(path) for path in photos.glob("val/*/*"))
    whole = [decode_whole(tf.io.read_file(path).numpy(), BACKGROUND) for path in paths]
    views = np.stack([compute_crop(pixels, SIZE, crop, "bicubic", BACKGROUND) for pixels in whole])
    model = restore_model(model_dir)[0]
    return model_dir, paths, np.asarray(model(views.astype(np.float32), training=False))


def assert_close(logits, expected):
    """The tabulated kernel of TensorFlow and the decoder of JPEGs change pixels by less than a gray level."""
    np.testing.assert_allclose(logits, expected, atol=0.02)


def test_the_logits_of_the_crops_differ(photos, tmp_path):
    """Otherwise the other tests would not notice a wrong crop."""
    config = tiny.load_config(
        tiny.SHORT, "train.ema_decay=0", f"data.image_size={[*SIZE]}", "data.dir=x", recipe="folder"
    )
    model = tiny.randomize(build_from_config(config, 2))
    whole = decode_whole((photos / "val" / "wide" / "0.png").read_bytes(), BACKGROUND)
    views = [compute_crop(whole, SIZE, crop, "bicubic", BACKGROUND) for crop in CROPS]
    logits = np.asarray(model(np.stack(views).astype(np.float32), training=False))
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert np.abs(logits[one] - logits[other]).max() > 0.1


def test_loading_predicting_and_evaluating_use_the_crop(run):
    model_dir, paths, expected = run
    model = load_model(model_dir)
    assert_close(model(np.stack([model.load_image(path) for path in paths])), expected)
    probabilities = softmax(expected)
    answers = [dict(answer) for answer in model.predict(paths)]
    np.testing.assert_allclose([[answer[name] for name in NAMES] for answer in answers], probabilities, atol=0.01)
    evaluation = evaluate_model(model_dir, strategy=tf.distribute.OneDeviceStrategy("CPU:0"))
    assert evaluation["loss"] == pytest.approx(-np.log(probabilities[[0, 1], [0, 1]]).mean(), abs=0.01)


def test_an_onnx_file_uses_the_crop(run, tmp_path):
    pytest.importorskip("onnxruntime")
    model_dir, paths, expected = run
    export_model(model_dir, tmp_path / "net.onnx", images=2)
    model = load_model(tmp_path / "net.onnx")
    assert model.config.data.crop == os.path.basename(model_dir)
    assert_close(model(np.stack([model.load_image(path) for path in paths])), expected)


@pytest.mark.slow
def test_a_saved_model_decodes_files_with_the_crop(run, tmp_path):
    model_dir, paths, expected = run
    export_model(model_dir, tmp_path / "exported")
    serve = tf.saved_model.load(str(tmp_path / "exported")).signatures["serving_bytes"]
    assert_close(serve(image=tf.stack([tf.io.read_file(path) for path in paths]))["logits"], expected)
    model = load_model(tmp_path / "exported")
    assert_close(model(np.stack([model.load_image(path) for path in paths])), expected)
