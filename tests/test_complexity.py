"""The accounting against the published numbers, the golden file, and a count over the layers of built models."""

import math

import keras
import make_goldens
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from unallocated import unallocated

from efficientnet_tf import complexity, config, models, schema

# Published: trainable parameters, total parameters, multiply-adds in billions as printed there.
REFERENCE = {
    "b0": (5_288_548, 5_330_564, ".386"),
    "b1": (7_794_184, 7_856_232, ".687"),
    "b2": (9_109_994, 9_177_562, ".994"),
    "b3": (12_233_232, 12_320_528, "1.827"),
    "b4": (19_341_616, 19_466_816, "4.394"),
    "b5": (30_389_784, 30_562_520, "10.27"),
    "b6": (43_040_704, 43_265_136, "19.07"),
    "b7": (66_347_960, 66_658_680, "37.75"),
    "b8": (87_413_142, 87_793_174, "62.60"),
    "l2": (480_309_308, 481_399_996, "475.7"),
}


@pytest.mark.parametrize("variant", REFERENCE)
def test_parameters_and_macs_of_the_reference(variant):
    trainable, total, billions = REFERENCE[variant]
    cost = complexity.count_cost(config.load_variant(variant))["total"]
    assert (cost.trainable_params, cost.total_params) == (trainable, total)
    decimals = len(billions.split(".")[1])
    assert f"{cost.macs / 1e9:.{decimals}f}".lstrip("0") == billions


def test_golden_file_is_current():
    assert make_goldens.complexity_golden() == make_goldens.read("complexity")


def test_parts_add_up():
    parts = complexity.count_cost(config.load_variant("b0"))
    total = parts.pop("total")
    assert list(parts) == ["stem", *(f"stage{i}" for i in range(1, 8)), "head"]
    for field in ("trainable_params", "statistics", "total_params", "macs"):
        assert sum(getattr(part, field) for part in parts.values()) == getattr(total, field)


def test_stem_and_head_by_hand():
    parts = complexity.count_cost(config.load_variant("b0"), resolution=33, classes=7, channels=4)
    stem, head = parts["stem"], parts["head"]
    assert (stem.trainable_params, stem.statistics, stem.macs) == (9 * 4 * 32 + 64, 64, 9 * 4 * 32 * 17**2)
    # 33 pixels: 17, 9, 5, 3, 2 after the five halvings.
    assert head.trainable_params == 320 * 1280 + 2 * 1280 + 1280 * 7 + 7
    assert head.macs == 320 * 1280 * 2**2 + 1280 * 7


def count_layers(model):
    """Count (trainable, statistics, multiply-adds) over a built model's layers, from kernels and output shapes."""
    macs = 0
    for layer in model.layers:
        if isinstance(layer, keras.layers.Conv2D | keras.layers.DepthwiseConv2D | keras.layers.Dense):
            positions = math.prod(layer.output.shape[1:-1])
            macs += math.prod(layer.kernel.shape) * positions
        else:
            assert not layer.weights or isinstance(layer, keras.layers.BatchNormalization), layer.name
    trainable, statistics = (
        sum(math.prod(w.shape) for w in weights) for weights in (model.trainable_weights, model.non_trainable_weights)
    )
    return trainable, statistics, macs


def assert_same_count(spec, resolution, classes, channels):
    with unallocated():
        built = count_layers(models.build_model(spec, classes, (resolution, resolution, channels)))
    counted = complexity.count_cost(spec, resolution, classes, channels)["total"]
    assert (counted.trainable_params, counted.statistics, counted.macs) == built


@pytest.mark.parametrize(("resolution", "classes", "channels"), [(224, 1000, 3), (131, 10, 1)])
def test_b0_equals_the_built_model(resolution, classes, channels):
    assert_same_count(config.load_variant("b0"), resolution, classes, channels)


stages = st.builds(
    schema.Stage,
    kernel=st.sampled_from([3, 5, 7]),
    stride=st.sampled_from([1, 2]),
    expand=st.integers(1, 6),
    channels=st.integers(1, 40),
    repeats=st.integers(1, 2),
    se_ratio=st.sampled_from([0.0, 0.05, 0.25, 1.0]),
)
specs = st.builds(
    config.ModelSpec,
    name=st.just("random"),
    width=st.floats(0.3, 2.0),
    depth=st.floats(0.3, 2.0),
    resolution=st.just(8),
    dropout=st.just(0.0),
    stem_channels=st.integers(1, 40),
    head_channels=st.integers(1, 80),
    channel_divisor=st.sampled_from([1, 3, 8]),
    stages=st.lists(stages, min_size=1, max_size=4).map(tuple),
)


@settings(max_examples=20)
@given(specs, st.integers(1, 70), st.integers(1, 12), st.integers(1, 5))
def test_random_specs_equal_the_built_model(spec, resolution, classes, channels):
    assert_same_count(spec, resolution, classes, channels)
