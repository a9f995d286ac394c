"""Tests that every run is trained exactly once, by any number of processes, of which some are killed."""

import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest
import sqlalchemy
from study_runs import TINY, make_runs, train_all
from waiting import count_trials, wait_for

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.load import dump_config, parse_config
from efficientnet_tf.runtime import terminal
from efficientnet_tf.scaling.complexity import count_cost
from efficientnet_tf.study.job_queue import JobQueue, find_owners
from efficientnet_tf.study.results import read_rows, read_states
from efficientnet_tf.study.runs import Run, load_configs
from efficientnet_tf.study.storage import open_storage


def start(folder, count, seconds):
    """Start a process that trains runs."""
    program = (
        f"import sys; sys.path[:0] = [{str(Path(__file__).parents[1])!r}]\n"
        "import study_runs\n"
        f"study_runs.train_all(study_runs.make_runs({count}, {seconds}), {str(folder)!r})\n"
    )
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-c", program], start_new_session=True, **pipes)


def read_started(folder):
    """Return {name of a run: IDs of the processes that started it}."""
    return {path.parent.name: path.read_text().split() for path in folder.glob("runs/*/started")}


def is_alive(pid):
    """Return whether a process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def assert_each_run_once(runs, folder):
    done = {name: count for (name, state), count in count_trials(folder).items() if state == "COMPLETE"}
    assert done == {run.name: 1 for run in runs}
    assert set(read_states(runs, str(folder), None, "list").values()) == {"done"}


@pytest.mark.slow
def test_rows_contain_what_was_measured(tmp_path, capsys):
    runs = make_runs(2)
    assert read_rows(runs, str(tmp_path / "none"), None, "list") == []
    assert set(read_states(runs, str(tmp_path / "none"), None, "list").values()) == {"waiting"}
    assert not (tmp_path / "none").exists()
    rows = train_all(runs, tmp_path)
    assert rows == read_rows(runs, str(tmp_path), None, "list")
    assert 5e6 < rows[1].pop("peak_bytes") < 1e9
    cost = count_cost(runs[1].spec, classes=3)
    assert rows[1] == {
        **{"dimension": "width", "multiplier": 1.2, "seed": 1, "run": "width1.2_seed1"},
        **{"depth": 1.0, "width": 1.2, "resolution": 36, "classes": 3},
        **{"params": cost.params, "macs": cost.macs},
        **{"top1": pytest.approx(1 / 1.2 + 0.001), "top5": 0.9, "loss": 2.0},
        **{"raw_top1": pytest.approx(1 / 1.2 + 0.001 - 0.1), "images_per_second": 20.0, "train_seconds": 2.0},
        "config": "runs/width1.2_seed1/config.yaml",
    }
    trained = parse_config((tmp_path / rows[1]["config"]).read_text(), "config")
    assert (trained.train.seed, trained.data.image_size, trained.model.width) == (1, 36, 1.2)
    output = capsys.readouterr()
    assert "width1.2_seed1: top-1 83.43%" in output.out
    assert "Trial" not in output.err and "optuna" not in output.err


@pytest.mark.slow
def test_progress_in_a_log_file_is_plain_lines(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(terminal, "SECONDS_BETWEEN_LINES", 0.0)
    train_all(make_runs(2), tmp_path)
    lines = capsys.readouterr().err.splitlines()
    assert "list: 0 of 2 runs, width1_seed0" in lines
    assert lines[-1].startswith("list: 2 of 2 runs")


@pytest.mark.slow
def test_finished_runs_are_not_repeated_when_the_list_grows(tmp_path):
    train_all(make_runs(2), tmp_path)
    rows = train_all(make_runs(3)[::-1], tmp_path)
    assert [row["seed"] for row in rows] == [2, 1, 0]
    assert [len(pids) for pids in read_started(tmp_path).values()] == [1, 1, 1]
    assert_each_run_once(make_runs(3), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rate", "reasons"),
    [
        (200, ["exit status 1", "  2%|bar\nerror: the loss is nan after step 2"]),
        (2000, ["killed by SIGKILL"]),
    ],
)
def test_a_failed_run_is_recorded_and_retried_by_the_next_call(tmp_path, capsys, rate, reasons):
    runs = [*make_runs(1, 0.1, f"optimizer.learning_rate={rate}"), *make_runs(2)[1:]]
    for tries in (1, 2):
        assert [row["run"] for row in train_all(runs, tmp_path)] == ["width1.2_seed1"]
        assert len(read_started(tmp_path)["width1_seed0"]) == tries
        assert read_states(runs, str(tmp_path), None, "list") == {
            "width1_seed0": "failed",
            "width1.2_seed1": "done",
        }
    output = capsys.readouterr().err
    with JobQueue(str(tmp_path), None, "list") as queue:
        error = queue.owners()["width1_seed0"].user_attrs["error"]
    for reason in reasons:
        assert reason in error and reason in output
    assert "1%|bar" not in error, "only the last state of a progress bar is kept"
    assert count_trials(tmp_path) == {("width1_seed0", "FAIL"): 2, ("width1.2_seed1", "COMPLETE"): 1}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("runs", "options", "difference"),
    [
        (make_runs(1, 0.1, "train.batch_size=8"), {}, "train.batch_size: 16 -> 8"),
        (make_runs(1), {"overrides": ["eval.batch_size=8"]}, "eval.batch_size: 24 -> 8"),
        ([Run("width1_seed0", TINY, {"seed": 3}, ("train.epochs=0.1",))], {}, "train.seed: 0 -> 3"),
        ([Run("width1_seed0", make_runs(2)[1].spec, {"seed": 0})], {}, "model.width: 1.0 -> 1.2"),
    ],
)
def test_a_changed_run_is_refused(tmp_path, runs, options, difference):
    train_all(make_runs(1), tmp_path)
    with pytest.raises(UserError, match=r"width1_seed0 was queued with another config") as raised:
        train_all([*runs, *make_runs(2)[1:]], tmp_path, **options)
    assert difference in str(raised.value)
    assert count_trials(tmp_path) == {("width1_seed0", "COMPLETE"): 1}


def test_invalid_and_repeated_names_are_refused(tmp_path):
    with pytest.raises(ValueError, match="'a/b' is no valid name of a run"):
        train_all([Run("a/b", TINY, {"seed": 0})], tmp_path)
    with pytest.raises(ValueError, match="Two runs are named 'width1_seed0'"):
        train_all(make_runs(1) * 2, tmp_path)


def test_optuna_is_missing_or_a_storage_cannot_be_opened(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="storage=nonsense cannot be opened"):
        train_all(make_runs(1), tmp_path, storage="nonsense")
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UserError, match=r"pip install 'efficientnet_tf\[study\]'"):
        train_all(make_runs(1), tmp_path)


@pytest.mark.slow
def test_surplus_trials_of_a_run_are_pruned(tmp_path):
    runs = make_runs(2)
    configs = load_configs(runs, "smoke")
    with JobQueue(str(tmp_path), None, "list") as queue:
        for run in runs * 3:
            queue.enqueue(run.name, dump_config(configs[run.name]))
    train_all(runs, tmp_path)
    assert [len(pids) for pids in read_started(tmp_path).values()] == [1, 1]
    assert count_trials(tmp_path) == {(r.name, s): n for r in runs for s, n in (("COMPLETE", 1), ("PRUNED", 2))}


@pytest.mark.parametrize(
    ("states", "owner"),
    [
        ("WAITING WAITING", 0),
        ("RUNNING WAITING", 0),
        ("COMPLETE RUNNING", 0),
        ("FAIL WAITING RUNNING", 1),
        ("PRUNED FAIL FAIL PRUNED", 2),
        ("PRUNED", None),
    ],
)
def test_the_first_trial_that_has_not_failed_owns_a_run(states, owner):
    trials = [
        optuna.trial.create_trial(
            state=optuna.trial.TrialState[state],
            value=0.5 if state == "COMPLETE" else None,
            user_attrs={"run": "x", "number": number},
        )
        for number, state in enumerate(states.split())
    ]
    assert {t.user_attrs["number"] for t in find_owners(trials).values()} == ({owner} - {None})


def test_reading_a_trial_locks_the_database_for_others(tmp_path):
    storage = open_storage(f"sqlite:///{tmp_path}/trials.db", 1)
    with storage.engine.connect() as connection:
        connection.execute(sqlalchemy.text("select state from trials")).fetchall()
        other = sqlite3.connect(tmp_path / "trials.db", timeout=0)
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            other.execute("begin immediate")
        other.close()
    storage.remove_session()
    storage.engine.dispose()


def test_a_claimed_trial_has_a_heartbeat_from_the_start(tmp_path):
    with JobQueue(str(tmp_path), None, "list") as queue:
        queue.enqueue("x", "config")
        assert queue.claim(queue.owners()["x"]) and not queue.claim(queue.owners()["x"])
    connection = sqlite3.connect(tmp_path / "trials.db")
    assert connection.execute("select count(*) from trial_heartbeats").fetchall() == [(1,)]
    connection.close()


@pytest.mark.slow
def test_training_ends_when_another_process_takes_over_its_run(tmp_path):
    worker = start(tmp_path, 1, 5)
    wait_for(lambda: read_started(tmp_path))
    (pid,) = read_started(tmp_path)["width1_seed0"]
    with JobQueue(str(tmp_path), None, "list") as queue:
        queue.fail(queue.owners()["width1_seed0"])
    wait_for(lambda: not is_alive(pid), 3)
    worker.kill()
    worker.communicate()


@pytest.mark.slow
def test_processes_share_the_runs_and_one_is_killed(tmp_path):
    runs = make_runs(3)
    workers = [start(tmp_path, 3, 6) for _ in range(3)]
    wait_for(lambda: read_started(tmp_path))
    (name, (pid,)), *_ = read_started(tmp_path).items()
    parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    killed = next(worker for worker in workers if worker.pid == parent)
    killed.kill()
    wait_for(lambda: not is_alive(pid), 4.5)  # training ends with the process that started it
    for worker in workers:
        output = worker.communicate(timeout=60)
        assert worker is killed or worker.returncode == 0, output
    assert_each_run_once(runs, tmp_path)
    assert {n: len(pids) for n, pids in read_started(tmp_path).items()} == {r.name: 1 + (r.name == name) for r in runs}
    assert count_trials(tmp_path)[name, "FAIL"] == 1


@pytest.mark.slow
def test_all_processes_are_killed_and_one_is_started_again(tmp_path):
    runs = make_runs(2)
    workers = [start(tmp_path, 2, 1) for _ in range(2)]
    wait_for(lambda: len(read_started(tmp_path)) == 2)
    for worker in workers:
        worker.kill()
        worker.communicate()
    again = start(tmp_path, 2, 1)
    assert again.wait(60) == 0, again.communicate()
    again.communicate()
    assert_each_run_once(runs, tmp_path)
    assert [len(pids) for pids in read_started(tmp_path).values()] == [2, 2]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_the_run_and_returns_it_to_the_queue(tmp_path, number):
    worker = start(tmp_path, 1, 2)
    wait_for(lambda: read_started(tmp_path))
    time.sleep(1)
    os.killpg(worker.pid, number)  # as a terminal does with Ctrl-C
    output, errors = worker.communicate(timeout=10)
    assert worker.returncode == 75 and "Run the same command again to continue" in errors, (output, errors)
    assert "A new study" not in errors, "Optuna logs nothing"
    assert "saved" in (tmp_path / "runs" / "width1_seed0.log").read_text()
    runs = make_runs(1, 2)
    assert read_states(runs, str(tmp_path), None, "list") == {"width1_seed0": "waiting"}
    (row,) = train_all(runs, tmp_path)
    assert row["train_seconds"] == 2.0
