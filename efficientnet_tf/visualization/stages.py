"""Draws a network from the input to the output: the shapes of its stages, their blocks and what they cost."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from efficientnet_tf.config.image_size import as_shape
from efficientnet_tf.config.schema import Config
from efficientnet_tf.scaling.compound import Block, Network, scale_network
from efficientnet_tf.visualization.figures import legible, make_figure, measure_text, shorten, wrap

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Lengths in pixels.
WIDTH, MARGIN, ROW, LINE = 840, 24, 46, 17
TITLE_SIZE, FONT_SIZE, SMALL_SIZE = 17, 13, 12
HEADING_HEIGHT, LEGEND_HEIGHT = 82, 28
SHAPE_WIDTH, SHAPE_HEIGHT, LEAST_SHAPE = 112, 38, 4  # of the largest and the smallest feature maps
BAR_WIDTH, BAR_HEIGHT, GAP = 92, 18, 6
X_SHAPE, X_OUTPUT, X_BLOCKS, X_MACS, X_PARAMS = 92, 218, 342, 510, 674  # left edges of the columns

# Colors of Okabe and Ito, which readers with any kind of color vision can tell apart.
KINDS = {
    "mbconv": ("MBConv", "#56B4E9"),
    "fused_mbconv": ("Fused-MBConv", "#E69F00"),
    "separable": ("separable", "#009E73"),
    "bottleneck": ("bottleneck", "#CC79A7"),
}
PLAIN = "#9a9a9a"  # input, stem and head
MACS_COLOR, PARAMS_COLOR, TEXT, MUTED, FUNNEL = "#0072B2", "#D55E00", "#1c2128", "#59636e", "#eceff2"


@dataclass(frozen=True)
class _Row:
    """A row of the picture.

    Attributes:
        name: Its name, such as "stage 1".
        shape: Height, width and channels of its output.
        output: The shape for readers.
        lines: What computes it, in up to two lines.
        color: Color of the shape.
        costs: Multiply-adds and parameters, or None for the input.
    """

    name: str
    shape: tuple[int, int, int]
    output: str
    lines: tuple[str, ...]
    color: str
    costs: tuple[int, int] | None = None


def draw_stages(config: Config, summary: Mapping[str, Any]) -> Figure:
    """Draw the stages of a network as a funnel from the input to the output.

    Args:
        config: The config of the network.
        summary: What the command `summary` counts for it: "parts", "total", "variant", "classes" and others.

    Returns:
        The figure. Its only axes have pixels as units, counted from the top left corner.

    Raises:
        UserError: If the figure would be too large, because the network has too many stages.
    """
    from matplotlib.patches import Rectangle

    network = scale_network(config.model)
    rows = list(_list_rows(config, network, summary))
    caption = wrap(_CAPTION.split(), WIDTH - 2 * MARGIN, SMALL_SIZE)
    top = MARGIN + HEADING_HEIGHT
    bottom = top + ROW * len(rows)
    figure = make_figure(WIDTH, bottom + LEGEND_HEIGHT + LINE * len(caption) + MARGIN)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set_xlim(0, figure.bbox.width)
    axes.set_ylim(figure.bbox.height, 0)
    _write_heading(axes, summary)
    _draw_funnel(axes, rows, top)
    totals = summary["total"]["macs"], summary["total"]["trainable_params"]
    shares = [[_share(*pair) for pair in zip(row.costs or (0, 0), totals, strict=True)] for row in rows]
    largest = max(map(max, shares))
    for index, (row, row_shares) in enumerate(zip(rows, shares, strict=True)):
        middle = top + ROW * (index + 0.5)
        _write(axes, MARGIN, middle, row.name)
        _write(axes, X_OUTPUT, middle, shorten(row.output, X_BLOCKS - X_OUTPUT - GAP, FONT_SIZE))
        _write_pair(axes, X_BLOCKS, middle, row.lines)
        for x, color, count, share in zip(
            (X_MACS, X_PARAMS), (MACS_COLOR, PARAMS_COLOR), row.costs or (), row_shares, strict=False
        ):
            width = BAR_WIDTH * share / largest if largest else 0
            axes.add_patch(Rectangle((x, middle - BAR_HEIGHT / 2), width, BAR_HEIGHT, color=color, linewidth=0))
            _write_pair(axes, x + width + GAP, middle, (_format_share(share), format_count(count)))
    kinds = dict.fromkeys(stage[0].kind for stage in network.stages)
    _draw_legend(axes, [KINDS[kind] for kind in kinds], bottom + LEGEND_HEIGHT / 2)
    for line, text in enumerate(caption):
        _write(axes, MARGIN, bottom + LEGEND_HEIGHT + LINE * (line + 0.5), text, SMALL_SIZE, MUTED)
    return figure


_CAPTION = (
    "Outputs are height × width, in pixels, × channels. The width of a shape is proportional to that of the "
    "output, and its height grows with the logarithm of the channels. Multiply-adds are those of one image, in "
    "convolutions and dense layers. Parameters are the trainable ones. All numbers are counted from the config."
)


def _list_rows(config: Config, network: Network, summary: Mapping[str, Any]) -> Iterator[_Row]:
    spec, channels = config.model, config.data.channels
    shape = *as_shape(summary["resolution"]), channels
    yield _Row("input", shape, _format_shape(shape), (), PLAIN)
    stages = {f"stage{number}": stage for number, stage in enumerate(network.stages, 1)}
    for part in summary["parts"]:
        name, costs = part["part"], (part["macs"], part["params"])
        shape = *as_shape(part["side"]), part["channels"]
        if name in stages:
            stage = stages[name]
            color = KINDS[stage[0].kind][1]
            yield _Row(f"stage {name[5:]}", shape, _format_shape(shape), _describe_stage(stage), color, costs)
        elif name == "stem":
            lines = (f"conv {spec.stem_kernel}×{spec.stem_kernel}", _describe_stem(spec.stem_stride, spec.stem_pool))
            yield _Row("stem", shape, _format_shape(shape), lines, PLAIN, costs)
        else:
            top = (f"conv 1×1 to {network.head_channels:,}",) if network.head_channels else ()
            plural = "class" if summary["classes"] == 1 else "classes"
            lines = (*top, "pooling, dense")
            yield _Row(name, shape, f"{summary['classes']:,} {plural}", lines, PLAIN, costs)


def _describe_stage(stage: Sequence[Block]) -> tuple[str, str]:
    first, last = stage[0], stage[-1]
    details = [f"expand {last.expand:g}" if last.expand != 1 else "", "SE" if last.se_channels else ""]
    details += [f"stride {first.stride}" if first.stride != 1 else ""]
    name = f"{len(stage)} × {KINDS[last.kind][0]} {last.kernel}×{last.kernel}"
    return name, ", ".join(filter(None, details))


def _describe_stem(stride: int, has_pool: bool) -> str:
    return ", ".join([*([f"stride {stride}"] if stride != 1 else []), *(["max pooling"] if has_pool else [])])


def _format_shape(shape: tuple[int, int, int]) -> str:
    return " × ".join(f"{length:,}" for length in shape)


def format_count(count: float) -> str:
    """Return a count with three digits and the unit of the tables: "4.39 B", "93.8 M", "12.3 K" or "640"."""
    for unit, scale in (("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if count >= 0.9995 * scale:
            value = count / scale
            return f"{value:,.{2 if value < 9.995 else 1 if value < 99.95 else 0}f} {unit}"
    return f"{count:,.0f}"


def _share(count: int, total: int) -> float:
    return count / total if total else 0.0


def _format_share(share: float) -> str:
    return "<0.1%" if 0 < share < 0.0005 else f"{share:.1%}"


# ---------------------------------------------------------------------------------------------------------- drawing


def _write(axes: Axes, x: float, y: float, text: str, size: float = FONT_SIZE, color: str = TEXT, **style: Any) -> None:
    style = {"va": "center_baseline", "parse_math": False} | style
    axes.text(x, y, legible(text), fontsize=size, color=color, **style)


def _write_pair(axes: Axes, x: float, middle: float, lines: Sequence[str]) -> None:
    """Write one line, or a second one in gray below it."""
    lines = [line for line in lines if line]
    for index, text in enumerate(lines):
        y = middle + (index - (len(lines) - 1) / 2) * LINE
        _write(axes, x, y, text, SMALL_SIZE if index else FONT_SIZE, MUTED if index else TEXT)


def _write_heading(axes: Axes, summary: Mapping[str, Any]) -> None:
    title = shorten(f"{summary['variant']}: depth {summary['depth']:g}, width {summary['width']:g}", 640, TITLE_SIZE)
    _write(axes, MARGIN, MARGIN + 8, title, TITLE_SIZE, weight="bold")
    total, (height, width) = summary["total"], as_shape(summary["resolution"])
    text = (
        f"{height} × {width} pixels, {format_count(total['macs'])} multiply-adds, "
        f"{format_count(total['trainable_params'])} parameters"
    )
    _write(axes, MARGIN, MARGIN + 32, text, color=MUTED)
    heads = {MARGIN: "part", X_SHAPE: "", X_OUTPUT: "output", X_BLOCKS: "blocks"}
    for x, text in (heads | {X_MACS: "multiply-adds", X_PARAMS: "parameters"}).items():
        _write(axes, x, MARGIN + HEADING_HEIGHT - 14, text, SMALL_SIZE, MUTED)
    axes.plot([MARGIN, WIDTH - MARGIN], [MARGIN + HEADING_HEIGHT - 2] * 2, color="#d5dae0", linewidth=1)


def _draw_funnel(axes: Axes, rows: Sequence[_Row], top: int) -> None:
    """Draw the outputs one below the other, and a pale area that leads from each to the next."""
    from matplotlib.patches import Polygon, Rectangle

    _, widths, channels = zip(*(row.shape for row in rows), strict=True)
    center, before = X_SHAPE + SHAPE_WIDTH / 2, None
    for index, row in enumerate(rows):
        width = max(LEAST_SHAPE, SHAPE_WIDTH * row.shape[1] / max(widths))
        height = max(LEAST_SHAPE, SHAPE_HEIGHT * math.log2(1 + row.shape[2]) / math.log2(1 + max(channels)))
        y = top + ROW * (index + 0.5) - height / 2
        corners = [(center + width / 2, y), (center - width / 2, y)]
        if before:
            axes.add_patch(Polygon([*before, *corners], facecolor=FUNNEL, linewidth=0))
        shape = Rectangle((center - width / 2, y), width, height, facecolor=row.color, edgecolor="white", linewidth=0.5)
        axes.add_patch(shape)
        before = [(center - width / 2, y + height), (center + width / 2, y + height)]


def _draw_legend(axes: Axes, kinds: Sequence[tuple[str, str]], middle: float) -> None:
    from matplotlib.patches import Rectangle

    x = float(MARGIN)
    for text, color in [*kinds, ("input, stem and head", PLAIN)]:
        axes.add_patch(Rectangle((x, middle - 6), 12, 12, color=color, linewidth=0))
        _write(axes, x + 18, middle, text, SMALL_SIZE, MUTED)
        x += 18 + measure_text(text, SMALL_SIZE) + 20
