"""Tests of `search --space=mnasnet`: its list, its results, early stops, and searches that are interrupted."""

import csv
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import fake_training
import pytest
from waiting import count_trials, wait_for

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.load import load_config, load_variant
from efficientnet_tf.scaling.complexity import count_cost
from efficientnet_tf.search import main, make_parser
from efficientnet_tf.study import runner
from efficientnet_tf.study.mnasnet_space import Space

TINY = str(Path(__file__).with_name("tiny.yaml"))
FLAGS = ["--space=mnasnet", f"--baseline={TINY}", "--recipe=smoke", "--set=train.epochs=0.01"]


def run(*arguments, train_command=fake_training.COMMAND):
    return main(make_parser().parse_args([*FLAGS, *arguments]), train_command)


def read_rows(folder):
    with open(folder / "search.csv") as file:
        return list(csv.DictReader(file))


def read_networks(folder):
    """Return what does not depend on time: the choices and the result of each trial, in their order."""
    return [list(row.values()) for row in read_rows(folder)]


def test_list_shows_the_space_and_samples_with_their_costs(capsys):
    assert run("--list", "--seed=3") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines if line.split()[:1] == ["2"]] == [
        "2 mbconv fused_mbconv separable 3 5 3 4 6 0.0 0.25 16 24 1 2 3".split()
    ]
    space = Space(load_variant(TINY))
    assert f"different stage tables: {space.stage_tables:.3g}." in "\n".join(lines)
    found = {line.split()[0]: line.split()[1:4] for line in lines if line.startswith((" baseline ", " sample"))}
    assert len(found) == 11
    baseline = count_cost(TINY)
    sample = count_cost(space.build(space.sample(random.Random(3)), "x"))
    for name, cost in (("baseline", baseline), ("sample1", sample)):
        numbers = f"{cost.macs / 1e6:.3f}", f"{cost.macs / baseline.macs:.2f}x", f"{cost.params / 1e6:.3f}"
        assert found[name] == list(numbers)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--seeds=2"], "--seeds is only for --space=coefficients, received --space=mnasnet. Leave it out."),
        (["--space=coefficients", "--sampler=nsga2"], "--sampler is only for --space=mnasnet"),
        (["--sampler=nsga2", "--pruning=median"], "--pruning=median does not work with --sampler=nsga2"),
        (["--baseline=resnet50"], "has block=bottleneck in stage 1"),
        (["--trials=1000000"], "--trials=1000000 is too large"),
        ([], "--output_dir is missing"),
    ],
)
def test_mistakes_are_explained(flags, message):
    with pytest.raises(UserError, match=message):
        run(*flags)


@pytest.mark.parametrize("flag", ["--exponent=0.1", "--exponent=nan", "--seed=-1", "--target_macs=0", "--sampler=x"])
def test_numbers_out_of_range_are_refused(flag, capsys):
    with pytest.raises(SystemExit):
        make_parser().parse_args([flag])
    assert flag.partition("=")[0] in capsys.readouterr().err


def test_the_result_does_not_overwrite_the_baseline(tmp_path):
    shutil.copy(TINY, tmp_path / "baseline.yaml")
    with pytest.raises(UserError, match=r"--baseline=.*/baseline.yaml would be overwritten"):
        run(f"--baseline={tmp_path}/baseline.yaml", f"--output_dir={tmp_path}")
    assert os.listdir(tmp_path) == ["baseline.yaml"]


