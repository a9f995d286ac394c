"""The solver keeps every limit and wastes little; the laws are the published ones."""

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from efficientnet_tf import budget, complexity, config, scale, scaling
from efficientnet_tf.budget import Limits, fit_budget
from efficientnet_tf.config import UserError

B0 = config.load_variant("b0")

# Published: by the resolution of B0 to B7, phi; then beta^phi and alpha^phi.
PHI = [0.0, 0.49, 1.07, 2.09, 3.78, 5.09, 6.14, 7.05]
WIDTHS = [1.0, 1.05, 1.11, 1.22, 1.43, 1.62, 1.79, 1.96]
DEPTHS = [1.0, 1.09, 1.21, 1.46, 1.99, 2.53, 3.06, 3.62]


def test_explanation_is_the_published_one():
    rows = scale.explain(scaling.PAPER, B0)[:8]
    assert [row["phi_resolution"] for row in rows] == pytest.approx(PHI, abs=0.006)
    assert [row["beta^phi"] for row in rows] == pytest.approx(WIDTHS, abs=0.006)
    assert [row["alpha^phi"] for row in rows] == pytest.approx(DEPTHS, abs=0.006)
    assert scaling.PAPER.growth == pytest.approx(1.920, abs=5e-4)


@given(phi=st.floats(-3, 8), alpha=st.floats(1.05, 2), beta=st.floats(1.05, 2), gamma=st.floats(1.05, 2))
def test_laws_invert_each_other(phi, alpha, beta, gamma):
    multipliers = scaling.compound(phi, scaling.Coefficients(alpha, beta, gamma))
    for multiplier, base in zip(multipliers, (alpha, beta, gamma), strict=True):
        assert scaling.implied_phi(multiplier, base) == pytest.approx(phi, abs=1e-9)


@pytest.mark.parametrize("variant", [f"b{i}" for i in range(1, 8)])
def test_budget_of_a_variant_is_used(variant):
    macs = complexity.count_cost(config.load_variant(variant))["total"].macs
    fit = fit_budget(B0, Limits(macs=macs))
    assert 0.97 < fit.used["macs"] <= 1
    assert complexity.count_cost(fit.spec)["total"].macs == round(fit.used["macs"] * macs)


def cost(spec):
    total = complexity.count_cost(spec)["total"]
    return {"macs": total.macs, "params": total.trainable_params}


@settings(max_examples=500, deadline=None)
@given(
    macs=st.none() | st.floats(6, 11).map(lambda e: 10**e),
    params=st.none() | st.floats(4.5, 8.5).map(lambda e: 10**e),
)
def test_no_limit_is_ever_exceeded(macs, params):
    limits = Limits(macs, params)
    if limits == Limits():
        with pytest.raises(UserError, match="no limit is given"):
            fit_budget(B0, limits)
        return
    given_limits = {name: value for name, value in dataclasses.asdict(limits).items() if value is not None}
    try:
        fit = fit_budget(B0, limits)
    except UserError as error:
        smallest = cost(budget.scale_spec(B0, *[scaling.implied_phi(32 / 224, 1.15)] * 3))
        assert any(smallest[name] > limit for name, limit in given_limits.items())
        assert "no network fits" in str(error)
        return
    costs = cost(fit.spec)
    assert all(costs[name] <= limit for name, limit in given_limits.items())
    assert fit.binding == max(given_limits, key=lambda name: costs[name] / given_limits[name])
    # A step further along the direction does not fit, unless the search ended at its edge.
    if fit.phi < budget.MOST_PHI - 0.01:
        next_one = cost(budget.scale_spec(B0, *[fit.phi + 2e-3] * 3))
        assert any(next_one[name] > limit for name, limit in given_limits.items())


def test_an_impossible_budget_says_by_how_much():
    smallest = cost(budget.scale_spec(B0, *[scaling.implied_phi(32 / 224, 1.15)] * 3))
    with pytest.raises(
        UserError, match=r"no network fits: .* at 32 pixels, .*: 100,000 macs are asked for, it has 8\.3"
    ):
        fit_budget(B0, Limits(macs=1e5))
    assert smallest["macs"] / 1e5 == pytest.approx(8.39, abs=0.01)


def run(capsys, *arguments):
    scale.main(scale.make_parser().parse_args(arguments))
    return capsys.readouterr().out


def test_command_writes_a_variant(tmp_path, capsys):
    path = tmp_path / "mine.yaml"
    said = run(capsys, "--target_macs=1.8e9", "--target_params=11e6", f"--output={path}")
    assert "params binds" in said and "phi 1.49" in said
    spec = config.load_variant(str(path))
    assert cost(spec)["params"] <= 11e6 and cost(spec)["macs"] <= 1.8e9 and spec.name == "mine"
    assert spec.stages == B0.stages
    again = tmp_path / "again.yaml"  # a written variant is a baseline like any other
    run(capsys, f"--baseline={path}", "--target_macs=4e9", f"--output={again}")
    assert 0.97 * 4e9 < cost(config.load_variant(str(again)))["macs"] <= 4e9


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
