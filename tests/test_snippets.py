"""The commands and the Python code of the README and the guides, run one after the other as a reader would.

Each page runs in a folder of its own that has what the pages talk about: `photos`, `runs/photos`, `some.jpg` and so on.
The networks are replaced by one of two blocks, and training takes one epoch.
"""

import io
import re
import shlex
import shutil
import tarfile
from pathlib import Path

import keras
import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny
from commands import run_here
from foreign import timm_weights
from safetensors.numpy import save_file
from test_docs import list_commands

import efficientnet_tf as ef

ROOT = Path(__file__).resolve().parent.parent
PAGES = (
    "README.md",
    "docs/quickstart.md",
    "docs/faq.md",
    *(f"docs/guides/{p.name}" for p in ROOT.glob("docs/guides/*")),
)
FAST = ["train.epochs=1", "train.batch_size=8", "eval.batch_size=8", "schedule.warmup_epochs=0", "eval.every_epochs=1"]
FAST += [tiny.SHORT]  # also for a variant that the page has made
SIDE = 64  # pixels of an image, where a page has 224
SMALL = "small.yaml"  # a variant that the folder of a page contains
COLORS = {"blue": (0, 0, 200), "green": (0, 200, 0), "red": (200, 0, 0)}
# What is not run, and why.
SKIPPED = {
    r"gs://|--tpu": "needs Google Cloud",
    r"hf://": "needs an account of the Hugging Face Hub, see tests/hub",
    r"^benchmark": "takes minutes, see tests/benchmark",
    r"^serve": "runs until it is stopped, see tests/serving",
    r"^preflight": "needs the TPU compiler, see tests/preflight",
    r"^(study|search)(?!.*--list)": "trains many networks, see tests/study and tests/test_search.py",
    r"--backend=jax": "needs a process of its own, see tests/training/test_jax_loop.py",
    r"--target_latency_ms": "measures many networks, see tests/scaling",
    r"imagenet-a|real\.json": "needs ImageNet",
    r"/usr/share/datasets": "needs a package of Debian",
    r"keras\.datasets": "downloads CIFAR-10",
}


def photo(color, seed, side=240):
    noise = np.random.default_rng(seed).integers(-30, 31, [side, side + 20, 3])
    return PIL.Image.fromarray((np.array(color) + noise).clip(0, 255).astype(np.uint8))


def write_products(root):
    """Write tables of images with labels and a price, which follow from the color."""
    root.mkdir()
    for split, count in (("train", 48), ("val", 12)):
        rows = []
        for number in range(count):
            name = list(COLORS)[number % 3]
            photo(COLORS[name], number, side=64).save(root / f"{split}{number}.jpg")
            labels = {"blue": "new;sale", "green": "sale", "red": ""}[name]
            rows.append(f"{split}{number}.jpg,{labels},{len(name)}.{number % 10}")
        (root / f"{split}.csv").write_text("path,label,price\n" + "\n".join(rows) + "\n")


