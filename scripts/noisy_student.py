"""Show what a network gains by learning from another one, with a tenth of the labels of a quarter of CIFAR-10.

    python scripts/noisy_student.py --cifar10=cifar10.zip    # about an hour on two cores

125 images of each class have a label, and 1,125 have none. For each of three seeds:

1. `teacher`: a small network is trained on the images with labels.
2. It labels the other images: `predict --soft`.
3. `student`: a wider network is trained on all images with more noise, as Noisy Student does.
4. `alone`: the same wider network, with the same noise and number of steps, is trained on the labels alone.
5. `distilled`: the small network is trained again on the images with labels, and learns from the student as well.

All of them make the same number of steps. When you start the script again, it continues. It writes
docs/noisy_student.json, and prints a table.

A run of 1,200 steps sees 154,000 images. Of all of CIFAR-10, that is 3 epochs, which are too few for a network to use
more images: with 500 images of each class with a label, 4,500 without one and 1,560 steps, two students had 54.5 and
56.6 %, and the same networks on the labels alone 56.9 and 56.4 %.
"""

import argparse
import json
import os
import random
import shlex
import statistics
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from efficientnet_tf.config.load import describe_environment
from efficientnet_tf.runtime.hardware import describe_hardware

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "noisy_student.json"
LABELED, UNLABELED, TEST = 125, 1125, 1000  # images of each class
SEEDS = (0, 1, 2)
STEPS = 1200
LABELED_EPOCHS = STEPS * 128 / (10 * LABELED)
NETWORK = ["data.image_size=24", "data.crop_padding=null", "eval.every_epochs=1000"]
WIDER = ["model.width=0.7"]
NOISE = ["model.drop_connect=0.1"]
# What each network is trained with, besides the recipe: settings, and whether it has the images without labels.
RUNS = {
    "teacher": ([], False),
    "student": ([*WIDER, *NOISE], True),
    "alone": ([*WIDER, *NOISE], False),
    "distilled": (["train.teacher_weight=0.7", "train.teacher_temperature=2"], False),
}


def write_images(archive: Path, seed: int, folder: Path) -> None:
    """Write the images of a seed: train/<class>/, unlabeled/ and val/<class>/."""
    if folder.exists():
        return
    unfinished = folder.with_suffix(".unfinished")
    with zipfile.ZipFile(archive) as files:
        names = sorted(files.namelist())
        for label in sorted({name.split("/")[1] for name in names if name.startswith("train/")}):
            train = [name for name in names if name.startswith(f"train/{label}/")]
            test = [name for name in names if name.startswith(f"test/{label}/")][:TEST]
            chosen = random.Random(f"{seed} {label}").sample(train, LABELED + UNLABELED)
            parts = {f"train/{label}": chosen[:LABELED], "unlabeled": chosen[LABELED:], f"val/{label}": test}
            for part, found in parts.items():
                (unfinished / part).mkdir(parents=True, exist_ok=True)
                for name in found:
                    (unfinished / part / f"{label}_{Path(name).name}").write_bytes(files.read(name))
    unfinished.rename(folder)


def make_command(name: str, seed: int, data: Path, work: Path) -> list[str]:
    """Return the words of the command that trains, after `python -m`."""
    settings, has_unlabeled = RUNS[name]
    epochs = LABELED_EPOCHS * LABELED / (LABELED + UNLABELED * has_unlabeled)
    settings = [*NETWORK, *settings, f"train.epochs={epochs:g}", f"train.seed={seed}"]
    if has_unlabeled:
        # The same number of images of each class, so that an epoch has the size that is counted above.
        settings += [f"data.pseudo_labels={work}/soft_{seed}.parquet", f"data.pseudo_per_class={UNLABELED}"]
    if name == "distilled":
        settings.append(f"train.teacher={work}/student_{seed}")
    words = ["efficientnet_tf.train", "--variant=docs/studies/half.yaml", "--recipe=cifar10", "--device=cpu"]
    words += [f"--data_dir={data}", "--set", "data.eval_split=val", f"--model_dir={work}/{name}_{seed}"]
    return [*words, *(word for setting in settings for word in ("--set", setting))]


def run(words: list[str], core: int) -> None:
    """Run a command on one core."""
    command = ["taskset", "--cpu-list", str(core), sys.executable, "-m", *words]
    subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True)


def complete(seed: int, archive: Path, work: Path, core: int) -> None:
    """Train all networks of a seed, as far as they are not finished."""
    data = work / f"images_{seed}"
    write_images(archive, seed, data)
    for name in RUNS:
        run(make_command(name, seed, data, work), core)
        labels = work / f"soft_{seed}.parquet"
        if name == "teacher" and not labels.exists():
            words = ["efficientnet_tf.predict", "--soft", f"--model_dir={work}/teacher_{seed}", f"--output={labels}"]
            run([*words, str(data / "unlabeled")], core)


def read_result(name: str, seed: int, work: Path) -> dict:
    """Return the accuracy and the steps of a finished run."""
    lines = [json.loads(line) for line in (work / f"{name}_{seed}" / "metrics.jsonl").read_text().splitlines()]
    last = next(line for line in reversed(lines) if line["kind"] == "eval/ema")
    return {"name": name, "seed": seed, "step": last["step"], "top1": last["top1"], "examples": last["examples"]}


def format_table(report: dict) -> str:
    """Return the results as a Markdown table."""
    lines = ["| network | top-1 of each seed | mean |", "|---|---|--:|"]
    for name in RUNS:
        top1 = [run["top1"] for run in report["runs"] if run["name"] == name]
        lines.append(
            f"| {name} | {', '.join(f'{100 * value:.1f} %' for value in top1)} | {100 * statistics.mean(top1):.1f} % |"
        )
    return "\n".join(lines)


def main(args: argparse.Namespace) -> None:
    """Run everything and write the results."""
    work = args.work.resolve()
    with ThreadPoolExecutor(args.cores) as pool:
        # Each core takes the next seed when it is free.
        cores = list(range(args.cores))

        def take(seed):
            core = cores.pop()
            try:
                complete(seed, args.cifar10.resolve(), work, core)
            finally:
                cores.append(core)

        list(pool.map(take, SEEDS))
    commands = {name: shlex.join(["python", "-m", *make_command(name, 0, Path("DIR"), Path("runs"))]) for name in RUNS}
    report = {"environment": describe_environment() | describe_hardware(), "commands": commands}
    report["images_of_a_class"] = {"labeled": LABELED, "unlabeled": UNLABELED, "test": TEST}
    report["runs"] = [read_result(name, seed, work) for name in RUNS for seed in SEEDS]
    RESULTS.write_text(json.dumps(report, indent=1) + "\n")
    print(format_table(report))


def make_parser() -> argparse.ArgumentParser:
    """Return the flags of the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar10", type=Path, required=True, help="Zip file of CIFAR-10 as JPEG files.")
    parser.add_argument("--work", type=Path, default=Path("runs/noisy_student"), help="Folder of the runs.")
    parser.add_argument("--cores", type=int, default=2, help="Number of processes, each on one core. (default: 2)")
    return parser


if __name__ == "__main__":
    main(make_parser().parse_args())
