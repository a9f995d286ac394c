"""The command that draws where models look: its cells, its picture, and its messages."""

import re
import sys

import keras
import matplotlib
import numpy as np
import PIL.Image
import pytest
import tensorflow as tf
import tiny
from commands import run_process
from crops import compute_crop
from sklearn.datasets import load_sample_images

from efficientnet_tf import explain
from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.load import override_config
from efficientnet_tf.data.pipeline import eval_image
from efficientnet_tf.evaluation.attribution import class_activation_map, grad_cam
from efficientnet_tf.models.from_config import build_from_config
from efficientnet_tf.models.model_dir import restore_model, write_model_dir
from efficientnet_tf.visualization.heatmap import COLORS, GAP, SIDE, draw_heat_map

NAMES = ["temple", "flower", "tower", "7"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Write two model directories: one for color photos of 32 pixels, one for gray photos of 48 pixels."""
    root, made = tmp_path_factory.mktemp("runs"), {}
    for name, size, channels in (("color", 32, 3), ("gray", 48, 1)):
        config = tiny.load_config(
            f"data.image_size={size}", f"data.channels={channels}", "train.ema_decay=0", "data.dir=p", recipe="folder"
        )
        made[name] = str(root / name)
        model = tiny.randomize(build_from_config(config, len(NAMES)), seed=size)
        write_model_dir(made[name], model, config, NAMES)
    return made


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, pixels in zip(("temple.jpg", "flower.png"), load_sample_images().images, strict=True):
        PIL.Image.fromarray(pixels).resize((160, 107)).save(folder / name)
    (folder / "text.jpg").write_text("not a picture")
    return folder


def run(*flags):
    return explain.main(explain.make_parser().parse_args(list(map(str, flags))))


def find_cell(canvas, column, cell):
    """Return the row of pixels at which a cell begins in a column of the picture, up to rounding, or None.

    A rounding error can move a pixel to the next of the 256 entries of the color map.
    """
    entries = 255 * matplotlib.colormaps[COLORS](np.arange(256))
    limit = 1 + np.ceil(abs(np.diff(entries, axis=0)).max())
    x = GAP + column * (SIDE + GAP)
    strip, cell = canvas[:, x : x + SIDE].astype(int), np.asarray(cell, int)
    starts = np.flatnonzero(abs(strip[: len(strip) - SIDE] - cell[0]).max(axis=(1, 2)) <= limit)
    return next((y for y in starts if abs(strip[y : y + SIDE] - cell).max() <= limit), None)


@pytest.mark.slow
def test_row_per_photo_and_column_per_model(runs, photos, tmp_path, capsys):
    output, layer = tmp_path / "explain.png", "block2b_add"
    flags = [f"--output={output}", "--method=grad_cam", f"--layer={layer}", "--class=temple"]
    assert run(*(f"--model_dir={path}" for path in runs.values()), *flags, photos) == 1
    printed = capsys.readouterr()
    assert f"{photos / 'text.jpg'}: cannot be read: this is a text file, not an image" in printed.err
    assert "1 file(s) could not be read. All others are done." in printed.err
    canvas = np.asarray(PIL.Image.open(output).convert("RGB"))
    assert f"{output}: {canvas.shape[1]}x{canvas.shape[0]} pixels, 2 photo(s), 2 model(s)" in printed.out
    for column, path in enumerate(runs.values(), 1):
        model, config, _ = restore_model(path)
        crops = np.stack([eval_image((photos / n).read_bytes(), config) for n in ("flower.png", "temple.jpg")])
        maps = grad_cam(model, crops, layer, NAMES.index("temple"))
        assert crops.shape[1:3] == config.image_shape
        first, second = (find_cell(canvas, column, draw_heat_map(*both)) for both in zip(crops, maps, strict=True))
        assert first + SIDE < second
        assert find_cell(canvas, column, draw_heat_map(crops[0], maps[1])) is None, "the map of another photo"


def test_cells_hold_map_class_and_probability(runs, photos):
    paths = [str(photos / "flower.png"), str(photos / "temple.jpg")]
    model, config, _ = restore_model(runs["gray"])
    crops = np.stack([eval_image(tf.io.read_file(path), config) for path in paths])
    probabilities = keras.ops.softmax(model(crops, training=False)).numpy()
    maps = class_activation_map(model, crops)
    description, cells = explain.explain_photos(runs["gray"], paths)
    assert description == "tiny, 48 pixels"
    for cell, row, heat in zip(cells, probabilities, maps, strict=True):
        np.testing.assert_allclose(cell.heat, heat, rtol=1e-3, atol=1e-5)
        assert cell.class_name == NAMES[row.argmax()] and cell.probability == pytest.approx(row.max(), abs=1e-5)
    _, [cell] = explain.explain_photos(runs["gray"], paths[:1], label="flower")
    assert (cell.class_name, cell.probability) == ("flower", pytest.approx(probabilities[0, 1], abs=1e-5))


@pytest.mark.parametrize("crop", ["squash", "pad"])
def test_maps_are_over_whole_photos_if_the_model_sees_them(runs, tmp_path, crop):
    """The map of each cell covers the square that the model saw, and the photo next to it is not cut."""
    stripes = np.zeros([40, 120, 3], np.uint8)
    stripes[:, :20], stripes[:, 100:] = (255, 0, 0), (0, 0, 255)  # A center crop shows neither.
    photo, output, model_dir = tmp_path / "stripes.png", tmp_path / "explain.png", str(tmp_path / "run")
    PIL.Image.fromarray(stripes).save(photo)
    model, config, _ = restore_model(runs["color"])
    config = override_config(config, [f"data.crop={crop}", "data.background=[0, 99, 0]"])
    write_model_dir(model_dir, model, config, NAMES)
    assert run(f"--model_dir={model_dir}", f"--output={output}", photo) == 0
    canvas = np.asarray(PIL.Image.open(output).convert("RGB"))
    square = compute_crop(stripes, (32, 32), crop, "bicubic", (0, 99, 0)).astype(np.float32)
    [heat] = class_activation_map(restore_model(model_dir)[0], square[None])
    top = find_cell(canvas, 1, draw_heat_map(square, heat))
    assert top is not None
    drawn = canvas[top : top + SIDE, GAP : GAP + SIDE]
    row = drawn[SIDE // 2]
    assert (row[5] == (255, 0, 0)).all() and (row[-5] == (0, 0, 255)).all() and (row[SIDE // 2] == 0).all()
    assert (drawn[5] == 255).all() and (drawn[-5] == 255).all()  # the border of a wide photo


@pytest.mark.slow
def test_jax_draws_the_same_picture(runs, photos, tmp_path):
    pictures = {}
    for backend in ("tensorflow", "jax"):
        output = tmp_path / f"{backend}.png"
        flags = [f"--backend={backend}", "--method=grad_cam", "--layer=block3b_project_bn", f"--output={output}"]
        done = run_process("explain", f"--model_dir={runs['color']}", *flags, str(photos / "flower.png"))
        assert done.returncode == 0, done.stderr
        pictures[backend] = np.asarray(PIL.Image.open(output).convert("RGB")).astype(int)
    # Rounding can move a few pixels of a map to the next of its 256 colors.
    assert np.mean(abs(pictures["jax"] - pictures["tensorflow"])) < 0.05


def test_class_is_found_by_name_before_number():
    assert [explain.find_class(label, NAMES, "run") for label in ("flower", "2", "7")] == [1, 2, 3]


def test_columns_have_unique_titles():
    assert explain.column_titles(["runs/wide/", "runs/deep"]) == ["wide", "deep"]
    assert explain.column_titles(["wide/run", "deep/run"]) == ["wide/run", "deep/run"]


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        (["--class=flowr"], "color. Use a number from 0 to 3, or a name. Similar names are 'flower', 'tower'."),
        (["--class=4"], "color. Use a number from 0 to 3, or a name."),
        (
            ["--method=grad_cam", "--layer=block2c_add"],
            "color: unknown layer=block2c_add. Similar names are block2b_add",
        ),
        (["--method=grad_cam", "--layer=avg_pool"], "color: layer=avg_pool has no height and width"),
        (["--layer=block2b_add"], "--layer=block2b_add needs --method=grad_cam"),
        (["--model_dir=nowhere"], "nowhere: no such file or folder"),
        (["--class=" + "9" * 5000], "color. Use a number from 0 to 3, or a name."),
        (
            ["--output=explain.txt"],
            "--output=explain.txt has an unknown file type. Use a name that ends in .png or .jpg",
        ),
        (["--output=/dev/null/a.png"], "--output=/dev/null/a.png cannot be written"),
        (["nowhere.jpg"], "nowhere.jpg: no such file or folder"),
    ],
)
def test_invalid_flags(runs, photos, tmp_path, flags, part):
    with pytest.raises(UserError, match=re.escape(part)):
        run(f"--model_dir={runs['color']}", f"--output={tmp_path / 'a.png'}", photos / "flower.png", *flags)
    assert not (tmp_path / "a.png").exists()


def test_no_readable_photo(runs, photos, capsys):
    with pytest.raises(UserError, match=r"None of 1 image\(s\) can be read"):
        run(f"--model_dir={runs['color']}", photos / "text.jpg")
    assert "text.jpg cannot be decoded: this is a text file" in capsys.readouterr().err


def test_too_many_photos(runs, photos):
    for number in range(explain.MOST_PHOTOS):
        (photos / f"{number}.png").touch()
    with pytest.raises(UserError, match="103 images do not fit into one picture. Use at most 100."):
        run(f"--model_dir={runs['color']}", photos)


def test_missing_matplotlib_is_reported_before_the_work(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UserError, match="explain draws with matplotlib, which is not installed"):
        run("--model_dir=nowhere", "some.jpg")
