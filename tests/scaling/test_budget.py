"""The solver keeps every limit and wastes little; the laws are the published ones."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.load import load_variant
from efficientnet_tf.scale import explain, main, make_parser
from efficientnet_tf.scaling.budget import MOST_PHI, Limit, counted_limits, fit_budget, scale_spec
from efficientnet_tf.scaling.complexity import count_cost, list_layers
from efficientnet_tf.scaling.compound import PAPER, Coefficients, compound, implied_phi
from efficientnet_tf.scaling.memory import training_memory

B0 = load_variant("b0")

# Published: by the resolution of B0 to B7, phi; then beta^phi and alpha^phi.
PHI = [0.0, 0.49, 1.07, 2.09, 3.78, 5.09, 6.14, 7.05]
WIDTHS = [1.0, 1.05, 1.11, 1.22, 1.43, 1.62, 1.79, 1.96]
DEPTHS = [1.0, 1.09, 1.21, 1.46, 1.99, 2.53, 3.06, 3.62]


def test_explanation_is_the_published_one():
    rows = explain(PAPER, B0)[:8]
    assert [row["phi_resolution"] for row in rows] == pytest.approx(PHI, abs=0.006)
    assert [row["beta^phi"] for row in rows] == pytest.approx(WIDTHS, abs=0.006)
    assert [row["alpha^phi"] for row in rows] == pytest.approx(DEPTHS, abs=0.006)
    assert PAPER.growth == pytest.approx(1.920, abs=5e-4)


@given(phi=st.floats(-3, 8), alpha=st.floats(1.05, 2), beta=st.floats(1.05, 2), gamma=st.floats(1.05, 2))
def test_laws_invert_each_other(phi, alpha, beta, gamma):
    multipliers = compound(phi, Coefficients(alpha, beta, gamma))
    for multiplier, base in zip(multipliers, (alpha, beta, gamma), strict=True):
        assert implied_phi(multiplier, base) == pytest.approx(phi, abs=1e-9)


@pytest.mark.parametrize("variant", [f"b{i}" for i in range(1, 8)])
def test_budget_of_a_variant_is_used(variant):
    macs = count_cost(load_variant(variant))["total"].macs
    fit = fit_budget(B0, counted_limits(macs))
    assert 0.97 < fit.used["macs"] <= 1
    assert count_cost(fit.spec)["total"].macs == round(fit.used["macs"] * macs)


def cost(spec, batch=32):
    layers = list_layers(spec)
    params = sum(layer.params for layer in layers)
    macs = sum(layer.macs for layer in layers)
    return {"macs": macs, "params": params, "memory": training_memory(layers, batch).total}


def check_budget(macs, params, memory_bytes, batch):
    limits = counted_limits(macs, params, memory_bytes, batch)
    amounts = {"macs": macs, "params": params, "memory": memory_bytes}
    amounts = {name: amount for name, amount in amounts.items() if amount is not None}
    if not amounts:
        with pytest.raises(UserError, match="no limit is given"):
            fit_budget(B0, limits)
        return
    try:
        fit = fit_budget(B0, limits)
    except UserError as error:
        smallest = cost(scale_spec(B0, *[implied_phi(32 / 224, 1.15)] * 3), batch)
        assert any(smallest[name] > limit for name, limit in amounts.items())
        assert "no network fits" in str(error)
        return
    costs = cost(fit.spec, batch)
    assert all(costs[name] <= limit for name, limit in amounts.items())
    assert fit.binding == max(amounts, key=lambda name: costs[name] / amounts[name])
    # A step further along the direction does not fit, unless the search ended at its edge.
    if fit.phi < MOST_PHI - 0.01:
        next_one = cost(scale_spec(B0, *[fit.phi + 2e-3] * 3), batch)
        assert any(next_one[name] > limit for name, limit in amounts.items())


budgets = {
    "macs": st.none() | st.floats(6, 11).map(lambda e: 10**e),
    "params": st.none() | st.floats(4.5, 8.5).map(lambda e: 10**e),
    "memory_bytes": st.none() | st.floats(8, 11.5).map(lambda e: 10**e),
    "batch": st.sampled_from([1, 32, 256]),
}


@settings(max_examples=40, deadline=None)
@given(**budgets)
def test_no_limit_is_exceeded(macs, params, memory_bytes, batch):
    check_budget(macs, params, memory_bytes, batch)


@pytest.mark.slow
@settings(max_examples=500, deadline=None)
@given(**budgets)
def test_no_limit_is_exceeded_500_times(macs, params, memory_bytes, batch):
    check_budget(macs, params, memory_bytes, batch)


@settings(max_examples=15, deadline=None)
@given(milliseconds=st.floats(6, 500), macs=st.none() | st.just(2e9), fixed=st.floats(0, 4))
def test_a_limit_that_takes_long_to_ask_is_kept_and_asked_seldom(milliseconds, macs, fixed):
    """A device whose time grows a little slower than the multiply-adds, from something fixed on."""
    asked = {}

    def measure(spec):
        asked[spec] = fixed + (cost(spec)["macs"] / 4e7) ** 0.9
        return asked[spec]

    fit = fit_budget(B0, counted_limits(macs), measured=Limit("latency", milliseconds, measure, "ms"))
    assert asked[fit.spec] <= milliseconds
    assert cost(fit.spec)["macs"] <= (macs or float("inf"))
    assert len(asked) <= 17
    assert max(fit.used.values()) > 0.9


def test_a_latency_that_nothing_reaches():
    with pytest.raises(UserError, match=r"no network fits: .*: 2 ms are allowed, it has 1\.5 times as many"):
        fit_budget(B0, [], measured=Limit("latency", 2.0, lambda spec: 3.0, "ms"))


def test_an_impossible_budget_says_by_how_much():
    smallest = cost(scale_spec(B0, *[implied_phi(32 / 224, 1.15)] * 3))
    with pytest.raises(
        UserError, match=r"no network fits: .* at 32 pixels, .*: 100,000 multiply-adds are allowed, it has 8\.3"
    ):
        fit_budget(B0, counted_limits(1e5))
    assert smallest["macs"] / 1e5 == pytest.approx(8.39, abs=0.01)


def run(capsys, *arguments):
    main(make_parser().parse_args(arguments))
    return capsys.readouterr().out


def test_command_writes_a_variant(tmp_path, capsys):
    path = tmp_path / "mine.yaml"
    said = run(capsys, "--target_macs=1.8e9", "--target_params=11e6", f"--output={path}")
    assert "params binds" in said and "phi 1.49" in said
    spec = load_variant(str(path))
    assert cost(spec)["params"] <= 11e6 and cost(spec)["macs"] <= 1.8e9 and spec.name == "mine"
    assert spec.stages == B0.stages
    again = tmp_path / "again.yaml"  # a written variant is a baseline like any other
    run(capsys, f"--baseline={path}", "--target_macs=4e9", f"--output={again}")
    assert 0.97 * 4e9 < cost(load_variant(str(again)))["macs"] <= 4e9


def test_command_measures_the_latency(tmp_path, capsys):
    tiny = str(Path(__file__).parents[1] / "tiny.yaml")
    said = run(
        capsys, f"--baseline={tiny}", "--target_latency_ms=1e4", "--target_macs=1e6", f"--output={tmp_path}/t.yaml"
    )
    assert "% of the latency; macs binds" in said
    assert cost(load_variant(str(tmp_path / "t.yaml")))["macs"] <= 1e6


def test_command_explains(capsys):
    said = run(capsys, "--explain")
    assert "b7          3.1    2.0     600     6.21    7.27    7.05          3.62        1.96" in said
    assert "= 1.920" in said


def test_command_overwrites_nothing(tmp_path, capsys):
    path = tmp_path / "mine.yaml"
    path.write_text("mine")
    with pytest.raises(UserError, match="exists: take another"):
        run(capsys, "--target_macs=1e9", f"--output={path}")
    with pytest.raises(UserError, match="must end in .yaml"):
        run(capsys, "--target_macs=1e9", f"--output={tmp_path / 'mine'}")
    assert path.read_text() == "mine"
