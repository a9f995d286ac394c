"""Feature vectors and near duplicates."""

import csv
import os

import keras
import numpy as np
import pyarrow.parquet
import pytest
import tiny
from commands import exit_status
from PIL import Image

from efficientnet_tf import load_model
from efficientnet_tf.config.errors import UserError
from efficientnet_tf.embed import find_duplicates
from efficientnet_tf.models.from_config import build_from_config
from efficientnet_tf.models.model_dir import restore_model, write_model_dir


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A model directory with random weights."""
    folder = str(tmp_path_factory.mktemp("run") / "model")
    config = tiny.load_config("train.ema_decay=0")
    write_model_dir(folder, tiny.randomize(build_from_config(config, 10)), config, [*"0123456789"])
    return folder


@pytest.fixture
def photos(tmp_path):
    """Three different images, a fourth that is almost the first one, and a file that is none."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (3, 6, 6, 3), dtype=np.uint8).repeat(8, axis=1).repeat(8, axis=2)
    near = np.clip(pixels[0].astype(int) + rng.integers(-2, 3, pixels[0].shape), 0, 255).astype(np.uint8)
    for name, image in zip("abcd", [*pixels, near], strict=True):
        Image.fromarray(image).save(tmp_path / f"{name}.png")
    return tmp_path


def test_vectors_are_what_the_last_layer_classifies(run, photos):
    model, paths = load_model(run), [str(photos / f"{name}.png") for name in "abcd"]
    pixels = np.stack([model.load_image(path) for path in paths])
    stored, *_ = restore_model(run)
    expected = keras.Model(stored.input, stored.get_layer("avg_pool").output)(pixels, training=False)
    vectors = model.embed(paths, batch_size=3)
    assert vectors.dtype == np.float32 and vectors.shape == (4, 32)
    np.testing.assert_allclose(vectors, expected, rtol=1e-3, atol=1e-4)
    kernel, bias = (np.asarray(v) for v in stored.get_layer("predictions").weights)
    np.testing.assert_allclose(vectors @ kernel + bias, model(pixels), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(model.embed(pixels), vectors, rtol=1e-4, atol=1e-5)


def test_command(run, photos, capsys):
    output, table = photos / "v.npz", photos / "d.csv"
    (photos / "broken.png").write_bytes(b"x")
    flags = [f"--model_dir={run}", f"--output={output}", f"--duplicates={table}", "--similarity=0.999"]
    assert exit_status("embed", *flags, photos) == 1
    printed = capsys.readouterr()
    assert "4 vectors of 32 numbers" in printed.out and "1 pairs with a similarity of at least 0.999" in printed.out
    assert "broken.png cannot be decoded" in printed.err and "1 file(s) could not be read" in printed.err
    found = np.load(output)
    assert [path.decode().rpartition("/")[2] for path in found["paths"]] == ["a.png", "b.png", "c.png", "d.png"]
    np.testing.assert_allclose(found["vectors"], load_model(run).embed([p.decode() for p in found["paths"]]), rtol=1e-4)
    with table.open() as file:
        [row] = csv.DictReader(file)
    assert (row["first"].rpartition("/")[2], row["second"].rpartition("/")[2]) == ("a.png", "d.png")
    assert float(row["similarity"]) > 0.999


def test_a_parquet_file_has_a_row_for_each_image(run, photos, tmp_path, capsys):
    output = tmp_path / "v.parquet"
    assert exit_status("embed", f"--model_dir={run}", f"--output={output}", photos / "a.png", photos / "b.png") == 0
    table = pyarrow.parquet.read_table(output).to_pydict()
    assert table["path"] == [str(photos / "a.png"), str(photos / "b.png")]
    np.testing.assert_allclose(table["vector"], load_model(run).embed(table["path"]), rtol=1e-4, atol=1e-6)
    odd = photos / os.fsdecode(b"odd\xff.png")
    odd.write_bytes((photos / "a.png").read_bytes())
    capsys.readouterr()
    assert exit_status("embed", f"--model_dir={run}", f"--output={output}", odd) == 1
    assert r"odd\udcff.png is not UTF-8. Rename it, or use --output=FILE.npz." in capsys.readouterr().err


@pytest.mark.parametrize("count", [1, 7, 4500])
def test_duplicates_are_found_in_every_block(count):
    rng = np.random.default_rng(0)
    vectors = rng.normal(0, 1, (count, 16))
    copies = {(i, j) for i, j in ((0, count - 1), (1, count // 2)) if i < j}
    for first, second in copies:
        vectors[second] = 3 * vectors[first]
    pairs = find_duplicates(vectors, 0.99)
    assert {pair[:2] for pair in pairs} >= copies
    for first, second, cosine in pairs:
        a, b = vectors[first], vectors[second]
        assert first < second and cosine == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    assert [pair[2] for pair in pairs] == sorted((pair[2] for pair in pairs), reverse=True)


def test_images_without_features_are_no_duplicates():
    assert find_duplicates(np.zeros((3, 4)), 0.9) == []


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--output=v.npy"], "--output=v.npy has an unknown file type. Use a name that ends in .npz or .parquet."),
        (["--output=v.npz", "--duplicates=d.json"], "--duplicates=d.json has an unknown file type"),
        (["--output=v.npz", "--similarity=1.5"], "similarity=1.5 is not possible. A cosine is at most 1."),
    ],
)
def test_bad_flags(run, photos, flags, message, capsys):
    assert exit_status("embed", f"--model_dir={run}", *flags, photos) == 1
    assert message in capsys.readouterr().err


def test_exported_files_have_no_vectors(run, photos):
    model = load_model(run)
    model.keras_model = None
    with pytest.raises(UserError, match="An exported file has no feature vectors. Pass the model directory"):
        model.embed([str(photos / "a.png")])


def test_neighbors_in_the_list_are_compared_and_no_image_with_itself():
    vectors = np.array([[1, 0], [1, 0.001], [0, 1]], np.float32)
    assert [(first, second) for first, second, _ in find_duplicates(vectors, 0.99)] == [(0, 1)]
