"""Metrics of single classes, labels and numbers, computed independently."""

import json

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from efficientnet_tf.evaluation import details


def make_classes(seed, images, classes):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, images)
    logits = rng.normal(0, 1, (images, classes)) + 1.5 * np.eye(classes)[labels]
    return scipy.special.softmax(logits, axis=1), labels


def auroc(scores, true):
    """The probability that an image with the class ranks above one without, ties counting half (Mann-Whitney)."""
    positive, negative = scores[true], scores[~true]
    return scipy.stats.mannwhitneyu(positive, negative).statistic / (len(positive) * len(negative))


@given(st.integers(0, 2**32 - 1), st.integers(2, 60), st.integers(2, 5))
@settings(max_examples=40, deadline=None)
def test_classes(seed, images, classes):
    probabilities, labels = make_classes(seed, images, classes)
    found = details.describe_classes(probabilities, labels, [f"c{i}" for i in range(classes)])
    predicted = probabilities.argmax(axis=1)
    for number, row in enumerate(found["rows"]):
        true, chosen = labels == number, predicted == number
        assert (row["name"], row["examples"]) == (f"c{number}", true.sum())
        hits = (true & chosen).sum()
        assert row["precision"] == (pytest.approx(hits / chosen.sum()) if chosen.any() else None)
        assert row["recall"] == (pytest.approx(hits / true.sum()) if true.any() else None)
        if true.any() and not true.all():
            assert row["auroc"] == pytest.approx(auroc(probabilities[:, number], true))
        else:
            assert row["auroc"] is None
    known = [row for row in found["rows"] if row["examples"]]
    summary = found["summary"]
    assert summary["top1"] == pytest.approx((predicted == labels).mean())
    assert summary["macro_recall"] == pytest.approx(np.mean([row["recall"] for row in known]))
    assert summary["weighted_recall"] == pytest.approx(summary["top1"]), "a known identity"
    json.dumps(found, allow_nan=False)


def test_the_average_precision_of_a_ranking():
    """Images with the class are first, third and fourth: (1/1 + 2/3 + 3/4) / 3."""
    scores, labels = np.array([[0.9], [0.8], [0.7], [0.6], [0.5]]), np.array([[1], [0], [1], [1], [0]])
    found = details.describe_labels(scores, labels, ["a"])
    assert found["rows"][0]["average_precision"] == pytest.approx((1 + 2 / 3 + 3 / 4) / 3)


def test_the_best_threshold():
    """Above 0.55 there are the three images with the label and one without: F1 = 6/7, which no other threshold has."""
    scores, labels = np.array([[0.9], [0.8], [0.7], [0.6], [0.5]]), np.array([[1], [0], [1], [1], [0]])
    threshold = details.describe_labels(scores, labels, ["a"])["rows"][0]["best_threshold"]
    assert 0.5 < threshold < 0.6
    for other in np.linspace(0, 1, 101):
        chosen = scores[:, 0] > other
        true = labels[:, 0] == 1
        assert 2 * (chosen & true).sum() / (chosen.sum() + true.sum()) <= 6 / 7 + 1e-9


def test_calibration():
    """Two bins: 10 predictions with 0.95 of which 8 are right, and 10 with 0.55 of which 5 are."""
    confidences = np.array([0.95] * 10 + [0.55] * 10)
    right = np.array([1] * 8 + [0] * 2 + [1] * 5 + [0] * 5, bool)
    bins = [row for row in details.bin_confidences(confidences, right) if row["examples"]]
    assert [(row["confidence"], row["accuracy"]) for row in bins] == [
        (pytest.approx(0.55), 0.5), (pytest.approx(0.95), 0.8)
    ]  # fmt: skip
    probabilities = np.stack([confidences, 1 - confidences], axis=1)
    found = details.describe_classes(probabilities, np.where(right, 0, 1), ["a", "b"])
    assert found["summary"]["calibration_error"] == pytest.approx((0.15 + 0.05) / 2)


@pytest.mark.parametrize(("confidence", "place"), [(0.0, 0), (1 / 15, 0), (0.067, 1), (1.0, 14)])
def test_the_upper_limit_belongs_to_a_bin(confidence, place):
    rows = details.bin_confidences(np.array([confidence]), np.array([True]))
    assert [row["examples"] for row in rows].index(1) == place


def test_labels_that_are_never_there():
    found = details.describe_labels(np.full((4, 2), 0.2), np.array([[0, 1]] * 4), ["never", "always"])
    never, always = found["rows"]
    assert never == {"name": "never", "examples": 0, "best_threshold": None} | dict.fromkeys(
        ("precision", "recall", "f1", "average_precision", "auroc")
    )
    assert (always["recall"], always["precision"], always["auroc"], always["best_threshold"]) == (0, None, None, None)
    assert found["summary"]["macro_precision"] == 0 and found["summary"]["macro_auroc"] is None


def test_numbers():
    true = np.array([[1.0, 10], [2, 20], [3, 30]])
    found = details.describe_numbers(true + [[1, 0], [1, 0], [-2, 3]], true, ["a", "b"])
    first, second = found["rows"]
    assert first == {"name": "a", "examples": 3, "mae": pytest.approx(4 / 3), "rmse": pytest.approx(2**0.5),
                     "bias": pytest.approx(0), "r2": pytest.approx(1 - 6 / 2)}  # fmt: skip
    assert second["r2"] == pytest.approx(1 - 9 / 200) and found["summary"]["bias"] == pytest.approx(0.5)


def test_curves_have_few_points_and_both_ends():
    rng = np.random.default_rng(0)
    scores = rng.random((5000, 2))
    indicator = np.stack([rng.random(5000) < scores[:, 0], np.zeros(5000, bool)], axis=1)
    curve, empty = details.list_curves(scores, indicator)
    assert empty == {}
    assert len(curve["recall"]) == len(curve["precision"]) == 200
    assert (curve["false_positive_rate"][0], curve["true_positive_rate"][-1]) == (0, 1)
    assert curve["recall"][0] == 1 and curve["recall"][-1] == 0
    area = -np.trapezoid(curve["precision"], curve["recall"])
    assert area == pytest.approx(
        details.describe_labels(scores, indicator, "ab")["rows"][0]["average_precision"], abs=0.01
    )
