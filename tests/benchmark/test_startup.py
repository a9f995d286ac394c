"""How long commands take to answer: whole processes, their answers, and processes that give none."""

import argparse

import pytest

from efficientnet_tf.benchmark import startup
from efficientnet_tf.benchmark.startup import Start, list_starts, measure_startup, time_start
from efficientnet_tf.commands import load_command
from efficientnet_tf.config.errors import UserError


def test_a_process_is_timed_until_its_answer(tmp_path):
    (tmp_path / "slow.py").write_text("import time\nprint('first')\ntime.sleep(0.5)\nprint('done')\ntime.sleep(60)\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(tmp_path))
        assert 0.5 < time_start(Start("", "", ("slow",), "d.ne"), 0) < 30


def test_a_file_can_be_the_answer(tmp_path):
    code = "import sys, time\nopen(sys.argv[1], 'w').write('x')\ntime.sleep(60)\n"
    (tmp_path / "writes.py").write_text(code)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(tmp_path))
        path = str(tmp_path / "answer_NUMBER")
        assert 0 < time_start(Start("", "", ("writes", path), path), 3) < 30
    assert (tmp_path / "answer_3").read_text() == "x"


def test_a_process_without_an_answer_is_an_error():
    with pytest.raises(UserError, match="python -m no_such_module ended without an answer: .*No module named"):
        time_start(Start("", "", ("no_such_module",), "answer"), 0)


def test_a_process_that_never_answers_is_killed(monkeypatch, tmp_path):
    (tmp_path / "hangs.py").write_text("import time\ntime.sleep(60)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(startup, "LIMIT_SECONDS", 0.2)
    with pytest.raises(UserError, match="ended without an answer"):
        time_start(Start("", "", ("hangs",), "answer"), 0)


def test_every_command_has_these_flags(tmp_path):
    (tmp_path / "network.tflite").touch()
    starts = list_starts("b0", ["keras", "timm"], str(tmp_path))
    ours = [start for start in starts if start.implementation == "efficientnet_tf"]
    for start in ours:
        package, command, *flags = start.words
        assert package == "efficientnet_tf"
        assert isinstance(load_command(command).make_parser().parse_args(flags), argparse.Namespace)
    tasks = [start.task for start in starts]
    assert "predict with network.tflite" in tasks
    assert "predict with network.onnx" not in tasks
    assert {start.implementation for start in starts if start.task == "predict"} == {"efficientnet_tf", "keras", "timm"}


@pytest.mark.nightly
def test_every_task_is_measured(monkeypatch):
    monkeypatch.setattr(startup, "WARM_UPS", 0)
    rows = list(measure_startup(["tiny"], [], rounds=1))
    assert len(rows) >= 5
    assert all(0 < row["low"] <= row["seconds"] <= row["high"] for row in rows)
    seconds = {row["task"]: row["seconds"] for row in rows}
    assert seconds["error: no such model"] < seconds["predict"]
