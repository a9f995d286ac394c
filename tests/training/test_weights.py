"""Training with weights of images, through the whole loop: `data.weight_column`."""

import csv

import numpy as np
import pytest
import recast
import tiny

from efficientnet_tf.models.model_dir import restore_model
from efficientnet_tf.training.trainer import train_model

TASKS = {
    "classification": ["data.label_columns=value"],
    "multilabel": ["data.task=multilabel"],
    "regression": ["data.task=regression", "data.label_columns=value"],
}
SGD = ["optimizer.name=sgd", "optimizer.weight_decay=0", "schedule.name=constant", "schedule.warmup_epochs=0"]


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    root = tmp_path_factory.mktemp("digits")
    recast.write_table(root, train=96)
    return root


def train(root, folder, task, weigh, *overrides, change=None):
    """Train for two epochs, and return the weights of the network.

    Args:
        weigh: Function of the number of a row that returns its weight, or None to train without.
        change: Function of the number of a row and its cells that changes its labels.
    """
    folder.mkdir()
    for path in root.glob("*.png"):
        (folder / path.name).symlink_to(path)
    (folder / "val.csv").write_text((root / "val.csv").read_text())
    with (root / "train.csv").open() as file:
        header, *rows = csv.reader(file)
    with (folder / "train.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*header, "weight"])
        for number, row in enumerate(rows):
            cells = dict(zip(header, row, strict=True))
            if change:
                change(number, cells)
            writer.writerow([*cells.values(), weigh(number) if weigh else ""])
    data = ["data.source=table", f"data.dir={folder}", "data.eval_split=val", "data.image_size=16", *TASKS[task]]
    data += ["data.weight_column=weight"] if weigh else []
    sizes = ["train.batch_size=32", "train.epochs=2", "eval.every_epochs=2", "train.ema_decay=0", tiny.SHORT]
    statistics = ["data.target_mean=[4.5]", "data.target_std=[2.9]"] if task == "regression" else []
    config = tiny.load_config(*data, *sizes, *SGD, "optimizer.learning_rate=0.1", *statistics, *overrides)
    train_model(config, str(folder / "run"))
    model, *_ = restore_model(str(folder / "run"))
    return model.get_weights()


def largest_difference(one, other):
    return max(np.abs(a - b).max() for a, b in zip(one, other, strict=True))


def spoil(number, cells):
    """Give every third image the labels of another digit."""
    if number % 3 == 0:
        cells["value"] = str(9 - int(cells["value"]))
        cells["label"] = ";".join(sorted({"even", "large"} - set(cells["label"].split(";"))))


@pytest.mark.parametrize("task", ["classification", *(pytest.param(t, marks=pytest.mark.slow) for t in [*TASKS][1:])])
def test_labels_of_images_with_weight_0_do_not_matter(digits, tmp_path, task):
    def weigh(number):
        return 0 if number % 3 == 0 else 1.5

    clean = train(digits, tmp_path / "clean", task, weigh)
    spoiled = train(digits, tmp_path / "spoiled", task, weigh, change=spoil)
    assert largest_difference(clean, spoiled) == 0
    learned = train(digits, tmp_path / "learned", task, lambda _: 1, change=spoil)
    assert largest_difference(clean, learned) > 1e-3


@pytest.mark.slow
def test_weights_multiply_the_loss(digits, tmp_path):
    """With SGD, twice the weight is twice the learning rate. Weights of 1 are none. Mixtures have mixed weights."""
    mix = "augment.mixup=0.4"
    plain = train(digits, tmp_path / "plain", "classification", None, mix)
    ones = train(digits, tmp_path / "ones", "classification", lambda _: 1, mix)
    half = ["optimizer.learning_rate=0.05", mix]
    twos = train(digits, tmp_path / "twos", "classification", lambda _: 2, *half)
    assert largest_difference(plain, ones) < 1e-5
    assert largest_difference(plain, twos) < 1e-4
    assert largest_difference(plain, train(digits, tmp_path / "other", "classification", None, *half)) > 1e-3
