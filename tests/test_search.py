"""Tests of the command `search`: its list, its results, and runs that fail or are killed."""

import csv
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import fake_training
import pytest
import yaml
from waiting import count_trials, wait_for

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.load import load_variant
from efficientnet_tf.scaling.compound import Coefficients, scale_by_phi
from efficientnet_tf.search import main, make_parser

TINY = str(Path(__file__).with_name("tiny.yaml"))


def run(*arguments, train_command=fake_training.COMMAND):
    return main(make_parser().parse_args(list(arguments)), train_command)


MANY = ",".join(f"{1 + i / 1000}" for i in range(1000))


def test_list_shows_the_network_of_each_point(capsys):
    assert run("--list") == 0
    lines = capsys.readouterr().out.splitlines()
    (paper,) = [line.split() for line in lines if line.split()[:3] == ["1.2", "1.1", "1.15"]]
    assert paper[3:] == ["1.920", "1.2", "1.1", "256", "2.23x", "9.110"]
    points = sum(line.split()[:1] != [] and line.split()[0][0].isdigit() for line in lines)
    assert lines[-1] == (
        f"Points: {points}, different networks: 50, seeds: 3, runs: 150. Because of rounding, the multiply-adds are "
        "1.93 to 3.23 times the baseline's."
    )


def test_list_marks_points_of_the_same_network(capsys):
    run("--list", f"--baseline={TINY}", "--alpha=1.05,1.1", "--beta=1.2,1.25", "--gamma=1.1,1.15", "--seeds=2")
    *lines, summary = capsys.readouterr().out.splitlines()
    rows = [line.split() for line in lines if line.split()[:1] in (["1.05"], ["1.1"])]
    assert [row[9:] for row in rows] == [[], *[["alpha1.05_beta1.2_gamma1.15"]] * 4]
    assert summary.startswith("Points: 5, different networks: 1, seeds: 2, runs: 2.")


def test_resolution_flag_replaces_that_of_the_baseline(capsys):
    run("--list", "--resolution=40", "--alpha=1", "--beta=1", "--gamma=1.4")
    (row,) = [line.split() for line in capsys.readouterr().out.splitlines() if line.split()[:1] == ["1"]]
    assert row[6] == "56"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--alpha=3"], r"No point of the grid has a product alpha .* within --tolerance=0.1 of 2"),
        ([], "--output_dir is missing"),
        (["--list", "--baseline=b99"], "variant"),
        (["--list", "--phi=1000000"], "phi=1e\\+06 is out of range"),
        (["--list", "--phi=50"], "phi=50 with alpha .* would scale a network by more than 100. Use a smaller phi."),
        (["--list", "--seeds=1000000000"], "50 networks with 1,000,000,000 seeds each are more than 100,000 runs"),
        (["--list", f"--alpha={MANY}", f"--beta={MANY}", f"--gamma={MANY}"], "The grid has 1,000,000,000 points"),
        (["--output_dir=gs://bucket/x"], "--output_dir=gs://bucket/x must be a local folder"),
        (["--output_dir=/dev/null"], "--output_dir=/dev/null is not a folder"),
    ],
)
def test_mistakes_are_explained(flags, message):
    with pytest.raises(UserError, match=message):
        run(*flags)


@pytest.mark.parametrize("value", ["0.9", "x", "1.1,,1.2", "11", "nan", "inf", "-1", "1e999", ""])
def test_invalid_grids_are_refused(value, capsys):
    with pytest.raises(SystemExit):
        make_parser().parse_args([f"--alpha={value}"])
    assert "numbers >= 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    "flag",
    ["--seeds=0", "--seeds=-1", "--seeds=1e9", "--seeds=99999999999999999999", "--tolerance=0", "--tolerance=nan",
     "--tolerance=inf", "--tolerance=1e300", "--phi=0", "--phi=nan", "--phi=1e300", "--heartbeat_seconds=0",
     "--heartbeat_seconds=3601", "--resolution=0", "--resolution=99999999999999999999"],
)  # fmt: skip
def test_numbers_out_of_range_are_refused(flag, capsys):
    with pytest.raises(SystemExit):
        make_parser().parse_args([flag])
    assert flag.partition("=")[0] in capsys.readouterr().err


def test_results_do_not_overwrite_the_baseline(tmp_path):
    folder = tmp_path / "family"
    folder.mkdir()
    shutil.copy(TINY, folder / "phi0.yaml")
    with pytest.raises(UserError, match="contains .*phi0.yaml, which would be overwritten"):
        run(*GRID, f"--output_dir={tmp_path}", f"--baseline={folder}/phi0.yaml")
    (tmp_path / "search.csv").mkdir()
    with pytest.raises(UserError, match=r"search.csv cannot be written because it is a folder"):
        run(*GRID, f"--output_dir={tmp_path}")
    assert sorted(os.listdir(tmp_path)) == ["family", "search.csv"]


GRID = [f"--baseline={TINY}", "--recipe=smoke", "--alpha=1.0,1.05,2.0", "--beta=1.0,1.4", "--gamma=1.0,1.4"]


