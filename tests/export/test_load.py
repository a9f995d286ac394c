"""Models opened for use: by path, with their preprocessing, and kept in memory between calls."""

import gc
import os

import fitted
import keras
import numpy as np
import pytest
import tensorflow as tf

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.data.load_image import load_image
from efficientnet_tf.evaluate import evaluate_model
from efficientnet_tf.export.export import export_model
from efficientnet_tf.export.load import CACHED_MODELS, LoadedModel, find_weights, load_cached, load_model
from efficientnet_tf.models.model_dir import read_config, restore_model
from efficientnet_tf.predict import predict_images
from efficientnet_tf.runtime.hardware import resident_bytes


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    model_dir = tmp_path_factory.mktemp("runs") / "digits"
    fitted.write_digits_run(model_dir)
    return model_dir


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Return the paths of five images of different sizes."""
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    paths = [folder / f"{i}.png" for i in range(5)]
    for i, path in enumerate(paths):
        pixels = np.kron(rng.integers(0, 256, (4, 5, 3)), np.ones((10 + i, 9, 1))).astype(np.uint8)
        path.write_bytes(tf.io.encode_png(pixels).numpy())
    return paths


def test_model_directory(run, photos):
    model = load_model(run)
    expected, config, class_names = restore_model(str(run))
    assert (model.class_names, model.image_size, model.weights) == (class_names, 32, "raw")
    assert model.config == config and isinstance(model.keras_model, keras.Model)
    pixels = np.stack([model.load_image(path) for path in photos])
    assert pixels.dtype == np.float32
    np.testing.assert_array_equal(pixels[0], load_image(photos[0], 32, crop_padding=config.crop_padding))
    np.testing.assert_array_equal(pixels[0], model.load_image(photos[0].read_bytes()))
    np.testing.assert_allclose(model(pixels), expected(pixels).numpy(), rtol=1e-5, atol=1e-5)
    rounded = pixels.round().clip(0, 255)
    np.testing.assert_array_equal(model(rounded.astype(np.uint8)), model(rounded))


@pytest.mark.parametrize("name", [pytest.param("model.keras", marks=pytest.mark.slow), "net.tflite"])
def test_other_forms_agree_with_the_model_directory(run, photos, name, tmp_path):
    path = run / name
    if name != "model.keras":
        path = tmp_path / name
        export_model(run, path, images=50)
    model, original = load_model(path), load_model(run)
    assert (model.config, model.class_names) == (original.config, original.class_names)
    assert model.weights == find_weights(path) == ("raw" if name == "model.keras" else "exported")
    assert (model.keras_model is None) == (name != "model.keras")
    pixels = np.stack([original.load_image(path) for path in photos])
    np.testing.assert_allclose(model(pixels), original(pixels), atol=1e-3)
    assert [row[0][0] for row in model.predict(photos)] == [row[0][0] for row in original.predict(photos)]
    with pytest.raises(UserError, match="contains one set of weights only"):
        load_model(path, raw=True)


def test_predictions(run, photos):
    model = load_model(run)
    pixels = np.stack([model.load_image(path) for path in photos])
    probabilities = tf.nn.softmax(model(pixels)).numpy()
    predictions = predict_images(run, photos, top=3, batch_size=2)
    for row, values in zip(predictions, probabilities, strict=True):
        order = np.argsort(-values)[:3]
        assert [name for name, _ in row] == [model.class_names[i] for i in order]
        np.testing.assert_allclose([p for _, p in row], values[order], rtol=1e-5)
    assert [len(row) for row in predict_images(run, photos[:1], top=99)] == [10]
    expected = [name for name, _ in predictions[0]]
    for images in (
        photos[0],
        str(photos[0]),
        photos[0].read_bytes(),
        [photos[0].read_bytes()],
        pixels[:1],
        [pixels[0]],
    ):
        [row] = model.predict(images, top=3)
        assert [name for name, _ in row] == expected
    assert model.predict([]) == []


def test_invalid_images(run, photos, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_text("not an image")
    model = load_model(run)
    first, error, last = model.iterate_predictions([photos[0], broken, photos[1]], batch_size=2)
    assert [first, last] == model.predict(photos[:2], batch_size=1)
    assert isinstance(error, UserError) and str(error).startswith(f"{broken}")
    with pytest.raises(UserError, match="broken.png"):
        predict_images(model, [photos[0], broken])
    with pytest.raises(UserError, match=r"array of shape \[40, 45, 3\], but the model takes \[32, 32, 3\]"):
        model.predict([np.zeros([40, 45, 3])])
    with pytest.raises(
        UserError, match=r"pixels has an array of shape \[32, 32, 3\], but the model takes \[N, 32, 32, 3\]"
    ):
        model(np.zeros([32, 32, 3]))
    with pytest.raises(UserError, match="top=0 must be at least 1"):
        model.predict(photos, top=0)


def test_paths_without_a_model(run, tmp_path):
    with pytest.raises(UserError, match="is not a model directory"):
        load_model(tmp_path)
    with pytest.raises(UserError, match="none.keras: no such file"):
        load_model(run / "none.keras")
    (run / "broken.keras").write_text("broken")
    with pytest.raises(UserError, match="broken.keras is damaged"):
        load_model(run / "broken.keras")


def test_graph_is_traced_once_for_all_batch_sizes(run):
    traces = []

    def compute_logits(images):
        traces.append(images.shape)
        return tf.reduce_mean(images, axis=[1, 2])

    model = LoadedModel(compute_logits, read_config(str(run)), ["red", "green", "blue"], "raw")
    # The first images are computed without a graph, because tracing takes longer.
    for count in (1, 3, 20, 2):
        assert model(np.full([count, 32, 32, 3], 7, np.uint8)).tolist() == [[7.0] * 3] * count
    assert traces == [(1, 32, 32, 3), (3, 32, 32, 3), (None, 32, 32, 3)]


def test_predict_in_a_loop_loads_once_and_keeps_memory_flat(run, photos):
    predict_images(run, photos)
    model = load_cached(run)
    for _ in range(5):
        predict_images(str(run), photos[:3])
    gc.collect()
    before = resident_bytes()
    for _ in range(50):
        predict_images(str(run), photos)
        assert load_cached(run) is model
    gc.collect()
    if before is not None:  # the system does not tell
        assert resident_bytes() - before < 16 * 2**20


def test_cache_follows_changes_and_is_bounded(run, tmp_path):
    folders = []
    for i in range(CACHED_MODELS + 1):
        folders.append(tmp_path / f"run{i}")
        os.symlink(run, folders[-1])
    first = load_cached(folders[0])
    assert load_cached(f"{folders[0]}/") is first
    for folder in folders[1:]:
        load_cached(folder)
    second = load_cached(folders[0])
    assert second is not first  # it was the oldest
    [index] = (run / "checkpoints").glob("*.index")
    os.utime(index, ns=(0, index.stat().st_mtime_ns + 10**9))
    assert load_cached(folders[0]) is not second


@pytest.mark.slow
def test_loaded_model_is_evaluated_like_its_path(run):
    model = load_model(run)
    assert evaluate_model(model) == pytest.approx(evaluate_model(run), rel=1e-5)
    assert evaluate_model(model, raw=True) == evaluate_model(model)  # it has no EMA
    model.weights = "ema"
    with pytest.raises(UserError, match="was loaded without its raw weights"):
        evaluate_model(model, raw=True)
