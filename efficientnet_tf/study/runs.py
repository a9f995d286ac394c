"""Training runs: the networks of a study, one run for each seed, and the config of each run."""

import os
import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.load import dump_variant, load_config, load_recipe_network, load_variant
from efficientnet_tf.config.schema import Config, ModelSpec
from efficientnet_tf.config.text import escape, shorten
from efficientnet_tf.runtime.files import write_text

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

MOST_RUNS = 100_000
LONGEST_NAME = 150  # bytes. Names of files have at most 255, with their endings.
# Keys of a network that only matter in training, or that follow from the images. All others are its architecture.
TRAINING_KEYS = {"dropout", "drop_connect", "batch_norm_momentum", "batch_norm_epsilon", "mean", "std"}
_ARCHITECTURE_KEYS = [key for key in ModelSpec.model_fields if key not in TRAINING_KEYS | {"name", "resolution"}]

Labels = dict[str, str | int | float]  # values that distinguish the networks of a study
Owners = Mapping[str, "FrozenTrial"]  # the trial that owns each run of the queue, by the name of the run


@dataclass(frozen=True)
class StudyNetwork:
    """A network of a study.

    Attributes:
        name: Unique name, which is also a valid folder name, such as "width1.4".
        spec: The network.
        base: The network that it was scaled from.
        labels: Values that distinguish it from the others, such as `{"dimension": "width", "scaling": "w=1.4"}`.
        overrides: Keys of the recipe to change, "section.key=value".
    """

    name: str
    spec: ModelSpec
    base: ModelSpec
    labels: Labels
    overrides: tuple[str, ...] = ()


@dataclass(frozen=True)
class Run:
    """A training run: one network with one seed.

    Attributes:
        name: Unique name, which is also a valid folder name, such as "width1.4_seed2".
        spec: The network.
        labels: Values that distinguish it from the others, including "seed".
        overrides: Keys of the recipe to change, "section.key=value". `train.seed` and `data.image_size` are always set
            from the seed and the spec.
    """

    name: str
    spec: ModelSpec
    labels: Labels
    overrides: tuple[str, ...] = ()


class Plan:
    """The runs of a study. `run_jobs` asks for them again and again, so that a subclass can choose runs by results.

    Args:
        runs: The runs.

    Attributes:
        stops_early: Whether `find_stop` may return a step. Otherwise nobody asks it.
    """

    stops_early = False

    def __init__(self, runs: Sequence[Run]):
        self._runs = runs

    @property
    def total(self) -> int:
        """The number of runs in the end."""
        return len(self._runs)

    def list_runs(self, owners: Owners) -> Sequence[Run]:
        """Return all runs that are known by now.

        Args:
            owners: The content of the queue. Nothing else that changes may matter.
        """
        return self._runs

    def find_stop(self, run: Run, accuracies: dict[int, float], owners: Owners) -> int | None:
        """Return the step at which a run is to be stopped early, or None if it should go on.

        Args:
            run: A run that is being trained, or has just ended.
            accuracies: Its top-1 accuracy at each step so far at which it was evaluated.
            owners: The content of the queue when the run started.
        """
        return None


def load_network(variant: str, recipe: str, overrides: Sequence[str] = (), resolution: int | None = None) -> ModelSpec:
    """Return a network with the architecture that a recipe and overrides give it, for example `model.stem_stride`.

    Scaling starts from this network, and its costs are counted. Keys that only matter in training stay those of the
    variant, so that a network that a study finds can be trained with any recipe.

    Args:
        variant: Name of a variant, or path of its YAML file.
        recipe: Name of a recipe, or path of its YAML file.
        overrides: "section.key=value" texts for all runs.
        resolution: Image side in pixels. Defaults to that of the variant.

    Raises:
        UserError: If the network is invalid, or an override is.
    """
    # To list networks, no data is needed.
    model = load_config(variant, recipe, overrides).model if overrides else load_recipe_network(variant, recipe)
    spec = load_variant(variant)
    changes = {key: getattr(model, key) for key in _ARCHITECTURE_KEYS}
    return spec.model_copy(update=changes | {"resolution": resolution or spec.resolution})


def make_runs(networks: Iterable[StudyNetwork], seeds: int) -> list[Run]:
    """Return one run for each network and seed.

    Every network comes with its first seed before any network comes with its second one, so that an unfinished study
    has results for all networks.

    Args:
        networks: The networks.
        seeds: Number of seeds, at least 1.

    Raises:
        UserError: If these are more than `MOST_RUNS` runs.
    """
    networks = list(networks)
    if len(networks) * seeds > MOST_RUNS:
        raise UserError(
            f"{len(networks):,} networks with {seeds:,} seeds each are more than {MOST_RUNS:,} runs. Use fewer."
        )
    return [
        Run(f"{network.name}_seed{seed}", network.spec, network.labels | {"seed": seed}, network.overrides)
        for seed in range(seeds)
        for network in networks
    ]


def list_overrides(run: Run, overrides: Sequence[str]) -> list[str]:
    """Return the "section.key=value" texts of a run. Its seed and its resolution come last, so they always apply.

    Args:
        run: The run.
        overrides: Texts for all runs of the study. Those of the run come after them.
    """
    seed, side = run.labels["seed"], run.spec.resolution
    return [*overrides, *run.overrides, f"train.seed={seed}", f"data.image_size={side}"]


def check_name(name: str) -> None:
    """Raise UserError unless a name of a run can be the name of a folder. It may come from the name of a file."""
    if not re.fullmatch(r"\w[\w.+-]*", name):
        raise UserError(
            f"'{escape(shorten(name))}' is no valid name of a run. Use letters, digits and any of '_.+-' in the names "
            "of files and networks."
        )
    if len(name.encode()) > LONGEST_NAME:
        raise UserError(f"The name {shorten(name)!r} of a run is too long. Use shorter names of files and networks.")


def load_configs(runs: Sequence[Run], recipe: str, overrides: Sequence[str] = ()) -> dict[str, Config]:
    """Return the config with which each run will be trained.

    Args:
        runs: The runs.
        recipe: Name of a recipe, or path of its YAML file.
        overrides: "section.key=value" texts for all runs.

    Returns:
        The configs by the names of the runs.

    Raises:
        UserError: If a config is invalid or undoes the scaling of a network, or if a name is no valid folder name or is
            used twice.
    """
    configs = {}
    with tempfile.TemporaryDirectory() as folder:
        for run in runs:
            check_name(run.name)
            if run.name in configs:
                raise UserError(f"Two runs are named {run.name!r}. Give each network another name.")
            variant = os.path.join(folder, f"{run.name}.yaml")
            write_text(variant, dump_variant(run.spec))
            configs[run.name] = load_config(variant, recipe, list_overrides(run, overrides))
            _check_architecture(run, configs[run.name])
    return configs


def _check_architecture(run: Run, config: Config) -> None:
    """Raise UserError if the recipe or `--set` would undo what the study has changed in a network, or has no top-1."""
    if config.data.task != "classification":
        raise UserError(
            f"A study compares top-1 accuracies, so it needs data.task=classification, not {config.data.task}."
        )
    for key in _ARCHITECTURE_KEYS:
        wanted, found = getattr(run.spec, key), getattr(config.model, key)
        if found != wanted:
            raise UserError(
                f"The study gives its networks different values of model.{key}, {shorten(str(wanted))} for "
                f"{run.name}, but the recipe or --set changes it to {shorten(str(found))} for all of them. Change it "
                "in the YAML file of the baseline instead."
            )
