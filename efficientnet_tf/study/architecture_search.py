"""The search for a baseline network: a plan whose runs are chosen one after the other, each from the results so far.

Source: paper, section 4. B0 came out of a search that maximizes ACC * (MACs / target) ^ -0.07.
"""

import logging
from collections.abc import Sequence
from typing import Any

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.text import escape
from efficientnet_tf.models.run_metrics import is_number
from efficientnet_tf.scaling.complexity import NetworkCost, count_cost
from efficientnet_tf.study.job_queue import read_owners, run_state
from efficientnet_tf.study.mnasnet_space import Choices, Space
from efficientnet_tf.study.runs import Owners, Plan, Run
from efficientnet_tf.study.sampling import MOST_TIMES, Settings, Trial, find_stop, sample_choices

STUDY_NAME = "mnasnet"  # in the database


class ArchitectureSearch(Plan):
    """The runs of a search. The first one trains the baseline.

    Everything that it knows about the trials comes from the job queue, so that any number of processes can share it.

    Args:
        space: The search space.
        settings: The settings of the search.
    """

    def __init__(self, space: Space, settings: Settings):
        super().__init__(())
        self.space, self.settings = space, settings
        self.stops_early = settings.prunes
        self._is_exhausted = False
        self._costs: dict[tuple, NetworkCost] = {}  # of the networks that were counted, by their choices

    @property
    def total(self) -> int:
        """The number of runs in the end."""
        return self.settings.trials

    def list_runs(self, owners: Owners) -> Sequence[Run]:
        """Return the runs so far, and one more if none of them is waiting."""
        trials = self.read_trials(owners)
        runs = [self._make_run(trial.name, trial.sampler, trial.choices) for trial in trials]
        if not trials:
            return [self._make_run(_name(0), "baseline", self.space.baseline_choices)]
        is_waiting = any(trial.state in ("waiting", "interrupted") for trial in trials)
        is_broken = trials[0].state == "failed"  # Then the others would fail as well, one after the other.
        if len(trials) < self.total and not is_waiting and not is_broken and not self._is_exhausted:
            choices = sample_choices(self.space, trials, self.settings)
            if choices is None:
                self._is_exhausted = True
                logging.getLogger(__name__).warning(
                    "No other network with at most %g times target_macs=%g was found, so the search ends with %d. "
                    "Increase it to search on.",
                    *(MOST_TIMES, self.settings.target_macs, len(trials)),
                )
            else:
                runs.append(self._make_run(_name(len(trials)), self.settings.sampler, choices))
        return runs

    def find_stop(self, run: Run, accuracies: dict[int, float], owners: Owners) -> int | None:
        """Return the step at which a run is clearly behind those that are done, or None if it should go on."""
        macs = self._count({key: run.labels[key] for key in self.space.options}).macs
        values = {step: self.settings.rate(top1, macs) for step, top1 in accuracies.items()}
        return find_stop(values, [t.values for t in self.read_trials(owners) if t.state == "done" and t.values])

    def read_trials(self, owners: Owners) -> list[Trial]:
        """Return the trials that the queue holds, in the order in which they were chosen.

        Raises:
            UserError: If one was queued by a search of another space.
        """
        return [self._read_trial(name, owners[name]) for name in sorted(owners, key=lambda name: (len(name), name))]

    def _read_trial(self, name: str, owner: Any) -> Trial:
        labels = owner.user_attrs.get("labels")
        choices = {key: labels.get(key) for key in self.space.options} if isinstance(labels, dict) else None
        if choices is None or not self.space.contains(choices):
            raise UserError(
                f"Run {escape(name)} was queued by a search with another baseline. Use another output folder."
            )
        cost, state = self._count(choices), run_state(owner)
        found = (str(labels.get("sampler")), choices, self.space.build(choices, name), cost.macs, cost.params)
        if state not in ("done", "pruned"):
            return Trial(name, *found, state)
        result = owner.user_attrs.get("result")
        if not _is_result(result):
            return Trial(name, *found, "damaged")
        values = {step: self.settings.rate(top1, cost.macs) for step, top1 in result["accuracies"]}
        return Trial(name, *found, state, result["top1"], values, self.settings.rate(result["top1"], cost.macs))

    def _count(self, choices: Choices) -> NetworkCost:
        key = tuple(choices.items())
        if key not in self._costs:
            self._costs[key] = count_cost(self.space.build(choices, "counted"), classes=self.settings.classes)
        return self._costs[key]

    def _make_run(self, name: str, sampler: str, choices: Choices) -> Run:
        labels = {"sampler": sampler, **choices, "seed": self.settings.seed}
        return Run(name, self.space.build(choices, name), labels)


def _name(number: int) -> str:
    return f"trial{number:03d}"


def _is_result(result: Any) -> bool:
    """Return whether a value from the database has the accuracies of a run."""
    return (
        isinstance(result, dict)
        and is_number(result.get("top1"))
        and isinstance(result.get("accuracies"), list)
        and all(
            isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], int) and is_number(pair[1])
            for pair in result["accuracies"]
        )
    )


def read_search(search: ArchitectureSearch, output_dir: str, storage: str | None) -> list[Trial]:
    """Return the trials of a search. Runs nothing.

    Args:
        search: The search.
        output_dir: Its folder.
        storage: Database URL, or None for the default database in `output_dir`.
    """
    return search.read_trials(read_owners(output_dir, storage, STUDY_NAME))
