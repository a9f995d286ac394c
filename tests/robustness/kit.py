"""Ordinary inputs that the cases spoil: photos, a network, a trained model, and a valid call of each command."""

import os
import shutil
import socket
from pathlib import Path

import numpy as np
import PIL.Image
from robustness.harness import ROOT, Case

COLORS = {"cat": (200, 60, 60), "dog": (60, 200, 60), "owl": (60, 60, 200)}
VARIANT = """\
width: 1.0
depth: 1.0
resolution: 32
dropout: 0.0
stem_channels: 8
head_channels: 32
stages:
- {kernel: 3, stride: 1, expand: 1, channels: 8, repeats: 1}
- {kernel: 5, stride: 2, expand: 4, channels: 16, repeats: 1}
"""
RECIPE = """\
data: {source: folder, image_size: 32}
schedule: {name: constant, warmup_epochs: 0}
train: {batch_size: 4, epochs: 1, ema_decay: 0.0}
eval: {batch_size: 4}
"""


def picture(label="cat", seed=0, size=(40, 50)):
    """Return a noisy picture in the color of a class."""
    rng = np.random.default_rng(seed)
    return PIL.Image.fromarray(np.clip(rng.normal(COLORS[label], 40, (*size, 3)), 0, 255).astype(np.uint8))


def write_split(folder, count, labels=tuple(COLORS)):
    """Write a folder of pictures for each class."""
    for label in labels:
        path = Path(folder, label)
        path.mkdir(parents=True, exist_ok=True)
        for i in range(count):
            picture(label, i).save(path / f"{i}.jpg")


def write_photos(folder, train=4, val=2):
    """Write a folder of a training and a validation split."""
    write_split(Path(folder, "train"), train)
    write_split(Path(folder, "val"), val)
    return folder


class Kit:
    """The shared inputs. No case may change them."""

    def __init__(self, root):
        self.root = Path(root) / "kit"
        self.root.mkdir()
        self.photos = write_photos(self.root / "photos")
        self.variant, self.recipe = self.root / "tiny.yaml", self.root / "recipe.yaml"
        self.variant.write_text(VARIANT)
        self.recipe.write_text(RECIPE)
        self.model = self.root / "model"
        shutil.copytree(ROOT / "tests/fixtures/old_run", self.model)
        self.image = self.root / "photo.png"
        picture().save(self.image)
        self.config = [f"--variant={self.variant}", f"--recipe={self.recipe}"]

    def train(self, data, *more, model_dir="run"):
        """Return the command line that trains on a folder."""
        return ["train", *self.config, f"--data_dir={data}", f"--model_dir={model_dir}", "--device=cpu", *more]

    def commands(self):
        """Return {command: arguments of a valid call, without TPU, network or long work}."""
        config, model, data = self.config, f"--model_dir={self.model}", f"--data_dir={self.photos}"
        study = ["--study=one_dimension", f"--recipe={self.recipe}", f"--baseline={self.variant}", "--list"]
        return {
            "train": [*config, data, "--model_dir=run", "--device=cpu"],
            "evaluate": [model, "--device=cpu"],
            "calibrate": [model, "--output=calibrated"],
            "predict": [model, str(self.image)],
            "embed": [model, "--output=vectors.npz", str(self.image)],
            "probe": [model],
            "report": [model, "--output=report.html"],
            "explain": [model, "--output=explained.png", str(self.image)],
            "export": [model, "--output=exported.tflite", "--images=8"],
            "push": [model, "--to=pushed"],
            "serve": [model, "--port=0"],
            "weights": [f"--variant={self.variant}", f"--input={self.model}/model.keras", "--output=new.weights.h5"],
            "summary": [*config, data],
            "scale": [f"--baseline={self.variant}", "--target_macs=1e7", "--output=scaled.yaml"],
            "search": [f"--baseline={self.variant}", f"--recipe={self.recipe}", "--list"],
            "study": study,
            "show": [*config, data, "--output=grid.png", "--rows=1", "--columns=1"],
            "prepare": [data, "--output=records", "--splits=train", "--shards=1"],
            "benchmark": ["--mode=infer", f"--variant={self.variant}", "--batch=1", "--rounds=1", "--seconds=0.01"],
            "preflight": [*config, data, "--topology=v5e:2x4", "--fast", "--batch=8", "--classes=3", "--images=64"],
        }


