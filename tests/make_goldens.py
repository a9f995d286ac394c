"""Write the golden files that tests compare with: `python tests/make_goldens.py [name ...]`, all by default."""

import json
import sys
from pathlib import Path

from efficientnet_tf.config.load import CONFIG_DIR, load_variant
from efficientnet_tf.scaling.complexity import count_cost

GOLDEN_DIR = Path(__file__).parent / "golden"
VARIANTS = sorted(path.stem for path in CONFIG_DIR.glob("*.yaml"))


def complexity_golden():
    """Parameters and multiply-adds of every variant, part by part, at its own resolution and 1,000 classes."""

    def numbers(cost):
        return {"trainable": cost.trainable_params, "total": cost.total_params, "macs": cost.macs}

    costs = {variant: count_cost(load_variant(variant)) for variant in VARIANTS}
    return {variant: {part: numbers(cost) for part, cost in parts.items()} for variant, parts in costs.items()}


def start_digits_loss(**options):
    """Return the run of the loss curve: the tiny variant on digits, seed 0, the official rate after 11 of 20 steps."""
    import tiny  # TensorFlow, which the other goldens do not need

    official = ("optimizer.learning_rate=0.016", "model.drop_connect=0.2")
    return tiny.Run(tiny.load_config(*official, "schedule.warmup_epochs=0.5"), **options)


def digits_loss_golden():
    """Loss at each of the first 20 steps."""
    return {"loss": start_digits_loss().losses(20)}


GOLDENS = {"complexity": complexity_golden, "digits_loss": digits_loss_golden}


def read(name):
    """Return the content of a golden file."""
    return json.loads((GOLDEN_DIR / f"{name}.json").read_text())


def main(names):
    """Write the golden files of these names; of all where there are none."""
    unknown = set(names) - set(GOLDENS)
    if unknown:
        sys.exit(f"unknown: {', '.join(sorted(unknown))}; allowed are {', '.join(GOLDENS)}")
    GOLDEN_DIR.mkdir(exist_ok=True)
    for name in names or GOLDENS:
        (GOLDEN_DIR / f"{name}.json").write_text(json.dumps(GOLDENS[name](), indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
