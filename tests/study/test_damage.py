"""Tests of files that damaged runs leave behind, and of worker processes that die, hang or print anything."""

import fcntl
import json
import os
import re
import sys
import threading
import time

import pytest
from study_runs import make_runs

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.study import inference, runner
from efficientnet_tf.study.inference import add_inference, measure_inference
from efficientnet_tf.study.results import read_accuracy, read_result
from efficientnet_tf.study.runner import _read_last_lines, _run_process, run_jobs

GOOD = [
    {"step": 1, "kind": "train", "seconds": 2, "images_per_second": 5.0},
    {"step": 1, "kind": "eval/raw", "top1": 0.5, "top5": 0.75, "loss": 1.0},
]
DEEP = b'{"kind": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"


def write_run(folder, *more, end=b"\n"):
    """Write the files of a finished run, with more lines at the start of its metrics."""
    lines = [*more, *(json.dumps(line).encode() for line in GOOD)]
    (folder / "metrics.jsonl").write_bytes(b"\n".join(lines) + end)
    (folder / "classes.txt").write_text("a\nb\n")
    return str(folder)


@pytest.mark.parametrize(
    "line",
    [b"\xff\xfe", b'{"kind": "eval/ema", "top1": \xff}', b"\0\0\0", b'{"kind": "train", "sec', b"[]", b"3", b"null",
     b'{"kind": 3}', DEEP, b"9" * 10_000, b'{"top1": 1}'],
)  # fmt: skip
def test_damaged_lines_of_metrics_are_skipped_and_counted(tmp_path, caplog, line):
    result = read_result(write_run(tmp_path, line))
    assert (result["top1"], result["classes"], result["train_seconds"]) == (0.5, 2, 2)
    assert read_accuracy(str(tmp_path)) == 0.5
    assert f"{tmp_path}/metrics.jsonl has 1 damaged lines, which were skipped" in caplog.text


def test_a_last_line_that_is_being_written_does_not_count(tmp_path, caplog):
    write_run(tmp_path, end=b'\n{"kind": "eval/raw", "top1": 0.9')
    assert read_result(str(tmp_path))["top1"] == 0.5 and not caplog.text


@pytest.mark.parametrize(("metric", "top1", "raw_top1"), [("none", 0.6, 0.9), ("top1", 0.8, 0.4), ("loss", 0.7, 0.5)])
def test_the_evaluation_that_eval_best_chooses_counts(tmp_path, metric, top1, raw_top1):
    lines = GOOD[:1]
    for step, (raw, ema, loss) in enumerate([(0.4, 0.8, 2.0), (0.5, 0.7, 1.0), (0.9, 0.6, 1.5)], 1):
        for kind, value in (("raw", raw), ("ema", ema)):
            lines += [{"step": step, "kind": f"eval/{kind}", "top1": value, "top5": 1.0, "loss": loss}]
    (tmp_path / "classes.txt").write_text("a\nb\n")
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    result = read_result(str(tmp_path), metric)
    assert (result["top1"], result["raw_top1"]) == (top1, raw_top1)


@pytest.mark.parametrize(
    "lines",
    [
        [],
        GOOD[:1],
        [GOOD[1] | {"top1": "0.5"}],
        [GOOD[1] | {"top1": float("nan")}],
        [GOOD[1] | {"top1": True}],
        [GOOD[1] | {"loss": 10**400}],
        [{"kind": "eval/raw"}],
    ],
)
def test_a_run_without_a_complete_evaluation_has_no_result(tmp_path, lines):
    (tmp_path / "classes.txt").write_text("a\nb\n")
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(UserError, match="metrics.jsonl has no complete evaluation"):
        read_result(str(tmp_path))


def test_metrics_that_are_no_file_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "metrics.jsonl")
    with pytest.raises(UserError, match="this is a FIFO"):
        read_result(str(tmp_path))
    assert read_accuracy(str(tmp_path)) is None


# ------------------------------------------------------------------------------------------------------ processes


