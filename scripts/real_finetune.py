"""Train Lite0 from its published weights and from scratch on a few CIFAR-10 images, for real_weights.py."""

import json
import random
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

COUNTS, SEEDS = (20, 100), (0, 1, 2)  # training images of each class; they and the runs follow from the seed
TEST_IMAGES = 100  # of each class, the first ones of the test split, in every run
COMMON = ["data.image_size=96", "data.crop_padding=0", "augment.crop_area=[0.5, 1.0]", "model.drop_connect=0.0"]
COMMON += ["eval.batch_size=128"]
# Scratch has no frozen phases, a fourfold learning rate, batch-norm statistics that adapt in a short run, and more
# epochs.
SCRATCH = ["train.phases=[]", "optimizer.learning_rate=0.016", "model.batch_norm_momentum=0.9"]
EPOCHS = {("finetune", 20): 12, ("scratch", 20): 24, ("finetune", 100): 5, ("scratch", 100): 8}


def write_folders(archive, count, seed, root):
    """Write root/train/<class>/*.jpg, with `count` images a class, and root/val/<class>/*.jpg."""
    if root.exists():
        return
    unfinished = root.with_suffix(".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    with zipfile.ZipFile(archive) as images:
        names = sorted(images.namelist())
        for label in sorted({name.split("/")[1] for name in names if name.startswith("train/")}):
            train = [name for name in names if name.startswith(f"train/{label}/")]
            test = [name for name in names if name.startswith(f"test/{label}/")][:TEST_IMAGES]
            for part, chosen in (("train", random.Random(f"{seed} {label}").sample(train, count)), ("val", test)):
                folder = unfinished / part / label
                folder.mkdir(parents=True)
                for name in chosen:
                    (folder / Path(name).name).write_bytes(images.read(name))
    unfinished.rename(root)


def make_command(kind, count, seed, work):
    """Return the words of the command that trains, after `python -m`."""
    settings = [*COMMON, *(SCRATCH if kind == "scratch" else []), f"train.epochs={EPOCHS[kind, count]}"]
    settings += [f"{key}={EPOCHS[kind, count]}" for key in ("eval.every_epochs", "train.checkpoint_every_epochs")]
    words = ["efficientnet_tf.train", "--variant=lite0", "--recipe=finetune", "--device=cpu"]
    words += [f"--data_dir={work}/cifar_{count}_{seed}", f"--model_dir={work}/{kind}_{count}_{seed}"]
    words += [f"--init_from={work}/lite0"] if kind == "finetune" else []
    return [*words, *(word for setting in [*settings, f"train.seed={seed}"] for word in ("--set", setting))]


def train(kind, count, seed, work):
    """Run the command `train`. Return the images it saw and the top-1 accuracy of its EMA on the test images."""
    subprocess.run([sys.executable, "-m", *make_command(kind, count, seed, work)], check=True)
    folder = Path(work) / f"{kind}_{count}_{seed}"
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    last = next(line for line in reversed(lines) if line["kind"] == "eval/ema")
    seen = 10 * count * EPOCHS[kind, count]
    return {
        "kind": kind,
        "count": count,
        "seed": seed,
        "top1": last["top1"],
        "examples": last["examples"],
        "seen": seen,
    }


def complete(path, archive, work, environment):
    """Train what the file lacks, one seed after the other, and write the file after each run."""
    report = json.loads(path.read_text()) if path.exists() else {"runs": []}
    known = {(run["kind"], run["count"], run["seed"]) for run in report["runs"]}
    for seed in SEEDS:
        for count in COUNTS:
            write_folders(archive, count, seed, work / f"cifar_{count}_{seed}")
            for kind in ("finetune", "scratch"):
                if (kind, count, seed) in known:
                    continue
                print(f"{kind}, {count} images a class, seed {seed}", flush=True)
                report["runs"].append(train(kind, count, seed, work) | {"environment": environment})
                commands = {
                    f"{k} {c}": make_command(k, c, "SEED", "WORK") for k in ("finetune", "scratch") for c in COUNTS
                }
                path.write_text(json.dumps({"commands": commands} | report, indent=1) + "\n")
    return report
