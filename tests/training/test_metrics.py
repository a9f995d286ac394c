"""What a run logs: metrics.jsonl, TensorBoard, Weights & Biases and the terminal."""

import json
import os
import re
import resource
import shutil
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import keras
import pytest
import tensorflow as tf
import tiny
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.models.builder import build_model
from efficientnet_tf.runtime import terminal
from efficientnet_tf.runtime.lock import lock_directory
from efficientnet_tf.train import main, make_parser
from efficientnet_tf.training import metrics, wandb
from efficientnet_tf.training.trainer import train_model

TRAIN = {"loss": 1.23456, "top1": 0.25, "learning_rate": 0.004, "images_per_second": 123.4}
CONFIG = tiny.load_config()
RESULT = {"examples": 360, "loss": 0.12344, "top1": 0.975, "top5": 1.0}


def lines_of(model_dir):
    return [json.loads(line) for line in (model_dir / "metrics.jsonl").read_text().splitlines()]


def test_metrics_of_a_run(tmp_path):
    with metrics.RunLog(str(tmp_path), CONFIG, 0, 40) as log:
        assert lines_of(tmp_path) == []
        log.log_training(10, TRAIN)
        log.log_evaluation(10, {"raw": RESULT, "ema": RESULT | {"top1": 0.5}})
        # Each line is written at once, not at the end of the run.
        assert lines_of(tmp_path) == [
            {"step": 10, "kind": "train", **TRAIN},
            {"step": 10, "kind": "eval/raw", **RESULT},
            {"step": 10, "kind": "eval/ema", **RESULT, "top1": 0.5},
        ]
        log.log_training(20, TRAIN)
    assert [line["step"] for line in lines_of(tmp_path)] == [10, 10, 10, 20]


@pytest.mark.parametrize(
    ("settings", "is_given"),
    [
        (["data.image_size=8"], True),
        (["data.image_size=9"], False),
        (["data.image_size=8", "model.stem_stride=1"], False),
        (["data.image_size=16", "model.stem_pool=true"], True),
    ],
)
def test_hint_for_images_that_shrink_to_one_pixel(settings, is_given):
    config = tiny.load_config(*settings)
    model = build_model(config.model, 10, (8, 8, 3))
    text = "\n".join(metrics.describe_run(config, model, (20, 10), "1 CPU", 40))
    assert ("--set model.stem_stride=1" in text) == is_given


@pytest.mark.parametrize(
    ("precision", "devices", "is_given"),
    [("mixed_bfloat16", "1 x CPU", True), ("mixed_bfloat16", "8 x TPU", False), ("float32", "1 x CPU", False)],
)
def test_hint_for_bfloat16_on_a_cpu(precision, devices, is_given):
    config, policy = tiny.load_config(), keras.config.dtype_policy()
    keras.config.set_dtype_policy(precision)
    model = build_model(config.model, 10, (8, 8, 3))
    keras.config.set_dtype_policy(policy)
    text = "\n".join(metrics.describe_run(config, model, (20, 10), devices, 40))
    assert ("train.precision=float32" in text) == is_given


@pytest.mark.parametrize(
    "cut",
    ["", '{"step": 10, "kind": "tr', '{"step": 1', "{", "\0\0\0\0", '{"kind": "train"}', "10", "null"],
)
def test_lines_after_the_restored_step_are_dropped(tmp_path, cut):
    steps = ((5, "train"), (10, "train"), (10, "eval/raw"), (10, "eval/ema"))
    kept = [{"step": step, "kind": kind} for step, kind in steps]
    past = [{"step": 11, "kind": "train"}, {"step": 20, "kind": "eval/ema"}]
    text = "".join(json.dumps(line) + "\n" for line in kept + past)
    (tmp_path / "metrics.jsonl").write_text(text + cut)
    with metrics.RunLog(str(tmp_path), CONFIG, 10, 40) as log:
        assert lines_of(tmp_path) == kept
        log.write(15, "train", {"loss": 1.0})
    assert lines_of(tmp_path) == [*kept, {"step": 15, "kind": "train", "loss": 1.0}]


@pytest.mark.parametrize(
    "damage",
    [
        b"\xff\n",
        b'{"step": 8, "kind": "tr\n',
        b"\0\0\0\0\n",
        b"\n",
        b'{"step": "8", "kind": "train"}\n',
        b'{"step": true, "kind": "train"}\n',
        b'{"step": NaN, "kind": "train"}\n',
        b'{"step": 8}\n',
        b"8\n",
        b"[" * 10_000 + b"\n",
        b'{"step": ' + b"9" * 10_000 + b', "kind": "train"}\n',
        b'{"step": 8, "kind": "train", "note": "\xe9"}\n',
    ],
)
def test_damage_in_the_middle_is_no_obstacle(tmp_path, damage, caplog):
    kept = [{"step": 5, "kind": "train", "note": "\u2028"}, {"step": 10, "kind": "train"}]
    before, after = (json.dumps(line, ensure_ascii=False).encode() + b"\n" for line in kept)
    (tmp_path / "metrics.jsonl").write_bytes(before + damage + after)
    with metrics.RunLog(str(tmp_path), CONFIG, 10, 40) as log:
        log.log_training(20, TRAIN)
    assert [line["step"] for line in lines_of(tmp_path)] == [5, 10, 20]
    assert "line 2 cannot be read. The run continues without" in caplog.text
    (copy,) = tmp_path.glob("metrics.jsonl.damaged-*")
    assert copy.read_bytes() == before + damage + after


