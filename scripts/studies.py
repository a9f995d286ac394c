"""Run the scaling studies and the searches, and write docs/studies: `python scripts/studies.py --cifar10=ZIP`.

    python scripts/studies.py --cifar10=cifar10.zip                    # everything, several hours on two cores
    python scripts/studies.py --cifar10=cifar10.zip --parts=family     # one part
    python scripts/studies.py --parts=page                             # only the page, from the files

cifar10.zip contains JPEG files `train/<class>/*.jpg` and `test/<class>/*.jpg`. Each part is one command. Studies start
it once for each core. A search for a baseline is a single process, because only then does it find the same networks
again. When you start the script again, it continues the part that was interrupted. The results are
copied to docs/studies/<part>, and docs/studies/README.md is written from them.
"""

import argparse
import csv
import io
import os
import shlex
import shutil
import statistics
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "docs/studies"
WORK = Path("runs/studies")
RESTART = 75  # exit status of a command that continues when it is started again
TRAIN_IMAGES, TEST_IMAGES = 1000, 500  # of each class, the first by name
RESULTS = ["*.csv", "*.html", "*.yaml", "*.png", "runs/*/config.yaml"]
FOUND = ["search.csv", "pareto.png", "baseline.yaml"]  # by a search for a baseline
HALF = "--baseline=docs/studies/half.yaml"
# The recipe trains and evaluates with crops for 32x32 pixels. Here they are in proportion to the resolution.
SHORT = ["--set", "schedule.warmup_epochs=0.5", "--set", "eval.every_epochs=100", "--set", "data.crop_padding=null"]


@dataclass(frozen=True)
class Part:
    """One study or search.

    Attributes:
        title: Heading of its section.
        text: What the section says.
        command: Words of the command after `python -m`, without the data and the folder.
        searches_baseline: Whether it is a search for a baseline network, on digits.
        shows_times: Whether the page shows how long training took.
    """

    title: str
    text: str
    command: list[str]
    searches_baseline: bool = False
    shows_times: bool = False


ABOUT = f"""# Scaling studies on photographs

Networks trained from random weights on a part of CIFAR-10: the first {TRAIN_IMAGES:,} training images and the first
{TEST_IMAGES} test images of each of its 10 classes. Each network was trained with three seeds. The accuracy is that of
the averaged weights (EMA) on all test images after the last epoch. "±" is the standard deviation over the seeds. Each
process trained on one core of a CPU.
`python scripts/studies.py` repeats everything and writes this page."""

MNASNET = [
    *("efficientnet_tf.search", "--space=mnasnet", "--baseline=tiny", "--resolution=32", "--recipe=digits"),
    *("--trials=30", "--classes=10", "--set", "train.epochs=6", "--set", "eval.every_epochs=1"),
    *("--set", "schedule.warmup_epochs=1", "--device=cpu"),
]

