"""Tests of how a search for a baseline chooses networks, stops them early, and finds the best of them."""

import random
import statistics
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from study_runs import TINY

from efficientnet_tf.config.load import load_variant
from efficientnet_tf.scaling.complexity import count_cost
from efficientnet_tf.scaling.compound import scale_network
from efficientnet_tf.study.architecture_report import find_best, find_pareto_front
from efficientnet_tf.study.mnasnet_space import Space
from efficientnet_tf.study.sampling import MOST_TIMES, Settings, Trial, find_stop, sample_choices

SMALL = Space(TINY)
B0 = Space(load_variant("b0"))


def make_settings(space, sampler, **changes):
    return Settings(sampler, 30, count_cost(space.baseline).macs, **changes)


def score(spec):
    """Return a made-up accuracy, which separable blocks, large kernels and, late in the network, channels increase."""
    points = [
        (stage.kernel == 5) + (stage.block == "separable") + number * stage.channels / 500
        for number, stage in enumerate(spec.stages)
    ]
    return sum(points) / (4 * len(points))


def search(space, settings, count):
    """Return the trials of a search that trains with `score`."""
    trials = []
    for number in range(count):
        choices = sample_choices(space, trials, settings) if trials else space.baseline_choices
        spec = space.build(choices, f"trial{number}")
        cost, top1 = count_cost(spec), score(spec)
        objective = settings.rate(top1, cost.macs)
        found = (settings.sampler, choices, spec, cost.macs, cost.params)
        trials.append(Trial(spec.name, *found, "done", top1, {1: objective}, objective))
    return trials


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "random"])
def test_sampled_networks_are_new_and_affordable(sampler):
    settings = make_settings(SMALL, sampler)
    trials = search(SMALL, settings, 24)
    assert len({scale_network(trial.spec) for trial in trials}) == len(trials)
    assert max(trial.macs for trial in trials) <= MOST_TIMES * settings.target_macs
    free = [SMALL.build(SMALL.sample(random.Random(seed)), "x") for seed in range(100)]
    assert max(count_cost(spec).macs for spec in free) > MOST_TIMES * settings.target_macs, "others are rejected"


@pytest.mark.parametrize("sampler", ["tpe", "nsga2"])
def test_a_sample_depends_on_the_results_and_the_seed_only(sampler):
    settings = make_settings(SMALL, sampler)
    trials = search(SMALL, settings, 24)
    again = sample_choices(SMALL, trials, settings)
    assert again == sample_choices(SMALL, list(trials), replace(settings, trials=99))
    assert again != sample_choices(SMALL, trials, replace(settings, seed=1))
    others = [replace(t, objective=1 - t.objective, top1=1 - t.top1, values={1: 1 - t.objective}) for t in trials]
    assert again != sample_choices(SMALL, others, settings)


def test_no_sample_is_left_when_the_target_is_too_small():
    assert sample_choices(SMALL, [], replace(make_settings(SMALL, "random"), target_macs=1.0)) is None


@pytest.mark.slow
def test_samplers_choose_better_networks_than_chance():
    later, best = {}, {}
    for sampler in ("tpe", "nsga2", "random"):
        found = [search(B0, make_settings(B0, sampler, seed=seed), 40) for seed in range(3)]
        later[sampler] = [statistics.mean(trial.objective for trial in trials[20:]) for trials in found]
        best[sampler] = statistics.mean(find_best(trials).objective for trials in found)
    assert min(later["tpe"]) > max(later["random"]) and best["tpe"] > best["random"] + 0.05
    assert statistics.mean(later["nsga2"]) > statistics.mean(later["random"]) + 0.02


def test_objective_is_that_of_the_paper():
    settings = Settings("tpe", 1, target_macs=400e6)
    assert settings.rate(0.77, 400e6) == 0.77
    assert settings.rate(0.77, 800e6) == pytest.approx(0.77 * 2**-0.07)


FINISHED = [{4: 0.1 * i, 8: 0.2 * i, 12: 0.3 * i} for i in (1, 2, 3, 4, 5)]


@pytest.mark.parametrize(
    ("values", "finished", "step"),
    [
        ({4: 0.31, 8: 0.61}, FINISHED, None),
        ({4: 0.29}, FINISHED, 4),
        ({4: 0.29, 8: 0.9, 12: 2.0}, FINISHED, 4),  # It ended before anybody looked.
        ({4: 0.31, 8: 0.59}, FINISHED, 8),
        ({4: 0.31, 8: 0.61, 12: 0.1}, FINISHED, None),  # Its end.
        ({4: 0.0}, FINISHED[1:], None),  # Too few to compare with.
        ({3: 0.0}, [{3: 1.0, 12: 1.0}] * 5, None),  # Too early.
        ({10: 0.0}, [{10: 1.0, 12: 1.0}] * 5, None),  # Too late.
        ({9: 0.0}, [{9: 1.0, 12: 1.0}] * 5, 9),
        ({}, FINISHED, None),
        ({4: 0.0}, [], None),
    ],
)
def test_a_run_below_the_median_is_stopped(values, finished, step):
    assert find_stop(values, finished) == step


def make_trial(name, macs, top1, state="done"):
    return Trial(name, "tpe", {}, TINY, macs, 1, state, top1, {1: top1}, top1 * macs**-0.07)


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), min_size=1, max_size=12))
def test_the_pareto_front_has_each_network_that_no_other_beats(points):
    trials = [make_trial(f"{i}", macs, top1 / 10) for i, (macs, top1) in enumerate(points)]
    unbeaten = {
        point
        for point in points
        if not any(other[0] <= point[0] and other[1] >= point[1] and other != point for other in points)
    }
    front = find_pareto_front(trials)
    assert [(t.macs, round(t.top1 * 10)) for t in front] == sorted(unbeaten)


def test_the_best_network_was_trained_to_its_end():
    stopped, best, other = make_trial("a", 2, 0.9, "pruned"), make_trial("b", 2, 0.8), make_trial("c", 99, 0.8)
    assert find_best([stopped, other, best]) is best and find_best([stopped]) is None
