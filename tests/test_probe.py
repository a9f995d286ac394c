"""The command `probe`: classifiers on the features of a network."""

import fitted
import numpy as np
import pytest
from commands import exit_status, run_here
from PIL import Image

from efficientnet_tf import load_model, probe_model
from efficientnet_tf.probe import find_linear_classes, find_neighbor_classes


@pytest.fixture(scope="module")
def digits_run(tmp_path_factory):
    model_dir = tmp_path_factory.mktemp("runs") / "digits"
    fitted.write_digits_run(model_dir)
    return model_dir


def test_the_nearest_vectors_vote():
    rng = np.random.default_rng(0)
    vectors, labels, others = rng.normal(size=(60, 8)), rng.integers(0, 3, 60), rng.normal(size=(20, 8))

    def unit(x):
        return x / np.linalg.norm(x, axis=1, keepdims=True)

    cosines = unit(others) @ unit(vectors).T
    for neighbors in (1, 5):
        expected = []
        for row in cosines:
            nearest = np.argsort(-row)[:neighbors]
            votes = np.bincount(labels[nearest], weights=1 / (1 - row[nearest]), minlength=3)
            expected.append(votes.argmax())
        np.testing.assert_array_equal(find_neighbor_classes(vectors, labels, others, neighbors), expected)
    np.testing.assert_array_equal(find_neighbor_classes(vectors, labels, 7 * vectors, 1), labels)


def test_a_linear_rule_is_found_whatever_the_scale_of_a_feature():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(400, 4)) * [1e-4, 1, 1, 1e4]
    labels = (vectors[:, 0] > 0).astype(int)
    assert np.mean(find_linear_classes(vectors[:300], labels[:300], vectors[300:]) == labels[300:]) > 0.95


def test_a_network_for_digits_separates_digits(digits_run):
    result = probe_model(digits_run)
    assert (result["train_images"], result["examples"], result["classes"]) == (1437, 360, 10)
    assert result["linear"] > 0.8 and result["neighbors"] > 0.8 and result["chance"] < 0.2


def test_other_classes_in_a_folder(digits_run, tmp_path, capsys):
    rng = np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 3)):
        for name, level in (("dark", 40), ("light", 215)):
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = rng.normal(level, 10, (32, 32, 3)).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(tmp_path / split / name / f"{number}.png")
    data = [f"--data_dir={tmp_path}", "--set", "data.source=folder", "--set", "data.eval_split=val"]
    assert not run_here("probe", f"--model_dir={digits_run}", *data)
    out = capsys.readouterr().out
    assert "12 training and 6 evaluation images of 2 classes" in out and "most frequent class 50.00%" in out
    assert len(load_model(digits_run).class_names) == 10
    assert exit_status("probe", f"--model_dir={digits_run}", f"--data_dir={tmp_path}/nothing", *data[1:]) == 1
    assert "nothing" in capsys.readouterr().err
