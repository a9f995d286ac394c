"""Tests of the memory predictions: by hand, their properties, and measurements of a real process."""

import json
import subprocess
import sys

import make_goldens
import pytest
from hypothesis import given
from hypothesis import strategies as st

from efficientnet_tf.config.load import load_variant
from efficientnet_tf.scaling.layers import list_layers
from efficientnet_tf.scaling.memory import (
    count_inference_memory,
    count_kept_bytes,
    count_training_memory,
    find_largest_batch,
)

OPTIONS = {
    "precision": st.sampled_from(["float32", "mixed_bfloat16"]),
    "optimizer": st.sampled_from(["rmsprop", "sgd", "adamw", "lamb"]),
    "ema": st.booleans(),
}


def layers(variant="b0", resolution=None):
    return list_layers(load_variant(variant), resolution)


def test_kept_activations_of_a_block_by_hand():
    """B0's second block at 224 pixels: 16 -> 96 channels at 112 pixels, 24 at 56."""
    block = [layer for layer in layers() if layer.name.startswith("block2a_")]
    wide, narrow = 112 * 112 * 96, 56 * 56 * 96
    gates = 96 + 4 + 96  # squeezed, reduced, expanded
    # The inputs of each batch norm and each convolution. The last batch norm is the next block's input.
    assert count_kept_bytes(block) == 4 * (2 * wide + 2 * narrow + gates + narrow + 2 * 56 * 56 * 24)
    assert count_kept_bytes(block, "mixed_bfloat16") == count_kept_bytes(block) / 2


def test_a_sum_before_swish_is_kept():
    """The gradient of swish needs its input. That of relu needs only its output."""
    spec = load_variant("resnet50")
    relu, swish = (list_layers(spec.model_copy(update={"activation": a})) for a in ("relu", "swish"))
    sums = sum(layer.elements for layer in relu if layer.kind == "add")
    assert count_kept_bytes(swish) - count_kept_bytes(relu) == 4 * sums > 0


def test_weights_slots_and_ema_by_hand():
    counted = count_training_memory(layers(), 32)
    assert counted.weights == 2 * counted.ema == 2 * 4 * 5_330_564
    assert counted.optimizer == 2 * 4 * 5_288_548
    assert count_training_memory(layers(), 32, optimizer="sgd", ema=False).total == (
        counted.total - counted.ema - 4 * 5_288_548
    )
    assert counted.activations == 32 * (count_kept_bytes(layers()) + 2 * 4 * 112 * 112 * 96)


def test_inference_by_hand():
    """The peak is at batch norm and swish on B0's 96 channels at 112 pixels."""
    counted = count_inference_memory(layers(), 8)
    assert counted.activations == 8 * 4 * 3 * 96 * 112 * 112
    assert counted.weights == 4 * 5_330_564 and counted.optimizer == counted.ema == counted.gradients == 0
    # The input of a residual is still held while the inner channels are computed.
    stage = load_variant("b0").stages[1].model_copy(update={"stride": 1, "channels": 512, "expand": 1})
    spec = load_variant("b0").model_copy(update={"stages": (stage,), "stem_channels": 512, "head_channels": 0})
    convolutions = [layer for layer in list_layers(spec) if layer.kind not in ("batch_norm", "activation")]
    assert count_inference_memory(convolutions, 1).activations == 4 * 112 * 112 * 512 * 3


@given(available=st.floats(0.5e9, 1e12), variant=st.sampled_from(["b0", "b4", "resnet50"]), **OPTIONS)
def test_largest_batch_fits_and_the_next_one_does_not(available, variant, **options):
    counted = layers(variant, 128)
    batch = find_largest_batch(counted, available, **options)
    assert count_training_memory(counted, batch + 1, **options).total > available
    assert batch == 0 or count_training_memory(counted, batch, **options).total <= available


@given(batch=st.integers(1, 4096), **OPTIONS)
def test_training_needs_more_than_inference_and_float32_more_than_bfloat16(batch, **options):
    counted = count_training_memory(layers(), batch, **options)
    assert counted.total > count_inference_memory(layers(), batch, options["precision"]).total
    assert counted.total <= count_training_memory(layers(), batch, **options | {"precision": "float32"}).total


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs the peak memory of a process")
@pytest.mark.parametrize(("variant", "batch"), [("b0", 8), pytest.param("b1", 16, marks=pytest.mark.nightly)])
def test_prediction_is_within_15_percent_of_a_real_process(variant, batch):
    command = [sys.executable, "-m", "efficientnet_tf.summary", f"--variant={variant}", f"--batch={batch}"]
    command += ["--set", "data.image_size=224", "--measure", "--json"]
    summary = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    peak = summary["measured"]["train_peak_bytes"]
    assert abs(summary["memory"]["training"]["total"] / peak - 1) < 0.15, (summary["memory"], peak)


def test_committed_table_is_within_15_percent():
    rows = json.loads((make_goldens.GOLDEN_DIR.parents[1] / "docs" / "memory.json").read_text())["rows"]
    assert {(row["variant"], row["batch"]) for row in rows} == {(f"b{i}", b) for i in range(4) for b in (8, 16, 32)}
    for row in rows:
        predicted = count_training_memory(layers(row["variant"], row["size"]), row["batch"]).total
        assert predicted == row["predicted_bytes"]
        assert abs(predicted / row["measured_bytes"] - 1) < 0.15
