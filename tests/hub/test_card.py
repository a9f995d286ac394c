"""Model cards: what they say, and that the Hub's own library reads them."""

import math

import pytest
import scipy.stats

huggingface_hub = pytest.importorskip("huggingface_hub")

from efficientnet_tf.config.load import load_config  # noqa: E402
from efficientnet_tf.hub.card import compute_interval, make_card  # noqa: E402

EVALUATION = {"kind": "eval/ema", "step": 100, "top1": 0.9, "top5": 0.99, "loss": 0.5, "examples": 1000}


@pytest.mark.parametrize(("hits", "count"), [(0, 10), (1, 1), (900, 1000), (9429, 10_000), (10, 10)])
def test_interval_is_that_of_scipy(hits, count):
    expected = scipy.stats.binomtest(hits, count).proportion_ci(0.95, method="wilson")
    assert compute_interval(hits / count, count) == pytest.approx((expected.low, expected.high), abs=1e-6)


def test_the_library_of_the_hub_reads_the_card():
    text = make_card(
        "user/digits",
        load_config("b0", "digits", ["eval.best=top1"]),
        [str(digit) for digit in range(10)],
        EVALUATION,
        model_license="apache-2.0",
        dataset="mnist",
        description="For tests only.",
    )
    card = huggingface_hub.ModelCard(text)
    assert card.data.license == "apache-2.0" and card.data.library_name == "keras"
    assert card.data.pipeline_tag == "image-classification" and card.data.datasets == "mnist"
    results = {result.metric_name: result for result in card.data.eval_results}
    assert results["Top-1 accuracy"].metric_value == 0.9 and results["Top-5 accuracy"].metric_value == 0.99
    assert results["Top-1 accuracy"].dataset_name == "mnist" and results["Top-1 accuracy"].metric_type == "accuracy"
    assert huggingface_hub.ModelCard(str(card)).data.to_dict() == card.data.to_dict()
    low, high = compute_interval(0.9, 1000)
    for part in (
        "# digits\n",
        'load_model("hf://user/digits")',
        "images of 32x32 pixels",
        "4,020,358 |",  # parameters of B0 with ten classes
        f"| top-1 accuracy | 90.00% | {low:.2%} to {high:.2%} |",
        "1,000 images of the split `test`",
        "chosen by `top1` on these images",
        "For tests only.",
        "apache-2.0.",
    ):
        assert part in card.text or part in text, part


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        ([], "center crop of 87.5% of the shorter side, bicubic resizing"),
        (["data.image_size=[48, 80]"], "the center of the image resized to cover 55x87 pixels, bicubic resizing"),
        (
            ["data.crop=squash"],
            "the whole image, resized without keeping its aspect ratio, bicubic resizing",
        ),
        (
            ["data.crop=pad", "data.background=[1, 2, 3]"],
            "the whole image, with a border of the color [1, 2, 3], bicubic",
        ),
    ],
)
def test_a_card_describes_the_crop(overrides, text):
    config = load_config("b0", "folder", ["data.dir=photos", *overrides])
    assert f"| Preprocessing | {text}" in make_card("user/photos", config, ["a", "b"], None)


def test_a_card_says_what_is_not_known():
    text = make_card("digits", load_config("b0", "folder", ["data.dir=/home/me/secret"]), ["a"] * 30, None)
    for part in ("No evaluation of these weights", "has not described", "has not named a license", "10 others"):
        assert part in text
    assert "/home" not in text and "secret" not in text
    assert huggingface_hub.ModelCard(text).data.eval_results is None and not math.isnan(len(text))


def test_names_cannot_break_the_card():
    text = make_card("user/x", load_config("b0", "digits", []), ["a\n---\nlicense: mit", "b | c", "\u2028"], EVALUATION)
    assert huggingface_hub.ModelCard(text).data.license is None
    [row] = [line for line in text.split("\n") if line.startswith("| Output |")]
    assert row.endswith("|") and "license" in row
