"""Class-balanced sampling, with the counts computed by hand."""

import collections

import numpy as np
import pytest
import tensorflow as tf

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.load import load_config
from efficientnet_tf.data.failures import Failures
from efficientnet_tf.data.open import open_source
from efficientnet_tf.data.pipeline import image_seed, train_dataset
from efficientnet_tf.data.sampling import balance_classes
from efficientnet_tf.data.source import Order, indexed_source, source_from_pixels

COUNTS = {0: 2, 2: 5, 3: 17}  # images of each class. There are none of class 1.
LABELS = np.random.default_rng(0).permutation(np.repeat(list(COUNTS), list(COUNTS.values())))
SIZE = len(LABELS)


@pytest.fixture(scope="module")
def source():
    pixels = np.random.default_rng(1).integers(0, 256, (SIZE, 12, 12, 3), np.uint8)
    return balance_classes(source_from_pixels(pixels, LABELS, list("abcd"), "image"), "arrays")


def read_ids(source, epochs, **order):
    """Return the images of some epochs, int [epochs, SIZE]."""
    stream = source.stream(Order(batch=1, shuffle=True, steps=epochs * SIZE, **order))
    return np.array([int(id_) for _, id_, _ in stream.as_numpy_iterator()]).reshape(epochs, SIZE)


def test_every_class_comes_equally_often_and_every_image_of_a_class_too(source):
    ids = read_ids(source, 30)
    for epoch in ids:
        assert [np.sum(LABELS[epoch] == label) for label in COUNTS] == [8, 8, 8]
    for epochs in range(1, 31):
        shown = np.bincount(ids[:epochs].ravel(), minlength=SIZE)
        for label in COUNTS:
            assert np.ptp(shown[LABELS == label]) <= 1
    orders = {tuple(epoch) for epoch in ids.tolist()}
    assert len(orders) == 30


def test_sizes_that_classes_do_not_divide_leave_nobody_out():
    labels = np.array([0, 1, 2, 2, 2])
    source = balance_classes(source_from_pixels(np.zeros([5, 4, 4, 3], np.uint8), labels, list("abc"), "x"), "arrays")
    stream = source.stream(Order(batch=1, shuffle=True, steps=500))
    counts = np.bincount([labels[int(id_)] for _, id_, _ in stream.as_numpy_iterator()])
    np.testing.assert_array_equal(counts, [200, 200, 100])  # An epoch of 5 has 2, 2 and 1 images of the classes.


def test_an_order_can_be_entered_anywhere_and_shared_by_hosts(source):
    whole = read_ids(source, 3).ravel()
    stream = source.stream(Order(batch=8, shuffle=True, first_step=4, steps=5))
    np.testing.assert_array_equal([int(id_) for _, id_, _ in stream.as_numpy_iterator()], whole[32:72])
    parts = [source.stream(Order(batch=8, shuffle=True, steps=9, host=host, hosts=2)) for host in range(2)]
    halves = [np.reshape([int(id_) for _, id_, _ in part.as_numpy_iterator()], (9, 4)) for part in parts]
    np.testing.assert_array_equal(np.concatenate(halves, axis=1).ravel(), whole)


def test_seeds_choose_the_order(source):
    assert (read_ids(source, 1) != read_ids(source, 1, seed=1)).mean() > 0.5


def test_an_image_is_augmented_differently_each_time(source):
    config = load_config("b0", "digits")
    seeds = collections.Counter()
    for position, id_, _ in source.stream(Order(batch=1, shuffle=True, steps=10 * SIZE)):
        seeds[tuple(image_seed(source, config, position, id_).numpy().tolist())] += 1
    assert set(seeds.values()) == {1}


def test_probabilities_count_as_their_most_likely_class(source):
    soft = np.full([SIZE, 4], 0.1, np.float32)
    soft[np.arange(SIZE), LABELS] = 0.7
    pixels = np.zeros([SIZE, 4, 4, 3], np.uint8)
    other = balance_classes(source_from_pixels(pixels, soft, list("abcd"), "image"), "folder")
    np.testing.assert_array_equal(read_ids(other, 2), read_ids(source, 2))


def test_evaluation_keeps_its_order(source):
    stream = source.stream(Order(batch=1, steps=SIZE))
    assert [int(id_) for _, id_, _ in stream.as_numpy_iterator()] == list(range(SIZE))


def test_training_batches_are_balanced(tmp_path):
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (40, 16, 16, 3), np.uint8), np.repeat([0, 1], [36, 4])
    np.savez(tmp_path / "train.npz", images=images, labels=labels)
    settings = ["data.source=arrays", f"data.dir={tmp_path}", "data.sampling=balanced", "train.batch_size=20"]
    config = load_config("tiny", "smoke", settings)
    source = open_source(config.data, "train", training=True)
    batches = train_dataset(source, config, Failures(source), 0, tf.distribute.InputContext()).take(4)
    seen = np.concatenate([labels for _, labels in batches.as_numpy_iterator()])
    assert np.bincount(seen).tolist() == [40, 40]
    uniform = open_source(config.data, "train", training=False)
    stream = uniform.stream(Order(batch=1, shuffle=True, steps=40))
    assert sum(labels[int(id_)] for _, id_, _ in stream.as_numpy_iterator()) == 4


def test_images_that_cannot_be_read_in_any_order_or_have_unknown_labels_are_refused(source):
    unknown = indexed_source(3, ["a", "b"], lambda index: (b"", index), str)
    with pytest.raises(UserError, match=r"not so for data.source=tfds:x. Set data.cache=memory"):
        balance_classes(unknown, "tfds:x")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.sampling=balanced", "train.class_weights=balanced"], "make up for the number of images twice"),
        (["data.sampling=rare"], "'uniform' or 'balanced'"),
        (
            ["data.sampling=balanced", "data.task=multilabel", "data.source=table", "data.dir=x"],
            "data.sampling",
        ),
    ],
)
def test_settings_that_contradict_are_refused(overrides, message):
    with pytest.raises(UserError, match=message):
        load_config("tiny", "smoke", overrides)
