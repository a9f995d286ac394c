"""Show that fine-tuning helps when there are few images, with real digits and the real commands, offline on a CPU.

    python scripts/transfer_digits.py --output=docs/transfer.json

A network is trained on the digits 0-4. Then it is trained on 5-9 with 20 images per class for 100 or 200 steps, once
from those weights and once from scratch, and tested on all other images of 5-9.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from efficientnet_tf.config.load import describe_environment

IMAGES_PER_CLASS = 20
EPOCHS = (20, 40)  # Each has 100 images, in 5 steps.
# Four times the recipe's rates: a network trained on 700 digits has more to learn than one trained on ImageNet.
FAST = ["optimizer.learning_rate=0.016"]
FAST += [
    "train.phases=[{until: 0.25, set: {train.freeze: body, optimizer.learning_rate: 0.064}},"
    " {until: 1.0, set: {train.freeze: batch_norm}}]"
]
# Small images of digits, as in the recipe `digits`.
DIGITS = ["data.image_size=32", "data.crop_padding=0", "augment.crop_area=[0.8, 1.0]", "augment.crop_aspect=[0.9, 1.1]"]
DIGITS += ["augment.flip=false", "model.batch_norm_momentum=0.9", "model.drop_connect=0.0", "eval.batch_size=128"]
RUNS = {"pretrain": ["--recipe=digits", ["data.source=folder", "data.eval_split=val", "eval.every_epochs=20"]]}
for epochs in EPOCHS:
    few = ["data.source=folder", "data.eval_split=val", "train.batch_size=20", f"train.epochs={epochs}"]
    few += [f"eval.every_epochs={epochs}", f"train.checkpoint_every_epochs={epochs}", "train.steps_per_loop=20"]
    RUNS[f"finetune_{5 * epochs}"] = ["--recipe=finetune", few + DIGITS + FAST]
    RUNS[f"scratch_{5 * epochs}"] = ["--recipe=digits", few]


def write_folders(root, seed):
    """Write root/old (digits 0-4) and root/new (5-9): train/<class>/*.png and val/<class>/*.png."""
    import tensorflow as tf

    images, labels = load_digits(return_X_y=True)
    images = np.round(images.reshape(-1, 8, 8, 1) * (255 / 16)).astype(np.uint8)
    indices = np.arange(len(labels))
    old, new = indices[labels < 5], indices[labels >= 5]
    # Hold out a fifth of the old digits, as data.source=digits does.
    old_train, old_val = train_test_split(old, test_size=0.2, random_state=seed, stratify=labels[old])
    count = 5 * IMAGES_PER_CLASS
    new_train, new_val = train_test_split(new, train_size=count, random_state=seed, stratify=labels[new])
    chosen = {"old/train": old_train, "old/val": old_val, "new/train": new_train, "new/val": new_val}
    for part, members in chosen.items():
        for i in members:
            path = root / part / str(labels[i]) / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(tf.io.encode_png(images[i]).numpy())
    return {part: len(members) for part, members in chosen.items()}


def train(root, kind, seed):
    """Run the command `train`. Return its steps and the top-1 accuracy of its EMA at the end."""
    recipe, overrides = RUNS[kind]
    folder = "old" if kind == "pretrain" else "new"
    command = [sys.executable, "-m", "efficientnet_tf.train", "--variant=b0", recipe, "--device=cpu"]
    command += [f"--data_dir={root / folder}", f"--model_dir={root / kind}"]
    if kind.startswith("finetune"):
        command.append(f"--init_from={root / 'pretrain'}")
    for override in [*overrides, f"train.seed={seed}"]:
        command += ["--set", override]
    subprocess.run(command, check=True)
    lines = [json.loads(line) for line in (root / kind / "metrics.jsonl").read_text().splitlines()]
    last = next(line for line in reversed(lines) if line["kind"] == "eval/ema")
    return {"steps": last["step"], "top1": last["top1"]}


def main():
    """Run every seed and write the numbers. Fail if fine-tuning is not better."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", default="docs/transfer.json", help="JSON file to write.")
    # The settings were chosen with the seeds 0 to 2.
    parser.add_argument("--seeds", type=int, nargs="+", default=[3, 4, 5], help="Seeds of images and runs.")
    args = parser.parse_args()
    started, results, counts = time.perf_counter(), {kind: [] for kind in RUNS}, {}
    for index, seed in enumerate(args.seeds):
        with tempfile.TemporaryDirectory() as folder:
            counts = write_folders(Path(folder), seed)
            for kind in RUNS:
                number = 1 + len(RUNS) * index + list(RUNS).index(kind)
                print(f"run {number} of {len(args.seeds) * len(RUNS)}: {kind}, seed {seed}", flush=True)
                results[kind].append({"seed": seed, **train(Path(folder), kind, seed)})
                print(f"  top-1 {results[kind][-1]['top1']:.3f}", flush=True)
    written = {
        "what": "EfficientNet-B0 at 32 pixels on scikit-learn's digits; top-1 of the EMA on the test images",
        "images": counts,
        "settings": {kind: [recipe, *overrides] for kind, (recipe, overrides) in RUNS.items()},
        "runs": results,
        "mean_top1": {kind: float(np.mean([run["top1"] for run in runs])) for kind, runs in results.items()},
        "seconds": round(time.perf_counter() - started),
        "environment": describe_environment(),
    }
    Path(args.output).parent.mkdir(parents=True, exist_ok=True)
    Path(args.output).write_text(json.dumps(written, indent=2) + "\n")
    print(json.dumps(written["mean_top1"]))
    mean = written["mean_top1"]
    return 0 if all(mean[f"finetune_{5 * epochs}"] > mean[f"scratch_{5 * epochs}"] for epochs in EPOCHS) else 1


if __name__ == "__main__":
    sys.exit(main())
