"""Writes the model card of a run: what the model is, how to use it, how it was trained, and how good it is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from efficientnet_tf.config.schema import Config
from efficientnet_tf.config.text import escape
from efficientnet_tf.models.run_metrics import Line
from efficientnet_tf.scaling.complexity import count_cost

MOST_CLASSES = 20  # that the card names
# What the card shows of how the model was trained, by key of the config.
TRAINING_KEYS = (
    *("train.epochs", "train.batch_size", "optimizer.name", "optimizer.learning_rate", "optimizer.weight_decay"),
    *("schedule.name", "schedule.warmup_epochs", "train.loss", "train.label_smoothing", "train.ema_decay"),
    *("model.dropout", "model.drop_connect", "augment.policy", "augment.mixup", "augment.cutmix", "augment.erase"),
)


def make_card(
    repository: str,
    config: Config,
    class_names: Sequence[str],
    evaluation: Line | None,
    *,
    model_license: str | None = None,
    dataset: str | None = None,
    description: str | None = None,
) -> str:
    """Return a model card, Markdown with metadata for the Hub.

    Args:
        repository: Name of the model, "user/name" on the Hub.
        config: Config of the run that trained the model.
        class_names: The class names, in the order of the logits.
        evaluation: The line of metrics.jsonl with the evaluation of these weights, or None.
        model_license: Identifier of a license on the Hub, for example apache-2.0.
        dataset: Name of the data set, for people and for the Hub.
        description: Markdown text about the intended use and the limits.
    """
    from huggingface_hub import ModelCardData

    data = dataset or _describe_data(config)
    settings: dict[str, Any] = {"license": model_license, "datasets": dataset, "tags": _list_tags(config)}
    if evaluation:
        settings |= {
            "model_name": repository.rpartition("/")[2],
            "eval_results": _list_results(evaluation, data, config),
        }
    metadata = ModelCardData(library_name="keras", pipeline_tag="image-classification", **settings)
    sections = [
        f"---\n{metadata.to_yaml()}\n---",
        f"# {repository.rpartition('/')[2]}",
        _describe_model(config, class_names, data),
        "## How to use it",
        _describe_use(repository, config),
        "## Results",
        _describe_results(evaluation, data, config),
        "## Training",
        _describe_training(config, data),
        "## Intended use and limits",
        description
        or "The author has not described the intended use of this model, or what it was tested for. It answers "
        "every image with one of its classes, whatever the image shows.",
        "## License",
        f"{model_license}. " if model_license else "The author has not named a license.",
    ]
    return "\n\n".join(section.strip() for section in sections) + "\n"


def compute_interval(share: float, count: int) -> tuple[float, float]:
    """Return the 95 % confidence interval of a share that was measured on `count` examples.

    Source: Wilson 1927, https://doi.org/10.1080/01621459.1927.10502953.
    """
    z = 1.959964
    center = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count)) / (1 + z * z / count)
    return center - half, center + half


def _list_tags(config):
    return ["efficientnet", config.model.name, "efficientnet_tf"]


def _list_results(evaluation: Mapping[str, Any], data: str, config: Config) -> list[Any]:
    from huggingface_hub import EvalResult

    shared: dict[str, Any] = {
        "task_type": "image-classification",
        "dataset_type": config.data.source.removeprefix("tfds:"),
        "dataset_name": data,
        "dataset_split": config.data.eval_split,
    }
    return [
        EvalResult(**shared, metric_type="accuracy", metric_name=name, metric_value=round(evaluation[key], 6))
        for key, name in (("top1", "Top-1 accuracy"), ("top5", "Top-5 accuracy"))
        if key in evaluation
    ]


def _describe_data(config):
    """Return what is known about the data set. Paths of the author's machine are not published."""
    source = config.data.source
    return source.removeprefix("tfds:") if source.startswith("tfds:") or source == "digits" else f"own data ({source})"


def _describe_model(config, class_names, data):
    cost = count_cost(config.model, config.image_size, len(class_names), config.data.channels)["total"]
    names = ", ".join(escape(name).replace("|", "\\|") for name in class_names[:MOST_CLASSES])
    others = (
        f" and {len(class_names) - MOST_CLASSES:,} others, see `classes.txt`" if len(class_names) > MOST_CLASSES else ""
    )
    size = "x".join(map(str, config.image_shape))
    kind = {1: "gray", 3: "color"}.get(config.data.channels, f"{config.data.channels}-channel")
    return (
        f"An image classifier with the network {config.model.name}, trained on {escape(data)} with "
        f"[efficientnet_tf](https://github.com/efficientnet-tf/efficientnet_tf).\n\n"
        f"| | |\n|---|---|\n"
        f"| Input | {kind} images of {size} pixels with values in [0, 255], which the network normalizes |\n"
        f"| Preprocessing | {_describe_crop(config)}, {config.data.interpolation} resizing |\n"
        f"| Output | {len(class_names):,} logits: {names}{others} |\n"
        f"| Parameters | {cost.trainable_params:,} |\n"
        f"| Multiply-adds | {cost.macs:,} for one image |"
    )


def _describe_crop(config):
    (height, width), padding = config.image_shape, config.crop_padding
    levels = ", ".join(map(str, config.data.background))
    center = f"center crop of {height / (height + padding):.1%} of the shorter side"
    if height != width:
        center = f"the center of the image resized to cover {height + padding}x{width + padding} pixels"
    return {
        "center": center,
        "squash": "the whole image, resized without keeping its aspect ratio",
        "pad": f"the whole image, with a border of the color [{levels}]",
    }[config.data.crop]


def _describe_use(repository, config):
    place = f"hf://{repository}" if "/" in repository else repository
    shape = str(["N", *config.input_shape]).replace("'", "")
    return f"""With efficientnet_tf (`pip install 'efficientnet_tf[hub]'`):

```python
from efficientnet_tf import load_model

model = load_model("{place}")
model.predict(["photo.jpg"])  # [[(class name, probability), ...]]
```

With Keras alone, which loads `model.keras` without this package:

```python
import keras

model = keras.saving.load_model("model.keras")
logits = model.predict(pixels)  # pixels: {shape} in [0, 255]
```"""


def _describe_results(evaluation, data, config):
    if not evaluation:
        return "No evaluation of these weights is recorded."
    count = int(evaluation["examples"])
    lines = ["| metric | value | 95 % interval |", "|---|--:|---|"]
    for key, name in (("top1", "top-1 accuracy"), ("top5", "top-5 accuracy")):
        if key in evaluation:
            low, high = compute_interval(evaluation[key], count)
            lines.append(f"| {name} | {evaluation[key]:.2%} | {low:.2%} to {high:.2%} |")
    lines.append(f"| loss | {evaluation['loss']:.4f} | |")
    where = f"{count:,} images of the split `{escape(config.data.eval_split)}` of {escape(data)}"
    best = f" The checkpoint was chosen by `{config.eval.best}` on these images, so the value is a little too good."
    return f"Measured on {where}.{'' if config.eval.best == 'none' else best}\n\n" + "\n".join(lines)


def _describe_training(config, data):
    values = config.resolve().model_dump()
    rows = [f"| `{key}` | {values[key.split('.')[0]][key.split('.')[1]]} |" for key in TRAINING_KEYS]
    start = "random weights" if config.train.init_from is None else "existing weights"
    return (
        f"Trained on the split `{escape(config.data.train_split)}` of {escape(data)}, starting from {start}. "
        "`training.yaml` has the complete config.\n\n" + "\n".join(["| key | value |", "|---|---|", *rows])
    )
