"""Write the golden files that tests compare with: `python tests/make_goldens.py [NAME ...]`. The default is all."""

import json
import sys
from pathlib import Path

from efficientnet_tf.config.load import list_variants
from efficientnet_tf.scaling.complexity import count_cost

GOLDEN_DIR = Path(__file__).parent / "golden"
VARIANTS = list_variants()


def complexity_golden():
    """Return parameters and multiply-adds of every part of every variant, at its own resolution and 1,000 classes."""

    def numbers(cost):
        return {"trainable": cost.trainable_params, "total": cost.total_params, "macs": cost.macs}

    costs = {variant: count_cost(variant) for variant in VARIANTS}
    return {variant: {part: numbers(cost) for part, cost in parts.items()} for variant, parts in costs.items()}


def start_digits_loss(**options):
    """Return a run of the tiny variant on digits with seed 0. It reaches the official learning rate after 11 steps."""
    import tiny  # imports TensorFlow, which the other golden files do not need

    official = ("optimizer.learning_rate=0.016", "model.drop_connect=0.2")
    return tiny.Run(tiny.load_config(*official, "schedule.warmup_epochs=0.5"), **options)


def digits_loss_golden():
    """Return the loss of each of the first 20 steps."""
    return {"loss": start_digits_loss().losses(20)}


GOLDENS = {"complexity": complexity_golden, "digits_loss": digits_loss_golden}


def read(name):
    """Return the content of a golden file."""
    return json.loads((GOLDEN_DIR / f"{name}.json").read_text())


def main(names):
    """Write the golden files with these names, or all of them if none is given."""
    unknown = set(names) - set(GOLDENS)
    if unknown:
        sys.exit(f"unknown golden files: {', '.join(sorted(unknown))}. Allowed are {', '.join(GOLDENS)}.")
    GOLDEN_DIR.mkdir(exist_ok=True)
    for name in names or GOLDENS:
        (GOLDEN_DIR / f"{name}.json").write_text(json.dumps(GOLDENS[name](), indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
