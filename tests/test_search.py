"""The grid is the whole grid, equal networks are trained once, and the ranking says how sure it is."""

import csv
import subprocess
import sys
import time
from pathlib import Path

import fake_training
import numpy as np
import pytest
import yaml
from waiting import count_trials, wait_for

from efficientnet_tf import search
from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.load import load_variant
from efficientnet_tf.scaling.compound import (
    PAPER,
    Coefficients,
    round_channels,
    round_repeats,
    round_resolution,
    scale_by_phi,
)
from efficientnet_tf.search import (
    find_candidates,
    find_points,
    find_tied,
    format_ranking,
    main,
    make_parser,
    make_runs,
    rank,
    standard_error,
)
from efficientnet_tf.study import runner

TINY = str(Path(__file__).with_name("tiny.yaml"))
B0 = load_variant("b0")


def run(*arguments):
    return main(make_parser().parse_args(list(arguments)))


@pytest.mark.parametrize("tolerance", [0.02, 0.1, 0.5])
def test_points_are_all_of_the_grid(tolerance):
    # In hundredths, thus exact.
    a, b, c = (axis.ravel() for axis in np.meshgrid(*[np.arange(100, 151, 5, dtype=np.int64)] * 3, indexing="ij"))
    feasible = np.abs(a * b**2 * c**2 - 2 * 10**10) <= round(tolerance * 10**10)
    expected = [tuple(point) for point in (np.stack([a, b, c], 1)[feasible] / 100).tolist()]
    found = find_points(tolerance=tolerance)
    assert [(p.alpha, p.beta, p.gamma) for p in found] == expected
    assert (PAPER in found) == (tolerance > 0.08)


@pytest.mark.parametrize("resolution", [32, 224])
def test_points_of_one_network_are_one_candidate(resolution):
    baseline = B0.model_copy(update={"resolution": resolution})
    points = find_points()
    candidates = find_candidates(baseline, points)
    assert sorted(map(repr, points)) == sorted(repr(p) for c in candidates for p in c.specs)

    def shape(point):
        repeats = [round_repeats(stage.repeats, round(point.alpha, 4)) for stage in B0.stages]
        channels = [
            round_channels(count, round(point.beta, 4))
            for count in (B0.stem_channels, B0.head_channels, *(stage.channels for stage in B0.stages))
        ]
        return (
            *repeats,
            *channels,
            round_resolution(resolution * point.gamma) if point.gamma > 1 else resolution,
        )

    shapes = [{shape(point) for point in c.specs} for c in candidates]
    assert all(len(same) == 1 for same in shapes)
    assert len(set.union(*shapes)) == len(candidates) < len(points)
    names = [run.name for run in make_runs(candidates, 2)]
    assert len(set(names)) == 2 * len(candidates)


def test_list_tells_what_each_point_gives(capsys):
    assert run("--list") == 0
    lines = capsys.readouterr().out.splitlines()
    (paper,) = [line.split() for line in lines if line.split()[:3] == ["1.2", "1.1", "1.15"]]
    assert paper[3:] == ["1.920", "1.2", "1.1", "256", "2.23x", "9.110"]
    assert lines[-1].startswith(f"{len(lines) - 2} points give 50 different networks")
    assert lines[-1].endswith("1.93 to 3.23 times the baseline's; seeds 3, runs 150")


def test_list_marks_what_is_the_same(capsys):
    run("--list", f"--baseline={TINY}", "--alpha=1.05,1.1", "--beta=1.2,1.25", "--gamma=1.1,1.15", "--seeds=2")
    _, *lines, last = capsys.readouterr().out.splitlines()
    assert [line.split()[9:] for line in lines] == [[], *[["alpha1.05_beta1.2_gamma1.15"]] * 4]
    assert last.startswith("5 points give 1 different networks") and last.endswith("seeds 2, runs 2")


def test_resolution_is_the_baselines(capsys):
    run("--list", "--resolution=40", "--alpha=1", "--beta=1", "--gamma=1.4")
    assert capsys.readouterr().out.splitlines()[1].split()[6] == "56"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--alpha=3"], "no point of the grid has a product within 0.1 of 2"),
        ([], "--output_dir is missing"),
        (["--list", "--baseline=b99"], "unknown variant"),
    ],
)
def test_mistakes_are_told(flags, message):
    with pytest.raises(UserError, match=message):
        run(*flags)


