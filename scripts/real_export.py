"""Export Lite0 with its published weights and compare the files with the Keras model on real crops (real_weights.py).

Photographs are those of `real_pictures`. The other half of the crops are CIFAR-10 images, enlarged.
"""

import json
import subprocess
import sys
import zipfile

import numpy as np

SIDE = 256  # of a crop in pixels. The network gets the 224 pixels in the middle.
CALIBRATION, EVALUATION = 9, 24  # crops of each photograph
CIFAR_CALIBRATION, CIFAR_EVALUATION = 15, 40  # images of each class, from the training and from the test split
SURE = (0.3, 0.5)  # probabilities of the Keras model's top-1 class from which it counts as sure
FILES = {  # row of the table: file and flags of the export command
    "LiteRT int8": ("lite0_int8.tflite", ["--precision=int8"]),
    "OpenVINO int8": ("lite0_int8.xml", ["--precision=int8"]),
    "ONNX Runtime int8": ("lite0_int8.onnx", ["--precision=int8"]),
    "LiteRT float32": ("lite0.tflite", []),
    "OpenVINO float32": ("lite0.xml", []),
    "ONNX Runtime float32": ("lite0.onnx", []),
}


def make_crops(archive):
    """Return crops by split, each a dict from a name to uint8 [SIDE, SIDE, 3].

    `train` is for calibration, `val` for the comparison. They share photographs but no crop, and no CIFAR-10 image.
    """
    import io

    from PIL import Image
    from real_pictures import crop_photo, find_photos

    rng = np.random.default_rng(0)
    crops = {"train": {}, "val": {}}
    for name, path in find_photos().items():
        for split, count in (("train", CALIBRATION), ("val", EVALUATION)):
            each = crop_photo(path, count, SIDE, rng)
            crops[split] |= {f"photo_{name}_{i:02}": crop for i, crop in enumerate(each)}
    with zipfile.ZipFile(archive) as images:
        names = sorted(images.namelist())
        for split, folder, count in (("train", "train", CIFAR_CALIBRATION), ("val", "test", CIFAR_EVALUATION)):
            for label in sorted({name.split("/")[1] for name in names}):
                for name in [name for name in names if name.startswith(f"{folder}/{label}/")][:count]:
                    with Image.open(io.BytesIO(images.read(name))) as file:
                        large = file.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC)
                    crops[split][f"cifar_{label}_{name[-8:-4]}"] = np.asarray(large)
    return crops


def write_folder(folder, crops):
    """Write crops as PNG files for the export command. Their classes, `photo` and `cifar`, play no role in it."""
    from PIL import Image

    for name, crop in crops.items():
        path = folder / name.partition("_")[0] / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(crop).save(path)


def compute_logits(run, pixels):
    """Return the logits of all pixels [N, 224, 224, 3], in batches."""
    return np.concatenate([np.asarray(run(pixels[i : i + 32])) for i in range(0, len(pixels), 32)])


def compare(expected, logits, names):
    """Return the agreement of logits with those of the Keras model on parts of the crops, and their differences."""
    probabilities = np.exp(expected - expected.max(axis=1, keepdims=True))
    top = probabilities.max(axis=1) / probabilities.sum(axis=1)
    photo = np.array([name.startswith("photo") for name in names])
    agrees = expected.argmax(axis=1) == logits.argmax(axis=1)
    parts = {"all": slice(None), "photographs": photo, "CIFAR-10": ~photo}
    parts |= {f"top-1 probability at least {share:.0%}": top >= share for share in SURE}
    agreement = {part: {"crops": len(agrees[p]), "agreement": float(agrees[p].mean())} for part, p in parts.items()}
    difference = np.abs(logits - expected)
    return {
        "parts": agreement,
        "difference": float(difference.max()),
        "root_mean_square": float(np.sqrt(np.mean(difference**2))),
    }


def make_command(title, work):
    """Return the words of the command that exports a file, after `python -m`."""
    file, flags = FILES[title]
    words = ["efficientnet_tf.export", f"--model_dir={work}/lite0", f"--output={work}/{file}", *flags, "--json"]
    return [*words, "--set", "data.source=folder", "--set", f"data.dir={work}/crops", "--set", "data.eval_split=sure"]


def complete(path, archive, work, environment):
    """Export and measure what the report lacks, and write the report after each file."""
    import tensorflow as tf

    from efficientnet_tf.export.formats import open_export
    from efficientnet_tf.models.model_dir import restore_model

    crops = make_crops(archive)
    margin = (SIDE - 224) // 2
    names = list(crops["val"])
    pixels = np.stack([crops["val"][name] for name in names])[:, margin:-margin, margin:-margin].astype(np.float32)
    model = restore_model(str(work / "lite0"))[0]
    expected = compute_logits(tf.function(lambda batch: model(batch, training=False)), pixels)
    if not (work / "crops/train").exists():
        sure = tf.nn.softmax(expected).numpy().max(axis=1) >= SURE[0]
        write_folder(
            work / "crops/sure",
            {name: crops["val"][name] for name, is_sure in zip(names, sure, strict=True) if is_sure},
        )
        write_folder(work / "crops/train", crops["train"])
    report = json.loads(path.read_text()) if path.exists() else {"rows": {}}
    report |= {"greatest_logit": float(np.abs(expected).max()), "standard_deviation": float(expected.std())}
    report |= {"calibration_crops": len(crops["train"]), "environment": environment}
    for title in [title for title in FILES if title not in report["rows"]]:
        file = work / FILES[title][0]
        row = {"command": make_command(title, "WORK")}
        command = [sys.executable, "-m", *make_command(title, work)]
        done = file.exists() or subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
        if done is not True and done.returncode:
            row["error"] = done.stderr.rpartition("error: ")[2].splitlines()[0].replace(f"{work}/", "")
        else:
            row |= compare(expected, compute_logits(open_export(str(file)).compute_logits, pixels), names)
        print(title, json.dumps(row), flush=True)
        report["rows"][title] = row
        path.write_text(json.dumps(report, indent=1) + "\n")
    report["rows"] = {title: report["rows"][title] for title in FILES}
    path.write_text(json.dumps(report, indent=1) + "\n")
