"""Numbers out of range: scaling gives a network within the schema or a sentence, and never lists millions of layers."""

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.fields import MOST_BLOCKS
from efficientnet_tf.config.load import change_spec, load_variant
from efficientnet_tf.config.schema import ModelSpec
from efficientnet_tf.scaling.budget import fit_budget
from efficientnet_tf.scaling.complexity import count_cost
from efficientnet_tf.scaling.compound import Coefficients, compound, scale_by_phi, scale_network, scale_spec

ANY_FLOAT = st.floats(allow_nan=True, allow_infinity=True) | st.sampled_from([0.0, -1e9, 1e9, 1e308, 5e-324])


@pytest.mark.parametrize("phi", [math.nan, math.inf, -math.inf, 1e9, -1e9, 1e308])
def test_a_phi_out_of_range_is_a_sentence(phi):
    for function in (compound, lambda phi: scale_by_phi("b0", phi)):
        with pytest.raises(UserError, match=r"^phi=\S+ is out of range: "):
            function(phi)


@given(ANY_FLOAT, ANY_FLOAT, ANY_FLOAT)
@example(1e9, 1.0, 1.0)
@example(1.0, 1e300, 1.0)
@example(1.0, 1.0, 1e300)
@example(1e-300, 1e-300, 1.0)
def test_any_multipliers_give_a_network_that_can_be_counted_or_a_sentence(depth, width, resolution):
    try:
        spec = scale_spec(load_variant("b0"), depth, width, resolution)
    except UserError:
        return
    assert ModelSpec.model_validate(spec.model_dump()) == spec
    assert len(scale_network(spec).blocks) <= MOST_BLOCKS
    assert count_cost(spec).macs > 0


@pytest.mark.parametrize(
    "changes",
    [
        {"depth": 900.0},
        {"depth": 1e9},
        {"width": 1e300},
        {"resolution": 10**9},
        {"resolution": 10**400},
        {"stem_channels": 10**15},
        {"head_channels": 10**15},
        {"channel_divisor": 10**15},
        {"stages": [{"kernel": 3, "stride": 1, "expand": 1, "channels": 8, "repeats": 10**12}]},
        {"stages": [{"kernel": 3, "stride": 1, "expand": 10**9, "channels": 8, "repeats": 1}]},
        {"stages": [{"kernel": 3, "stride": 1, "expand": 1, "channels": 10**15, "repeats": 1}]},
        {"stages": [{"kernel": 3, "stride": 1, "expand": 1, "channels": 8, "repeats": 1}] * 101},
        {"stages": [{"kernel": 3, "stride": 1, "expand": 1, "channels": 8, "repeats": 1500}] * 2},
        {"depth": True},
        {"resolution": 224.0},
        {"depth": 5e-324},
    ],
)
def test_networks_out_of_range_are_refused(changes):
    with pytest.raises(UserError, match=rf"^b0, scaled: ({'|'.join(changes)}|depth=1 gives 3,000 blocks)") as caught:
        change_spec(load_variant("b0"), changes)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("limit", [math.nan, math.inf, 0, -1, -math.inf])
@pytest.mark.parametrize("name", ["macs", "params", "memory_bytes"])
def test_a_limit_that_is_no_positive_number_is_refused(name, limit):
    with pytest.raises(UserError, match="must be a positive, finite number"):
        fit_budget("b0", **{name: limit})


@pytest.mark.slow
@pytest.mark.parametrize(
    "coefficients", [Coefficients(9.9, 1.1, 1.15), Coefficients(1.2, 9.9, 1.15), Coefficients(1.2, 1.1, 9.9)]
)
def test_steep_coefficients_find_a_network(coefficients):
    fit = fit_budget("b0", macs=5e9, coefficients=coefficients)
    assert 0 < fit.used["macs"] <= 1
