"""The memory of training and inference: by hand, its laws, and what a process is seen to take."""

import json
import subprocess
import sys

import make_goldens
import pytest
from hypothesis import given
from hypothesis import strategies as st

from efficientnet_tf.config.load import load_variant
from efficientnet_tf.scaling.complexity import list_layers
from efficientnet_tf.scaling.memory import inference_memory, kept_bytes, largest_batch, training_memory

OPTIONS = {
    "precision": st.sampled_from(["float32", "mixed_bfloat16"]),
    "optimizer": st.sampled_from(["rmsprop", "sgd", "adamw", "lamb"]),
    "average": st.booleans(),
}


def layers(variant="b0", resolution=None):
    return list_layers(load_variant(variant), resolution)


def test_kept_activations_of_a_block_by_hand():
    """B0's second block at 224 pixels: 16 -> 96 channels at 112 pixels, 24 at 56."""
    block = [layer for layer in layers() if layer.name.startswith("block2a_")]
    wide, narrow = 112 * 112 * 96, 56 * 56 * 96
    gates = 96 + 4 + 96  # squeezed, reduced, expanded
    # Into each batch norm, and what each convolution takes; the last batch norm is the next block's input.
    assert kept_bytes(block) == 4 * (2 * wide + 2 * narrow + gates + narrow + 2 * 56 * 56 * 24)
    assert kept_bytes(block, "mixed_bfloat16") == kept_bytes(block) / 2


def test_a_sum_is_kept_where_swish_acts_on_it():
    """The gradient of relu is seen from its output."""
    spec = load_variant("resnet50")
    relu, swish = (list_layers(spec.model_copy(update={"activation": a})) for a in ("relu", "swish"))
    sums = sum(layer.elements for layer in relu if layer.kind == "add")
    assert kept_bytes(swish) - kept_bytes(relu) == 4 * sums > 0


def test_weights_slots_and_average_by_hand():
    counted = training_memory(layers(), 32)
    assert counted.weights == 2 * counted.average == 2 * 4 * 5_330_564
    assert counted.optimizer == 2 * 4 * 5_288_548
    assert training_memory(layers(), 32, optimizer="sgd", average=False).total == (
        counted.total - counted.average - 4 * 5_288_548
    )
    assert counted.activations == 32 * (kept_bytes(layers()) + 2 * 4 * 112 * 112 * 96)


def test_inference_by_hand():
    """Where most lives at once: batch norm and swish on B0's 96 channels at 112 pixels."""
    counted = inference_memory(layers(), 8)
    assert counted.activations == 8 * 4 * 3 * 96 * 112 * 112
    assert counted.weights == 4 * 5_330_564 and counted.optimizer == counted.average == counted.gradients == 0
    # A residual's input is still held when the inner channels, with few inputs and outputs, are made.
    stage = load_variant("b0").stages[1].model_copy(update={"stride": 1, "channels": 512, "expand": 1})
    spec = load_variant("b0").model_copy(update={"stages": (stage,), "stem_channels": 512, "head_channels": 0})
    convolutions = [layer for layer in list_layers(spec) if layer.kind not in ("batch_norm", "activation")]
    assert inference_memory(convolutions, 1).activations == 4 * 112 * 112 * 512 * 3


@given(available=st.floats(0.5e9, 1e12), variant=st.sampled_from(["b0", "b4", "resnet50"]), **OPTIONS)
def test_largest_batch_fits_and_the_next_does_not(available, variant, **options):
    counted = layers(variant, 128)
    batch = largest_batch(counted, available, **options)
    assert training_memory(counted, batch + 1, **options).total > available
    assert batch == 0 or training_memory(counted, batch, **options).total <= available


@given(batch=st.integers(1, 4096), **OPTIONS)
def test_training_takes_more_than_inference_and_float32_more_than_bfloat16(batch, **options):
    counted = training_memory(layers(), batch, **options)
    assert counted.total > inference_memory(layers(), batch, options["precision"]).total
    assert counted.total <= training_memory(layers(), batch, **options | {"precision": "float32"}).total


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the system must tell a process's peak memory")
@pytest.mark.parametrize(("variant", "batch"), [("b0", 8), ("b1", 16)])
def test_prediction_is_within_15_percent_of_a_process(variant, batch):
    command = [sys.executable, "-m", "efficientnet_tf.summary", f"--variant={variant}", f"--batch={batch}"]
    command += ["--set", "data.image_size=224", "--measure", "--json"]
    told = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    peak = told["measured"]["train_peak_bytes"]
    assert abs(told["memory"]["training"]["total"] / peak - 1) < 0.15, (told["memory"], peak)


def test_committed_table_is_within_15_percent():
    rows = json.loads((make_goldens.GOLDEN_DIR.parents[1] / "docs" / "memory.json").read_text())["rows"]
    assert {(row["variant"], row["batch"]) for row in rows} == {(f"b{i}", b) for i in range(4) for b in (8, 16, 32)}
    for row in rows:
        predicted = training_memory(layers(row["variant"], row["size"]), row["batch"]).total
        assert predicted == row["predicted_bytes"]
        assert abs(predicted / row["measured_bytes"] - 1) < 0.15
