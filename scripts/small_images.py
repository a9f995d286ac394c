"""Train networks from scratch on small photographs, and write docs/small_images.md: `python scripts/small_images.py`.

    python scripts/small_images.py --cifar10=cifar10.zip --fashion_mnist=DIR --lite0=runs/lite0   # all that is missing
    python scripts/small_images.py --cifar10=cifar10.zip --parts=cifar10   # one part
    python scripts/small_images.py --parts=page                            # only the page, from the files

cifar10.zip contains JPEG files `train/<class>/*.jpg` and `test/<class>/*.jpg`, and DIR has the four files of
Fashion-MNIST. Each part is a list of training runs. It takes up to several hours on two cores and writes a JSON file
into docs/small_images after each run. When you start the script again, it continues the run that was interrupted.
Delete a file to measure its part again.
"""

import argparse
import json
import shlex
import statistics
import subprocess
import sys
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path

import yaml
from real_finetune import write_folders

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "docs/small_images"
MOST_POINTS = 60  # of the training loss that a file keeps for each run


@dataclass(frozen=True)
class Part:
    """Runs that belong together.

    Attributes:
        title: Heading of its section.
        text: What the section says before its table.
        data: The data set: "cifar10", "fashion_mnist", "digits", or "cifar10_100", which is 100 images of each class of
            CIFAR-10, with other ones for each seed.
        runs: {name: flags of `train`}.
        seeds: Seeds of each run.
    """

    title: str
    text: str
    data: str
    runs: dict[str, list[str]]
    seeds: tuple[int, ...] = (0,)


ABOUT = """# Training from scratch on small photographs

All runs start from random weights. CIFAR-10 has 50,000 training and 10,000 test images of 32x32 pixels in 10 classes,
read from JPEG files, so chance is 10 %. Fashion-MNIST has 60,000 and 10,000 gray images of 28x28 pixels in 10
classes. The digits of scikit-learn are 1,437 and 360 images of 8x8 pixels. The accuracy is that of the averaged
weights (EMA) on all test images after the last epoch. "Best evaluation" is the highest of all evaluations of a run.
It is chosen on the test images, so it is too high. The settings of the recipes were chosen by the accuracy of earlier
runs on the same test images, so their results are a little too high as well. The times are those of whole processes on
two cores of a CPU. Every figure comes from a file in `docs/small_images`, which `python scripts/small_images.py`
writes."""


def _sets(*settings: str) -> list[str]:
    return [word for setting in settings for word in ("--set", setting)]


def _adamw(rate: float) -> list[str]:
    more = ("optimizer.rho=0.99", "optimizer.epsilon=1e-8", "optimizer.weight_decay=0.05")
    return _sets("optimizer.name=adamw", f"optimizer.learning_rate={rate}", *more)


def _rmsprop(rate: float) -> list[str]:
    more = ("optimizer.rho=0.9", "optimizer.epsilon=1e-3", "optimizer.weight_decay=1e-5")
    return _sets("optimizer.name=rmsprop", f"optimizer.learning_rate={rate}", *more)


def _sgd(rate: float) -> list[str]:
    return _sets("optimizer.name=sgd", f"optimizer.learning_rate={rate}", "optimizer.weight_decay=1e-5")


ONE_EPOCH = ["--recipe=folder", *_sets("data.image_size=32", "data.eval_split=test", "train.epochs=1")]
SHORT_WARMUP = _sets("schedule.warmup_epochs=0.5")


def _finetune(rate: float, optimizer: list[str]) -> list[str]:
    """Return flags with four times the rate in the first phase, as in the recipe."""
    first = f"{{until: 0.25, set: {{train.freeze: body, optimizer.learning_rate: {4 * rate:g}}}}}"
    phases = f"train.phases=[{first}, {{until: 1.0, set: {{train.freeze: batch_norm}}}}]"
    size = ("data.image_size=96", "data.crop_padding=0", "augment.crop_area=[0.5, 1.0]", "model.drop_connect=0")
    return [
        *("--variant=lite0", "--recipe=finetune", *optimizer),
        *_sets(*size, "train.epochs=5", "eval.every_epochs=5", phases),
    ]


