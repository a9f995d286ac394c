"""Draw the figure of the README: `python scripts/overview_figure.py`, which writes docs/assets/overview.png.

On the left are the published accuracies of `variants_table.py` over the multiply-adds that this package counts. On the
right are the training speeds of docs/speed.
"""

import json
from pathlib import Path

from variants_table import PUBLISHED

from efficientnet_tf.scaling.complexity import count_cost
from efficientnet_tf.visualization.figures import make_figure, save_figure

DOCS = Path(__file__).resolve().parents[1] / "docs"
FAMILIES = {  # name: (variants, color, marker)
    "EfficientNet": ([f"b{i}" for i in range(8)], "#0072B2", "o"),
    "Lite": ([f"lite{i}" for i in range(5)], "#009E73", "s"),
    "V2": (["v2-b0", "v2-b1", "v2-b2", "v2-b3", "v2-s", "v2-m", "v2-l"], "#D55E00", "D"),
    "EdgeTPU": (["edgetpu-s", "edgetpu-m", "edgetpu-l"], "#CC79A7", "^"),
}
NAMED = {"b0", "b3", "b5", "b7", "lite0", "lite4", "v2-s", "v2-m", "v2-l", "edgetpu-l"}
SPEEDS = (("train_b0", "b0"), ("train_b4", "b4"), ("train_v2_b0", "v2-b0"), ("train_v2_s", "v2-s"))
IMPLEMENTATIONS = {
    "efficientnet_tf": ("this package", "#0072B2"),
    "timm": ("timm, torch.compile", "#8C8C8C"),
    "keras": ("keras.applications", "#CFCFCF"),
}
SIZE = (1600, 640)  # pixels
FONT = 20


def draw_accuracy(axes):
    """Draw the published top-1 accuracy over the multiply-adds, one line for each family."""
    for family, (variants, color, marker) in FAMILIES.items():
        points = [(count_cost(variant).macs / 1e9, PUBLISHED[variant]) for variant in variants]
        axes.plot(*zip(*points, strict=True), color=color, marker=marker, markersize=9, linewidth=2.5, label=family)
        for variant, point in zip(variants, points, strict=True):
            if variant in NAMED:
                name = variant.title() if family == "Lite" else variant.removeprefix("edgetpu-").upper()
                is_above = variant in ("b0", "v2-s", "v2-m", "v2-l")
                offset, align = ((-8, 8), "right") if is_above else ((8, -22), "left")
                axes.annotate(name, point, offset, textcoords="offset points", fontsize=FONT - 4, color=color, ha=align)
    point = count_cost("resnet50").macs / 1e9, PUBLISHED["resnet50"]
    axes.plot(*point, color="black", marker="x", markersize=11, markeredgewidth=3)
    axes.annotate("ResNet-50", point, (12, -7), textcoords="offset points", fontsize=FONT - 4)
    axes.set_xscale("log")
    axes.set_ylim(74, 86.5)
    axes.set_xticks([0.5, 1, 2, 5, 10, 20, 50], ["0.5", "1", "2", "5", "10", "20", "50"])
    axes.minorticks_off()
    axes.set_xlabel("multiply-adds (billions)", fontsize=FONT)
    axes.set_title("Published top-1 on ImageNet (%)", fontsize=FONT + 2, loc="left")
    axes.legend(fontsize=FONT - 2, loc="lower right", frameon=False)
    axes.grid(alpha=0.3)


def draw_speed(axes):
    """Draw the training speed on a CPU as a multiple of that of keras.applications."""
    width = 0.27
    for index, (name, (label, color)) in enumerate(IMPLEMENTATIONS.items()):
        ratios = []
        for file, variant in SPEEDS:
            rows = json.loads((DOCS / f"speed/{file}.json").read_text())["rows"]
            [row] = [row for row in rows if (row["variant"], row["implementation"]) == (variant, name)]
            ratios.append(row["of_keras"])
        places = [place + (index - 1) * width for place in range(len(SPEEDS))]
        bars = axes.bar(places, ratios, width, color=color, label=label)
        axes.bar_label(bars, [f"{ratio:.1f}" for ratio in ratios], fontsize=FONT - 4, padding=3)
    axes.set_xticks(range(len(SPEEDS)), [variant.upper() for _, variant in SPEEDS])
    axes.set_yticks([0, 1, 2])
    axes.set_ylim(0, 2.6)
    axes.set_title("Training speed on a CPU, relative to Keras", fontsize=FONT + 2, loc="left")
    axes.legend(fontsize=FONT - 2, loc="upper right", frameon=False)


def main():
    """Draw both parts and write the picture."""
    figure = make_figure(*SIZE)
    accuracy, speed = figure.subplots(1, 2, width_ratios=[3, 2])
    draw_accuracy(accuracy)
    draw_speed(speed)
    for axes in (accuracy, speed):
        axes.tick_params(labelsize=FONT - 2)
        axes.spines[["top", "right"]].set_visible(False)
    figure.subplots_adjust(left=0.05, right=0.99, top=0.9, bottom=0.13, wspace=0.1)
    save_figure(figure, str(DOCS / "assets/overview.png"), "output")


if __name__ == "__main__":
    main()