def test_an_incomplete_evaluation_is_repeated(tmp_path):
    lines = [{"step": 10, "kind": kind} for kind in ("train", "eval/raw", "eval/ema")]
    for count, lacks in ((1, True), (2, True), (3, False)):
        (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines[:count]))
        with metrics.RunLog(str(tmp_path), CONFIG, 10, 40) as log:
            assert log.lacks_evaluation == lacks
        assert lines_of(tmp_path) == (lines[:1] if lacks else lines)


def test_a_full_disk_ends_the_run_with_a_sentence_and_loses_nothing(tmp_path):
    def write(log, steps):
        for step in steps:
            log.write(step, "train", {"loss": 1.0})

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with metrics.RunLog(str(tmp_path), CONFIG, 0, 40) as log:
        write(log, [1, 2])
        size = (tmp_path / "metrics.jsonl").stat().st_size
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20, hard))
        try:
            with pytest.raises(UserError, match=r"metrics\.jsonl .* cannot be written"):
                write(log, [3])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    with metrics.RunLog(str(tmp_path), CONFIG, 2, 40) as log:
        write(log, [3])
    assert [line["step"] for line in lines_of(tmp_path)] == [1, 2, 3]


def test_nothing_is_written_to_a_directory_that_is_gone(tmp_path):
    model_dir = tmp_path / "run"
    with lock_directory(str(model_dir), "training") as lock:
        with metrics.RunLog(str(model_dir), CONFIG, 0, 40, check=lock.check) as log:
            log.log_training(10, TRAIN)
            shutil.rmtree(model_dir)
            for write in (lambda: log.log_training(20, TRAIN), log.sync):
                with pytest.raises(UserError, match="was deleted or moved"):
                    write()
    assert not model_dir.exists()


def test_tensorboard_reads_the_scalars(tmp_path):
    with metrics.RunLog(str(tmp_path), CONFIG, 0, 40) as log:
        log.log_training(10, TRAIN)
        log.log_training(20, TRAIN | {"loss": 0.5})
        log.log_evaluation(20, {"ema": RESULT})
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()

    def scalars(tag):
        return {event.step: tf.make_ndarray(event.tensor_proto).item() for event in events.Tensors(tag)}

    tags = [f"train/{name}" for name in TRAIN] + [f"eval/ema/{name}" for name in RESULT]
    assert sorted(events.Tags()["tensors"]) == sorted(tags)
    assert scalars("train/loss") == pytest.approx({10: 1.23456, 20: 0.5})
    assert scalars("train/learning_rate") == pytest.approx({10: 0.004, 20: 0.004})
    assert scalars("eval/ema/top1") == pytest.approx({20: 0.975})
    assert scalars("eval/ema/examples") == {20: 360}


