"""Checks that batches can be divided over the replicas of a run. Imports no TensorFlow."""

from __future__ import annotations

from typing import TYPE_CHECKING

from efficientnet_tf.config.errors import UserError

if TYPE_CHECKING:
    from efficientnet_tf.config.schema import Config


def check_batches(config: Config, replicas: int) -> None:
    """Raise UserError if a batch size is not divisible by the number of replicas, or a replica's share by its parts."""
    train_sizes = [("train.batch_size", phase.train.batch_size) for _, phase in config.phases]
    for key, size in (*train_sizes, ("eval.batch_size", config.eval.batch_size)):
        if size % replicas:
            raise UserError(
                f"{key}={size} is not divisible by {replicas} replicas. {_suggest_multiple(size, replicas)}"
            )
    parts = config.train.accumulate
    for key, size in train_sizes:
        if size % (replicas * parts):
            raise UserError(
                f"{key}={size} is not divisible into train.accumulate={parts} parts on each of {replicas} replicas. "
                + _suggest_multiple(size, replicas * parts)
            )


def _suggest_multiple(size, divisor):
    lower = size // divisor * divisor
    nearest = f"{lower} or {lower + divisor}" if lower else f"{divisor}"
    return f"Use a multiple of {divisor}, for example {nearest}."