def train(tmp_path, program):
    """Train a run with a program in place of the training, and return what the study printed as its error."""
    command = (sys.executable, "-c", program)
    return run_jobs(
        make_runs(1), str(tmp_path), recipe="smoke", study_name="list", heartbeat_seconds=1, train_command=command
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("import os; os.write(1, bytes(range(256)) * 9000); os.abort()", "killed by SIGABRT"),
        ("import os, signal; os.kill(os.getpid(), 40)", "killed by signal 40"),
        ("print('\\x1b[2J' + 'x' * 10**6); raise SystemExit(3)", "exit status 3"),
        ("pass", "classes.txt: no such file"),
    ],
)
def test_processes_that_die_or_print_anything_are_failed_runs(tmp_path, capsys, program, reason):
    assert train(tmp_path, program)
    error = capsys.readouterr().err
    assert f"width1_seed0 failed: {reason}" in error.replace(f"{tmp_path}/runs/width1_seed0/", "")
    assert error.replace("\n", "").isprintable() and len(error) < 10_000


@pytest.mark.slow
def test_a_process_that_ignores_signals_is_killed_after_a_while(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "STOP_SECONDS", 0.5)
    program = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True)\ntime.sleep(99)"
    )

    class Stop:
        @property
        def asked(self):
            return log.exists() and b"up" in log.read_bytes()

    log, before = tmp_path / "x.log", time.monotonic()
    status, _ = _run_process([sys.executable, "-c", program], str(log), lambda: True, 1, Stop())
    assert status == -9 and time.monotonic() - before < 30


def test_a_log_that_is_no_file_is_refused(tmp_path):
    (tmp_path / "runs").mkdir()
    os.mkfifo(tmp_path / "runs" / "width1_seed0.log")
    with pytest.raises(UserError, match="width1_seed0.log: this is a FIFO"):
        train(tmp_path, "pass")


def test_only_the_end_of_a_huge_log_is_read(tmp_path):
    path = tmp_path / "x.log"
    with open(path, "wb") as file:
        file.truncate(2**31)
        file.seek(0, os.SEEK_END)
        file.write(b"\nthe reason\n")
    assert _read_last_lines(str(path)).endswith("\nthe reason")


# ------------------------------------------------------------------------------------------------ inference times


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("import os; os.abort()", "killed by SIGABRT"),
        ("import sys; sys.exit('a\\x1b[31mb')", r"exit status 1. a\\x1b\[31mb"),
        ("print('{')", "."),
        ("print('{}')", "the answer is damaged"),
        ('print(\'{"measured": {"inference_seconds": -1}}\')', "the answer is damaged"),
        ("import os; os.write(1, bytes(range(256)))", "."),
        ("import time; time.sleep(60)", "killed at its time limit"),
    ],
)
def test_processes_that_do_not_measure_are_a_warning(caplog, monkeypatch, program, reason):
    monkeypatch.setattr(inference, "MEASURE_SECONDS", 0.5 if "sleep" in program else 60.0)
    assert measure_inference("x.yaml", (sys.executable, "-c", program)) is None
    assert caplog.text.count("The inference time of x.yaml could not be measured") == 1
    (record,) = caplog.records
    assert re.search(reason, record.getMessage()) and record.getMessage().isprintable()


def make_rows(runs):
    return [{"run": run.name} for run in runs]


@pytest.mark.parametrize("content", [b"", b"\xff", b"[]", b'{"a": "b"}', b'{"a": NaN}', b"null", DEEP])
def test_damaged_times_are_measured_again(tmp_path, caplog, content):
    runs = make_runs(1)
    (tmp_path / "measured.json").write_bytes(content)
    rows = add_inference(make_rows(runs), runs, str(tmp_path), lambda variant: 0.5)
    assert rows[0]["inference_seconds"] == 0.5 and "measured.json is damaged" in caplog.text
    assert add_inference(make_rows(runs), runs, str(tmp_path), None) == rows


@pytest.mark.slow
def test_the_wait_for_another_process_that_measures_is_bounded(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(inference, "LOCK_SECONDS", 0.3)
    runs = make_runs(1)
    with open(tmp_path / "measured.json.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        rows = add_inference(make_rows(runs), runs, str(tmp_path), lambda variant: 0.5)
        assert rows[0]["inference_seconds"] is None and "Another process has measured" in caplog.text
        monkeypatch.setattr(inference, "LOCK_SECONDS", 60)
        threading.Timer(0.5, lambda: fcntl.flock(lock, fcntl.LOCK_UN)).start()
        assert add_inference(make_rows(runs), runs, str(tmp_path), lambda v: 0.5)[0]["inference_seconds"] == 0.5


@pytest.mark.parametrize("name", ["measured.json", "measured.json.lock"])
def test_times_that_are_no_file_are_refused(tmp_path, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(UserError, match=f"{name}: this is a FIFO"):
        add_inference(make_rows(make_runs(1)), make_runs(1), str(tmp_path), lambda variant: 0.5)