# Flags that hold a path, by command: what is read there, or "new" for what is written.
PATHS = {
    "train": {
        "model_dir": "new",
        "data_dir": "folder",
        "init_from": "file",
        "variant": "file",
        "recipe": "file",
    },
    "evaluate": {
        "model_dir": "folder",
        "folder": "folder",
        "real_labels": "file",
        "per_class": "new .csv",
        "confusion": "new .png",
        "metrics": "new .json",
        "report": "new .html",
    },
    "calibrate": {"model_dir": "folder", "output": "new"},
    "predict": {"model_dir": "folder", "output": "new .csv", "": "file"},
    "embed": {"model_dir": "folder", "output": "new .npz", "duplicates": "new .csv", "": "file"},
    "probe": {"model_dir": "folder"},
    "report": {"model_dir": "folder", "output": "new .html"},
    "explain": {"model_dir": "folder", "output": "new .png", "": "file"},
    "export": {"model_dir": "folder", "output": "new"},
    "push": {"model_dir": "folder", "to": "new"},
    "serve": {"model_dir": "folder"},
    "weights": {"input": "file", "output": "new", "variant": "file"},
    "summary": {"variant": "file", "recipe": "file", "picture": "new .png"},
    "scale": {"baseline": "file", "output": "new .yaml"},
    "search": {"baseline": "file", "output_dir": "new"},
    "study": {"baseline": "file", "output_dir": "new"},
    "show": {"data_dir": "folder", "output": "new .png"},
    "prepare": {"data_dir": "folder", "output": "new"},
    "benchmark": {"output": "new .json", "picture": "new .png", "variant": "file"},
    "preflight": {"variant": "file", "model_dir": "new"},
}


def replace_flag(arguments, flag, value):
    """Return arguments with another value of a flag, or of the positional argument if the flag is ''."""
    if not flag:
        return [*arguments[:-1], value]
    kept = [word for word in arguments if not word.startswith(f"--{flag}=")]
    if flag == "output_dir":
        kept.remove("--list")
    return [f"--{flag}={value}", *kept]


def write_irregular(folder):
    """Write what is no regular file; return {kind: path}."""
    folder = Path(folder)
    os.mkfifo(folder / "fifo")
    (folder / "loop").symlink_to("loop")
    (folder / "folder").mkdir()
    (folder / "folder/note").write_text("")
    (folder / "dangling").symlink_to("nothing")
    # The path of a socket has at most 108 bytes.
    before = os.getcwd()
    os.chdir(folder)
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind("socket")
    finally:
        os.chdir(before)
    (folder / "zero").symlink_to("/dev/zero")
    return {name: folder / name for name in ("fifo", "loop", "folder", "dangling", "socket", "zero")}


class TrainedKit(Kit):
    """The shared inputs, with what only TensorFlow can make: a run, exports and record files."""

    def __init__(self, root, harness):
        super().__init__(root)
        self.run, self.records = self.root / "run", self.root / "records"
        self._harness = harness
        self._call(self.train(self.photos, model_dir=self.run))
        self._call(["prepare", f"--data_dir={self.photos}", f"--output={self.records}", "--shards=1"])

    def _call(self, argv):
        answer, _ = self._harness.run(Case("kit", argv, folder=self.root, seconds=240))
        if answer["status"]:
            raise RuntimeError(f"{argv}: {answer}")

    def models(self):
        """Return {kind: path} of the same model in several forms. The exports are made at the first call."""
        paths = {"a run": self.model, "SavedModel": self.root / "saved", "LiteRT": self.root / "model.tflite"}
        for path in paths.values():
            if not path.exists():
                self._call(["export", f"--model_dir={self.model}", f"--output={path}", "--images=8"])
        return paths
