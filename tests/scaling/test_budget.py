"""Tests of the budget: no limit is exceeded, little is wasted, and the formulas give the published numbers."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.load import load_variant
from efficientnet_tf.scale import explain_family, main, make_parser
from efficientnet_tf.scaling.budget import MAX_PHI, Limit, fit_budget
from efficientnet_tf.scaling.complexity import count_cost
from efficientnet_tf.scaling.compound import PAPER, Coefficients, compound, scale_by_phi, scale_network, solve_phi

B0 = load_variant("b0")

# Published for B0 to B7: phi by their resolution, then beta^phi and alpha^phi.
PHI = [0.0, 0.49, 1.07, 2.09, 3.78, 5.09, 6.14, 7.05]
WIDTHS = [1.0, 1.05, 1.11, 1.22, 1.43, 1.62, 1.79, 1.96]
DEPTHS = [1.0, 1.09, 1.21, 1.46, 1.99, 2.53, 3.06, 3.62]


def test_explanation_gives_the_published_numbers():
    rows = explain_family(PAPER, B0)[:8]
    assert [row["phi_resolution"] for row in rows] == pytest.approx(PHI, abs=0.006)
    assert [row["beta^phi"] for row in rows] == pytest.approx(WIDTHS, abs=0.006)
    assert [row["alpha^phi"] for row in rows] == pytest.approx(DEPTHS, abs=0.006)
    assert PAPER.growth == pytest.approx(1.920, abs=5e-4)


@pytest.mark.parametrize(
    ("baseline", "family"),
    [
        ("b0", [*(f"b{i}" for i in range(9)), "l2"]),
        ("lite0", [f"lite{i}" for i in range(5)]),
        ("v2-b0", [f"v2-b{i}" for i in range(4)]),
        ("v2-s", ["v2-s"]),
    ],
)
def test_explanation_lists_the_variants_that_scale_the_baseline(baseline, family):
    rows = explain_family(PAPER, load_variant(baseline))
    assert [row["variant"] for row in rows] == family
    assert rows[0]["phi_resolution"] == 0


def test_budget_of_v2_and_lite():
    v2 = fit_budget("v2-b0", macs=3.02e9)  # V2-B3 has 3.01 billion
    assert 0.97 < v2.used["macs"] <= 1 and v2.spec.channel_rounding == "nearest"
    lite = fit_budget("lite0", params=8.2e6)
    assert 0.95 < lite.used["params"] <= 1 and scale_network(lite.spec).stem_channels == 32


@given(phi=st.floats(-3, 8), alpha=st.floats(1.05, 2), beta=st.floats(1.05, 2), gamma=st.floats(1.05, 2))
def test_solve_phi_inverts_compound(phi, alpha, beta, gamma):
    multipliers = compound(phi, Coefficients(alpha, beta, gamma))
    for multiplier, base in zip(multipliers, (alpha, beta, gamma), strict=True):
        assert solve_phi(multiplier, base) == pytest.approx(phi, abs=1e-9)


@pytest.mark.parametrize(
    "variant", ["b1", "b4", *(pytest.param(b, marks=pytest.mark.slow) for b in ("b2", "b3", "b5", "b6", "b7"))]
)
def test_budget_of_a_variant_is_used(variant):
    macs = count_cost(variant).macs
    fit = fit_budget("b0", macs=macs)
    assert 0.97 < fit.used["macs"] <= 1
    assert count_cost(fit.spec).macs == round(fit.used["macs"] * macs)


def cost(spec, batch=32):
    counted = count_cost(spec)
    return {"macs": counted.macs, "params": counted.params, "memory": counted.training_bytes(batch)}


def check_budget(macs, params, memory_bytes, batch):
    limits = {"macs": macs, "params": params, "memory_bytes": memory_bytes, "batch": batch}
    amounts = {"macs": macs, "params": params, "memory": memory_bytes}
    amounts = {name: amount for name, amount in amounts.items() if amount is not None}
    if not amounts:
        with pytest.raises(UserError, match="no limit is given"):
            fit_budget(B0, **limits)
        return
    try:
        fit = fit_budget(B0, **limits)
    except UserError as error:
        smallest = cost(scale_by_phi(B0, solve_phi(32 / 224, 1.15)), batch)
        assert any(smallest[name] > limit for name, limit in amounts.items())
        assert "no network fits" in str(error)
        return
    costs = cost(fit.spec, batch)
    assert all(costs[name] <= limit for name, limit in amounts.items())
    assert fit.binding == max(amounts, key=lambda name: costs[name] / amounts[name])
    # A slightly larger phi does not fit, unless the search ended at its upper bound.
    if fit.phi < MAX_PHI - 0.01:
        next_one = cost(scale_by_phi(B0, fit.phi + 2e-3), batch)
        assert any(next_one[name] > limit for name, limit in amounts.items())


budgets = {
    "macs": st.none() | st.floats(6, 11).map(lambda e: 10**e),
    "params": st.none() | st.floats(4.5, 8.5).map(lambda e: 10**e),
    "memory_bytes": st.none() | st.floats(8, 11.5).map(lambda e: 10**e),
    "batch": st.sampled_from([1, 32, 256]),
}


@settings(max_examples=12, deadline=None)
@given(**budgets)
def test_no_limit_is_exceeded(macs, params, memory_bytes, batch):
    check_budget(macs, params, memory_bytes, batch)


@pytest.mark.nightly
@settings(max_examples=500, deadline=None)
@given(**budgets)
def test_no_limit_is_exceeded_500_times(macs, params, memory_bytes, batch):
    check_budget(macs, params, memory_bytes, batch)


@settings(max_examples=6, deadline=None)
@given(milliseconds=st.floats(6, 500), macs=st.none() | st.just(2e9), fixed=st.floats(0, 4))
def test_a_slow_measurement_is_respected_and_rarely_repeated(milliseconds, macs, fixed):
    """The simulated device has a fixed overhead, and a time that grows a little slower than the multiply-adds."""
    measured = {}

    def measure(spec):
        measured[spec] = fixed + (cost(spec)["macs"] / 4e7) ** 0.9
        return measured[spec]

    fit = fit_budget(B0, macs=macs, measured=Limit("latency", milliseconds, measure, "ms"))
    assert measured[fit.spec] <= milliseconds
    assert cost(fit.spec)["macs"] <= (macs or float("inf"))
    assert len(measured) <= 17
    assert max(fit.used.values()) > 0.9


@pytest.mark.parametrize(
    ("coefficients", "changed"),
    [
        (Coefficients(2.0, 1.0, 1.0), "depth"),
        (Coefficients(1.0, 1.4, 1.0), "width"),
        (Coefficients(1.0, 1.0, 1.4), "resolution"),
        (Coefficients(1.2, 1.1, 1.0001), "depth"),
    ],
)
def test_a_budget_can_be_spent_on_one_dimension(coefficients, changed):
    spec = fit_budget("b0", macs=1.5e9, coefficients=coefficients).spec
    base = load_variant("b0")
    growth = {key: getattr(spec, key) / getattr(base, key) for key in ("depth", "width", "resolution")}
    assert max(growth, key=growth.get) == changed
    assert 1.2e9 < count_cost(spec).macs <= 1.5e9


def test_coefficients_that_scale_nothing_leave_the_baseline():
    assert fit_budget("b0", macs=1.5e9, coefficients=Coefficients(1.0, 1.0, 1.0)).spec.depth == 1.0


def test_an_impossible_latency_is_refused():
    with pytest.raises(UserError, match=r"no network fits\. .* too large: it takes 1\.5 times the 2 ms allowed"):
        fit_budget(B0, measured=Limit("latency", 2.0, lambda spec: 3.0, "ms"))


def test_an_impossible_budget_says_by_how_much():
    smallest = cost(scale_by_phi(B0, solve_phi(32 / 224, 1.15)))
    with pytest.raises(
        UserError, match=r"no network fits\. .*32 pixels\) .* it takes 8\.39 times the 100,000 multiply-adds allowed"
    ):
        fit_budget(B0, macs=1e5)
    assert smallest["macs"] / 1e5 == pytest.approx(8.39, abs=0.01)


def run(capsys, *arguments):
    main(make_parser().parse_args(arguments))
    return capsys.readouterr().out


def test_command_writes_a_variant(tmp_path, capsys):
    path = tmp_path / "mine.yaml"
    output = run(capsys, "--target_macs=1.8e9", "--target_params=11e6", f"--output={path}")
    assert "The binding limit is params." in output and "phi 1.49" in output
    spec = load_variant(str(path))
    assert cost(spec)["params"] <= 11e6 and cost(spec)["macs"] <= 1.8e9 and spec.name == "mine"
    assert spec.stages == B0.stages
    again = tmp_path / "again.yaml"  # a variant that was written can be a baseline
    run(capsys, f"--baseline={path}", "--target_macs=4e9", f"--output={again}")
    assert 0.97 * 4e9 < cost(load_variant(str(again)))["macs"] <= 4e9


@pytest.mark.tensorflow
def test_command_measures_the_latency(tmp_path, capsys):
    tiny = str(Path(__file__).parents[1] / "tiny.yaml")
    output = run(
        capsys, f"--baseline={tiny}", "--target_latency_ms=1e4", "--target_macs=1e6", f"--output={tmp_path}/t.yaml"
    )
    assert "% of latency" in output and "The binding limit is macs." in output
    assert cost(load_variant(str(tmp_path / "t.yaml")))["macs"] <= 1e6


def test_command_explains(capsys):
    output = run(capsys, "--explain")
    assert "b7 3.1 2.0 600 6.21 7.27 7.05 3.62 1.96".split() in [line.split() for line in output.splitlines()]
    assert "= 1.920" in output


def test_command_needs_a_limit(capsys):
    with pytest.raises(UserError, match="no limit is given. Give at least one of --target_macs, --target_params"):
        run(capsys)


def test_command_never_overwrites_a_file(tmp_path, capsys):
    path = tmp_path / "mine.yaml"
    path.write_text("mine")
    with pytest.raises(UserError, match="already exists and is not overwritten"):
        run(capsys, "--target_macs=1e9", f"--output={path}")
    with pytest.raises(UserError, match="Use a name that ends in .yaml"):
        run(capsys, "--target_macs=1e9", f"--output={tmp_path / 'mine'}")
    assert path.read_text() == "mine"