@pytest.mark.parametrize("value", ["0.9", "x", "1.1,,1.2", "11"])
def test_a_grid_that_cannot_be_is_refused(value, capsys):
    with pytest.raises(SystemExit):
        make_parser().parse_args([f"--alpha={value}"])
    assert "numbers >= 1" in capsys.readouterr().err


def make_rows(candidates, table):
    return [
        {"network": candidate.name, "seed": seed, "top1": top1}
        for candidate, values in zip(candidates, table, strict=True)
        for seed, top1 in enumerate(values)
    ]


def test_ranking_and_its_uncertainty():
    candidates = find_candidates(B0, find_points())[:4]
    rows = make_rows(candidates, [(0.90, 0.92, 0.91), (0.915, 0.915, 0.915), (0.95,), (0.80, 0.86, 0.83)])
    scores = rank(candidates, rows)
    assert [candidates.index(score.candidate) for score in scores] == [1, 0, 3, 2]
    assert [score.mean for score in scores] == pytest.approx([0.915, 0.91, 0.83, 0.95])
    assert scores[1].std == pytest.approx(np.std([0.90, 0.92, 0.91], ddof=1)) and scores[3].std is None
    error = np.sqrt(np.mean(np.var([[0.90, 0.92, 0.91], [0.915] * 3, [0.80, 0.86, 0.83]], axis=1, ddof=1)) / 3)
    assert standard_error(scores) == pytest.approx(error)
    assert find_tied(scores) == scores[:2]
    text = format_ranking(scores, B0, 3)
    assert f"2 of 4 networks lie within one standard error ({error:.2%}) of the best: their order is not known" in text
    assert "1 networks lack seeds" in text
    assert text.splitlines()[2].split()[:6] == ["2", "91.00%", "1.00%", "90.00%", "92.00%", "3"]


def test_one_seed_ranks_but_knows_no_spread():
    candidates = find_candidates(B0, find_points())[:2]
    scores = rank(candidates, make_rows(candidates, [(0.5,), (0.6,)]))
    assert [score.candidate for score in scores] == candidates[::-1]
    assert standard_error(scores) is None and find_tied(scores) == scores
    assert "how much of the order is chance is not known" in format_ranking(scores, B0, 1)


GRID = [f"--baseline={TINY}", "--recipe=smoke", "--alpha=1.0,1.05,2.0", "--beta=1.0,1.4", "--gamma=1.0,1.4"]


