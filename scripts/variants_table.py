"""Write the table of all variants: `python scripts/variants_table.py [docs/variants.md]`.

The numbers are counted from the files in `configs/`, without TensorFlow. A variant that no group below names is an
error.
"""

import sys
from pathlib import Path

from efficientnet_tf import __all__ as public_names
from efficientnet_tf.config.load import list_variants, load_variant
from efficientnet_tf.scaling.complexity import count_cost, list_layers
from efficientnet_tf.scaling.memory import count_training_memory

PAGE = Path(__file__).resolve().parent.parent / "docs" / "variants.md"
GROUPS = {  # heading: (variants, source)
    "EfficientNet": (
        [*(f"b{i}" for i in range(9)), "l2"],
        "Tan & Le, ICML 2019; tensorflow/tpu, `models/official/efficientnet`. B8 and L2: the same code.",
    ),
    "EfficientNet-Lite": (
        [f"lite{i}" for i in range(5)],
        "tensorflow/tpu, `models/official/efficientnet/lite`. For Lite3 and Lite4, timm's weights take 300 and 380 "
        "pixels, which `weights` records.",
    ),
    "EfficientNetV2": (
        ["v2-b0", "v2-b1", "v2-b2", "v2-b3", "v2-s", "v2-m", "v2-l", "v2-xl"],
        "Tan & Le, ICML 2021; google/automl, `efficientnetv2`. Pixels are those of evaluation. Training uses fewer: "
        "see `configs/recipes/imagenet_v2.yaml`.",
    ),
    "EfficientNet-EdgeTPU": (
        ["edgetpu-s", "edgetpu-m", "edgetpu-l"],
        "tensorflow/tpu, `models/official/efficientnet/edgetpu`. The stride of a fused block is in its full "
        "convolution, as in timm.",
    ),
    "Tiny": (["tiny"], "timm, `test_efficientnet`: for tests and demonstrations."),
    "Other networks": (
        ["mobilenetv1", "mobilenetv2", "resnet50", "wide_resnet50_2"],
        "The networks that the paper scales for comparison, from their own papers. Each file names the table.",
    ),
}
# Top-1 accuracy on ImageNet in percent. B0 to B7: the paper's version 5, table 2. B8: AdvProp. L2: Noisy Student. Lite
# and EdgeTPU: their README files in tensorflow/tpu. V2: the weights of google/automl, as timm evaluates them; V2-XL is
# pretrained on ImageNet-21k. tiny: timm. Others: table 2 and 3 of the paper.
PUBLISHED = (
    dict(zip((f"b{i}" for i in range(9)), (77.1, 79.1, 80.1, 81.6, 82.9, 83.6, 84.0, 84.3, 85.5), strict=True))
    | {"l2": 88.4}
    | dict(zip((f"lite{i}" for i in range(5)), (75.1, 76.7, 77.6, 79.8, 81.5), strict=True))
    | {"v2-b0": 78.39, "v2-b1": 79.52, "v2-b2": 80.23, "v2-b3": 81.96}
    | {"v2-s": 83.90, "v2-m": 85.21, "v2-l": 85.66, "v2-xl": 86.75}
    | {"edgetpu-s": 77.23, "edgetpu-m": 78.69, "edgetpu-l": 80.62}
    | {"tiny": 46.5, "resnet50": 76.0, "mobilenetv1": 70.6, "mobilenetv2": 72.0}
)
BATCH = 32  # of the memory column
TITLES = ["variant", "parameters", "multiply-adds", "pixels", "published top-1", "training memory", "constructor"]
ALIGNMENT = ["---", "--:", "--:", "--:", "--:", "--:", "---"]
INTRODUCTION = f"""# Variants

`python scripts/variants_table.py` writes this page from `configs/*.yaml`. Parameters are the trainable ones, and
multiply-adds those of one image, both with 1,000 classes and at the default side of the images. Training memory is
[predicted](concepts/memory.md) for batches of {BATCH} images in float32 with RMSProp and EMA, at that side. Published
top-1 is the accuracy on ImageNet of the authors' own weights, for orientation: B8 was trained with AdvProp, L2 with
Noisy Student, and V2-XL on ImageNet-21k. No network was trained on ImageNet here.

    efficientnet-tf summary --variant=v2-s   # stage by stage
"""
RECIPES = """
## Recipes for ImageNet

`configs/recipes/` has one file for each. `train --variant=v2-s --recipe=imagenet_v2 --print_config` prints all values.

| recipe | for | source |
|---|---|---|
| `imagenet` | B0 to B8, L2 | the paper and the official code |
| `imagenet_lite` | Lite, EdgeTPU | the same, with bilinear resizing |
| `imagenet_v2` | V2, tiny | google/automl: progressive learning in four phases, with values for each variant |
| `imagenet_v2_finetune` | V2 with weights of ImageNet-21k | google/automl |
| `imagenet_modern` | B0, B1 | timm's `ra4` weights: AdamW, 3,600 epochs. The recipe names the source of each value |

Where they differ from the published code:

- `imagenet_v2` evaluates the largest square of an image. The code stretches the whole image to a square for V2-S to
  V2-XL, as `data.crop=squash` does.
- With both mixup and CutMix, `imagenet_v2` applies each to half of the batches. The code applies each to half of every
  batch.
- In `imagenet_v2`, up to 8 replicas normalize their own images unless `train.batch_norm_group` is set. In the code they
  normalize together.
- The code holds out 25,023 training images. `imagenet_v2` trains on all of them.
- `imagenet_v2_finetune` crops at least 90 % of an image. The code stretches all of it to a square, and its rectangles
  of noise have another shape. It trains for at least 10,000 steps.
- The policy with which the weights of Lite and EdgeTPU were trained is not published. `imagenet_lite` keeps
  AutoAugment.

In all phases of `imagenet_v2` the dropout is the same, as in the code. In the paper it grows.
"""


def make_row(variant):
    """Return the cells of a variant's row."""
    spec, cost = load_variant(variant), count_cost(variant)
    constructor = f"EfficientNet{variant.removeprefix('v2-').upper() if variant.startswith('v2-') else variant.title()}"
    if variant.startswith("v2-"):
        constructor = constructor.replace("EfficientNet", "EfficientNetV2")
    known = f"`{constructor}`" if constructor in public_names else ""
    memory = count_training_memory(list_layers(spec), BATCH).total
    return [
        *(f"`{variant}`", f"{cost.params:,}", f"{cost.macs / 1e6:,.0f} M", str(spec.resolution)),
        *(f"{PUBLISHED[variant]:.1f} %" if variant in PUBLISHED else "", f"{memory / 2**30:,.1f} GiB", known),
    ]


def format_page():
    """Return the Markdown page."""
    named = [variant for variants, _ in GROUPS.values() for variant in variants]
    if sorted(named) != list_variants():
        raise SystemExit(f"Name these variants in GROUPS: {sorted(set(named) ^ set(list_variants()))}")
    lines = [INTRODUCTION]
    for heading, (variants, source) in GROUPS.items():
        rows = [f"| {' | '.join(cells)} |" for cells in [TITLES, ALIGNMENT, *map(make_row, variants)]]
        lines += [f"## {heading}\n", *rows, f"\nSource: {source}\n"]
    return "\n".join(lines).rstrip("\n") + "\n" + RECIPES


if __name__ == "__main__":
    (Path(sys.argv[1]) if len(sys.argv) > 1 else PAGE).write_text(format_page(), encoding="utf-8")
