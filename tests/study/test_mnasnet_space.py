"""Tests of the search space of the baseline: every set of choices is a valid network, and the baseline is one."""

import itertools
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from study_runs import TINY

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.load import dump_variant, list_variants, load_variant
from efficientnet_tf.study.mnasnet_space import KEYS, Space

BOTTLENECKS = {"resnet50", "wide_resnet50_2"}
SPACES = {name: Space(load_variant(name)) for name in ("b0", "lite0", "edgetpu-s", "mobilenetv1", "v2-b0", "tiny")}


@given(name=st.sampled_from(sorted(SPACES)), data=st.data())
def test_every_set_of_choices_is_a_valid_variant(name, data, tmp_path_factory):
    space = SPACES[name]
    choices = {key: data.draw(st.sampled_from(values)) for key, values in space.options.items()}
    assert space.contains(choices)
    path = tmp_path_factory.getbasetemp() / "mine.yaml"
    path.write_text(dump_variant(space.build(choices, "any")))
    spec = load_variant(str(path))
    for number, (stage, row) in enumerate(zip(spec.stages, space.baseline.stages, strict=True), 1):
        chosen = {key: choices[f"stage{number}.{key}"] for key in KEYS}
        ignored = {"mbconv": set(), "fused_mbconv": {"se_ratio"}, "separable": {"se_ratio", "expand"}}[stage.block]
        assert {key for key in KEYS if getattr(stage, key) != chosen[key]} <= ignored
        assert stage.stride == row.stride
    unchanged = spec.model_dump(exclude={"stages", "name"})
    assert unchanged == space.baseline.model_dump(exclude={"stages", "name"})


@pytest.mark.parametrize("name", [name for name in list_variants() if name not in BOTTLENECKS])
def test_the_baseline_is_in_its_space(name):
    space = Space(load_variant(name))
    assert space.contains(space.baseline_choices)
    assert space.build(space.baseline_choices, name) == space.baseline


@pytest.mark.parametrize("name", sorted(BOTTLENECKS))
def test_baselines_of_other_blocks_are_refused(name):
    with pytest.raises(UserError, match=f"baseline={name} has block=bottleneck in stage 1"):
        Space(load_variant(name))


def test_options_are_those_of_mnasnet():
    assert {key: SPACES["b0"].options[f"stage3.{key}"] for key in KEYS} == {
        **{"block": ("mbconv", "fused_mbconv", "separable"), "kernel": (3, 5), "expand": (3, 6)},
        **{"se_ratio": (0.0, 0.25), "channels": (32, 40, 48), "repeats": (1, 2, 3)},
    }
    # 16 * 0.75 and 16 * 1.25 become 16 and 24, and there is no stage without a block.
    first = {key: SPACES["b0"].options[f"stage1.{key}"] for key in ("expand", "channels", "repeats")}
    assert first == {"expand": (1, 3, 6), "channels": (16, 24), "repeats": (1, 2)}


def test_size_counts_each_stage_table_once():
    space = Space(TINY.model_copy(update={"stages": TINY.stages[1:2]}))
    tables = [
        space.build(dict(zip(space.options, values, strict=True)), "x").stages
        for values in itertools.product(*space.options.values())
    ]
    assert (space.combinations, space.stage_tables) == (len(tables), len(set(tables)))
    assert space.stage_tables < space.combinations


@pytest.mark.parametrize("change", [{"stage1.kernel": 9}, {"stage9.kernel": 3}, {"stage1.kernel": [3]}, None])
def test_choices_of_another_space_are_found_out(change):
    space = SPACES["b0"]
    assert not space.contains(None if change is None else space.baseline_choices | change)
    assert not space.contains(SPACES["tiny"].baseline_choices)


@pytest.mark.slow
def test_sampled_networks_have_the_parameters_that_are_counted():
    from efficientnet_tf.models.builder import build_model
    from efficientnet_tf.scaling.complexity import count_cost

    space, rng = Space(TINY), random.Random(0)
    specs = [space.build(space.sample(rng), "x") for _ in range(4)]
    assert {stage.block for spec in specs for stage in spec.stages} == {"mbconv", "fused_mbconv", "separable"}
    for spec in specs:
        model = build_model(spec, classes=7)
        params = sum(math.prod(variable.shape) for variable in model.trainable_variables)
        assert params == count_cost(spec, classes=7).params
