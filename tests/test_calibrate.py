"""The command `calibrate`: temperatures and thresholds, compared with a search, and models that keep them."""

import fitted
import numpy as np
import pytest
import scipy.special
import sklearn.metrics
from commands import exit_status
from hypothesis import given
from hypothesis import strategies as st

from efficientnet_tf import evaluate_model, load_model
from efficientnet_tf.calibrate import _fit, calibrate_model
from efficientnet_tf.config.errors import UserError
from efficientnet_tf.evaluation.calibration import fit_temperature, measure_cross_entropy

NAMES = ["a", "b", "c"]


@pytest.fixture(scope="module")
def digits_run(tmp_path_factory):
    model_dir = tmp_path_factory.mktemp("runs") / "digits"
    fitted.write_digits_run(model_dir)
    return model_dir


def draw(temperature, count=4000, seed=0):
    """Return logits, and labels that are drawn from their probabilities at another temperature."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (count, 3))
    probabilities = scipy.special.softmax(logits / temperature, axis=1)
    labels = (probabilities.cumsum(axis=1) < rng.random((count, 1))).sum(axis=1).clip(0, 2)
    return logits.astype(np.float32), labels.astype(np.int32)


@given(st.floats(0.3, 6.0), st.integers(0, 3))
def test_the_temperature_of_the_labels_is_found(temperature, seed):
    assert fit_temperature(*draw(temperature, seed=seed)) == pytest.approx(temperature, rel=0.15)


def test_no_other_temperature_is_better():
    logits, labels = draw(2.5)
    found = measure_cross_entropy(logits / fit_temperature(logits, labels), labels)
    grid = [measure_cross_entropy(logits / temperature, labels) for temperature in np.geomspace(0.05, 20, 400)]
    assert found <= min(grid) + 1e-9
    assert measure_cross_entropy(logits, labels) == pytest.approx(
        sklearn.metrics.log_loss(labels, scipy.special.softmax(logits.astype(float), axis=1)), rel=1e-6
    )


def test_half_becomes_the_best_threshold_of_each_label():
    rng = np.random.default_rng(0)
    labels = (rng.random((500, 3)) < [0.1, 0.5, 0.9]).astype(np.float32)
    logits = (rng.normal(0, 1, (500, 3)) + 2 * labels - [2.5, 1, -1]).astype(np.float32)
    scale, shift, result = _fit("multilabel", logits, labels, NAMES)
    chosen = scipy.special.expit(logits * scale + shift) > 0.5
    for number in range(3):
        scores = [sklearn.metrics.f1_score(labels[:, number], logits[:, number] > cut) for cut in np.unique(logits)]
        assert sklearn.metrics.f1_score(labels[:, number], chosen[:, number]) == pytest.approx(max(scores), abs=1e-9)
    assert result["after"]["macro_f1"] >= result["before"]["macro_f1"]
    assert list(result["thresholds"]) == NAMES


def test_a_label_on_no_image_keeps_its_threshold():
    labels = np.zeros((20, 3), np.float32)
    labels[:10, 0] = 1
    logits = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    _, shift, _ = _fit("multilabel", logits, labels, NAMES)
    np.testing.assert_array_equal(shift[1:], 0)


def test_the_model_keeps_what_was_found(digits_run, tmp_path):
    result = calibrate_model(digits_run, tmp_path / "calibrated")
    model, original = load_model(tmp_path / "calibrated"), load_model(digits_run)
    pixels = np.random.default_rng(0).uniform(0, 255, (8, 32, 32, 3)).astype(np.float32)
    np.testing.assert_allclose(model(pixels) * result["temperature"], original(pixels), rtol=1e-4, atol=1e-4)
    evaluated, before = evaluate_model(tmp_path / "calibrated"), evaluate_model(digits_run)
    assert evaluated["top1"] == before["top1"]
    assert evaluated["loss"] == pytest.approx(result["after"]["loss"], rel=1e-4)
    assert evaluated["loss"] < before["loss"]


def test_refusals(digits_run, tmp_path, capsys):
    (tmp_path / "exists").mkdir()
    assert exit_status("calibrate", f"--model_dir={digits_run}", f"--output={tmp_path}/exists") == 1
    assert "exists already. Use a new folder." in capsys.readouterr().err
    with pytest.raises(UserError, match="no such file or folder"):
        calibrate_model(tmp_path / "nothing", tmp_path / "x")