@pytest.mark.slow
def test_search_from_the_baseline_to_the_best_network(tmp_path, capsys):
    flags = [f"--output_dir={tmp_path}", "--exponent=-0.2", "--classes=10"]
    assert run(*flags, "--trials=14") == 0
    output = capsys.readouterr().out
    rows = read_rows(tmp_path)
    assert len(rows) == 14 and rows[0]["sampler"] == "baseline" and {r["sampler"] for r in rows[1:]} == {"tpe"}
    target = count_cost(TINY, classes=10).macs
    for row in rows:
        spec = load_variant(str(tmp_path / "variants" / f"{row['trial']}.yaml"))
        cost = count_cost(spec, classes=10)
        assert (int(row["macs"]), int(row["params"])) == (cost.macs, cost.params)
        assert float(row["objective"]) == pytest.approx(float(row["top1"]) * (cost.macs / target) ** -0.2)
        assert cost.macs <= 2 * target
    done = [row for row in rows if row["state"] == "done"]
    pruned = [row for row in rows if row["state"] == "pruned"]
    assert len(done) >= 5 and pruned and len(done) + len(pruned) == 14
    assert {row["step"] for row in done} == {"4"} and {row["step"] for row in pruned} <= {"2", "3"}
    best = max(done, key=lambda row: float(row["objective"]))
    assert f"Best: {best['trial']}, top-1 {float(best['top1']):.2%}" in output
    winner = load_variant(str(tmp_path / "baseline.yaml"))
    assert winner.stages == load_variant(str(tmp_path / "variants" / f"{best['trial']}.yaml")).stages
    assert load_config(str(tmp_path / "baseline.yaml"), "smoke").model == winner
    assert (tmp_path / "pareto.png").read_bytes().startswith(b"\x89PNG")
    networks = read_networks(tmp_path)
    assert run(*flags, "--trials=14") == 0 and read_networks(tmp_path) == networks, "nothing is trained again"
    assert all(len(path.read_text().split()) == 1 for path in tmp_path.glob("runs/*/started"))
    with pytest.raises(UserError, match="trial000 was queued by a search with another baseline"):
        run(*flags, "--baseline=tiny")


@pytest.mark.slow
def test_an_interrupted_search_finds_the_same_networks(tmp_path, monkeypatch):
    flags = ["--seed=5"]
    monkeypatch.setattr(runner, "CHECK_SECONDS", 0.0)  # Timing has no influence.
    run(*flags, f"--output_dir={tmp_path}/parts", "--trials=3")
    run(*flags, f"--output_dir={tmp_path}/parts", "--trials=11")
    monkeypatch.setattr(runner, "CHECK_SECONDS", 9.0)
    run(*flags, f"--output_dir={tmp_path}/whole", "--trials=11")
    networks = read_networks(tmp_path / "whole")
    assert read_networks(tmp_path / "parts") == networks
    assert "pruned" in str(networks)


@pytest.mark.slow
def test_runs_that_fail_are_named_and_retried(tmp_path):
    flags = [f"--output_dir={tmp_path}", "--trials=4", "--sampler=nsga2"]
    failing = fake_training.make_failing_command("trial002")
    with pytest.raises(UserError, match="1 of 4 runs failed: trial002. Run the same command again to retry them"):
        run(*flags, train_command=failing)
    assert [row["state"] for row in read_rows(tmp_path)] == ["done", "done", "failed", "done"]
    run(*flags)
    assert [row["state"] for row in read_rows(tmp_path)] == ["done"] * 4


@pytest.mark.slow
def test_a_search_whose_baseline_fails_goes_no_further(tmp_path):
    with pytest.raises(UserError, match="All 1 runs failed. See the logs in"):
        run(f"--output_dir={tmp_path}", "--trials=9", train_command=fake_training.make_failing_command("trial"))
    assert not (tmp_path / "search.csv").exists()


@pytest.mark.slow
def test_a_search_ends_when_no_other_network_is_affordable(tmp_path, caplog):
    run(f"--output_dir={tmp_path}", "--trials=4", "--target_macs=1000")
    assert "at most 2 times target_macs=1000 was found, so the search ends with 1" in caplog.text
    assert [row["trial"] for row in read_rows(tmp_path)] == ["trial000"]


def start(folder):
    program = (
        f"import sys; sys.path[:0] = [{str(Path(__file__).parent)!r}]\n"
        "import fake_training\nfrom efficientnet_tf.search import main, make_parser\n"
        f"main(make_parser().parse_args({[*FLAGS, f'--output_dir={folder}', '--trials=8', '--heartbeat_seconds=1']!r}"
        " + ['--set=train.epochs=0.4']), fake_training.COMMAND)\n"
    )
    return subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


@pytest.mark.slow
def test_searches_of_two_processes_train_each_network_once_though_one_is_killed(tmp_path):
    killed, other = start(tmp_path), start(tmp_path)
    wait_for(lambda: len(list(tmp_path.glob("runs/*/started"))) >= 3, 60)
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate()
    _, errors = other.communicate(timeout=120)
    assert other.returncode == 0, errors
    ends = {name for name, state in count_trials(tmp_path) if state in ("COMPLETE", "PRUNED")}
    assert ends == {f"trial{number:03d}" for number in range(8)}
    rows = read_rows(tmp_path)
    assert {row["state"] for row in rows} <= {"done", "pruned"} and len(rows) == 8
    choices = {json.dumps([value for key, value in row.items() if key.startswith("stage")]) for row in rows}
    assert len(choices) == 8
