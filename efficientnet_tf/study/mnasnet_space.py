"""The search space of the baseline: what each row of a stage table may be, and the network of each choice.

Source: MnasNet (Tan et al., 2019), section 4.1, as the paper uses it to find B0 (section 4): for each stage the kind of
    block, the kernel, squeeze-and-excitation, the channels and the number of blocks.
Deviates: the kinds of blocks are those of `Stage` without `bottleneck`. MnasNet also has plain convolutions and skips.
"""

import functools
import itertools
import math
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.load import change_spec
from efficientnet_tf.config.schema import ModelSpec, Stage
from efficientnet_tf.config.text import escape
from efficientnet_tf.runtime.terminal import make_table
from efficientnet_tf.scaling.compound import round_channels

if TYPE_CHECKING:
    from rich.table import Table

KEYS = ("block", "kernel", "expand", "se_ratio", "channels", "repeats")  # of a `Stage`, which are searched
BLOCKS = ("mbconv", "fused_mbconv", "separable")
KERNELS, EXPANSIONS, SE_RATIOS = (3, 5), (3, 6), (0.0, 0.25)
CHANNEL_FACTORS, REPEAT_CHANGES = (0.75, 1.0, 1.25), (-1, 0, 1)

Choices = dict[str, Any]  # the value of each key of each stage, such as {"stage1.kernel": 3}


@dataclass(frozen=True)
class Space:
    """The networks that differ from a baseline in their stage tables. The baseline is one of them.

    The stem, the head, the strides and the resolution are those of the baseline.

    Args:
        baseline: The network to start from.

    Raises:
        UserError: If it has a kind of block that the space does not have.
    """

    baseline: ModelSpec

    def __post_init__(self):
        for number, stage in enumerate(self.baseline.stages, 1):
            if stage.block not in BLOCKS:
                raise UserError(
                    f"baseline={escape(self.baseline.name)} has block={stage.block} in stage {number}, which the "
                    f"search space does not have. Use a baseline with the blocks {', '.join(BLOCKS)}."
                )

    @functools.cached_property
    def options(self) -> dict[str, tuple]:
        """The values that each choice may have, sorted. They always include that of the baseline."""
        return {
            f"stage{number}.{key}": values
            for number, stage in enumerate(self.baseline.stages, 1)
            for key, values in self._list_options(stage).items()
        }

    def _list_options(self, stage: Stage) -> dict[str, tuple]:
        divisor, rounding = self.baseline.channel_divisor, self.baseline.channel_rounding
        channels = {
            round_channels(stage.channels, factor, divisor, rounding) for factor in CHANNEL_FACTORS if factor != 1
        }
        return {
            "block": BLOCKS,
            "kernel": _sort({*KERNELS, stage.kernel}),
            "expand": _sort({*EXPANSIONS, stage.expand}),
            "se_ratio": _sort({*SE_RATIOS, stage.se_ratio}),
            "channels": _sort({*channels, stage.channels}),
            "repeats": _sort({max(1, stage.repeats + change) for change in REPEAT_CHANGES}),
        }

    @property
    def baseline_choices(self) -> Choices:
        """The choices that give the baseline itself."""
        rows = enumerate(self.baseline.stages, 1)
        return {f"stage{number}.{key}": getattr(stage, key) for number, stage in rows for key in KEYS}

    @property
    def combinations(self) -> int:
        """The number of combinations of choices."""
        return math.prod(map(len, self.options.values()))

    @property
    def stage_tables(self) -> int:
        """The number of different stage tables. There are fewer than combinations, see `build`."""
        return math.prod(
            len({_freeze(_make_row(stage, dict(zip(KEYS, values, strict=True)))) for values in self._product(number)})
            for number, stage in enumerate(self.baseline.stages, 1)
        )

    def _product(self, number: int) -> "itertools.product[tuple]":
        return itertools.product(*(self.options[f"stage{number}.{key}"] for key in KEYS))

    def contains(self, choices: Any) -> bool:
        """Return whether a value, which may come from a damaged database, is a valid set of choices."""
        return (
            isinstance(choices, dict)
            and choices.keys() == self.options.keys()
            and all(choices[key] in values for key, values in self.options.items())
        )

    def build(self, choices: Choices, name: str) -> ModelSpec:
        """Return the network of a set of choices.

        Choices without a meaning for the kind of block are ignored: only `mbconv` has squeeze-and-excitation, and
        `separable` has no expansion.

        Args:
            choices: A value for each key of `options`.
            name: Name of the network.
        """
        rows = [
            _make_row(stage, {key: choices[f"stage{number}.{key}"] for key in KEYS})
            for number, stage in enumerate(self.baseline.stages, 1)
        ]
        return change_spec(self.baseline, {"stages": rows, "name": name})

    def sample(self, rng: random.Random) -> Choices:
        """Return choices that are drawn uniformly and independently."""
        return {key: rng.choice(values) for key, values in self.options.items()}

    def make_table(self) -> "Table":
        """Return a table of the options, with one row per stage."""
        rows = [
            [f"{number}", *(" ".join(f"{value}" for value in self.options[f"stage{number}.{key}"]) for key in KEYS)]
            for number in range(1, len(self.baseline.stages) + 1)
        ]
        return make_table(["stage", *KEYS], rows, left=range(1, len(KEYS) + 1))


def _make_row(stage: Stage, chosen: Choices) -> dict[str, Any]:
    """Return the row of a stage table in which the choices replace the values of the baseline's row."""
    row = stage.model_dump() | chosen
    if row["block"] == "separable":
        row |= {"expand": 1, "residual": True}
    if row["block"] != "mbconv":
        row["se_ratio"] = 0.0
    if row["block"] != "fused_mbconv" or row["expand"] == 1:
        row["expand_from"] = None
    return row


def _freeze(row: dict[str, Any]) -> tuple:
    return tuple(sorted(row.items(), key=lambda item: item[0]))


def _sort(values: set) -> tuple:
    return tuple(sorted(values))
