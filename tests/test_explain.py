"""Class activation maps and Grad-CAM against what theory, numpy and finite differences say; and their picture."""

import re

import keras
import numpy as np
import PIL.Image
import pytest
import tensorflow as tf
import tiny
from sklearn.datasets import load_sample_images

from efficientnet_tf import build_model, explain
from efficientnet_tf.config.errors import UserError
from efficientnet_tf.data.pipeline import eval_image
from efficientnet_tf.evaluation.attribution import class_activation_map, grad_cam
from efficientnet_tf.models.model_dir import build_from_config, restore_model, write_model_dir
from efficientnet_tf.visualization import heatmap

NAMES = ["temple", "flower", "tower", "7"]
SIZE = 64


def randomize(model, seed=0):
    """Give every variable a value that no initialiser does: classifier bias, statistics and offsets, too."""
    rng = np.random.default_rng(seed)
    for variable in model.variables:
        if variable.path.split("/")[-1] in ("beta", "bias", "moving_mean"):
            variable.assign(rng.normal(0, 0.3, variable.shape))
        elif variable.path.endswith("moving_variance"):
            variable.assign(rng.uniform(0.5, 2, variable.shape))
        elif "predictions" in variable.path:
            variable.assign(rng.normal(0, 1, variable.shape))
    return model


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    return randomize(build_model(tiny.VARIANT, classes=4, input_shape=(None, None, 3)))


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(1)
    smooth = tf.image.resize(rng.uniform(0, 255, (3, 9, 9, 3)), [SIZE, SIZE], "bicubic")
    return np.uint8(np.clip(smooth, 0, 255))


def values(model, layer, images):
    return keras.Model(model.input, model.get_layer(layer).output)(images, training=False).numpy()


# ------------------------------------------------------------------------------------------------ the maps