def write_containers(root):
    """Write the photographs of a few birds as Parquet and as tar files."""
    for split, count in (("train", 24), ("val", 6)):
        (root / "birds").mkdir(exist_ok=True)
        (root / "shards").mkdir(exist_ok=True)
        images, labels = [], [number % 3 for number in range(count)]
        for number, label in enumerate(labels):
            file = io.BytesIO()
            photo(list(COLORS.values())[label], number, side=64).save(file, "jpeg")
            images.append(file.getvalue())
        table = {"image": [{"bytes": image, "path": None} for image in images], "label": labels}
        pq.write_table(pa.table(table), root / "birds" / f"{split}-00000-of-00001.parquet")
        with tarfile.open(root / "shards" / f"{split}-0000.tar", "w") as tar:
            for number, (image, label) in enumerate(zip(images, labels, strict=True)):
                for name, content in ((f"{number}.jpg", image), (f"{number}.cls", str(label).encode())):
                    member = tarfile.TarInfo(name)
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder with everything that the pages assume."""
    folder = tmp_path_factory.mktemp("pages")
    for split, count in (("train", 16), ("val", 4), ("test", 4)):
        for label, (name, color) in enumerate(COLORS.items()):
            (folder / "photos" / split / name).mkdir(parents=True)
            for number in range(count):
                photo(color, 100 * label + number).save(folder / "photos" / split / name / f"{number}.jpg")
    (folder / "runs/nas").mkdir(parents=True)
    head, _, _ = Path(tiny.VARIANT).read_text().partition("stages:")
    (folder / SMALL).write_text(head + tiny.SHORT.removeprefix("model.").replace("=", ": ", 1))
    shutil.copy(folder / SMALL, folder / "runs/nas/baseline.yaml")
    (folder / "more").mkdir()
    write_products(folder / "products")
    write_containers(folder)
    (folder / "unlabeled").mkdir()
    for number in range(9):
        color = list(COLORS.values())[number % 3]
        photo(color, 1000 + number).save(folder / "unlabeled" / f"{number}.jpg")
        for split in ("train", "val"):
            (folder / "flowers" / split / "rose").mkdir(parents=True, exist_ok=True)
            (folder / "flowers" / split / "iris").mkdir(exist_ok=True)
            photo(color, number).save(folder / "flowers" / split / ("rose" if number % 2 else "iris") / f"{number}.jpg")
    photo(COLORS["red"], 1).save(folder / "some.jpg")
    photo(COLORS["green"], 2).save(folder / "more" / "other.jpg")
    images = np.random.default_rng(0).integers(0, 256, [60, 32, 32, 3], dtype=np.uint8)
    labels = np.arange(60) % 10
    np.savez(folder / "cifar10.npz", x_train=images[:40], y_train=labels[:40], x_test=images[40:], y_test=labels[40:])
    for number, split in enumerate(["train", "val"] * 8):
        (folder / "fields" / split / "wet").mkdir(parents=True, exist_ok=True)
        (folder / "fields" / split / "dry").mkdir(exist_ok=True)
        np.save(
            folder / "fields" / split / ("wet", "dry")[number // 2 % 2] / f"{number}.npy",
            np.tile(images[number], 2)[..., :5],
        )
    network = ef.build_model(str(folder / SMALL))
    save_file(timm_weights(network), folder / "tf_efficientnet_b4.safetensors")
    config = ["data.dir=photos", "train.epochs=6", *FAST[1:], f"data.image_size={SIDE}", "train.ema_decay=0.5"]
    config.append("optimizer.learning_rate=0.016")  # for few steps
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        ef.train_model(ef.load_config(SMALL, "folder", config), "runs/photos")
        ef.train_model(ef.load_config(SMALL, "digits", FAST), "runs/digits")
    shutil.copytree(folder / "runs/digits", folder / "runs/photos2")
    for name in ("wide", "deep", "compound"):
        shutil.copytree(folder / "runs/photos", folder / "runs" / name)
    keras.backend.clear_session()
    return folder


def list_parts(text):
    """Yield (kind, text) of the commands and the blocks of Python code of a page, in their order."""
    for match in re.finditer(r"^```python\n(.+?)^```|^    ([^\n]+)$", text, re.MULTILINE | re.DOTALL):
        if match[1]:
            yield "python", match[1]
        else:
            yield from (("command", shlex.join([name, *words])) for name, words in list_commands(f"    {match[2]}"))


def run_command(words):
    """Run a command in this process, with the small network."""
    command, *flags = (re.sub(r"(--variant=|--baseline=)b\d", rf"\g<1>{SMALL}", word) for word in words)
    if command == "train":
        flags += [word for setting in FAST for word in ("--set", setting)]
        flags += [] if any(flag.startswith("--variant=") for flag in flags) else [f"--variant={SMALL}"]
    [given] = [Path(f.partition("=")[2]) for f in flags if command == "train" and f.startswith("--model_dir=")] or [
        None
    ]
    kept = given and given.exists() and given.rename(f"{given}.kept")
    assert not run_here(command, *flags)
    if kept:  # The commands that follow use the run that is trained well.
        shutil.rmtree(given)
        kept.rename(given)


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", [pytest.param(page, marks=pytest.mark.nightly) if page == "docs/faq.md" else page for page in PAGES]
)
def test_a_reader_can_run_the_page(page, folder, tmp_path, monkeypatch):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    namespace = {}
    for kind, text in list_parts((ROOT / page).read_text()):
        if any(re.search(pattern, text) for pattern in SKIPPED):
            continue
        if kind == "command":
            run_command(shlex.split(text))
        else:
            code = text.replace('load_config("b0", "digits")', f'load_config("{SMALL}", "digits", {FAST})')
            code = code.replace("224", str(SIDE))
            exec(compile(code, page, "exec"), namespace)


def test_every_exception_is_needed():
    parts = [text for page in PAGES for _, text in list_parts((ROOT / page).read_text())]
    for pattern in SKIPPED:
        assert any(re.search(pattern, text) for text in parts), pattern
