"""Test which arrays of a file are the images and labels of a split, and that damaged and hostile files are refused."""

import gzip
import io
import random
import re
import struct
import subprocess
import sys
import zipfile

import numpy as np
import pytest

from efficientnet_tf.config import schema
from efficientnet_tf.config.errors import UserError
from efficientnet_tf.data.arrays import list_arrays
from efficientnet_tf.data.listing import check_data

RNG = np.random.default_rng(0)
GRAY = RNG.integers(0, 256, (12, 5, 7), np.uint8)
COLOR = RNG.integers(0, 256, (6, 5, 7, 3), np.uint8)
LABELS = np.arange(12) % 3


def listing(root, split="train", **keys):
    data = schema.DataConfig(source="arrays", dir=str(root), **keys)
    return list_arrays(data, split, split == data.train_split)


def error(root, split="train", **keys):
    with pytest.raises(UserError) as caught:
        listing(root, split, **keys)
    message = str(caught.value)
    assert message.isprintable() and message.endswith((".", "?")), message
    return message


def idx(values):
    """Return an array as the bytes of an idx file."""
    return struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape) + values.astype(np.uint8).tobytes()


def write_mnist(root, ending="", pack=lambda data: data):
    for split, end in (("train", 12), ("t10k", 5)):
        (root / f"{split}-images-idx3-ubyte{ending}").write_bytes(pack(idx(GRAY[:end])))
        (root / f"{split}-labels-idx1-ubyte{ending}").write_bytes(pack(idx(LABELS[:end])))


def write_npz(path, **arrays):
    np.savez(path, **arrays)
    return path


# ----------------------------------------------------------------------------------------------------------- found


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_idx_files_are_read_packed_or_not(tmp_path, ending):
    write_mnist(tmp_path, ending, gzip.compress if ending else bytes)
    for split, end in (("train", 12), ("test", 5)):
        found = listing(tmp_path, split)
        np.testing.assert_array_equal(found.images.read(), GRAY[:end])
        np.testing.assert_array_equal(found.labels, LABELS[:end])
        assert found.labels.dtype == np.int32 and found.class_names == ["0", "1", "2"]
        np.testing.assert_array_equal(found.rows, np.arange(end))
    write_mnist(tmp_path)  # also unpacked
    assert listing(tmp_path).images.path.endswith("ubyte")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize(
    "names", ["x_train y_train x_test y_test", "X_train Y_train X_test Y_test", "train_images train_labels "
              "test_images test_labels"]
)  # fmt: skip
@pytest.mark.parametrize("as_folder", [False, True])
def test_one_file_with_all_splits(tmp_path, save, names, as_folder):
    arrays = [COLOR, LABELS[:6, None], COLOR[3:], LABELS[3:6].astype(np.uint8)]
    save(tmp_path / "cifar10.npz", **dict(zip(names.split(), arrays, strict=True)), classes=["cat", "dog", "owl"])
    root = tmp_path if as_folder else tmp_path / "cifar10.npz"
    for split, start in (("train", 0), ("test", 3)):
        found = listing(root, split)
        np.testing.assert_array_equal(found.images.read(), COLOR[start:])
        np.testing.assert_array_equal(found.labels, LABELS[start:6])
        assert found.class_names == ["cat", "dog", "owl"]


def test_one_file_for_each_split(tmp_path):
    write_npz(tmp_path / "train.npz", images=COLOR, labels=LABELS[:6])
    images = np.asfortranarray(COLOR[:2])
    write_npz(tmp_path / "validation.npz", images=images, labels=np.array([2, 0], ">i2"), other=np.array([{}]))
    found = listing(tmp_path, "val")
    np.testing.assert_array_equal(found.images.read(), COLOR[:2])
    assert found.labels.tolist() == [2, 0]
    assert found.remarks == [f"'{tmp_path}' has no split 'val', so 'validation' is used."]
    assert found.class_names == ["0", "1", "2"]  # those of training
    assert listing(tmp_path, class_names=["a", "b", "c", "d"]).class_names == ["a", "b", "c", "d"]
    (tmp_path / "classes.txt").write_text("cat\ndog\nowl\n")
    assert listing(tmp_path, class_names=["a", "b", "c", "d"]).class_names == ["cat", "dog", "owl"]