PARTS = {
    "cifar10": Part(
        "CIFAR-10",
        "B0 with the recipe as it is. At the end it classifies 85.7 % of the augmented training images correctly, "
        "about as many as of the test images, so it does not overfit yet. With more time, "
        "`--set train.epochs=100` should go further. This was not run.",
        "cifar10",
        {"recipe": ["--variant=b0", "--recipe=cifar10"]},
    ),
    "fashion_mnist": Part(
        "Fashion-MNIST",
        "The recipe as it is, which trains V2-B0 with half of its depth, with two seeds.",
        "fashion_mnist",
        {"recipe": ["--recipe=fashion_mnist"]},
        (0, 1),
    ),
    "optimizers": Part(
        "The optimizer of a short run",
        "One epoch of CIFAR-10 with the recipe `folder`, B0 at 32 pixels, batches of 32. RMSProp at 0.004 learned "
        "most, so this is what the recipe has. At 0.016, the seeds differ by 9 points.",
        "cifar10",
        {
            "RMSProp 0.016": ["--variant=b0", *ONE_EPOCH, *SHORT_WARMUP, *_rmsprop(0.016)],
            "RMSProp 0.004": ["--variant=b0", *ONE_EPOCH, *SHORT_WARMUP, *_rmsprop(0.004)],
            "RMSProp 0.002": ["--variant=b0", *ONE_EPOCH, *SHORT_WARMUP, *_rmsprop(0.002)],
            "SGD 0.1": ["--variant=b0", *ONE_EPOCH, *SHORT_WARMUP, *_sgd(0.1)],
            "AdamW 0.004": ["--variant=b0", *ONE_EPOCH, *SHORT_WARMUP, *_adamw(0.004)],
            "AdamW 0.008": ["--variant=b0", *ONE_EPOCH, *SHORT_WARMUP, *_adamw(0.008)],
        },
        (0, 1, 2),
    ),
    "digits": Part(
        "The optimizer on digits",
        "B0 with the recipe `digits`, 20 epochs. RMSProp at 0.008 is what the recipe has.",
        "digits",
        {
            "RMSProp 0.008": ["--variant=b0", "--recipe=digits", *_rmsprop(0.008)],
            "RMSProp 0.004": ["--variant=b0", "--recipe=digits", *_rmsprop(0.004)],
            "SGD 0.1": ["--variant=b0", "--recipe=digits", *_sgd(0.1)],
            "AdamW 0.004": ["--variant=b0", "--recipe=digits", *_adamw(0.004)],
            "AdamW 0.008": ["--variant=b0", "--recipe=digits", *_adamw(0.008)],
        },
        (0, 1, 2),
    ),
    "variants": Part(
        "Three variants",
        "One epoch of CIFAR-10 with the recipe `folder` as it is, at 32 pixels. A network that guesses has 10 %.",
        "cifar10",
        {variant: [f"--variant={variant}", *ONE_EPOCH] for variant in ("b0", "lite0", "v2-b0")},
    ),
    "finetune": Part(
        "The optimizer of fine-tuning",
        "Lite0 with its published weights and the recipe `finetune`, five epochs of 100 training images of each "
        "class. The recipe has AdamW. The mean square of RMSProp starts at one, and has not adapted when a "
        "run this short ends.",
        "cifar10_100",
        {
            "RMSProp 0.004": _finetune(0.004, _rmsprop(0.004)),
            "SGD 0.02": _finetune(0.02, _sgd(0.02)),
            "AdamW 0.004": _finetune(0.004, _adamw(0.004)),
        },
        (0, 1, 2),
    ),
}


# --------------------------------------------------------------------------------------------------------- measure


def unpack(archive, folder):
    """Extract a zip file into a new folder, all of it or nothing."""
    if not folder.exists():
        unfinished = folder.with_suffix(".unfinished")
        with zipfile.ZipFile(archive) as files:
            files.extractall(unfinished)
        unfinished.rename(folder)


def make_command(flags, seed, model_dir, data_dir):
    """Return the words of the command that trains, after `python -m`."""
    words = ["efficientnet_tf.train", *flags, "--set", f"train.seed={seed}", f"--model_dir={model_dir}"]
    return words + ([f"--data_dir={data_dir}"] if data_dir else [])


