"""Tests of compound scaling: against the tables of the official code, and properties of its rounding rules."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from efficientnet_tf.config.load import load_variant
from efficientnet_tf.scaling.compound import round_channels, scale_network

VARIANTS = [f"b{i}" for i in range(9)] + ["l2"]
WIDTHS = st.floats(0.05, 8.0)
CHANNELS = st.integers(1, 2048)
DIVISORS = st.sampled_from([1, 2, 4, 8, 16])


def network(variant):
    return scale_network(load_variant(variant))


@given(CHANNELS, WIDTHS, DIVISORS)
def test_channels_are_a_nearby_multiple_of_the_divisor(channels, width, divisor):
    rounded = round_channels(channels, width, divisor)
    assert isinstance(rounded, int)
    assert rounded % divisor == 0
    assert rounded >= divisor
    assert rounded >= 0.9 * channels * width
    assert rounded == divisor or rounded < channels * width + divisor


@given(CHANNELS, WIDTHS, WIDTHS, DIVISORS)
def test_channels_grow_with_the_width(channels, one, other, divisor):
    low, high = sorted([one, other])
    assert round_channels(channels, low, divisor) <= round_channels(channels, high, divisor)


@pytest.mark.parametrize(
    ("channels", "width", "expected"),
    [
        (32, 1.0, 32),
        (32, 1.1, 32),  # 35.2 is rounded to the nearest multiple
        (20, 1.0, 24),  # 20 is half-way and rounded up
        (12, 0.25, 8),  # at least the divisor
        (24, 0.8, 24),  # 19.2: the nearest multiple, 16, is more than 10 % too low
        (32, 4.3, 136),
        (1280, 1.1, 1408),
    ],
)
def test_channels_by_hand(channels, width, expected):
    assert round_channels(channels, width) == expected


def test_channels_of_v2_are_rounded_to_the_nearest_multiple():
    """As in google/automl and keras.applications: 19.2 becomes 16, although this is 17 % less."""
    assert round_channels(24, 0.8, rounding="nearest") == 16
    assert round_channels(32, 1.2, rounding="nearest") == 40  # 38.4
    assert round_channels(12, 0.25, rounding="nearest") == 8


@pytest.mark.parametrize(("repeats", "depth", "expected"), [(1, 1.0, 1), (1, 1.1, 2), (3, 1.4, 5), (4, 3.1, 13)])
def test_repeats_round_up(repeats, depth, expected):
    stage = load_variant("b0").stages[0].model_copy(update={"repeats": repeats})
    assert load_variant("b0").model_copy(update={"stages": (stage,), "depth": depth}).repeats == (expected,)


@pytest.mark.parametrize("depth", [0.5, 1.8])
def test_unscaled_parts_keep_their_numbers(depth):
    lite = load_variant("lite0").model_copy(update={"width": 2.0, "depth": depth})
    scaled, repeats = scale_network(lite), [len(stage) for stage in scale_network(lite).stages]
    assert (scaled.stem_channels, scaled.head_channels) == (32, 1280)
    assert (repeats[0], repeats[-1]) == (1, 1)
    assert repeats[1:-1] == [{0.5: 1, 1.8: 4}[depth]] * 2 + [{0.5: 2, 1.8: 6}[depth]] * 2 + [{0.5: 2, 1.8: 8}[depth]]
    two = lite.model_copy(update={"stages": tuple(s.model_copy(update={"repeats": 2}) for s in lite.stages)})
    assert (two.repeats[0], two.repeats[-1]) == (2, 2)
    everything = scale_network(two.model_copy(update={"unscaled": ()}))
    assert (everything.stem_channels, everything.head_channels) == (64, 2560)
    assert (len(everything.stages[0]), len(everything.stages[-1])) == ({0.5: 1, 1.8: 4}[depth],) * 2


def test_the_first_stage_of_edgetpu_expands_other_channels_and_has_no_residual():
    """Its table says 24 input channels and no residual, although the stem has 32 (official code, `edgetpu/`)."""
    for variant, stem, inner, count in (("edgetpu-s", 32, 96, 1), ("edgetpu-m", 32, 96, 2), ("edgetpu-l", 40, 128, 2)):
        first, second = (stage for stage in network(variant).stages[:2])
        assert (first[0].in_channels, first[0].inner_channels, len(first)) == (stem, inner, count)
        assert all(block.inner_channels == 4 * block.in_channels and block.keeps_shape for block in first[1:])
        assert not any(block.has_residual for block in first)
        assert [block.has_residual for block in second] == [False] + [True] * (len(second) - 1)


# Published: blocks, stem and head of every variant.
BLOCKS = [16, 23, 23, 26, 32, 39, 45, 55, 61, 88]
STEMS = [32, 32, 32, 40, 48, 48, 56, 64, 72, 136]
HEADS = [1280, 1280, 1408, 1536, 1792, 2048, 2304, 2560, 2816, 5504]


@pytest.mark.parametrize(("variant", "blocks", "stem", "head"), list(zip(VARIANTS, BLOCKS, STEMS, HEADS, strict=True)))
def test_blocks_stem_and_head(variant, blocks, stem, head):
    scaled = network(variant)
    assert (len(scaled.blocks), scaled.stem_channels, scaled.head_channels) == (blocks, stem, head)


# Published: (repeats, channels) of the seven stages.
STAGES = {
    "b0": [(1, 16), (2, 24), (2, 40), (3, 80), (3, 112), (4, 192), (1, 320)],
    "b7": [(4, 32), (7, 48), (7, 80), (10, 160), (10, 224), (13, 384), (4, 640)],
    "l2": [(6, 72), (11, 104), (11, 176), (16, 344), (16, 480), (22, 824), (6, 1376)],
}


@pytest.mark.parametrize("variant", STAGES)
def test_repeats_and_channels_of_each_stage(variant):
    stages = network(variant).stages
    assert [(len(stage), stage[-1].out_channels) for stage in stages] == STAGES[variant]


@pytest.mark.parametrize("variant", VARIANTS)
def test_only_the_first_block_of_a_stage_changes_the_shape(variant):
    stages = network(variant).stages
    strides, kernels, expands = (1, 2, 2, 2, 1, 2, 1), (3, 3, 5, 3, 5, 5, 3), (1, 6, 6, 6, 6, 6, 6)
    for stage, stride, kernel, expand in zip(stages, strides, kernels, expands, strict=True):
        assert [block.stride for block in stage] == [stride] + [1] * (len(stage) - 1)
        assert {(block.kernel, block.expand) for block in stage} == {(kernel, expand)}
        assert all(block.in_channels == block.out_channels for block in stage[1:])
        assert [block.has_residual for block in stage] == [False] + [True] * (len(stage) - 1)


@pytest.mark.parametrize("variant", VARIANTS)
def test_each_block_takes_the_channels_of_the_one_before(variant):
    scaled = network(variant)
    assert scaled.blocks[0].in_channels == scaled.stem_channels
    for before, after in itertools.pairwise(scaled.blocks):
        assert after.in_channels == before.out_channels


@pytest.mark.parametrize("variant", VARIANTS)
def test_squeeze_excite_is_a_quarter_of_the_input_channels(variant):
    for block in network(variant).blocks:
        assert block.se_channels == block.in_channels // 4
        assert block.inner_channels == block.in_channels * block.expand


def test_squeeze_excite_has_at_least_one_channel_unless_the_ratio_is_zero():
    spec = load_variant("b0")

    def first_block(ratio):
        stages = (spec.stages[0].model_copy(update={"se_ratio": ratio}), *spec.stages[1:])
        return scale_network(spec.model_copy(update={"stages": stages})).blocks[0]

    assert first_block(1e-3).se_channels == 1
    assert first_block(0.0).se_channels == 0
    assert first_block(1.0).se_channels == 32


@pytest.mark.parametrize(("variant", "total"), [("b0", 16), ("b4", 32), ("b7", 55)])
def test_drop_rate_grows_linearly_over_the_scaled_blocks(variant, total):
    rates = [block.drop_rate for block in network(variant).blocks]
    assert rates == pytest.approx([0.2 * i / total for i in range(total)], abs=1e-12)


def test_block_names():
    assert [block.name for block in network("b0").blocks] == (
        "block1a block2a block2b block3a block3b block4a block4b block4c block5a block5b block5c "
        "block6a block6b block6c block6d block7a"
    ).split()
    assert network("b7").stages[5][-1].name == "block6m"


def test_block_names_continue_after_z():
    spec = load_variant("b0").model_copy(update={"depth": 54.0})
    first = [block.name for block in scale_network(spec).stages[0]]
    assert first[25:28] == ["block1z", "block1aa", "block1ab"]
    assert first[51:54] == ["block1az", "block1ba", "block1bb"]
    assert len(set(first)) == 54