PARTS = {
    "one_dimension": Part(
        "One dimension or all three",
        """The base is half of B0, at 16 pixels. Each of the other networks has 3.3 to 3.9 times its multiply-adds,
which are spent on one dimension, or on all three as in compound scaling.

- **More pixels gain most**, 8 points. A wider or deeper network cannot bring back the details that photographs of
  16x16 pixels lack.
- **More width gains 5 points, compound scaling 4.** Compound scaling goes from 16 to 20 pixels only.
- **More depth loses 13 points.** This network has 32 blocks instead of 10. All networks were trained for
  1,170 steps at the learning rate of the recipe, which is probably too short for it. Longer runs were not tried.

In table 7 of the paper, compound scaling is ahead of every single dimension. **Here it is not.** The likely
reasons are that the base sees few pixels and that the runs are short. So the study does not contradict the paper. It
suggests that the best dimension depends on the base, and that coefficients that were found for B0 at 224 pixels do not
suit every network. The seeds differ by 0.3 to 1.7 points, so the order of pixels, width and depth is clear. That of
width and compound scaling, 1.2 points apart, is likely.""",
        [
            *("efficientnet_tf.study", "--study=one_dimension", HALF, "--resolution=16", "--recipe=cifar10"),
            *("--widths=2", "--depths=4", "--resolutions=2", "--phis=1.1"),
            *("--set", "train.epochs=15", *SHORT),
        ],
    ),
    "coefficients": Part(
        "Which coefficients",
        """The paper searches alpha, beta and gamma, by which depth, width and resolution grow, on a grid with
alpha * beta^2 * gamma^2 near 2. This is the same search around half of B0 at 24 pixels. After rounding, the networks
have 1.4 to 2.1 times the multiply-adds of the base, because sides of images and channels are whole numbers.

- **The grid prefers width and pixels to depth**: 1 / 1.2 / 1.15 is best, with 50.9 %. No other point is within one
  standard error.
- **The paper's coefficients, 1.2 / 1.1 / 1.15, come fifth** with 47.3 %, 3.6 points behind, at nearly the same number
  of multiply-adds.
- Accuracy falls with alpha: 49.5 to 50.9 % at 1, 47.3 and 48.4 % at 1.2, 43.9 % at 2.

What can be concluded: for this base, and runs of 620 steps, growing in depth does not pay. What cannot be concluded is
that the paper's coefficients are wrong. They were found for B0 on ImageNet, with runs that are long enough for deep
networks, and every network here has the same learning rate and the same number of epochs.""",
        [
            *("efficientnet_tf.search", HALF, "--resolution=24", "--recipe=cifar10"),
            *("--alpha=1,1.2,1.4,1.7,2", "--beta=1,1.1,1.2,1.3,1.4", "--gamma=1,1.15,1.25,1.4"),
            *("--set", "train.epochs=8", *SHORT),
        ],
    ),
    "family": Part(
        "B0 to B3",
        """B0 to B3 as published, except that they see 16 and 20 pixels, in proportion to their resolutions. They were
trained for 310 steps, at one learning rate for all and at twice that.

- **The family is not in order.** B1 is 7 to 9 points behind B0, and B3 is 3 to 4 points behind B2, with both learning
  rates. This is the inversion that people report when they train larger networks on small data.
- **What hurts is depth.** B1 has the pixels and the width of B0 and more blocks. Likewise, B3 has the 20 pixels of
  B2, and is deeper and wider.
- **What helps is resolution.** B2 is also deeper than B1, but it has 20 pixels instead of 16, and is 7 points ahead.
- The best learning rate does not change the order. For all but B0, the lower one is as good or better.

What can be concluded: with a few hundred steps, a deeper network has not learned as much as a shallow one, and no
learning rate of this grid makes up for it. This fits the two studies above. What cannot be concluded is which network
is best after a long training, which the paper answers for ImageNet. The times are those of one core, on which short
other work ran now and then.""",
        [
            *("efficientnet_tf.study", "--study=family", "--variants=b0,b1,b2,b3", "--resolution=16"),
            *("--recipe=cifar10", "--learning_rate_grid=0.004,0.008", "--set", "train.epochs=4", *SHORT),
        ],
        shows_times=True,
    ),
    "baseline_tpe": Part(
        "A search for a baseline: TPE",
        """The paper's B0 was found by a search that maximizes accuracy * (multiply-adds / target)^-0.07. This is such a
search on scikit-learn's digits, of which 360 are for evaluation, with the variant `tiny` as baseline and target. A
network is trained for six epochs. After two of them or later it is stopped if it is behind the median of the others.

The sampler TPE draws the first nine networks after the baseline at random, and learns from them. Of the next twenty,
six were trained to the end, and four of them have an objective above 1. The best has the accuracy of the baseline with
43 % of its multiply-adds, and 4.6 times its parameters, which the objective does not see.""",
        [*MNASNET, "--sampler=tpe"],
        searches_baseline=True,
    ),
    "baseline_random": Part(
        "The same at random",
        """The first ten networks are the same as those of TPE. Of the next twenty, four were trained to the end, and
none has an objective above 0.972. The best network is one of the first ten.

What can be concluded: with thirty networks, TPE finds several better networks where random search finds none. What
cannot be concluded is by how much a search gains in general, because each ran once, and one image more or less changes
the objective by 0.003. For ImageNet, such a search would need thousands of networks.""",
        [*MNASNET, "--sampler=random"],
        searches_baseline=True,
    ),
}


# ----------------------------------------------------------------------------------------------------------- run


def make_data(archive: Path, path: Path) -> None:
    """Write a part of CIFAR-10 into one .npz file."""
    import numpy as np
    from PIL import Image

    if path.exists():
        return
    arrays = {}
    with zipfile.ZipFile(archive) as files:
        names = sorted(name for name in files.namelist() if name.endswith(".jpg"))
        classes = sorted({name.split("/")[1] for name in names})
        for split, count in (("train", TRAIN_IMAGES), ("test", TEST_IMAGES)):
            chosen = [
                (name, label)
                for label, class_name in enumerate(classes)
                for name in [name for name in names if name.startswith(f"{split}/{class_name}/")][:count]
            ]
            pixels = [np.asarray(Image.open(io.BytesIO(files.read(name)))) for name, _ in chosen]
            arrays[f"x_{split}"], arrays[f"y_{split}"] = np.stack(pixels), np.array([label for _, label in chosen])
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".unfinished.npz")
    np.savez_compressed(temporary, **arrays)
    temporary.rename(path)


def run(words: list[str], cores: int) -> None:
    """Run a command once for each core until it is finished."""
    while True:
        processes = [
            subprocess.Popen(
                ["taskset", "--cpu-list", str(core), sys.executable, "-m", *words],
                cwd=ROOT,
                env=os.environ | {"PYTHONPATH": str(ROOT)},
            )
            for core in range(cores)
        ]
        try:
            statuses = {process.wait() for process in processes}
        except KeyboardInterrupt:
            for process in processes:
                process.terminate()
            raise
        if RESTART not in statuses:
            break
    if statuses != {0}:
        sys.exit(f"{shlex.join(words)} ended with the statuses {sorted(statuses)}.")