def train(name, flags, seed, work, data_dir):
    """Train, or continue a run, and return its curves.

    "seconds" is the time of the whole process. It is missing if the run was interrupted and continued.
    """
    model_dir = work / f"{name}_{seed}"
    is_new = not model_dir.exists()
    started = time.monotonic()
    subprocess.run([sys.executable, "-m", *make_command(flags, seed, model_dir, data_dir)], check=True)
    seconds = time.monotonic() - started
    lines = [json.loads(line) for line in (model_dir / "metrics.jsonl").read_text().splitlines()]
    loops = [line for line in lines if line["kind"] == "train"]
    every = -(-len(loops) // MOST_POINTS)
    run = {"seed": seed} | ({"seconds": round(seconds)} if is_new else {})
    run["train_seconds"] = round(sum(line["seconds"] for line in loops))
    run["training"] = [{key: line[key] for key in ("step", "loss", "top1")} for line in loops[every - 1 :: every]]
    keys = ("step", "kind", "loss", "top1", "examples")
    run["evaluations"] = [{key: line[key] for key in keys} for line in lines if line["kind"].startswith("eval/")]
    epochs = yaml.safe_load((model_dir / "config.yaml").read_text())["train"]["epochs"]
    for line in run["training"] + run["evaluations"]:  # All phases have the same batch size.
        line["epoch"] = round(line["step"] / loops[-1]["step"] * epochs, 3)
    return run


def complete(part_name, args):
    """Train what a part's file lacks, and write the file after each run."""
    from efficientnet_tf.config.load import describe_environment
    from efficientnet_tf.runtime.hardware import describe_hardware

    part, path = PARTS[part_name], FOLDER / f"{part_name}.json"
    report = json.loads(path.read_text()) if path.exists() else {"runs": []}
    known = {(run["name"], run["seed"]) for run in report["runs"]}
    weights = [f"--init_from={args.lite0}"] if part.data == "cifar10_100" else []
    for seed in part.seeds:
        data_dir = find_data(part.data, seed, args)
        for name, flags in part.runs.items():
            if (name, seed) in known:
                continue
            print(f"{part_name}: {name}, seed {seed}", flush=True)
            folder = f"{part_name}_{name.replace(' ', '_')}"
            run = train(folder, [*flags, *weights], seed, args.work, data_dir)
            command = make_command(flags, seed, "runs/NAME", "DIR" if data_dir else None)
            environment = describe_environment() | describe_hardware()
            report["runs"].append({"name": name, "command": command, "environment": environment} | run)
            path.parent.mkdir(exist_ok=True)
            path.write_text(json.dumps(report, indent=1) + "\n")


def find_data(name, seed, args):
    """Return the folder of a data set, or None if it needs none."""
    if name == "cifar10_100":
        write_folders(args.cifar10, 100, seed, args.work / f"cifar10_100_{seed}")
        return args.work / f"cifar10_100_{seed}"
    if name == "cifar10":
        unpack(args.cifar10, args.work / "cifar10")
        return args.work / "cifar10"
    return {"fashion_mnist": args.fashion_mnist, "digits": None}[name]


# ------------------------------------------------------------------------------------------------------------ page


def list_evaluations(run):
    """Return the evaluations that count: those of the EMA if there is one."""
    kinds = {line["kind"] for line in run["evaluations"]}
    kind = "eval/ema" if "eval/ema" in kinds else "eval/raw"
    return [line for line in run["evaluations"] if line["kind"] == kind]


def group_runs(report):
    """Return {name: its runs}."""
    groups = {}
    for run in report["runs"]:
        groups.setdefault(run["name"], []).append(run)
    return groups


def format_table(groups):
    """Return a Markdown table of the accuracies at the end."""
    lines = ["| run | top-1 of each seed | mean | best evaluation | time |", "|---|---|--:|--:|--:|"]
    for name, runs in groups.items():
        finals = [list_evaluations(run)[-1]["top1"] for run in runs]
        best = max(line["top1"] for run in runs for line in list_evaluations(run))
        minutes = [run.get("seconds", run["train_seconds"]) / 60 for run in runs]
        times = (
            f"{min(minutes):.0f}"
            if round(min(minutes)) == round(max(minutes))
            else (f"{min(minutes):.0f} to {max(minutes):.0f}")
        )
        each = ", ".join(f"{top1:.2%}" for top1 in finals)
        lines.append(f"| {name} | {each} | {statistics.mean(finals):.2%} | {best:.2%} | {times} min |")
    return "\n".join(lines)


def draw_curves(groups, path):
    """Plot the accuracy on the test images over the epochs, one line for each run."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for index, (name, runs) in enumerate(groups.items()):
        for run in runs:
            points = [(line["epoch"], 100 * line["top1"]) for line in list_evaluations(run)]
            label = {"label": name} if run is runs[0] else {}
            axes.plot(*zip(*points, strict=True), marker=".", color=f"C{index}", linewidth=1.2, **label)
    axes.set_xlabel("epochs")
    axes.set_ylabel("top-1 on the test images (%)")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)


def write_page():
    """Write the page and its figures from the files."""
    parts = [ABOUT]
    for name, part in PARTS.items():
        path = FOLDER / f"{name}.json"
        if not path.exists():
            parts.append(f"## {part.title}\n\nNot measured yet.")
            continue
        runs = group_runs(json.loads(path.read_text()))
        groups = {name: runs[name] for name in part.runs if name in runs}
        parts += [f"## {part.title}", part.text]
        parts.append("\n".join(f"    python -m {shlex.join(runs[0]['command'])}" for runs in groups.values()))
        parts.append(format_table(groups))
        if any(len(list_evaluations(run)) > 1 for runs in groups.values() for run in runs):
            draw_curves(groups, FOLDER / f"{name}.png")
            parts.append(f"![Top-1 accuracy over epochs](small_images/{name}.png)")
    FOLDER.with_suffix(".md").write_text("\n\n".join(parts) + "\n")


def main(args):
    """Do the parts that were asked for."""
    chosen = args.parts or [*PARTS, "page"]
    for name in chosen:
        if name != "page":
            complete(name, args)
    write_page()


def make_parser():
    """Return the flags of the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar10", type=Path, help="Zip file of CIFAR-10 as JPEG files.")
    parser.add_argument("--fashion_mnist", type=Path, help="Folder with the files of Fashion-MNIST.")
    parser.add_argument("--lite0", help="Model directory with the published weights of Lite0, see real_weights.py.")
    parser.add_argument("--work", type=Path, default=Path("runs/small_images"), help="Folder of the runs.")
    parser.add_argument("--parts", nargs="+", choices=[*PARTS, "page"], help="What to do. Default: everything.")
    return parser


if __name__ == "__main__":
    main(make_parser().parse_args())