@pytest.mark.parametrize("classes", [None, 2, [3, 0, 1]])
def test_mean_of_the_map_plus_bias_is_the_logit(model, images, classes):
    maps = class_activation_map(model, images, classes)
    logits = model(images, training=False).numpy()
    chosen = logits.argmax(axis=1) if classes is None else np.broadcast_to(classes, 3)
    features, (kernel, bias) = values(model, "top_activation", images), model.get_layer("predictions").get_weights()
    assert maps.dtype == np.float32 and maps.shape == (3, SIZE // 8, SIZE // 8)
    for one, feature, logit, label in zip(maps, features, logits, chosen, strict=True):
        np.testing.assert_allclose(one, feature @ kernel[:, label], rtol=1e-4, atol=1e-5)
        assert one.mean(dtype=np.float64) + bias[label] == pytest.approx(logit[label], rel=1e-5, abs=1e-5)


def test_grad_cam_of_the_last_features_is_the_positive_part_of_the_map(model, images):
    """The gradient of a mean's linear function is kernel / positions at every position, and so is its mean."""
    for label in range(4):
        expected = np.maximum(class_activation_map(model, images, label), 0) / (SIZE // 8) ** 2
        received = grad_cam(model, images, classes=label)
        assert received.dtype == np.float32 and received.shape == (3, SIZE // 8, SIZE // 8)
        np.testing.assert_allclose(received, expected, rtol=1e-4, atol=1e-6)
    assert max(grad_cam(model, images, classes=label).max() for label in range(4)) > 0.01


def test_grad_cam_of_an_inner_layer_agrees_with_finite_differences(model, images):
    """A channel's mean gradient is how the logit answers when the whole channel is raised, over the positions."""
    layer, label, step = "block2b_add", 3, 0.02
    features = values(model, layer, images)
    rest = keras.Model(model.get_layer(layer).output, model.output)
    raised = step * np.eye(features.shape[-1], dtype=np.float32)

    def logits(shift):
        return rest(features + shift, training=False).numpy()[:, label]

    slopes = np.stack([(logits(shift) - logits(-shift)) / (2 * step) for shift in raised], axis=1)
    expected = np.maximum(np.einsum("bhwc,bc->bhw", features, slopes / np.prod(features.shape[1:3])), 0)
    received = grad_cam(model, images, layer, label)
    assert received.shape == features.shape[:3] and received.max() > 0
    np.testing.assert_allclose(received, expected, atol=0.01 * expected.max())


def test_grad_cam_within_a_residual_branch(model, images):
    """What a sum passes back to its parts is one gradient: the branch's map differs by its features alone."""
    with tf.GradientTape() as tape:
        added = tf.constant(values(model, "block3b_add", images))
        tape.watch(added)
        logits = keras.Model(model.get_layer("block3b_add").output, model.output)(added, training=False)
        score = logits[:, 0]
    weights = tf.reduce_mean(tape.gradient(score, added), axis=[1, 2]).numpy()
    expected = np.maximum(np.einsum("bhwc,bc->bhw", values(model, "block3b_project_bn", images), weights), 0)
    received = grad_cam(model, images, "block3b_project_bn", 0)
    np.testing.assert_allclose(received, expected, rtol=1e-3, atol=1e-5 * expected.max())


def test_a_classifier_with_softmax_is_explained_by_its_logits(model, images):
    copy = build_model(tiny.VARIANT, classes=4, input_shape=(None, None, 3), classifier_activation="softmax")
    copy.set_weights(model.get_weights())
    copy.trainable = False  # gradients flow all the same
    for function in (class_activation_map, grad_cam):
        np.testing.assert_allclose(function(copy, images), function(model, images), rtol=1e-5, atol=1e-6)


def test_maps_peak_where_the_evidence_is():
    """One class is a striped patch somewhere, the other noise alone; the classifier is fitted by least squares."""
    keras.utils.set_random_seed(0)
    model = build_model(tiny.VARIANT, classes=2, input_shape=(SIZE, SIZE, 3))
    rng, half = np.random.default_rng(0), SIZE // 2
    stripes = 255.0 * (np.arange(20) // 2 % 2)[:, None, None]

    def draw(quadrant):
        image = rng.normal(128, 20, (SIZE, SIZE, 3))
        if quadrant is not None:
            y, x = half * (quadrant // 2) + rng.integers(4, 9), half * (quadrant % 2) + rng.integers(4, 9)
            image[y : y + 20, x : x + 20] = stripes
        return image

    quadrants = [0, 1, 2, 3] * 16 + [None] * 64
    target = np.array([-1 if q is None else 1 for q in quadrants])
    pooled = values(model, "avg_pool", np.stack([draw(q) for q in quadrants]))
    mean, deviation = pooled.mean(axis=0), pooled.std(axis=0)
    scaled = (pooled - mean) / deviation
    weights = np.linalg.solve(scaled.T @ scaled + 300 * np.eye(len(mean)), scaled.T @ target) / deviation
    model.get_layer("predictions").set_weights([np.outer(weights, [-1, 1]), np.multiply(mean @ weights, [1, -1])])
    tested = np.stack([draw(q) for q in range(4)])
    assert (model(tested, training=False).numpy().argmax(axis=1) == 1).all()
    for maps in (
        class_activation_map(model, tested),
        *(grad_cam(model, tested, layer) for layer in ("block3b_add", "block2b_add")),
    ):
        for quadrant, one in enumerate(maps):
            y, x = np.unravel_index(one.argmax(), one.shape)
            assert (2 * y // len(one), 2 * x // len(one)) == divmod(quadrant, 2)


# ------------------------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("blok2b_add",), "unknown layer 'blok2b_add'; near it are block2b_add"),
        (("zzz",), "unknown layer 'zzz'; near it are block3b_drop, block3b_add, top_conv, top_bn, top_activation"),
        (("avg_pool",), "layer 'avg_pool' has no extent in space, its output is [32]: take an earlier layer"),
        (("block2b_se_reduce",), "layer 'block2b_se_reduce' has no extent in space, its output is [1, 1, 4]"),
        (("top_conv", 4), "classes must be in 0 ... 3, received 4"),
        (("top_conv", [0, -1, 0]), "classes must be in 0 ... 3, received [0, -1, 0]"),
        (("top_conv", [0, 1]), "classes must be an int, or one for each of 3 images, received [0, 1]"),
        (("top_conv", "temple"), "classes must be an int, or one for each of 3 images, received 'temple'"),
    ],
)
def test_mistakes(model, images, arguments, part):
    with pytest.raises(UserError, match=re.escape(part)):
        grad_cam(model, images, *arguments)


def test_maps_of_one_pixel_are_refused(model, images):
    with pytest.raises(UserError, match=r"avg_pool's input has no extent in space, its output is \[1, 1, 32\]"):
        class_activation_map(model, images[:, :8, :8])
    with pytest.raises(UserError, match="layer 'top_conv' has no extent in space"):
        grad_cam(model, images[:, :8, :8], "top_conv")


def test_models_with_another_head(images):
    without = build_model(tiny.VARIANT, include_top=False, input_shape=(SIZE, SIZE, 3))
    for function in (class_activation_map, grad_cam):
        with pytest.raises(UserError, match="has no classifier: a dense layer of the name 'predictions'"):
            function(without, images)
    hidden = keras.layers.Dense(8, "relu")(keras.layers.GlobalAveragePooling2D(name="avg_pool")(without.output))
    for features in (hidden, keras.layers.GlobalMaxPooling2D(name="max_pool")(without.output)):
        other = keras.Model(without.inputs, keras.layers.Dense(3, name="predictions")(features))
        with pytest.raises(UserError, match="has no 'avg_pool' before 'predictions': only Grad-CAM can explain it"):
            class_activation_map(other, images)
        assert grad_cam(other, images).shape == (3, SIZE // 8, SIZE // 8)


# ------------------------------------------------------------------------------------------------ the picture


def test_colours_rise_in_even_steps_of_lightness():
    linear = (heatmap._colour(np.linspace(0, 1, 61)) / 255 + 0.055) / 1.055
    lightness = 116 * np.cbrt(linear**2.4 @ [0.2126, 0.7152, 0.0722]) - 16
    assert (np.diff(lightness) > 0).all()
    np.testing.assert_allclose(lightness, np.linspace(10, 95, 61), atol=2.5)


def test_heat_is_brightest_where_the_map_is_and_a_flat_map_marks_no_place():
    photo = np.full((40, 40, 1), 128.0)
    heat = np.array([[-3.0, -1.0], [-2.0, 5.0]])
    drawn = np.asarray(heatmap.draw_heat_map(photo, heat), int).sum(axis=-1)
    assert drawn.shape == (heatmap.SIDE, heatmap.SIDE)
    assert min(np.unravel_index(drawn.argmax(), drawn.shape)) > 0.6 * heatmap.SIDE
    assert drawn[0, 0] < drawn[-1, 0] < drawn[0, -1] < drawn[-1, -1], "the order of the map's values"
    flat = np.asarray(heatmap.draw_heat_map(photo, np.full((2, 2), 7.0)))
    assert (flat == flat[0, 0]).all()


# ------------------------------------------------------------------------------------------------ the command


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Write two model directories: colour of 32 pixels, and grey of 48."""
    root, made = tmp_path_factory.mktemp("runs"), {}
    for name, size, channels in (("colour", 32, 3), ("grey", 48, 1)):
        config = tiny.load_config(
            f"data.image_size={size}", f"data.channels={channels}", "train.ema_decay=0", "data.dir=p", recipe="folder"
        )
        made[name] = str(root / name)
        model = randomize(build_from_config(config, len(NAMES)), seed=size)
        write_model_dir(made[name], model, config, NAMES)
    return made


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, pixels in zip(("temple.jpg", "flower.png"), load_sample_images().images, strict=True):
        PIL.Image.fromarray(pixels).resize((160, 107)).save(folder / name)
    (folder / "text.jpg").write_text("no picture")
    return folder


def run(*flags):
    return explain.main(explain.make_parser().parse_args(list(map(str, flags))))


def has_cell(canvas, column, cell):
    """Return whether a cell's pixels, but for rounding, stand somewhere in a column of the picture."""
    x, side = heatmap.GAP + column * (heatmap.SIDE + heatmap.GAP), heatmap.SIDE
    strip, cell = canvas[:, x : x + side].astype(int), np.asarray(cell, int)
    starts = np.flatnonzero(abs(strip[: len(strip) - side] - cell[0]).max(axis=(1, 2)) <= 2)
    return any(abs(strip[y : y + side] - cell).max() <= 2 for y in starts)


def test_command_draws_a_row_a_photo_and_a_column_a_model(runs, photos, tmp_path, capsys):
    output, layer = tmp_path / "explain.png", "block2b_add"
    flags = [f"--output={output}", "--method=grad_cam", f"--layer={layer}", "--class=tower"]
    assert run(*(f"--model_dir={path}" for path in runs.values()), *flags, photos) == 1
    told = capsys.readouterr()
    assert f"{photos / 'text.jpg'}: cannot be read: Unknown image file format" in told.err
    assert "1 file(s) could not be read; all others are done" in told.err
    canvas = np.asarray(PIL.Image.open(output))
    assert f"{output}: {canvas.shape[1]}x{canvas.shape[0]} pixels, 2 photo(s), 2 model(s)" in told.out
    for column, path in enumerate(runs.values(), 1):
        model, config, _ = restore_model(path)
        crops = np.stack([eval_image((photos / n).read_bytes(), config) for n in ("flower.png", "temple.jpg")])
        maps = grad_cam(model, crops, layer, NAMES.index("tower"))
        assert crops.shape[1] == config.image_size
        assert all(has_cell(canvas, column, heatmap.draw_heat_map(*both)) for both in zip(crops, maps, strict=True))


def test_cells_hold_map_class_and_probability(runs, photos):
    paths = [str(photos / "flower.png"), str(photos / "temple.jpg")]
    model, config, _ = restore_model(runs["grey"])
    crops = np.stack([eval_image(tf.io.read_file(path), config) for path in paths])
    probabilities = keras.ops.softmax(model(crops, training=False)).numpy()
    maps = class_activation_map(model, crops)
    description, cells = explain.explain(runs["grey"], paths)
    assert description == "tiny, 48 pixels"
    for cell, row, heat in zip(cells, probabilities, maps, strict=True):
        np.testing.assert_allclose(cell.heat, heat, rtol=1e-3, atol=1e-5)
        assert cell.class_name == NAMES[row.argmax()] and cell.probability == pytest.approx(row.max(), abs=1e-5)
    _, [cell] = explain.explain(runs["grey"], paths[:1], label="flower")
    assert (cell.class_name, cell.probability) == ("flower", pytest.approx(probabilities[0, 1], abs=1e-5))


def test_a_class_goes_by_name_then_by_number():
    assert [explain._find_class(label, NAMES, "run") for label in ("flower", "2", "7")] == [1, 2, 3]


def test_columns_are_told_apart():
    assert explain._names(["runs/wide/", "runs/deep"]) == ["wide", "deep"]
    assert explain._names(["wide/run", "deep/run"]) == ["wide/run", "deep/run"]


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        (["--class=flowr"], "colour has no such class; allowed are 0 to 3 and the names, near it 'flower', 'tower'"),
        (["--class=4"], "colour has no such class; allowed are 0 to 3 and the names"),
        (["--method=grad_cam", "--layer=block2c_add"], "colour: unknown layer 'block2c_add'; near it are block2b_add"),
        (["--method=grad_cam", "--layer=avg_pool"], "colour: layer 'avg_pool' has no extent in space"),
        (["--layer=block2b_add"], "--layer=block2b_add is for --method=grad_cam"),
        (["--model_dir=nowhere"], "--model_dir=nowhere is not a model directory"),
        (["--output=explain.txt"], "--output=explain.txt: the name must end in .png or .jpg"),
        (["--output=/dev/null/a.png"], "--output=/dev/null/a.png cannot be written"),
        (["nowhere.jpg"], "nowhere.jpg: no such file or folder"),
    ],
)
def test_command_says_what_is_wrong(runs, photos, tmp_path, flags, part):
    with pytest.raises(UserError, match=re.escape(part)):
        run(f"--model_dir={runs['colour']}", f"--output={tmp_path / 'a.png'}", photos / "flower.png", *flags)
    assert not (tmp_path / "a.png").exists()


def test_no_photo_at_all_and_too_many(runs, photos, tmp_path, monkeypatch, capsys):
    with pytest.raises(UserError, match=r"none of 1 image\(s\) can be read"):
        run(f"--model_dir={runs['colour']}", photos / "text.jpg")
    assert "text.jpg: cannot be read" in capsys.readouterr().err
    monkeypatch.setattr(explain, "MOST_PHOTOS", 2)
    with pytest.raises(UserError, match="3 images are more than a picture can show: at most 2"):
        run(f"--model_dir={runs['colour']}", photos)


def test_no_pillow_is_said_before_the_work(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "PIL", None)
    with pytest.raises(UserError, match="explain draws with Pillow, which is not installed: pip install pillow"):
        run("--model_dir=nowhere", "some.jpg")