def complete(name: str, data: Path, work: Path, cores: int) -> None:
    """Run a part as far as it is not finished, and copy its results."""
    folder, part = work / name, PARTS[name]
    flags = ["--share_plotly", "--set", "data.source=arrays", f"--data_dir={data}"]
    run([*part.command, *([] if part.searches_baseline else flags), f"--output_dir={folder}"], cores)
    copy_results(name, work)


def copy_results(name: str, work: Path) -> None:
    """Copy the results of a part to docs/studies, as if it had run in the default folder."""
    folder, part = work / name, PARTS[name]
    found = [path for pattern in (FOUND if part.searches_baseline else RESULTS) for path in folder.glob(pattern)]
    for path in found if part.searches_baseline else [*found, work / "plotly.min.js"]:
        target = FOLDER / path.relative_to(work)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
        if target.suffix in (".csv", ".html", ".yaml"):
            target.write_text(path.read_text().replace(str(work), str(WORK)))


# ---------------------------------------------------------------------------------------------------------- page


def read_groups(path: Path) -> dict[str, list[dict[str, str]]]:
    """Return the rows of each network of a results.csv, in the order of the file."""
    groups = {}
    with path.open() as file:
        for row in csv.DictReader(file):
            groups.setdefault(row["run"].rpartition("_seed")[0], []).append(row)
    return groups


def format_table(groups: dict[str, list[dict[str, str]]], shows_times: bool) -> str:
    """Return a Markdown table with one line for each network."""
    heads = ["depth", "width", "pixels", "parameters", "multiply-adds", "top-1", *(["training"] if shows_times else [])]
    lines = [f"| network | {' | '.join(heads)} |", f"|---|{'--:|' * len(heads)}"]
    for name, rows in groups.items():
        top1 = [100 * float(row["top1"]) for row in rows]
        spread = f" ± {statistics.stdev(top1):.1f}" if len(top1) > 1 else ""
        seconds = statistics.mean(float(row["train_seconds"]) for row in rows)
        first = rows[0]
        cells = [
            *(name, f"{float(first['depth']):g}", f"{float(first['width']):g}", first["resolution"]),
            *(f"{float(first['params']) / 1e6:.2f} M", f"{float(first['macs']) / 1e6:.1f} M"),
            *(f"{statistics.mean(top1):.1f}{spread} %", *([f"{seconds:.0f} s"] if shows_times else [])),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def format_search(path: Path) -> str:
    """Return a Markdown table with the baseline and the five best networks of a search, given its search.csv."""
    with path.open() as file:
        rows = list(csv.DictReader(file))
    done = sorted((row for row in rows if row["state"] == "done"), key=lambda row: -float(row["objective"]))
    shown = [*done[:5], *(row for row in done[5:] if row["sampler"] == "baseline")]
    lines = ["| network | objective | top-1 | multiply-adds | parameters |", "|---|--:|--:|--:|--:|"]
    for row in shown:
        cells = [
            *(row["trial"] + (" (baseline)" if row["sampler"] == "baseline" else ""), f"{float(row['objective']):.4f}"),
            *(f"{float(row['top1']):.2%}", f"{float(row['macs']) / 1e6:.2f} M", f"{float(row['params']) / 1e6:.3f} M"),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + f"\n\n{len(done)} of {len(rows)} networks were trained to the end."


def write_page() -> None:
    """Write README.md from the results of all parts."""
    sections = [ABOUT]
    for name, part in PARTS.items():
        results = FOLDER / name / ("search.csv" if part.searches_baseline else "results.csv")
        if not results.exists():
            sections.append(f"## {part.title}\n\nNot measured yet.")
            continue
        sections.append(f"## {part.title}\n\n    python -m {shlex.join(part.command)}")
        sections += [f"![Top-1 accuracy]({name}/{plot.name})" for plot in sorted((FOLDER / name).glob("*.png"))]
        if part.searches_baseline:
            sections += [format_search(results), part.text, f"[All networks]({name}/search.csv)"]
        else:
            sections += [format_table(read_groups(results), part.shows_times), part.text]
            sections.append(f"[Interactive page]({name}/index.html), [all runs]({name}/results.csv)")
    (FOLDER / "README.md").write_text("\n\n".join(section for section in sections if section) + "\n")


def main(args: argparse.Namespace) -> None:
    """Run the parts that were asked for, and write the page."""
    chosen = args.parts or [*PARTS, "page"]
    data = args.work / "cifar10.npz"
    for name in chosen:
        if name != "page":
            if not PARTS[name].searches_baseline:
                make_data(args.cifar10, data)
            complete(name, data.resolve(), args.work.resolve(), 1 if PARTS[name].searches_baseline else args.cores)
    write_page()


def make_parser() -> argparse.ArgumentParser:
    """Return the flags of the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar10", type=Path, help="Zip file of CIFAR-10 as JPEG files.")
    parser.add_argument("--work", type=Path, default=WORK, help="Folder of the runs.")
    parser.add_argument("--cores", type=int, default=2, help="Number of processes, each on one core. (default: 2)")
    parser.add_argument("--parts", nargs="+", choices=[*PARTS, "page"], help="What to do. Default: everything.")
    return parser


if __name__ == "__main__":
    main(make_parser().parse_args())
