"""Weights of training images: `data.weight_column`, from the files to what a source returns."""

import io
import json
import tarfile

import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.schema import DataConfig
from efficientnet_tf.data.open import Order, open_source

WEIGHTS = [0.5, 2.0, 0.0, 1.25]
CLASSES = ["b", "a", "a", "c"]
NUMBERS = [3.0, -1.0, 0.5, 7.0]


def png():
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "png")
    return file.getvalue()


def write_split(kind, root, split, weights):
    """Write four images with a class, a number and a weight. Without weights, there is no column for them."""
    rows = [{"label": c, "number": n} for c, n in zip(CLASSES, NUMBERS, strict=True)]
    rows = [row | ({"importance": w} if weights else {}) for row, w in zip(rows, weights or WEIGHTS, strict=True)]
    if kind == "table":
        for number in range(4):
            (root / f"{split}{number}.png").write_bytes(png())
        lines = [",".join(["path", *rows[0]])]
        lines += [",".join([f"{split}{i}.png", *map(str, row.values())]) for i, row in enumerate(rows)]
        (root / f"{split}.csv").write_text("\n".join(lines))
    elif kind == "parquet":
        columns = {"image": [png()] * 4} | {key: [row[key] for row in rows] for key in rows[0]}
        pyarrow.parquet.write_table(pyarrow.table(columns), root / f"{split}.parquet")
    else:
        with tarfile.open(root / f"{split}.tar", "w") as tar:
            for i, row in enumerate(rows):
                for ending, content in (("png", png()), ("json", json.dumps(row).encode())):
                    member = tarfile.TarInfo(f"{i}.{ending}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))


@pytest.fixture(params=["table", "parquet", "webdataset"])
def data(request, tmp_path):
    write_split(request.param, tmp_path, "train", WEIGHTS)
    write_split(request.param, tmp_path, "val", None)
    return {"source": request.param, "dir": str(tmp_path), "weight_column": "importance"}


def read(source):
    stream = source.stream(Order(batch=1, steps=source.size))
    return [source.load(payload)[1].numpy().tolist() for _, _, payload in stream]


@pytest.mark.parametrize("cache", ["none", "memory", "disk"])
def test_the_weight_follows_the_class(data, cache, tmp_path):
    cache = str(tmp_path / "cache") if cache == "disk" else cache
    source = open_source(DataConfig(**data, cache=cache), "train", training=True)
    assert source.class_names == ("a", "b", "c")
    assert read(source) == [[1, 0.5], [0, 2], [0, 0], [2, 1.25]]
    assert source.labels.tolist() == [1, 0, 0, 2] and source.empty_label.shape == (2,)


def test_the_weight_follows_the_numbers(data):
    config = DataConfig(**data, task="regression", label_columns=("number",))
    source = open_source(config, "train", training=True)
    assert read(source) == [[n, w] for n, w in zip(NUMBERS, WEIGHTS, strict=True)]
    assert source.labels.tolist() == [[n] for n in NUMBERS]


def test_evaluation_ignores_weights(data):
    """The evaluation split has no such column."""
    for split in ("train", "val"):
        assert read(open_source(DataConfig(**data), split, training=False)) == [1, 0, 0, 2]


def test_other_weights_have_another_fingerprint(data, tmp_path):
    before = open_source(DataConfig(**data), "train", training=True).fingerprint
    write_split(data["source"], tmp_path, "train", [*WEIGHTS[:3], 1.5])
    assert open_source(DataConfig(**data), "train", training=True).fingerprint != before


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (-1.0, "a weight is from 0 to 1,000,000, received '-1.0'"),
        (2e6, "a weight is from 0 to 1,000,000"),
        (float("nan"), "a number must be finite"),
        (float("inf"), "a number must be finite"),
    ],
)
def test_weights_that_are_refused(data, tmp_path, weight, message):
    write_split(data["source"], tmp_path, "train", [1.0, weight, 1.0, 1.0])
    with pytest.raises(UserError) as caught:
        open_source(DataConfig(**data), "train", training=True)
    assert message in str(caught.value) and "column importance" in str(caught.value)
    assert ("line 3" if data["source"] == "table" else "row 1") in str(caught.value)


@pytest.mark.parametrize("cell", ["", "high", "1,5", "True", "1 kg"])
def test_cells_that_are_refused(tmp_path, cell):
    for number in range(2):
        (tmp_path / f"{number}.png").write_bytes(png())
    (tmp_path / "train.csv").write_text(f'path,label,w\n0.png,a,1\n1.png,b,"{cell}"\n')
    data = DataConfig(source="table", dir=str(tmp_path), weight_column="w")
    with pytest.raises(UserError, match=r"train\.csv, line 3, column w: not a number"):
        open_source(data, "train", training=True)


def test_all_weights_0(data, tmp_path):
    write_split(data["source"], tmp_path, "train", [0.0] * 4)
    with pytest.raises(UserError, match="all weights in the column importance are 0"):
        open_source(DataConfig(**data), "train", training=True)


def test_no_such_column(data):
    with pytest.raises(UserError, match="importence"):
        open_source(DataConfig(**data | {"weight_column": "importence"}), "train", training=True)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"source": "folder"}, "only for data.source=table and parquet and webdataset, received source 'folder'"),
        ({"weight_column": " Label"}, "is the column of the paths or of labels"),
        ({"weight_column": "Path"}, "is the column of the paths or of labels"),
        ({"weight_column": "n", "label_columns": ("n",)}, "is the column of the paths or of labels"),
        ({"pseudo_labels": "a.parquet"}, "cannot be combined with data.pseudo_labels"),
    ],
)
def test_settings_that_contradict_each_other(keys, message):
    data = DataConfig(**{"source": "table", "weight_column": "importance"} | keys)
    with pytest.raises(ValueError, match=message):
        data.check()