def test_val_fraction_divides_the_training_split(tmp_path):
    path = write_npz(tmp_path / "own.npz", images=GRAY, labels=LABELS)
    train, val = listing(path, val_fraction=0.25), listing(path, "val", val_fraction=0.25)
    assert sorted([*train.rows, *val.rows]) == list(range(12))
    for part, share in ((train, 3), (val, 1)):
        assert np.bincount(part.labels).tolist() == [share] * 3
        np.testing.assert_array_equal(part.labels, LABELS[part.rows])
    message = "leaves no training image in the class '2', which has 1. Use a smaller fraction"
    assert message in error(write_npz(path, images=GRAY[:5], labels=[0, 0, 1, 1, 2]), val_fraction=0.25)


def test_commands_check_arrays_without_tensorflow(tmp_path):
    path = write_npz(tmp_path / "own.npz", x_train=GRAY, y_train=np.zeros(12, int))
    data = schema.DataConfig(source="arrays", dir=str(path), eval_split="train")
    with pytest.raises(UserError, match="found only one class"):
        check_data(data)
    code = "import sys, efficientnet_tf.data.arrays; assert not {'tensorflow', 'keras'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


# --------------------------------------------------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x_train": GRAY / 255}, r"type uint8 .* received float64 with shape \[12, 5, 7\]\. .* save np\."),
        ({"x_train": np.full((12, 5, 7), np.nan)}, "received float64"),
        ({"x_train": GRAY.astype(np.int64)}, r"received int64 .* save images\.astype\(np\.uint8\)"),
        ({"x_train": GRAY > 9}, "received bool"),
        ({"x_train": GRAY.reshape(12, 35)}, r"shape \[N, H, W\], .* received shape \[12, 35\]"),
        ({"x_train": GRAY.reshape(12, 5, 7, 1, 1)}, r"received shape \[12, 5, 7, 1, 1\]"),
        ({"x_train": np.uint8(3)}, r"received shape \[\]"),
        ({"x_train": np.zeros((12, 3, 32, 32), np.uint8)}, r"channels must come last.*transpose\(0, 2, 3, 1\)"),
        ({"x_train": np.zeros((12, 5, 5, 4), np.uint8)}, r"received shape \[12, 5, 5, 4\]"),
        ({"x_train": GRAY[:0], "y_train": LABELS[:0]}, "has no images"),
        ({"x_train": np.zeros((12, 0, 7), np.uint8)}, "sides from 1 to 65,536 pixels"),
        ({"x_train": np.array([{}, None])}, "has Python objects, which are not loaded"),
        ({"y_train": LABELS[:9]}, r"so the labels must have the shape \[12\] or \[12, 1\], received \[9\]"),
        ({"y_train": np.arange(20) % 3}, r"received \[20\]"),
        ({"y_train": np.eye(3, dtype=int)[LABELS]}, r"received the shape \[12, 3\]\. If .* one-hot, save np\.argmax"),
        ({"y_train": LABELS.astype(float)}, "labels must be integers, 0 for the first class, received .* float64"),
        ({"y_train": LABELS > 0}, "received the type bool"),
        ({"y_train": np.array(["cat", "dog", "owl"])[LABELS]}, "type <U3. Save the names as an array 'classes', and"),
        ({"y_train": LABELS - 1}, "label of image 0 is -1. Labels count the classes from 0"),
        ({"y_train": LABELS + 1}, "no training image has the label 0, but labels go up to 3.* by subtracting 1"),
        ({"y_train": LABELS * 2}, "no training image has the label 1, but labels go up to 4.* without gaps"),
        ({"y_train": LABELS.astype(np.uint64) + 2**63}, "image 2 is 9223372036854775810. Labels count"),
        ({"classes": ["a", "b"]}, "label of image 2 is 2, but there are 2 classes: a, b. Labels count from 0"),
        ({"classes": [1, 2, 3]}, "class names must be a list of texts, received the type int64"),
        ({"classes": np.array([b"a", b"b", b"\xff"])}, "not valid Unicode"),
        ({"y_train": None}, r"has no labels for .*own\.npz, array x_train\. Expected are"),
        ({"x_train": None}, r"has no arrays of images\. Expected are .*own\.npz has the arrays y_train\.$"),
        ({"x_train": None, "y_train": None, "arr_0": GRAY}, r"own\.npz has the arrays arr_0\."),
        ({"x_train": None, "y_train": None, "x_tests": GRAY}, r"no split 'train'; it has the split tests\. Use --set"),
    ],
)  # fmt: skip
def test_arrays_that_are_no_labeled_images(tmp_path, change, message):
    arrays = {"x_train": GRAY, "y_train": LABELS} | change
    path = write_npz(tmp_path / "own.npz", **{name: value for name, value in arrays.items() if value is not None})
    assert re.search(message, error(path))


