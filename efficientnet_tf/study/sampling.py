"""Samples the next network of a search from the results so far, and says when a network is clearly behind.

Each sample is drawn by a sampler of Optuna that is made for it from the trials so far, the seed and the number of
trials. It depends on nothing else. A search that was interrupted therefore goes on as if it had not been, and processes
share nothing but the job queue.
"""

import math
import random
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from efficientnet_tf.config.schema import ModelSpec
from efficientnet_tf.scaling.complexity import count_cost
from efficientnet_tf.scaling.compound import scale_network
from efficientnet_tf.study.mnasnet_space import Choices, Space

if TYPE_CHECKING:
    from optuna.study import Study

SAMPLERS = ("tpe", "nsga2", "random")
POPULATION = 10  # networks of a generation of NSGA-II
FIRST_RANDOM = 10  # networks, with the baseline, before TPE looks at results
MOST_TIMES = 2.0  # the target: networks with more multiply-adds are not trained
# Attempts to sample a network that is new and not too large: by the sampler, and then at random.
SAMPLER_ATTEMPTS, MOST_ATTEMPTS = 50, 1000
LEAST_FINISHED = 5  # networks to compare with before one is stopped early
# A run is stopped between these parts of it: earlier ones say little, and later ones save little.
FIRST_PART, LAST_PART = 1 / 3, 3 / 4


@dataclass(frozen=True)
class Settings:
    """What is searched for, and how.

    Attributes:
        sampler: One of `SAMPLERS`.
        trials: Number of networks.
        target_macs: Multiply-adds at which the objective is the accuracy.
        exponent: Exponent of the multiply-adds in the objective, at most 0.
        seed: Seed of the sampler, and of every training run.
        classes: Number of classes for which multiply-adds and parameters are counted.
        prunes: Whether runs that are clearly behind are stopped early.
    """

    sampler: str
    trials: int
    target_macs: float
    exponent: float = -0.07
    seed: int = 0
    classes: int = 1000
    prunes: bool = True

    def rate(self, top1: float, macs: float) -> float:
        """Return the objective, which is maximized: accuracy * (multiply-adds / target) ^ exponent.

        Source: paper, section 4.
        """
        return top1 * (macs / self.target_macs) ** self.exponent


@dataclass(frozen=True)
class Trial:
    """A network of the search.

    Attributes:
        name: Name of the network, of its run and of its variant.
        sampler: Name of the sampler that chose it, or "baseline".
        choices: The choices that give it.
        spec: The network.
        macs: Its multiply-adds.
        params: Its trainable parameters.
        state: "waiting", "running", "done", "pruned", "failed", "interrupted", or "damaged" if the database is.
        top1: Accuracy of the last evaluation, or of the one at which the run was stopped. None if there is none.
        values: The objective at each step at which the network was evaluated.
        objective: The objective at the last of them.
    """

    name: str
    sampler: str
    choices: Choices
    spec: ModelSpec
    macs: int
    params: int
    state: str = "waiting"
    top1: float | None = None
    values: Mapping[int, float] = field(default_factory=dict)
    objective: float | None = None


def sample_choices(space: Space, trials: Sequence[Trial], settings: Settings) -> Choices | None:
    """Return the choices of the next network: one that no trial has, with at most `MOST_TIMES` the target.

    Larger networks are rejected without training, because they would take most of the time and are far from the target.
    They do not count as trials.

    Args:
        space: The search space.
        trials: All trials so far.
        settings: The settings of the search.

    Returns:
        The choices, or None if `MOST_ATTEMPTS` samples had no such network.
    """
    rng = random.Random(f"{settings.seed}/{len(trials)}")
    known = {scale_network(trial.spec) for trial in trials}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Some options of the samplers are experimental in some versions.
        optuna = _import_optuna()
        options = {key: optuna.distributions.CategoricalDistribution(values) for key, values in space.options.items()}
        study = _make_study(trials, settings, options, rng.getrandbits(32))
        for attempt in range(MOST_ATTEMPTS):
            choices = study.ask(options).params if attempt < SAMPLER_ATTEMPTS else space.sample(rng)
            spec = space.build(choices, "sample")
            if is_affordable(spec, settings) and scale_network(spec) not in known:
                return choices
    return None


def is_affordable(spec: ModelSpec, settings: Settings) -> bool:
    """Return whether a network has at most `MOST_TIMES` the target of multiply-adds."""
    return count_cost(spec, classes=settings.classes).macs <= MOST_TIMES * settings.target_macs


def _import_optuna() -> Any:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def _make_study(trials: Sequence[Trial], settings: Settings, options: dict[str, Any], seed: int) -> "Study":
    """Return a study in memory that knows the trials."""
    optuna = _import_optuna()
    sampler = _make_sampler(settings.sampler, seed)
    if settings.sampler == "nsga2":
        study = optuna.create_study(directions=["maximize", "minimize"], sampler=sampler)
        for trial in trials:
            if trial.state == "done":
                study.enqueue_trial(trial.choices)
                asked = study.ask(options)
                # The sampler only notes the generation of the networks that it chose itself.
                sampler.get_trial_generation(study, study.get_trials(deepcopy=False)[asked.number])
                study.tell(asked, [trial.top1, trial.macs])
        return study
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for trial in trials:
        states = {"done": "COMPLETE", "pruned": "PRUNED", "failed": "FAIL", "damaged": "FAIL"}
        state = optuna.trial.TrialState[states.get(trial.state, "RUNNING")]
        known = {"params": trial.choices, "distributions": options, "intermediate_values": trial.values}
        value = trial.objective if trial.state == "done" else None
        study.add_trial(optuna.trial.create_trial(state=state, value=value, **known))
    return study


def _make_sampler(name: str, seed: int) -> Any:
    samplers = _import_optuna().samplers
    if name == "nsga2":
        return samplers.NSGAIISampler(population_size=POPULATION, seed=seed)
    if name == "tpe":
        # The constant liar keeps processes that share the work from choosing similar networks at the same time.
        return samplers.TPESampler(n_startup_trials=FIRST_RANDOM, multivariate=True, constant_liar=True, seed=seed)
    return samplers.RandomSampler(seed=seed)


def find_stop(values: Mapping[int, float], finished: Sequence[Mapping[int, float]]) -> int | None:
    """Return the first step at which a run is worse than half of the finished ones, by Optuna's median rule.

    It depends only on the values, not on when they are looked at.

    Args:
        values: The objective at each step of the run so far.
        finished: The same of the runs that were trained to their end. A run is only compared with at least
            `LEAST_FINISHED` others, and at steps from `FIRST_PART` to `LAST_PART` of a run.

    Returns:
        The step, or None if the run should go on.
    """
    end = max((step for other in finished for step in other), default=0)
    steps = [step for step in sorted(values) if step <= LAST_PART * end]
    if len(finished) < LEAST_FINISHED or not steps:
        return None
    optuna = _import_optuna()
    pruner = optuna.pruners.MedianPruner(LEAST_FINISHED, n_warmup_steps=math.ceil(FIRST_PART * end))
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(0))
    create = optuna.trial.create_trial
    study.add_trials([create(value=other[max(other)], intermediate_values=dict(other)) for other in finished])
    for count, step in enumerate(steps, 1):
        running = optuna.trial.TrialState.RUNNING
        so_far = create(state=running, intermediate_values={done: values[done] for done in steps[:count]})
        if pruner.prune(study, so_far):
            return step
    return None
