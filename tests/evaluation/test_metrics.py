"""What an evaluation counts, compared with scikit-learn, in several batches with padding."""

import keras
import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st

from efficientnet_tf.evaluation.metrics import ClassMetrics, LabelMetrics, NumberMetrics, format_evaluation


def evaluate(metrics, outputs, labels, batch=7):
    """Return the results for all rows, in batches of which the last is padded with rows that must not count."""
    sums = np.zeros(metrics.size)
    for start in range(0, len(outputs), batch):
        parts = [np.asarray(array[start : start + batch]) for array in (outputs, labels)]
        padding = batch - len(parts[0])
        padded = [np.concatenate([part, np.full((padding, *part.shape[1:]), 1, part.dtype)]) for part in parts]
        weights = np.array([1.0] * len(parts[0]) + [0.0] * padding, np.float32)
        sums += np.asarray(metrics.sum_up(*map(keras.ops.convert_to_tensor, (*padded, weights))), float)
    return metrics.read(sums, len(outputs))


@given(st.integers(1, 40), st.integers(1, 6), st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_labels_as_scikit_learn(images, labels, seed):
    rng = np.random.default_rng(seed)
    true = (rng.random((images, labels)) < rng.random(labels)).astype(np.float32)
    outputs = rng.normal(0, 2, (images, labels)).astype(np.float32)
    result = evaluate(LabelMetrics(labels), outputs, true)
    predicted, there = outputs > 0, true.any(axis=0)
    scores = (
        sklearn.metrics.f1_score(true, predicted, average=None, zero_division=0)
        if labels > 1
        else [sklearn.metrics.f1_score(true, predicted, zero_division=0)]
    )
    expected = np.asarray(scores)[there].mean() if there.any() else 0.0
    assert result["f1"] == pytest.approx(expected, abs=1e-6)
    assert result["exact"] == pytest.approx((predicted == true).all(axis=1).mean())
    probability = 1 / (1 + np.exp(-outputs.astype(float)))
    loss = -np.where(true == 1, np.log(probability), np.log(1 - probability)).mean()
    assert result["loss"] == pytest.approx(loss, rel=1e-4)
    assert result["examples"] == images


def test_a_label_that_is_nan_is_wrong():
    outputs = np.array([[np.nan, 1.0], [np.nan, -1.0]], np.float32)
    true = np.array([[1.0, 1.0], [0.0, 1.0]], np.float32)
    result = evaluate(LabelMetrics(2), outputs, true)
    assert result["exact"] == 0 and result["f1"] == pytest.approx((0 + 2 / 3) / 2)


@given(st.integers(2, 40), st.integers(1, 4), st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_numbers_as_scikit_learn(images, numbers, seed):
    rng = np.random.default_rng(seed)
    mean, std = rng.normal(0, 1000, numbers), rng.uniform(0.1, 30, numbers)
    true = (mean + std * rng.normal(0, 1, (images, numbers))).astype(np.float32)
    outputs = (true + std * rng.normal(0, 0.5, (images, numbers))).astype(np.float32)
    result = evaluate(NumberMetrics(tuple(mean), tuple(std)), outputs, true)
    assert result["mae"] == pytest.approx(sklearn.metrics.mean_absolute_error(true, outputs), rel=1e-3)
    assert result["r2"] == pytest.approx(sklearn.metrics.r2_score(true, outputs), rel=2e-3, abs=2e-3)
    assert result["loss"] == pytest.approx((((outputs - true) / std) ** 2).mean(), rel=1e-3)


@pytest.mark.parametrize(("outputs", "r2"), [([3.0, 3.0], 1.0), ([3.0, 4.0], 0.0)])
def test_r2_of_numbers_that_are_all_the_same(outputs, r2):
    true = np.array([[3.0], [3.0]], np.float32)
    outputs = np.array(outputs, np.float32)[:, None]
    assert evaluate(NumberMetrics((1.0,), (2.0,)), outputs, true)["r2"] == r2
    assert sklearn.metrics.r2_score(true, outputs) == r2


def test_top5_is_shown_for_more_than_five_classes_only():
    rng = np.random.default_rng(0)
    for classes in (5, 6):
        outputs, true = rng.normal(0, 1, (50, classes)).astype(np.float32), rng.integers(0, classes, 50)
        result = evaluate(ClassMetrics(classes), outputs, true.astype(np.int32))
        assert ("top5" in result) == (classes > 5)
        for k, key in ((1, "top1"), (5, "top5")):
            if key in result:
                expected = sklearn.metrics.top_k_accuracy_score(true, outputs, k=k, labels=range(classes))
                assert result[key] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("result", "line"),
    [
        ({"top1": 0.5, "loss": 1.5}, "top-1 50.00%, loss 1.5000 on 4 images, EMA"),
        ({"f1": 0.25, "exact": 0.5, "loss": 1.0}, "F1 25.00%, all labels right 50.00%, loss 1.0000 on 4 images, EMA"),
        (
            {"mae": 1234.5, "r2": -0.5, "loss": 1.0},
            "mean absolute error 1234, R2 -0.5000, loss 1.0000 on 4 images, EMA",
        ),
    ],
)
def test_line_for_people(result, line):
    assert format_evaluation({"ema": result | {"examples": 4}}) == line