def test_a_log_file_gets_a_line_now_and_then(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(terminal, "SECONDS_BETWEEN_LINES", 0.0)
    with metrics.RunLog(str(tmp_path), CONFIG, 10, 40) as log:
        log.log_training(20, TRAIN)
    line = "tiny: 20 of 40 steps, loss 1.235, top-1 25.0%, rate 0.004, 123 images/s\n"
    assert capsys.readouterr().err == line


def test_evaluations_are_printed_for_people(tmp_path, capsys):
    with metrics.RunLog(str(tmp_path), CONFIG, 0, 40) as log:
        log.log_evaluation(20, {"raw": RESULT, "ema": RESULT | {"top1": 0.5}})
        log.print("a line")
    told = [line for line in capsys.readouterr().out.splitlines() if line]
    assert told == [
        "step 20: top-1 97.50% (EMA 50.00%), top-5 100.00% (EMA 100.00%), loss 0.1234 (EMA 0.1234) on 360 images",
        "a line",
    ]


def test_a_run_that_is_stuck_says_so(tmp_path, capsys):
    before = threading.active_count()
    with metrics.RunLog(str(tmp_path), CONFIG, 0, 20, stuck_seconds=0.6) as log:
        for _ in range(4):  # Slow, but not stuck.
            time.sleep(0.2)
            log.log_training(10, TRAIN)
        assert "No progress" not in capsys.readouterr().out
        time.sleep(1.6)
        log.log_training(20, TRAIN)
    told = [line for line in capsys.readouterr().out.splitlines() if "No progress" in line]
    assert [line.partition(".  ")[0].partition(" Check")[0] for line in told] == [
        f"No progress for {minutes} minutes after step 10." for minutes in ("0.01", "0.02")
    ]
    assert threading.active_count() == before


def test_a_failure_keeps_the_logged_lines(tmp_path):
    with pytest.raises(RuntimeError, match="power failure"):
        with metrics.RunLog(str(tmp_path), CONFIG, 0, 40) as log:
            log.log_training(10, TRAIN)
            raise RuntimeError("power failure")
    assert [line["step"] for line in lines_of(tmp_path)] == [10]


def test_a_file_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/metrics\.jsonl .* cannot be written"):
        metrics.RunLog(str(tmp_path / "file"), CONFIG, 0, 40)
    with metrics.RunLog(str(tmp_path), CONFIG, 0, 40) as log:
        (tmp_path / "metrics.jsonl").unlink()
        (tmp_path / "metrics.jsonl").mkdir()
        with pytest.raises(UserError, match=r"metrics\.jsonl .* cannot be written"):
            log.log_training(10, TRAIN)


# ------------------------------------------------------------------------------------------------ Weights & Biases


@pytest.fixture
def offline(monkeypatch):
    """Make wandb write its files without using the network."""
    pytest.importorskip("wandb")
    for name, value in {"WANDB_MODE": "offline", "WANDB_SILENT": "true"}.items():
        monkeypatch.setenv(name, value)


def wandb_records(model_dir):
    """Yield the records that all processes of a run sent to wandb, in order.

    A file is a mark of seven bytes, then blocks of 32 KiB, in which each part of a record has a header: four bytes of
    checksum, two of length, one that says whether the record ends here (1 and 4).
    """
    from wandb.proto.wandb_internal_pb2 import Record

    files = sorted(model_dir.glob("wandb/offline-run-*/run-*.wandb"), key=lambda path: path.stat().st_mtime_ns)
    for path in files:
        content, at, record = path.read_bytes(), 7, b""
        while at + 7 <= len(content):
            if 32768 - at % 32768 < 7:
                at += 32768 - at % 32768
                continue
            length, kind = struct.unpack_from("<HB", content, at + 4)
            record, at = record + content[at + 7 : at + 7 + length], at + 7 + length
            if kind in (1, 4):
                yield Record.FromString(record)
                record = b""


def wandb_lines(model_dir):
    """Return the lines that were sent to wandb as {name: value}, without what wandb adds."""
    records = [r for r in wandb_records(model_dir) if r.WhichOneof("record_type") == "history"]
    rows = [
        {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in r.history.item} for r in records
    ]
    return [{name: value for name, value in row.items() if not name.startswith("_")} for row in rows]


def as_sent(lines):
    """Return lines of metrics.jsonl as they should be sent to wandb, under TensorBoard's names."""
    names = ("step", "kind")
    return [
        {"step": line["step"], **{f"{line['kind']}/{k}": v for k, v in line.items() if k not in names}}
        for line in lines
    ]


@pytest.mark.slow
def test_wandb_gets_the_lines_of_metrics_jsonl(offline, tmp_path):
    config = tiny.load_config(tiny.SHORT, "train.epochs=0.2", "schedule.warmup_epochs=0", "train.steps_per_loop=2")
    model_dir = tmp_path / "my run"
    result = train_model(config, str(model_dir), tiny.make_strategy(1), "wandb")
    lines = lines_of(model_dir)
    assert {line["kind"] for line in lines} == {"train", "eval/raw", "eval/ema"}
    assert wandb_lines(model_dir) == as_sent(lines)
    assert {"step": result["step"], **{f"eval/ema/{k}": v for k, v in result["ema"].items()}} in wandb_lines(model_dir)
    told = {r.WhichOneof("record_type"): r for r in wandb_records(model_dir)}
    begun = told["run"].run
    assert begun.display_name == "my-run" and re.fullmatch(r"my-run-[0-9a-f]{8}", begun.run_id)
    logged = {item.key: json.loads(item.value_json) for item in begun.config.update}
    logged.pop("_wandb", None)
    assert logged == config.model_dump(mode="json")
    assert (told["metric"].metric.glob_name, told["metric"].metric.step_metric) == ("*", "step")
    assert told["exit"].exit.exit_code == 0
    assert (model_dir / "tensorboard").is_dir()


def test_a_resumed_run_continues_its_wandb_run_without_repetition(offline, tmp_path):
    def resume(step, steps, tracker="wandb"):
        with metrics.RunLog(str(tmp_path), CONFIG, step, 60, tracker) as log:
            for now in steps:
                log.log_training(now, TRAIN | {"loss": float(now)})
                if now % 20 == 0:
                    log.log_evaluation(now, {"raw": RESULT, "ema": RESULT | {"top1": now / 100}})
                if now == 40 and step == 0:
                    raise RuntimeError("power failure")

    resume(0, [10], tracker="tensorboard")  # These lines are sent once the run uses the tracker.
    with pytest.raises(RuntimeError, match="power failure"):
        resume(0, [10, 20, 30, 40])
    resume(20, [30])  # Killed again, before the last lines that were sent.
    resume(20, [30, 40, 50])
    resume(50, [60])
    resume(60, [])
    assert wandb_lines(tmp_path) == as_sent(lines_of(tmp_path))
    assert [line["step"] for line in lines_of(tmp_path)] == [10, 20, 20, 20, 30, 40, 40, 40, 50, 60, 60, 60]
    begun = [r.run for r in wandb_records(tmp_path) if r.WhichOneof("record_type") == "run"]
    assert len({run.run_id for run in begun}) == 1
    exits = [r.exit.exit_code for r in wandb_records(tmp_path) if r.WhichOneof("record_type") == "exit"]
    assert exits == [1, 0, 0, 0, 0]


@pytest.mark.slow
def test_wandb_misses_no_line_after_a_kill(offline, tmp_path, monkeypatch):
    """The process is killed before wandb has written what it buffers."""
    program = (
        "import os, tiny\nfrom efficientnet_tf.training.metrics import RunLog\n"
        f"log = RunLog({str(tmp_path)!r}, tiny.load_config(), 0, 60, 'wandb')\n"
        f"for step in (10, 20, 30): log.log_training(step, {TRAIN})\n"
        "os.kill(os.getpid(), 9)"
    )
    # With its own wandb service, because the one of these tests would survive the kill.
    alone = {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}
    alone["PYTHONPATH"] = os.pathsep.join([str(Path(metrics.__file__).parents[2]), str(Path(__file__).parents[1])])
    done = subprocess.run([sys.executable, "-c", program], env=alone, capture_output=True, text=True, check=False)
    assert done.returncode == -9 and len(lines_of(tmp_path)) == 3, done.stderr
    first = json.loads((tmp_path / "wandb.json").read_text())
    assert first["lines"] == 0
    monkeypatch.setattr(wandb, "SECONDS_IN_MEMORY", 0)
    with metrics.RunLog(str(tmp_path), CONFIG, 10, 60, "wandb") as log:
        for step in (20, 30, 40):
            log.log_training(step, TRAIN)
        assert json.loads((tmp_path / "wandb.json").read_text()) == {"id": first["id"], "lines": 3}
    assert json.loads((tmp_path / "wandb.json").read_text()) == {"id": first["id"], "lines": 4}
    rows = wandb_lines(tmp_path)
    assert [row for i, row in enumerate(rows) if row not in rows[:i]] == as_sent(lines_of(tmp_path))


def test_a_missing_wandb_is_reported_first(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    missing = r"tracker=wandb needs Weights & Biases, .* pip install 'efficientnet_tf\[wandb\]'"
    with pytest.raises(UserError, match=missing):
        train_model(tiny.load_config("data.source=folder", "data.dir=nowhere"), str(tmp_path / "run"), None, "wandb")
    flags = ["--tracker=wandb", f"--model_dir={tmp_path / 'run'}", "--device=tpu"]
    with pytest.raises(UserError, match=missing):
        main(make_parser().parse_args(flags))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "content", [b"", b"\xff", b"{", b"[]", b"7", b'{"id": 5, "lines": 1}', b'{"id": "a/b", "lines": 1}', b'{"id": "a"}']
)
def test_a_damaged_record_of_wandb_is_kept_and_begun_again(tmp_path, content, caplog):
    (tmp_path / "wandb.json").write_bytes(content)
    assert wandb._read_sent(str(tmp_path / "wandb.json")) is None
    assert "A new run of Weights & Biases is begun" in caplog.text
    (copy,) = tmp_path.glob("wandb.json.damaged-*")
    assert copy.read_bytes() == content


def test_a_whole_record_of_wandb_is_read(tmp_path):
    assert wandb._read_sent(str(tmp_path / "wandb.json")) is None
    (tmp_path / "wandb.json").write_text('{"id": "my-run-1234", "lines": 3}')
    assert wandb._read_sent(str(tmp_path / "wandb.json")) == {"id": "my-run-1234", "lines": 3}
    assert len(list(tmp_path.iterdir())) == 1


def test_wandb_that_cannot_start_says_why(offline, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_PROJECT", "a/b")
    with pytest.raises(UserError, match="tracker=wandb: .*a/b.*\n.*'wandb login', or set WANDB_MODE=offline"):
        metrics.RunLog(str(tmp_path), CONFIG, 0, 40, "wandb")
