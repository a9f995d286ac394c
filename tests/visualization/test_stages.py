"""Test the picture of the stages of a network."""

import pytest

from efficientnet_tf.config.load import load_config
from efficientnet_tf.summary import summarize
from efficientnet_tf.visualization.stages import draw_stages, format_count


def draw(variant, *overrides):
    config = load_config(variant, "imagenet", overrides)
    return draw_stages(config, summarize(config))


@pytest.mark.parametrize("variant", ["b0", "b7", "l2", "v2-xl", "tiny", "lite0", "resnet50"])
def test_no_text_overlaps_another_text_or_leaves_the_picture(variant):
    figure = draw(variant)
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    assert not [1 for i, box in enumerate(boxes) for other in boxes[:i] if box.overlaps(other)]
    assert all(box.x0 > 0 and box.x1 < figure.bbox.width and box.y0 > 0 for box in boxes)


def test_picture_names_the_stages_of_table_1_of_the_paper():
    (axes,) = draw("b0").axes
    texts = [text.get_text() for text in axes.texts]
    for index, row in enumerate(("112 × 112 × 16", "56 × 56 × 24", "28 × 28 × 40", "14 × 14 × 80", "14 × 14 × 112"), 1):
        assert texts[texts.index(f"stage {index}") + 1] == row
    stage6 = texts[texts.index("stage 6") :]
    assert stage6[:4] == ["stage 6", "7 × 7 × 192", "4 × MBConv 5×5", "expand 6, SE, stride 2"]
    assert texts[texts.index("head") + 1] == "1,000 classes"


def test_bars_are_proportional_to_the_shares():
    summary = summarize(load_config("b0", "imagenet"))
    (axes,) = draw("b0").axes
    widths = {}
    for patch in axes.patches:
        if hasattr(patch, "get_width"):
            widths.setdefault(patch.get_facecolor(), []).append(patch.get_width())
    total = summary["total"]
    for key, whole in (("macs", "macs"), ("params", "trainable_params")):
        shares = [part[key] / total[whole] for part in summary["parts"]]
        assert any(
            len(bars) == len(shares) and bars == pytest.approx([share * bars[-1] / shares[-1] for share in shares])
            for bars in widths.values()
        ), key


def test_counts_have_three_digits_and_a_unit():
    counts = [0, 928, 1448, 9_793_000, 99_960_000, 999_600, 93_400_000_000, 4_393_771_024_000]
    assert list(map(format_count, counts)) == ["0", "928", "1.45 K", "9.79 M", "100 M", "1.00 M", "93.4 B", "4,394 B"]