@pytest.mark.slow
def test_search_from_the_grid_to_the_family(tmp_path, capsys):
    # The fake training favors narrow networks. The points of alpha 1.05 and 1.06 give the same ones.
    flags = [*GRID, f"--output_dir={tmp_path}", "--seeds=2", "--set=train.epochs=0.1", "--alpha=1.06,1.05"]
    assert run(*flags) == 0
    output = capsys.readouterr().out
    assert "(and 1 more point)" in output and "Best: alpha 1.05, beta 1, gamma 1.4, product 2.058." in output
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
    page = (tmp_path / "index.html").read_text()
    assert "--alpha=1.06,1.05 --beta=1,1.4" in page and "alpha1.06_beta1_gamma1.4" in page


@pytest.mark.slow
def test_failed_runs_are_reported_and_change_the_exit_status(tmp_path, capsys):
    flags = [*GRID, "--seeds=1", "--set=train.epochs=0.1"]
    with pytest.raises(UserError, match="All 5 runs failed. See the logs in"):
        run(*flags, f"--output_dir={tmp_path}/all", train_command=fake_training.make_failing_command("alpha"))
    assert not (tmp_path / "all" / "search.csv").exists()
    with pytest.raises(UserError, match="2 of 5 runs failed. Run the same command again to retry them"):
        run(*flags, f"--output_dir={tmp_path}/most", train_command=fake_training.make_failing_command("gamma1.4"))
    assert "top-1" in capsys.readouterr().out and (tmp_path / "most" / "search.csv").exists()


@pytest.mark.slow
def test_flags_reach_the_training(tmp_path):
    printing = (sys.executable, "-c", "import sys; print(*sys.argv[1:], sep='\\n'); sys.exit(1)")
    flags = [*GRID, f"--output_dir={tmp_path}/runs", "--alpha=1,2", "--gamma=1", "--tolerance=0.01", "--phi=2"]
    flags += ["--seeds=2", "--device=tpu", "--tpu=local", f"--storage=sqlite:///{tmp_path}/x.db"]
    with pytest.raises(UserError, match="All 2 runs failed"):
        run(*flags, train_command=printing)
    assert (tmp_path / "x.db").exists()
    logs = sorted((tmp_path / "runs").glob("runs/*.log"))
    for seed, log in enumerate(logs):
        words = log.read_text().splitlines()
        assert words[-4:] == ["--device=tpu", "--tpu=local", "--replicas=1", "--tracker=tensorboard"]
        assert {"--recipe=smoke", f"--set=train.seed={seed}"} <= set(words)
        (variant,) = [word.partition("=")[2] for word in words if word.startswith("--variant=")]
        assert load_variant(variant).depth == 4.0, "alpha 2 at phi 2"
    assert len(logs) == 2


REAL = [
    *(f"--baseline={TINY}", "--recipe=smoke", "--alpha=1.0,2.0", "--beta=1.0,1.4", "--gamma=1.0"),
    *("--seeds=1", "--heartbeat_seconds=1", "--device=cpu", "--set=train.epochs=16", "--set=eval.every_epochs=8"),
]


def start(folder):
    command = [sys.executable, "-m", "efficientnet_tf.search", *REAL, f"--output_dir={folder}"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def read_logs(folder):
    return "".join(path.read_text() for path in folder.glob("runs/*.log"))


@pytest.mark.slow
def test_search_of_two_processes_survives_being_killed(tmp_path):
    searches = [start(tmp_path) for _ in range(2)]
    wait_for(lambda: list(tmp_path.glob("runs/*/checkpoints/step-*.index")), 300)
    searches[0].kill()
    time.sleep(6)  # The other process may take over its run.
    searches[1].kill()
    for process in searches:
        process.communicate()
    first, second = start(tmp_path), start(tmp_path)
    wait_for(lambda: "Continuing from the checkpoint of step" in read_logs(tmp_path), 300)
    second.kill()
    second.communicate()
    output = first.communicate(timeout=400)
    assert first.returncode == 0, output
    names = [f"alpha{a}_beta{b}_gamma1_seed0" for a, b in (("1", "1.4"), ("2", "1"))]
    done = {name: count for (name, state), count in count_trials(tmp_path).items() if state == "COMPLETE"}
    assert done == dict.fromkeys(names, 1)
    with open(tmp_path / "search.csv") as file:
        assert sorted(row["run"] for row in csv.DictReader(file)) == sorted(names)
    for name in names:
        lines = [json.loads(line) for line in (tmp_path / "runs" / name / "metrics.jsonl").read_text().splitlines()]
        steps = [(line["kind"], line["step"]) for line in lines]
        assert steps and len(steps) == len(set(steps)), f"{name} logged a step twice"
    logs = read_logs(tmp_path)
    again = start(tmp_path)
    assert "Wrote coefficients.yaml" in again.communicate(timeout=60)[0]
    assert read_logs(tmp_path) == logs, "nothing is trained again"
