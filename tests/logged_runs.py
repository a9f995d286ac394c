"""Writes model directories of training runs, as far as `report` reads them."""

import json
from pathlib import Path

from efficientnet_tf.config.load import dump_config, load_config

TINY = Path(__file__).parent / "tiny.yaml"


def train_line(step, steps, **values):
    """Return the line of a loop of steps, of 64 images each, that took a second."""
    line = {"loss": 2.0, "top1": 0.5, "learning_rate": 0.01, "seconds": 1.0, "images_per_second": 64.0 * steps}
    return {"step": step, "kind": "train"} | line | values


def eval_lines(step, top1, loss=1.0):
    """Return the lines of an evaluation. The raw weights are 0.1 worse than the EMA."""
    values = {"examples": 360, "loss": loss, "top5": 0.9}
    return [
        {"step": step, "kind": "eval/raw", "top1": round(top1 - 0.1, 4)} | values,
        {"step": step, "kind": "eval/ema", "top1": top1} | values,
    ]


def write_run(folder, lines, *overrides, end=b"", finished=True):
    """Write a run of the recipe `digits` and return its folder."""
    folder.mkdir(parents=True)
    config = load_config(TINY, "digits", ["train.steps_per_loop=10", *overrides])
    (folder / "config.yaml").write_text(dump_config(config))
    (folder / "classes.txt").write_text("".join(f"{i}\n" for i in range(10)))
    if lines:
        text = "".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines)
        (folder / "metrics.jsonl").write_bytes(text.encode() + end)
    if finished:
        (folder / "model.keras").write_bytes(b"")
    return folder
