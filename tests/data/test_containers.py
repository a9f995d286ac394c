"""Test Parquet files of the Hugging Face Hub and tar files of WebDataset, written here with pyarrow and tarfile."""

import io
import json
import tarfile

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf
from hub_cache import fill_cache, run_offline

from efficientnet_tf.config import schema
from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.load import load_config
from efficientnet_tf.data.listing import check_data
from efficientnet_tf.data.open import Order, open_source

CLASSES = ["newt", "axolotl", "olm"]
SIZES = {"train": (13, 7), "validation": (5,)}  # images of each file


def png(number):
    file = io.BytesIO()
    PIL.Image.fromarray(np.full([6, 6, 3], number, np.uint8)).save(file, "png")
    return file.getvalue()


def feature(names):
    """Return the metadata that `datasets` writes for a column `label`, under the key "huggingface"."""
    label = {"names": names, "_type": "ClassLabel"}
    return {"huggingface": json.dumps({"info": {"features": {"image": {"_type": "Image"}, "label": label}}})}


def write_parquet(path, numbers, labels, names=None, rows=4, image=None, **columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [{"bytes": png(n), "path": f"{n}.png"} for n in numbers] if image is None else image
    columns = {"image": images, **({"label": labels} if labels is not None else {}), **columns}
    table = pa.table({name: pa.array(list(values)) for name, values in columns.items()})
    pq.write_table(table.replace_schema_metadata(feature(names) if names else None), path, row_group_size=rows)


def write_tar(path, samples):
    """Write samples {name: {ending: content}}."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, members in samples.items():
            for ending, content in members.items():
                content = content if isinstance(content, bytes) else str(content).encode()
                member = tarfile.TarInfo(f"{name}.{ending}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def write_split(kind, root, split, sizes):
    number = 0 if split == "train" else 100
    for index, count in enumerate(sizes):
        numbers = range(number, number + count)
        number += count
        if kind == "parquet":
            path = root / "data" / f"{split}-{index:05d}-of-{len(sizes):05d}.parquet"
            write_parquet(path, numbers, [n % 3 for n in numbers], CLASSES)
        else:
            samples = {f"{n:06d}": {"png": png(n), "cls": n % 3} for n in numbers}
            write_tar(root / f"pond-{split}-{index:04d}.tar", samples)


def config(kind, root, **keys):
    return schema.DataConfig(source=kind, dir=str(root), **keys)


def open_split(kind, root, split="train", **keys):
    return open_source(config(kind, root, **keys), split, split == "train")


@pytest.fixture(scope="module", params=["parquet", "webdataset"])
def data(request, tmp_path_factory):
    root = tmp_path_factory.mktemp(request.param)
    for split, sizes in SIZES.items():
        write_split(request.param, root, split, sizes)
    if request.param == "webdataset":
        (root / "classes.txt").write_text("".join(f"{name}\n" for name in CLASSES))
    return request.param, root


def read(source, order, count):
    """Return [(position, id, number in the pixels, label)] of the first images."""
    images = source.stream(order).take(count).map(lambda p, i, payload: (p, i, *source.load(payload)))
    return [
        (int(p), int(i), int(tf.io.decode_image(encoded)[0, 0, 0]), label.tolist())
        for p, i, encoded, label in images.as_numpy_iterator()
    ]


def test_images_labels_and_names(data):
    kind, root = data
    source = open_split(kind, root)
    assert source.class_names == tuple(CLASSES)
    assert source.size == 20
    rows = read(source, Order(batch=1, steps=20), 20)
    assert sorted(number for _, _, number, _ in rows) == list(range(20))
    assert all(label == number % 3 for _, _, number, label in rows)
    evaluation = open_split(kind, root, "val")  # It is called validation here.
    assert sorted(number for _, _, number, _ in read(evaluation, Order(batch=5, steps=1), 5)) == list(range(100, 105))
    assert {split: known.images for split, known in check_data(config(kind, root)).items()} == {"train": 20, "val": 5}


def test_messages_name_an_image_by_its_place(data):
    kind, root = data
    source = open_split(kind, root)
    for _, id_, number, _ in read(source, Order(batch=1, steps=20), 20):
        file, row = divmod(number, 13)
        where = {
            "parquet": f"{root}/data/train-{file:05d}-of-00002.parquet, row {row}",
            "webdataset": f"{root}/pond-train-{file:04d}.tar: {number:06d}",
        }[kind]
        assert source.describe(id_) == where


@pytest.mark.parametrize("hosts", [1, 2])
def test_every_epoch_has_all_images_in_another_order(data, hosts):
    kind, root = data
    source, epochs = open_split(kind, root), [[], []]
    own = []
    for host in range(hosts):
        order = Order(batch=2, shuffle=True, seed=3, host=host, hosts=hosts)
        numbers = [number for _, _, number, _ in read(source, order, 40)]
        size = len(set(numbers))
        own.append(set(numbers))
        for epoch in range(2):
            epochs[epoch] += numbers[epoch * size : (epoch + 1) * size]
    if kind == "webdataset" or hosts == 1:  # The hosts share the positions of each step.
        everything = [number for epoch in epochs for number in epoch]
        assert len(set(everything)) == 20
    else:  # The hosts have row groups of their own.
        assert not own[0] & own[1]
        assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(20))
    assert epochs[0] != epochs[1]


@pytest.mark.parametrize("first", [1, 7, 23])
def test_a_run_continues_in_the_middle_as_if_it_had_not_stopped(data, first):
    kind, root = data
    source = open_split(kind, root)
    whole = read(source, Order(batch=3, shuffle=True, seed=1), 3 * (first + 4))
    rest = read(source, Order(batch=3, shuffle=True, seed=1, first_step=first), 12)
    assert rest == whole[3 * first :]


def test_tar_files_are_read_in_the_same_order_by_any_number_of_hosts(tmp_path):
    write_split("webdataset", tmp_path, "train", SIZES["train"])
    source = open_split("webdataset", tmp_path)
    alone = read(source, Order(batch=4, shuffle=True), 40)
    for hosts in (2, 4):
        parts = [read(source, Order(batch=4, shuffle=True, host=h, hosts=hosts), 40 // hosts) for h in range(hosts)]
        assert sorted(row for part in parts for row in part) == sorted(alone)


def test_images_can_also_be_bytes_and_files_in_a_folder(tmp_path):
    write_parquet(tmp_path / "train" / "0.parquet", None, list("abba"), image=[png(n) for n in range(4)])
    source = open_split("parquet", tmp_path)
    assert source.class_names == ("a", "b")
    assert [row[2:] for row in read(source, Order(batch=1, steps=4), 4)] == [(0, 0), (1, 1), (2, 1), (3, 0)]


def test_labels_of_json_and_other_columns(tmp_path):
    samples = {f"s{n}": {"png": png(n), "json": json.dumps({"kind": "ab"[n % 2], "age": n / 4})} for n in range(4)}
    write_tar(tmp_path / "train.tar", samples)
    source = open_split("webdataset", tmp_path, label_columns=["kind"])
    assert source.class_names == ("a", "b")
    numbers = open_split("webdataset", tmp_path, label_columns=["age"], task="regression")
    np.testing.assert_array_equal(numbers.labels, [[0], [0.25], [0.5], [0.75]])
    write_parquet(tmp_path / "train.parquet", range(4), None, fine=[0, 1, 1, 0], coarse=[2, 1, 0, 2])
    assert open_split("parquet", tmp_path, label_columns=["coarse"]).labels.tolist() == [2, 1, 0, 2]
    numbers = open_split("parquet", tmp_path, label_columns=["fine", "coarse"], task="regression")
    np.testing.assert_array_equal(numbers.labels, [[0, 2], [1, 1], [1, 0], [0, 2]])


def test_several_labels(tmp_path):
    write_parquet(tmp_path / "train.parquet", range(3), [[0, 2], [], [1]], ["newt", "axolotl", "olm"])
    write_parquet(tmp_path / "val.parquet", range(3), [[1], [1], [0]], ["newt", "axolotl", "olm"])
    source = open_split("parquet", tmp_path, task="multilabel")
    assert source.class_names == ("axolotl", "newt", "olm")
    assert source.labels.tolist() == [[0, 1, 1], [0, 0, 0], [1, 0, 0]]
    assert open_split("parquet", tmp_path, "val", task="multilabel").labels.tolist() == [
        [1, 0, 0],
        [1, 0, 0],
        [0, 1, 0],
    ]


def test_an_image_that_is_missing_is_a_failure_of_this_image(tmp_path):
    images = [{"bytes": png(n) if n != 2 else None, "path": None} for n in range(5)]
    write_parquet(tmp_path / "train.parquet", None, [0, 1, 0, 1, 0], image=images)
    source = open_split("parquet", tmp_path)
    encoded = [bytes(source.load(payload)[0].numpy()) for _, _, payload in source.stream(Order(batch=1, steps=5))]
    assert [bool(content) for content in encoded] == [True, True, False, True, True]


def test_a_damaged_row_group_counts_as_unreadable_images(tmp_path):
    path = tmp_path / "train.parquet"
    rng = np.random.default_rng(0)
    images = [rng.bytes(1000) for _ in range(8)]
    write_parquet(path, None, [0, 1] * 4, image=images)
    source = open_split("parquet", tmp_path)
    content = bytearray(path.read_bytes())
    place = content.index(images[5]) - 100  # the header of a page
    content[place - 400 : place] = b"\xff" * 400
    path.write_bytes(content)
    encoded = [bytes(source.load(payload)[0].numpy()) for _, _, payload in source.stream(Order(batch=1, steps=8))]
    assert encoded[:4] == images[:4]
    assert encoded[4:] != images[4:]


PARQUET_FAULTS = {
    "no files": (lambda root: None, "has no .parquet files, such as train-00000.parquet"),
    "another split": (lambda root: write_parquet(root / "test.parquet", [1], [0]), "has no split 'train'"),
    "a missing file": (
        lambda root: write_parquet(root / "train-00000-of-00002.parquet", [1, 2], [0, 1]),
        "has 1 of 2 files",
    ),
    "another format": (lambda root: (root / "train.parquet").write_text("PAR1"), "is no Parquet file, or is damaged"),
    "no images": (
        lambda root: pq.write_table(pa.table({"label": [0, 1], "text": ["a", "b"]}), root / "train.parquet"),
        "no column has images. It needs a column `image`",
    ),
    "two columns of images": (
        lambda root: write_parquet(
            root / "train.parquet", None, [0, 1], image=["a", "b"], x=[b"1", b"2"], y=[b"3", b"4"]
        ),
        "several columns could have the images",
    ),
    "no labels": (
        lambda root: write_parquet(root / "train.parquet", [1, 2], None, species=[0, 1]),
        "has no column label; it has species. Set data.label_columns=[species].",
    ),
    "labels that are not known": (
        lambda root: write_parquet(root / "train.parquet", [1, 2], [-1, -1], CLASSES),
        "the label is -1, but there are 3 classes: newt, axolotl, olm. In many data sets, -1 says",
    ),
    "a label out of range": (
        lambda root: write_parquet(root / "train.parquet", [1, 2], [0, 3], CLASSES),
        "row 1: the label is 3, but there are 3 classes",
    ),
    "a gap": (
        lambda root: write_parquet(root / "train.parquet", [1, 2], [1, 2]),
        "no training image has the label 0, but labels go up to 2",
    ),
    "decimals": (
        lambda root: write_parquet(root / "train.parquet", [1, 2], [0.5, 1.5]),
        "row 0: the label must be a whole number or a text, received 0.5. To learn numbers, set data.task=regression.",
    ),
    "lists": (
        lambda root: write_parquet(root / "train.parquet", [1, 2], [[0], [1]]),
        "received [0]. If images have several labels, set data.task=multilabel.",
    ),
    "an empty label": (
        lambda root: write_parquet(root / "train.parquet", [1, 2], ["a", None]),
        "row 1: the label must be a whole number or a text, received None",
    ),
    "one class": (lambda root: write_parquet(root / "train.parquet", [1, 2], ["a", "a"]), "found only one class"),
    "paths instead of images": (
        lambda root: write_parquet(
            root / "train.parquet", None, [0, 1], image=pa.array([{"bytes": None, "path": "a.png"}] * 2, PATHS)
        ),
        "has no bytes in its first 2 rows, only paths or nothing",
    ),
}
PATHS = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
TAR_FAULTS = {
    "no files": (lambda root: None, "has no .tar files"),
    "no label": (
        lambda root: write_tar(root / "train.tar", {"a": {"png": png(0), "txt": "a newt"}}),
        "a has an image but no label. It needs a member .cls or .json; it has .txt.",
    ),
    "another key": (
        lambda root: write_tar(root / "train.tar", {"a": {"png": png(0), "json": '{"class": 1}'}}),
        "a.json has no key label; it has class. Set data.label_columns.",
    ),
    "two images": (
        lambda root: write_tar(root / "train.tar", {"a": {"png": png(0), "jpg": png(0), "cls": 0}}),
        "a has several images, .png and .jpg. Keep one of them.",
    ),
    "JSON that is none": (
        lambda root: write_tar(root / "train.tar", {"a": {"png": png(0), "json": "{"}}),
        "a.json",
    ),
    "a compressed file": (
        lambda root: (root / "train.tar").write_bytes(b"\x1f\x8b" + bytes(100)),
        "is no tar file, or is damaged",
    ),
    "images only": (lambda root: write_tar(root / "train.tar", {"a": {"cls": 0}}), "has no images"),
}


@pytest.mark.parametrize("fault", PARQUET_FAULTS)
def test_parquet_files_that_are_refused(tmp_path, fault):
    write, message = PARQUET_FAULTS[fault]
    write(tmp_path)
    with pytest.raises(UserError) as error:
        check_data(config("parquet", tmp_path))
    assert message in str(error.value)


@pytest.mark.parametrize("fault", TAR_FAULTS)
def test_tar_files_that_are_refused(tmp_path, fault):
    write, message = TAR_FAULTS[fault]
    write(tmp_path)
    with pytest.raises(UserError) as error:
        check_data(config("webdataset", tmp_path))
    assert message in str(error.value)


def test_a_truncated_tar_file_is_refused(tmp_path):
    write_tar(tmp_path / "train.tar", {f"{n}": {"cls": n, "png": png(n) + bytes(20_000)} for n in range(3)})
    path = tmp_path / "train.tar"
    path.write_bytes(path.read_bytes()[:-25_000])
    with pytest.raises(UserError, match=r"train\.tar is truncated: the content of \d\.png is missing\.$"):
        check_data(config("webdataset", tmp_path))


def test_settings_that_do_not_fit():
    with pytest.raises(ValueError, match="data.service cannot be combined with data.source=parquet"):
        schema.DataConfig(source="parquet", dir="x", service="grpc://localhost:5000").check()
    with pytest.raises(UserError, match="data.source=parquet reads local files"):
        check_data(config("parquet", "gs://bucket/x"))


# ------------------------------------------------------------------------------------------------- Hugging Face Hub


@pytest.mark.parametrize("kind", ["parquet", "webdataset"])
def test_a_data_set_of_the_hub_is_the_local_one(kind, tmp_path):
    pytest.importorskip("huggingface_hub")
    for split, sizes in SIZES.items():
        write_split(kind, tmp_path / "pond", split, sizes)
    (tmp_path / "pond/classes.txt").write_text("\n".join(CLASSES))
    home = fill_cache(tmp_path / "home", tmp_path / "pond", "datasets--user--pond")
    code = (
        "from efficientnet_tf.config.errors import UserError\n"
        "from efficientnet_tf.config.schema import DataConfig\n"
        "from efficientnet_tf.data.listing import check_data\n"
        f"for place in ({str(tmp_path / 'pond')!r}, 'hf://datasets/user/pond', 'hf://datasets/user/pond@main'):\n"
        f"    print(check_data(DataConfig(source={kind!r}, dir=place)))\n"
        "for place in ('hf://datasets/user/other', 'hf://datasets/user/pond@other'):\n"
        "    try:\n"
        f"        print(check_data(DataConfig(source={kind!r}, dir=place)))\n"
        "    except UserError as error:\n"
        "        print(error)\n"
    )
    done = run_offline(home, code=code)
    lines = done.stdout.splitlines()
    assert len(lines) == 5 and len(set(lines[:3])) == 1 and "images=20" in lines[0] and "'olm'" in lines[0], done.stderr
    for line, place in zip(lines[3:], ("other", "pond@other"), strict=True):
        assert line.startswith(f"hf://datasets/user/{place} cannot be downloaded: the Hub cannot be reached")


@pytest.mark.parametrize(
    ("source", "place", "message"),
    [
        ("folder", "hf://datasets/user/pond", "which only data.source=parquet and data.source=webdataset read"),
        ("parquet", "hf://user/pond", "does not name a data set on the Hugging Face Hub. Use hf://datasets/user/name"),
        ("parquet", "hf://datasets/pond", "Use hf://datasets/user/name"),
    ],
)
def test_places_on_the_hub_that_are_no_data_sets(source, place, message):
    with pytest.raises(UserError, match=message):
        load_config("tiny", "folder", [f"data.source={source}", f"data.dir={place}"])