def test_missing_and_ambiguous_places(tmp_path):
    assert error(tmp_path / "nowhere").endswith("nowhere': no such file or folder.")
    assert "data.source=arrays reads local files, received data.dir='gs://b/x'" in error("gs://b/x")
    assert "has no arrays of images. Expected are one .npz file" in error(tmp_path)
    (tmp_path / "data.csv").write_text("a,b")
    assert error(tmp_path / "data.csv").endswith("data.csv is no .npz file.")
    write_mnist(tmp_path)
    advice = "has no split 'val'; it has the splits test, train. Use --set data.eval_split=test."
    assert advice in error(tmp_path, "val")
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    assert "has no labels for" in error(tmp_path, "test")
    write_npz(tmp_path / "own.npz", x_train=GRAY, y_train=LABELS)
    assert "has the images of 'train' twice: " in error(tmp_path)
    message = "it has the split train. To hold out a part of 'train', use --set data.val_fraction=0.2."
    assert message in error(tmp_path / "own.npz", "val")


def test_labels_of_other_splits_must_be_classes_of_training(tmp_path):
    path = write_npz(tmp_path / "own.npz", x_train=GRAY, y_train=LABELS, x_val=GRAY[:2], y_val=[1, 3])
    assert "array y_val: the label of image 1 is 3, but there are 3 classes: 0, 1, 2." in error(path, "val")


# --------------------------------------------------------------------------------------------------------- hostile


def test_idx_headers_that_lie(tmp_path):
    write_mnist(tmp_path)
    path, good = tmp_path / "train-images-idx3-ubyte", idx(GRAY)
    for content, message in [
        (struct.pack(">4I", 0x803, 2**31, 28, 28) + good[16:], "declares 1,683,627,180,032 bytes but has 420"),
        (struct.pack(">4I", 0x803, *[2**32 - 1] * 3) + good[16:], "bytes but has 420"),
        (good[:-1], "declares 420 bytes but has 419"),
        (good + b"x", "declares 420 bytes but has 421"),
        (b"\0\0\x0d\3" + good[4:], r"have the type 0x0d, and only bytes \(0x08\) are read"),
        (b"\0\0\x08\xff" + good[4:], "ends within its header"),
        (b"\0\0\x08\x09" + good[4:], "has 9 axes, more than the 8 allowed"),
        (b"\x89PNG" + good[4:], "it is no idx file: it begins with 0x89504e47"),
        (good[:3], "it is no idx file"),
        (good[:9], "ends within its header"),
        (b"", "it is no idx file"),
        (idx(LABELS), r"received shape \[12\]"),
        (gzip.compress(good)[:-9], "ended before the end-of-stream marker"),
        (gzip.compress(good)[:-8] + bytes(8), "CRC check failed"),
        (gzip.compress(good[:-1]), "ends after 419 of 420 bytes"),
        (gzip.compress(good + b"x"), "more than the 420 bytes that it declares"),
        (gzip.compress(struct.pack(">4I", 0x803, 2**31, 28, 28)), "declares 1,683,627,180,032 bytes, more than the"),
        (b"\x1f\x8b" + good, "[Uu]nknown compression method"),
    ]:
        path.write_bytes(content)
        with pytest.raises(UserError, match=message) as caught:
            listing(tmp_path).images.read()
        assert str(caught.value).isprintable()


