"""Tests of the command `summary`: its numbers against the paper, its table, and its measurements."""

import json
from pathlib import Path

import pytest

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.load import load_variant
from efficientnet_tf.runtime.terminal import render
from efficientnet_tf.scaling.complexity import compute_receptive_fields, count_cost
from efficientnet_tf.scaling.memory import find_largest_batch
from efficientnet_tf.summary import format_summary, main, make_parser

TINY = str(Path(__file__).parent / "tiny.yaml")


def run(capsys, *arguments):
    main(make_parser().parse_args(arguments))
    return capsys.readouterr().out


def test_b0_matches_table_1_of_the_paper(capsys):
    summary = json.loads(run(capsys, "--variant=b0", "--json"))
    parts = {part["part"]: part for part in summary["parts"]}
    outputs = [(parts[f"stage{i}"]["side"], parts[f"stage{i}"]["channels"]) for i in range(1, 8)]
    assert outputs == [(112, 16), (56, 24), (28, 40), (14, 80), (14, 112), (7, 192), (7, 320)]
    assert [parts[f"stage{i}"]["blocks"] for i in (1, 3, 6)] == [
        "1 x mbconv, 3x3",
        "2 x mbconv, 5x5",
        "4 x mbconv, 5x5",
    ]
    assert sum(part["macs"] for part in summary["parts"]) == summary["total"]["macs"] == 385_814_752
    assert sum(part["params"] for part in summary["parts"]) == summary["total"]["trainable_params"] == 5_288_548
    assert sum(kind["macs"] for kind in summary["kinds"].values()) == summary["total"]["macs"]
    assert summary["kinds"]["dense"]["macs"] == 1_280_000
    # Each block has two layers with channels * squeezed multiply-adds, which act once per image.
    assert summary["kinds"]["squeeze_excite"]["macs"] == 627_200


def test_receptive_field_by_hand():
    """The stem sees 3 pixels. Each depthwise convolution adds (kernel - 1) * (total stride before it)."""
    fields = compute_receptive_fields(load_variant("b0"))
    assert fields["stem"] == (3, 2) and fields["stage1"] == (3 + 2 * 2, 2)
    assert fields["stage2"] == (7 + 2 * 2 + 2 * 4, 4)
    assert fields["stage3"] == (19 + 4 * 4 + 4 * 8, 8)
    resnet = compute_receptive_fields(load_variant("resnet50"))
    assert resnet["stem"] == (11, 4) and resnet["stage4"] == (427, 32)  # the published value


def test_options_change_the_predicted_memory(capsys):
    options = ["--variant=b1", "--memory=8", "--set", "optimizer.name=sgd", "--set", "train.ema_decay=0"]
    options += ["--set", "train.precision=mixed_bfloat16", "--set", "data.image_size=128", "--batch=7"]
    summary = json.loads(run(capsys, *options, "--json"))
    cost = count_cost("b1", 128)
    chosen = {"precision": "mixed_bfloat16", "optimizer": "sgd", "ema": False}
    assert summary["largest_batch"]["batch"] == find_largest_batch(cost.layers, 8 * 2**30, **chosen)
    assert summary["memory"]["training"]["total"] == cost.training_bytes(7, **chosen)


def test_table_for_people(capsys):
    output = run(capsys, "--variant=b4")
    lines = [line.split() for line in output.splitlines()]
    stage5 = ["stage5", "6", "x", "mbconv,", "5x5", "24x24x160", "16", "711", "2,306,724", "1,069,238,016", "24.3%"]
    assert stage5 in [line[: len(stage5)] for line in lines]
    assert ["total", "19,341,616", "4,393,771,024"] in [line[:3] for line in lines] and "19,466,816" in output
    assert "Largest training batch in 16 GiB: " in output


@pytest.mark.parametrize(("name", "start"), [("b0.png", b"\x89PNG"), ("b0.SVG", b"<?xml")])
def test_picture_is_written_and_named(capsys, tmp_path, name, start):
    path = tmp_path / name
    assert run(capsys, f"--picture={path}").endswith(f"\nThe stages are drawn in {path}.\n")
    assert path.read_bytes().startswith(start)


@pytest.mark.slow
@pytest.mark.tensorflow
def test_measures_on_this_machine(capsys):
    summary = json.loads(run(capsys, f"--variant={TINY}", "--classes=5", "--batch=4", "--measure", "--json"))
    measured = summary["measured"]
    assert measured["device"] == "CPU"
    assert measured["inference_seconds"] > 0 and measured["train_seconds"] > 0
    assert "Measured on CPU" in render(*format_summary(summary))


def test_mistakes_are_reported():
    for arguments, message in (
        (["--variant=b9"], "unknown variant 'b9'"),
        (["--variant=b0", "--set", "model.width=0"], "model.width"),
    ):
        with pytest.raises(UserError, match=message):
            main(make_parser().parse_args(arguments))
