"""Test what is read of training runs: finished, being written, resumed, damaged, and with phases."""

import pytest
from logged_runs import eval_lines, train_line, write_run

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.visualization.runs import describe_files, join_loops, list_times, name_runs, read_run

# 1,437 images in batches of 64 are 22.45 steps per epoch.
EPOCHS = ["train.epochs=3", "schedule.warmup_epochs=0", "eval.every_epochs=1"]
LINES = [train_line(10, 10), train_line(20, 10), train_line(22, 2), *eval_lines(22, 0.6)]
LATER = [train_line(32, 10), train_line(44, 12), *eval_lines(44, 0.9), train_line(67, 23), *eval_lines(67, 0.8)]


def test_a_finished_run(tmp_path):
    run = read_run(str(write_run(tmp_path / "run", LINES + LATER, *EPOCHS)))
    assert (run.step, run.best_step, run.classes, run.is_finished, run.damaged) == (67, 44, 10, True, 0)
    assert run.steps_per_epoch == pytest.approx(67 / 3), "from the evaluation at the end"
    assert run.evaluations[44]["raw"]["top1"] == 0.8 and run.evaluations[44]["ema"]["top1"] == 0.9
    assert list_times(run)[44] == 5
    assert run.cost.trainable_params == 19_188
    assert not describe_files(run) and not run.phases


def test_a_run_that_is_being_written(tmp_path):
    partial = b'{"step": 32, "kind": "train", "loss": 1.'
    run = read_run(str(write_run(tmp_path / "run", LINES, *EPOCHS, end=partial, finished=False)))
    assert (run.step, run.steps_per_epoch, run.is_finished, run.damaged) == (22, 22, False, 0)
    assert not describe_files(run)
    started = read_run(str(write_run(tmp_path / "started", LINES[:2], *EPOCHS, finished=False)))
    assert started.steps_per_epoch is None and "has no evaluation yet" in describe_files(started)[0]
    empty = read_run(str(write_run(tmp_path / "empty", [], *EPOCHS, finished=False)))
    assert empty.step == 0 and "has no line yet" in describe_files(empty)[0]


def test_steps_that_were_trained_again_count_once(tmp_path):
    again = [train_line(10, 10, loss=9.0), train_line(20, 10, loss=9.0), *LINES[2:]]
    run = read_run(str(write_run(tmp_path / "run", LINES[:3] + again, *EPOCHS)))
    assert [line["loss"] for line in run.lines["train"].values()] == [9, 9, 2] and run.damaged == 0


def test_damaged_lines_are_counted(tmp_path):
    broken = ["{\n", "[]\n", '{"kind": "train", "step": "4"}\n', '{"kind": "eval/ema", "step": -1, "top1": 1}\n']
    run = read_run(str(write_run(tmp_path / "run", LINES + broken + LATER, *EPOCHS)))
    assert run.damaged == 4 and run.step == 67 and "has 4 damaged lines" in describe_files(run)[0]
    odd = [train_line(10, 10, loss=None, top1="x", seconds=-1), *LINES[1:]]
    run = read_run(str(write_run(tmp_path / "odd", odd, *EPOCHS)))
    first = join_loops(run.lines["train"])[10]
    assert (first["loss"], first["top1"], first["learning_rate"]) == (None, None, 0.01)


def test_a_run_with_phases(tmp_path):
    phases = "train.phases=[{until: 0.5, set: {data.image_size: 16}}, {until: 1.0, set: {}}]"
    run = read_run(str(write_run(tmp_path / "run", LINES + LATER, *EPOCHS, phases)))
    assert [(phase.first_epoch, phase.end_epoch) for phase in run.phases] == [(0, 1.5), (1.5, 3)]
    assert run.steps_per_epoch and dict(run.phases[0].changes) == {"data.image_size": 16}
    batches = "train.phases=[{until: 0.5, set: {train.batch_size: 32}}, {until: 1.0, set: {}}]"
    assert read_run(str(write_run(tmp_path / "batches", LINES, *EPOCHS, batches))).steps_per_epoch is None


def test_changes_of_the_config_are_named(tmp_path):
    folder = write_run(tmp_path / "run", LINES, *EPOCHS)
    (folder / "config_history.yaml").write_text("- {step: 22, time: now, changes: {train.epochs: [1.0, 3.0]}}\n")
    assert describe_files(read_run(str(folder)))[0].endswith("after step 22: train.epochs from 1.0 to 3.0.")


def test_loops_of_few_steps_are_joined_with_the_ones_before():
    lines = {10: train_line(10, 10), 20: train_line(20, 10, loss=1.0), 22: train_line(22, 2, loss=4.0, top1=0.8)}
    joined = join_loops(lines)
    assert list(joined) == [10, 22]
    assert joined[22]["loss"] == pytest.approx((10 * 1.0 + 2 * 4.0) / 12)
    assert joined[22]["top1"] == pytest.approx((10 * 0.5 + 2 * 0.8) / 12)
    assert joined[22]["images_per_second"] == pytest.approx((640 + 128) / 2), "images over seconds"
    many = join_loops({step: train_line(step, 1) for step in range(1, 5001)}, most=100)
    assert 80 <= len(many) <= 101 and list(many)[-1] == 5000


def test_runs_are_named_by_as_many_folders_as_needed(tmp_path):
    assert name_runs(["runs/a", "runs/b/"]) == ["a", "b"]
    assert name_runs(["x/one/run", "x/two/run"]) == ["one/run", "two/run"]
    with pytest.raises(UserError, match=r"^model_dir=\./a is given twice|^model_dir=a is given twice"):
        name_runs(["a", "./a"])


def test_folders_that_are_no_runs(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    for name, message in (("no", "no such file"), ("empty", "is not a model directory"), ("file", "is a file")):
        with pytest.raises(UserError, match=rf"^model_dir=\S+/{name}:? {message}"):
            read_run(str(tmp_path / name))
    for number in range(5):
        write_run(tmp_path / f"empty/run{number}", [])
    with pytest.raises(
        UserError, match=r"no config.yaml. These folders in it are: \S+run0, \S+, \S+run2 and 2 more\.$"
    ):
        read_run(str(tmp_path / "empty"))