def npy(header, version=1, length=None):
    """Return an array file with any header."""
    size = struct.pack("<H" if version == 1 else "<I", len(header) if length is None else length)
    return b"\x93NUMPY" + bytes([version, 0]) + size + header.encode() + GRAY.tobytes()


GOOD = "{'descr': '|u1', 'fortran_order': False, 'shape': (12, 5, 7), }\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (npy(GOOD), None),
        (npy(GOOD, version=2), None),
        (npy("{'shape': (12L, 5L,7L), 'fortran_order':False,'descr': '<u1'}"), None),  # Python 2, and another order
        (npy(GOOD.replace("12", "2147483648")), "declares 75,161,927,680 bytes but has 420"),
        (npy(GOOD.replace("12", "9" * 400)), "a size of more than 18 digits"),
        (npy(GOOD.replace("12", "1, " * 40)), "axes, more than the 8 allowed"),
        (npy(GOOD.replace("12", "-12")), "does not describe a plain array"),
        (npy(GOOD.replace("|u1", "|O")), "has Python objects"),
        (npy(GOOD.replace("'|u1'", "[('a', '|u1')]")), "does not describe a plain array"),
        (npy(GOOD.replace("|u1", "<M8[ns]")), "have the type '<M8"),
        (npy(GOOD.replace("|u1", "|b7")), "have the type '|b7'"),
        (npy("(" * 9000), "does not describe a plain array"),
        (npy(GOOD, version=2, length=2**32 - 1), "its header declares 4,294,967,295 bytes"),
        (b"PK\3\4", "no array of NumPy"),
        (b"", "no array of NumPy"),
    ],
)
def test_headers_of_numpy(tmp_path, content, message):
    path = tmp_path / "own.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x_train.npy", content)
        labels = io.BytesIO()
        np.save(labels, LABELS)
        archive.writestr("y_train.npy", labels.getvalue())
    if message:
        assert message in error(path)
    else:
        np.testing.assert_array_equal(listing(path).images.read(), GRAY)


def test_archives_that_expand_too_much_are_refused_before_that(tmp_path):
    path = tmp_path / "own.npz"
    np.savez_compressed(path, x_train=np.zeros((400, 300, 300), np.uint8), y_train=np.arange(400) % 2)
    assert re.search(r"expands from \d+,\d+ to 36,000,128 bytes, more than the 200 times allowed", error(path))
    labels = np.repeat([0, 1], 100_000)  # Sorted labels expand even more, but are small.
    np.savez_compressed(path, x_train=np.zeros((200_000, 1, 1), np.uint8), y_train=labels)
    np.testing.assert_array_equal(listing(path).labels, labels)
    data = struct.pack(">4I", 0x803, 400, 300, 300) + bytes(36_000_000)
    write_mnist(tmp_path)
    path.unlink()
    (tmp_path / "train-images-idx3-ubyte").write_bytes(gzip.compress(data))
    assert "declares 36,000,000 bytes, more than the" in error(tmp_path)


def test_no_spoiled_file_is_read_as_other_images(tmp_path):
    (tmp_path / "idx").mkdir()
    write_mnist(tmp_path / "idx", ".gz", gzip.compress)
    npz = write_npz(tmp_path / "own.npz", x_train=GRAY, y_train=LABELS)
    generator = random.Random(0)
    for path, root in ((tmp_path / "idx/train-images-idx3-ubyte.gz", tmp_path / "idx"), (npz, npz)):
        good, refused = path.read_bytes(), 0
        for _ in range(150):
            content = bytearray(good)
            if generator.random() < 0.3:
                del content[generator.randrange(len(content)) :]
            else:
                content[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
            path.write_bytes(content)
            try:
                found = listing(root)
                pixels = found.images.read()
            except UserError as problem:
                refused += 1
                assert str(problem).isprintable()
            else:
                np.testing.assert_array_equal(pixels, GRAY)
                np.testing.assert_array_equal(found.labels, LABELS)
        assert refused > 75
