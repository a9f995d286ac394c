"""Tests of the coefficient search: the grid, the networks that it gives, and their ranking."""

import math

import numpy as np
import pytest

from efficientnet_tf.config.load import load_variant
from efficientnet_tf.runtime.terminal import render
from efficientnet_tf.scaling.compound import PAPER, round_channels, round_resolution
from efficientnet_tf.study.coefficients import (
    find_candidates,
    find_points,
    find_tied,
    make_ranking_table,
    rank,
    standard_error,
    summarize_ranking,
)
from efficientnet_tf.study.runs import make_runs

B0 = load_variant("b0")


@pytest.mark.parametrize("tolerance", [0.02, 0.1, 0.5])
def test_all_points_of_the_grid_are_found(tolerance):
    # In hundredths, so that the comparison is exact.
    a, b, c = (axis.ravel() for axis in np.meshgrid(*[np.arange(100, 151, 5, dtype=np.int64)] * 3, indexing="ij"))
    feasible = np.abs(a * b**2 * c**2 - 2 * 10**10) <= round(tolerance * 10**10)
    expected = [tuple(point) for point in (np.stack([a, b, c], 1)[feasible] / 100).tolist()]
    points = find_points(tolerance=tolerance)
    assert [(p.alpha, p.beta, p.gamma) for p in points] == expected
    assert (PAPER in points) == (tolerance > 0.08)


@pytest.mark.parametrize("resolution", [32, 224])
def test_points_of_the_same_network_are_one_candidate(resolution):
    baseline = B0.model_copy(update={"resolution": resolution})
    points = find_points()
    candidates = find_candidates(baseline, points)
    assert sorted(map(repr, points)) == sorted(repr(p) for c in candidates for p in c.specs)

    def shape(point):
        repeats = [math.ceil(stage.repeats * round(point.alpha, 4)) for stage in B0.stages]
        channels = [
            round_channels(count, round(point.beta, 4))
            for count in (B0.stem_channels, B0.head_channels, *(stage.channels for stage in B0.stages))
        ]
        side = round_resolution(resolution * point.gamma) if point.gamma > 1 else resolution
        return (*repeats, *channels, side)

    shapes = [{shape(point) for point in c.specs} for c in candidates]
    assert all(len(same) == 1 for same in shapes)
    assert len(set.union(*shapes)) == len(candidates) < len(points)
    names = [run.name for run in make_runs([c.network for c in candidates], 2)]
    assert len(set(names)) == 2 * len(candidates)


def make_rows(candidates, table):
    return [
        {"network": candidate.name, "seed": seed, "top1": top1}
        for candidate, values in zip(candidates, table, strict=True)
        for seed, top1 in enumerate(values)
    ]


def test_ranking_and_its_uncertainty():
    candidates = find_candidates(B0, find_points())[:4]
    rows = make_rows(candidates, [(0.90, 0.92, 0.91), (0.915, 0.915, 0.915), (0.95,), (0.80, 0.86, 0.83)])
    scores = rank(candidates, rows)
    assert [candidates.index(score.candidate) for score in scores] == [1, 0, 3, 2]
    assert [score.mean for score in scores] == pytest.approx([0.915, 0.91, 0.83, 0.95])
    assert scores[1].std == pytest.approx(np.std([0.90, 0.92, 0.91], ddof=1)) and scores[3].std is None
    error = np.sqrt(np.mean(np.var([[0.90, 0.92, 0.91], [0.915] * 3, [0.80, 0.86, 0.83]], axis=1, ddof=1)) / 3)
    assert standard_error(scores) == pytest.approx(error)
    assert find_tied(scores) == scores[:2]
    summary = summarize_ranking(scores, 3)
    assert f"2 of 4 networks are within one standard error ({error:.2%}) of the best. Their order is not" in summary
    assert "Networks with failed runs are ranked last: 1." in summary
    (second,) = [line.split() for line in render(make_ranking_table(scores)).splitlines() if line.split()[:1] == ["2"]]
    assert second[:6] == ["2", "91.00%", "1.00%", "90.00%", "92.00%", "3"]


def test_one_seed_has_a_ranking_but_no_spread():
    candidates = find_candidates(B0, find_points())[:2]
    scores = rank(candidates, make_rows(candidates, [(0.5,), (0.6,)]))
    assert [score.candidate for score in scores] == candidates[::-1]
    assert standard_error(scores) is None and find_tied(scores) == scores
    assert "it is unknown how much of the order is chance" in summarize_ranking(scores, 1)
