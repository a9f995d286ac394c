"""Predictions that are averaged over several views of an image."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.load import override_config
from efficientnet_tf.config.preprocessing import Preprocessing
from efficientnet_tf.data.load_image import load_image_by_pillow
from efficientnet_tf.export.load import load_model
from efficientnet_tf.export.loaded import softmax
from efficientnet_tf.export.views import VIEWS, make_views

ONNX = Path(__file__).parents[1] / "fixtures" / "old_exports" / "net.onnx"


@pytest.fixture(scope="module")
def model():
    pytest.importorskip("onnxruntime")
    model = load_model(ONNX)
    model.config = override_config(model.config, ["data.crop_padding=6"])
    return model


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    paths = []
    for number in range(3):
        pixels = np.kron(rng.integers(0, 256, (5, 6, 3)), np.ones((9, 9, 1))).astype(np.uint8)
        paths.append(str(folder / f"{number}.png"))
        Image.fromarray(pixels).save(paths[-1])
    return paths


def expected_answers(model, views):
    return np.mean([softmax(model(np.ascontiguousarray(view))) for view in views], axis=0)


def answers(model, images, tta):
    found = [dict(answer) for answer in model.predict(images, len(model.class_names), tta=tta)]
    return np.array([[row[name] for name in model.class_names] for row in found])


def test_an_image_and_its_mirror_image(model, photos):
    pixels = np.stack([model.load_image(path) for path in photos])
    expected = expected_answers(model, [pixels, pixels[:, :, ::-1]])
    np.testing.assert_allclose(answers(model, photos, "flip"), expected, atol=1e-6)
    np.testing.assert_allclose(answers(model, pixels, "flip"), expected, atol=1e-6)
    np.testing.assert_allclose(answers(model, pixels[:, :, ::-1], "flip"), expected, atol=1e-6)
    assert np.abs(answers(model, photos, "none") - expected).max() > 1e-3


def test_ten_crops(model, photos):
    (size, _), data = model.config.image_shape, model.config.data
    settings = {"channels": data.channels, "interpolation": data.interpolation, "background": data.background}
    whole = np.stack([load_image_by_pillow(path, Preprocessing((size + 6,) * 2, **settings)) for path in photos])
    crops = [whole[:, y : y + size, x : x + size] for y, x in [(0, 0), (0, 6), (6, 0), (6, 6), (3, 3)]]
    expected = expected_answers(model, [*crops, *(crop[:, :, ::-1] for crop in crops)])
    np.testing.assert_allclose(answers(model, photos, "crops"), expected, atol=1e-6)


@pytest.mark.parametrize("tta", VIEWS)
def test_the_number_of_views(tta):
    pixels = np.random.default_rng(0).random((2, 9, 9, 1))
    views = make_views(pixels, (9, 9) if tta != "crops" else (6, 6), tta)
    assert len(views) == VIEWS[tta] == len({view.tobytes() for view in views})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tta": "flips"}, "tta='flips' is not one of none, flip, crops. Did you mean 'flip'"),
        ({"tta": "crops", "images": np.zeros([1, 32, 32, 3], np.uint8)}, "tta=crops needs image files"),
    ],
)
def test_refusals(model, photos, settings, message):
    with pytest.raises(UserError) as error:
        model.predict(**{"images": photos} | settings)
    assert message in str(error.value)


@pytest.mark.parametrize("setting", ["crop_padding=0", "crop=squash", "crop=pad"])
def test_crops_need_a_border(photos, setting):
    model = load_model(ONNX)
    model.config = override_config(model.config, [f"data.{setting}"])
    with pytest.raises(UserError, match=f"tta=crops needs a border around the crop, .* has data.{setting}."):
        model.predict(photos, tta="crops")
    assert np.abs(answers(model, photos, "flip") - answers(model, photos, "none")).max() > 1e-3
