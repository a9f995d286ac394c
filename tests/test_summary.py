"""The summary: its figures against the published table, the command's words, and the measurement."""

import json
from pathlib import Path

import pytest

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.load import load_variant
from efficientnet_tf.scaling.complexity import list_layers, receptive_fields
from efficientnet_tf.scaling.memory import largest_batch, training_memory
from efficientnet_tf.summary import format_summary, main, make_parser

TINY = str(Path(__file__).parent / "tiny.yaml")


def run(capsys, *arguments):
    main(make_parser().parse_args(arguments))
    return capsys.readouterr().out


def test_b0_is_the_papers_table_1(capsys):
    told = json.loads(run(capsys, "--variant=b0", "--json"))
    parts = {part["part"]: part for part in told["parts"]}
    outputs = [(parts[f"stage{i}"]["side"], parts[f"stage{i}"]["channels"]) for i in range(1, 8)]
    assert outputs == [(112, 16), (56, 24), (28, 40), (14, 80), (14, 112), (7, 192), (7, 320)]
    assert [parts[f"stage{i}"]["blocks"] for i in (1, 3, 6)] == [
        "1 x mbconv, 3x3",
        "2 x mbconv, 5x5",
        "4 x mbconv, 5x5",
    ]
    assert sum(part["macs"] for part in told["parts"]) == told["total"]["macs"] == 385_814_752
    assert sum(part["params"] for part in told["parts"]) == told["total"]["trainable_params"] == 5_288_548
    assert sum(kind["macs"] for kind in told["kinds"].values()) == told["total"]["macs"]
    assert told["kinds"]["dense"]["macs"] == 1_280_000
    # 4 * channels * squeezed in each block's two layers, once an image.
    assert told["kinds"]["squeeze_excite"]["macs"] == 627_200


def test_receptive_field_by_hand():
    """Stem 3; then + (kernel - 1) * stride so far for each convolution that looks at neighbours."""
    fields = receptive_fields(load_variant("b0"))
    assert fields["stem"] == (3, 2) and fields["stage1"] == (3 + 2 * 2, 2)
    assert fields["stage2"] == (7 + 2 * 2 + 2 * 4, 4)
    assert fields["stage3"] == (19 + 4 * 4 + 4 * 8, 8)
    resnet = receptive_fields(load_variant("resnet50"))
    assert resnet["stem"] == (11, 4) and resnet["stage4"] == (427, 32)  # published: 427


def test_largest_batch_and_options_reach_the_counting(capsys):
    options = ["--variant=b1", "--memory=8", "--set", "optimizer.name=sgd", "--set", "train.ema_decay=0"]
    options += ["--set", "train.precision=mixed_bfloat16", "--set", "data.image_size=128", "--batch=7"]
    told = json.loads(run(capsys, *options, "--json"))
    layers = list_layers(load_variant("b1"), 128)
    chosen = {"precision": "mixed_bfloat16", "optimizer": "sgd", "average": False}
    assert told["largest_batch"]["batch"] == largest_batch(layers, 8 * 2**30, **chosen)
    assert told["memory"]["training"]["total"] == training_memory(layers, 7, **chosen).total


def test_table_for_people(capsys):
    said = run(capsys, "--variant=b4")
    lines = [line.split() for line in said.splitlines()]
    stage5 = ["stage5", "6", "x", "mbconv,", "5x5", "24x24x160", "16", "711", "2,306,724", "1,069,238,016", "24.3%"]
    assert stage5 in [line[: len(stage5)] for line in lines]
    assert ["total", "19,341,616", "4,393,771,024"] in [line[:3] for line in lines] and "19,466,816" in said
    assert "Largest training batch in 16 GiB: " in said


@pytest.mark.parametrize("classes", [5])
def test_measures_here(capsys, classes):
    told = json.loads(run(capsys, f"--variant={TINY}", f"--classes={classes}", "--batch=4", "--measure", "--json"))
    measured = told["measured"]
    assert measured["device"] == "CPU"
    assert 0 < measured["inference_seconds"] < 1 and 0 < measured["train_seconds"] < 10
    assert "Measured on CPU: inference" in format_summary(told)


def test_mistakes():
    for arguments, message in (
        (["--variant=b9"], "unknown variant 'b9'"),
        (["--variant=b0", "--set", "model.width=0"], "model.width"),
    ):
        with pytest.raises(UserError, match=message):
            main(make_parser().parse_args(arguments))
