"""Which evaluation counts as the best, and when a run ends because none is better."""

import json
import math

import pytest

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.load import load_config
from efficientnet_tf.models.selection import Selection, check_metric, parse_selection


def add_all(metric, values, selection=None):
    """Add evaluations at the steps 10, 20, ... whose EMA has these values of a metric. The raw weights are perfect."""
    selection = selection or Selection(metric)
    perfect = 0.0 if metric == "loss" else 1.0
    for step, value in enumerate(values, selection.step // 10 + 1):
        results = {"raw": {metric: perfect}, "ema": {metric: value}}
        selection = selection.add(10 * step, results, selection.improves(results))
    return selection


@pytest.mark.parametrize(
    ("metric", "values", "best", "since"),
    [
        ("top1", [0.2, 0.7, 0.5, 0.6], 20, 2),
        ("top5", [0.2, 0.7, 0.9], 30, 0),
        ("loss", [2.0, 0.5, 1.0], 20, 1),
        ("loss", [2.0, math.inf], 10, 1),
        ("top1", [0.5, 0.5, 0.5], 10, 2),
        ("loss", [math.nan, 3.0, math.nan], 20, 1),
        ("loss", [math.nan, math.nan], None, 2),
        ("top1", [0.0], 10, 0),
    ],
)
def test_the_first_of_the_best_values_of_the_ema_counts(metric, values, best, since):
    selection = add_all(metric, values)
    assert (selection.best_step, selection.since_best, selection.step) == (best, since, 10 * len(values))
    for end in range(len(values)):  # A restored selection decides in the same way.
        restored = parse_selection(add_all(metric, values[:end]).to_text())
        assert add_all(metric, values[end:], restored) == selection


def test_without_an_ema_the_raw_weights_count():
    results = {"raw": {"top1": 0.3}}
    assert Selection("top1").improves(results)
    assert Selection("top1").add(10, results, True).best_value == 0.3


def test_an_evaluation_that_is_repeated_changes_nothing():
    selection = add_all("top1", [0.2, 0.7, 0.5])
    results = {"raw": {"top1": 0.9}}
    assert selection.add(30, results, selection.improves(results)) == selection
    assert (selection.lacks(30), selection.lacks(40)) == (False, True)


def test_the_run_ends_after_as_many_evaluations_without_progress_as_allowed():
    ends = [add_all("loss", [3.0, 2.0, 2.5, 2.0, 2.1][:count]).is_exhausted(3) for count in range(6)]
    assert ends == [False, False, False, False, False, True]
    assert not add_all("loss", [1.0, 2.0, 3.0, 4.0]).is_exhausted(None)


def test_nothing_is_selected_by_default():
    selection = Selection()
    results = {"raw": {"top1": 0.9}}
    assert not selection.improves(results) and not selection.lacks(10) and not selection.is_exhausted(1)
    assert selection.add(10, results, False) is selection
    assert selection.describe() == ""


def test_people_read_step_metric_and_value():
    assert add_all("top1", [0.5, 0.97222]).describe() == "step 20 with a top-1 of 97.22%"
    assert add_all("loss", [0.125]).describe() == "step 10 with a loss of 0.1250"


@pytest.mark.parametrize(
    "change",
    [
        {"metric": "accuracy"},
        {"metric": ["top1"]},
        {"step": -1},
        {"step": "10"},
        {"best_step": 1.5},
        {"best_value": None},
        {"since_best": True},
        {"more": 1},
    ],
)
def test_a_damaged_record_is_refused(change):
    values = json.loads(add_all("top1", [0.5]).to_text()) | change
    with pytest.raises(ValueError, match="record of the best evaluation is damaged"):
        parse_selection(json.dumps(values))
    with pytest.raises(ValueError, match="damaged"):
        parse_selection("[]")


def test_settings_that_contradict_each_other_are_refused():
    with pytest.raises(UserError, match=r"eval\.patience=3 needs eval\.best, .* Set eval\.best=top1 or"):
        load_config("b0", "digits", ["eval.patience=3"])
    assert load_config("b0", "digits", ["eval.patience=3", "eval.best=loss"]).eval.patience == 3
    check_metric("top5", 6)
    with pytest.raises(UserError, match=r"eval\.best=top5 needs more than five classes, but the data has 5"):
        check_metric("top5", 5)