def test_a_search_from_the_grid_to_the_family(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(runner, "PROGRAM", fake_training.PROGRAM)
    # Fake training favours narrow networks; the points of alpha 1.05 and 1.06 give the same ones.
    flags = [*GRID, f"--output_dir={tmp_path}", "--seeds=2", "--set=train.epochs=0.1", "--alpha=1.06,1.05"]
    assert run(*flags) == 0
    said = capsys.readouterr().out
    assert "(and 1 other points)" in said and "alpha 1.05, beta 1, gamma 1.4, product 2.058: written" in said
    with open(tmp_path / "search.csv") as file:
        rows = list(csv.DictReader(file))
    points = {(float(row["alpha"]), float(row["beta"]), float(row["gamma"]), int(row["seed"])) for row in rows}
    assert points == {(a, *bc, s) for a in (1.05, 1.06) for bc in ((1.0, 1.4), (1.4, 1.0)) for s in (0, 1)}
    assert len(rows) == 8 and len({row["run"] for row in rows}) == 4
    assert all(float(row["top1"]) == pytest.approx(1 / float(row["width"]) + int(row["seed"]) / 1000) for row in rows)
    found = yaml.safe_load((tmp_path / "coefficients.yaml").read_text())
    assert (found["alpha"], found["beta"], found["gamma"]) == (1.05, 1.0, 1.4)
    assert found["top1"]["mean"] == pytest.approx(1.0005) and found["within_one_standard_error"] == 1
    assert found["same_network"] == [[1.06, 1.0, 1.4], [1.05, 1.0, 1.4]] and found["networks"] == 2
    family = [load_variant(str(tmp_path / "family" / f"phi{phi}.yaml")) for phi in range(8)]
    baseline = load_variant(TINY)
    assert family[0] == baseline.model_copy(update={"name": "phi0"})
    for phi, spec in enumerate(family):
        expected = scale_by_phi(baseline, phi, Coefficients(1.05, 1.0, 1.4))
        assert spec == expected.model_copy(update={"name": f"phi{phi}"})
    assert family[7].resolution == 336


def test_failed_runs_are_told_and_the_exit_status_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(runner, "PROGRAM", fake_training.PROGRAM)
    flags = [*GRID, f"--output_dir={tmp_path}", "--seeds=1", "--set=train.epochs=0.1"]
    with pytest.raises(UserError, match="all 5 runs failed: the logs in"):
        run(*flags, "--set=optimizer.learning_rate=200")
    assert not (tmp_path / "search.csv").exists()
    monkeypatch.setattr(search, "run_jobs", lambda runs, *_, **__: make_one_row(runs))
    with pytest.raises(UserError, match="4 of 5 runs failed; the same command tries them again"):
        run(*flags)
    assert "top-1" in capsys.readouterr().out and (tmp_path / "search.csv").exists()


def test_flags_reach_the_runs(tmp_path, monkeypatch):
    asked = {}
    monkeypatch.setattr(search, "run_jobs", lambda runs, *_, **options: asked.update(options, runs=runs) or [])
    flags = ["--tolerance=0.01", "--phi=2", "--storage=sqlite:///x.db", "--heartbeat_seconds=7", "--tpu=local"]
    with pytest.raises(UserError, match="all 2 runs failed"):
        run(*GRID, f"--output_dir={tmp_path}", "--alpha=1,2", "--gamma=1", "--seeds=2", "--device=tpu", *flags)
    assert [(r.spec.depth, r.labels["seed"]) for r in asked["runs"]] == [(4.0, 0), (4.0, 1)]
    assert asked["train_arguments"] == ["--device=tpu", "--tpu=local", "--replicas=1", "--tracker=tensorboard"]
    assert (asked["storage"], asked["heartbeat_seconds"], asked["recipe"]) == ("sqlite:///x.db", 7, "smoke")


def make_one_row(runs):
    return [runs[0].labels | {"run": runs[0].name, "top1": 0.5}]


REAL = [
    *(f"--baseline={TINY}", "--recipe=smoke", "--alpha=1.0,2.0", "--beta=1.0,1.4", "--gamma=1.0"),
    *("--seeds=2", "--heartbeat_seconds=1", "--device=cpu", "--set=train.epochs=16", "--set=eval.every_epochs=8"),
]


def start(folder):
    command = [sys.executable, "-m", "efficientnet_tf.search", *REAL, f"--output_dir={folder}"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def read_logs(folder):
    return "".join(path.read_text() for path in folder.glob("runs/*.log"))


@pytest.mark.slow
def test_a_search_of_two_processes_survives_what_is_killed(tmp_path):
    searches = [start(tmp_path) for _ in range(2)]
    wait_for(lambda: list(tmp_path.glob("runs/*/checkpoints/step-*.index")), 120)
    searches[0].kill()
    time.sleep(6)  # the other one may take over what it did
    searches[1].kill()  # and now nobody is left
    for process in searches:
        process.communicate()
    first, second = start(tmp_path), start(tmp_path)
    wait_for(lambda: "going on from the checkpoint of step" in read_logs(tmp_path), 120)
    second.kill()
    second.communicate()
    said = first.communicate(timeout=400)
    assert first.returncode == 0, said
    names = [f"alpha{a}_beta{b}_gamma1_seed{s}" for a, b in (("1", "1.4"), ("2", "1")) for s in (0, 1)]
    done = {name: count for (name, state), count in count_trials(tmp_path).items() if state == "COMPLETE"}
    assert done == dict.fromkeys(names, 1)
    with open(tmp_path / "search.csv") as file:
        assert sorted(row["run"] for row in csv.DictReader(file)) == sorted(names)
    logs = read_logs(tmp_path)
    assert logs.count("finished: ") == len(names)
    again = start(tmp_path)
    assert "written with its family" in again.communicate(timeout=60)[0]
    assert read_logs(tmp_path) == logs  # nothing was done again
