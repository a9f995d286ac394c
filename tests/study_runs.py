"""Runs of a study for tests, and the loop that trains them with the fake training."""

import sys
from pathlib import Path

import fake_training

from efficientnet_tf.config.load import load_variant
from efficientnet_tf.study.results import read_rows
from efficientnet_tf.study.runner import run_jobs
from efficientnet_tf.study.runs import Run

TINY = load_variant(str(Path(__file__).with_name("tiny.yaml")))


def make_runs(count=3, seconds=0.1, *overrides):
    return [
        Run(
            f"width{1 + 0.2 * i:g}_seed{i}",
            TINY.model_copy(update={"width": 1 + 0.2 * i, "resolution": 32 + 4 * i}),
            {"dimension": "width", "multiplier": 1 + 0.2 * i, "seed": i},
            (f"train.epochs={seconds}", *overrides),
        )
        for i in range(count)
    ]


def train_all(runs, folder, **options):
    """Train runs with the fake training, and return their rows."""
    options = {"heartbeat_seconds": 1, "train_command": fake_training.COMMAND, **options}
    if not run_jobs(runs, str(folder), recipe="smoke", study_name="list", **options):
        sys.exit(75)
    return read_rows(runs, str(folder), options.get("storage"), "list")
