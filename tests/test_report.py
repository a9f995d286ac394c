"""What a run tells: metrics.jsonl, TensorBoard, the bar."""

import json

import pytest
import tensorflow as tf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from efficientnet_tf import report
from efficientnet_tf.config import UserError

TRAIN = {"loss": 1.23456, "top1": 0.25, "learning_rate": 0.004, "images_per_second": 123.4}
RESULT = {"examples": 360, "loss": 0.12344, "top1": 0.975, "top5": 1.0}


def lines_of(model_dir):
    return [json.loads(line) for line in (model_dir / "metrics.jsonl").read_text().splitlines()]


def test_metrics_of_a_run(tmp_path):
    with report.Report(str(tmp_path), "b0", 0, 40) as log:
        assert lines_of(tmp_path) == []
        log.train(10, TRAIN)
        log.evaluation(10, {"raw": RESULT, "ema": RESULT | {"top1": 0.5}})
        # Each line is there at once, not when the run ends.
        assert lines_of(tmp_path) == [
            {"step": 10, "kind": "train", **TRAIN},
            {"step": 10, "kind": "eval/raw", **RESULT},
            {"step": 10, "kind": "eval/ema", **RESULT, "top1": 0.5},
        ]
        log.train(20, TRAIN)
    assert [line["step"] for line in lines_of(tmp_path)] == [10, 10, 10, 20]


@pytest.mark.parametrize(
    "cut",
    ["", '{"step": 10, "kind": "tr', '{"step": 1', "{", "\0\0\0\0", '{"kind": "train"}', "10", "null"],
)
def test_what_lies_past_the_restored_step_is_dropped(tmp_path, cut):
    kept = [{"step": step, "kind": kind} for step, kind in ((5, "train"), (10, "train"), (10, "eval/ema"))]
    past = [{"step": 11, "kind": "train"}, {"step": 20, "kind": "eval/ema"}]
    text = "".join(json.dumps(line) + "\n" for line in kept + past)
    (tmp_path / "metrics.jsonl").write_text(text + cut)
    with report.Report(str(tmp_path), "b0", 10, 40) as log:
        assert lines_of(tmp_path) == kept
        log.write(15, "train", {"loss": 1.0})
    assert lines_of(tmp_path) == [*kept, {"step": 15, "kind": "train", "loss": 1.0}]


def test_tensorboard_reads_the_scalars(tmp_path):
    with report.Report(str(tmp_path), "b0", 0, 40) as log:
        log.train(10, TRAIN)
        log.train(20, TRAIN | {"loss": 0.5})
        log.evaluation(20, {"ema": RESULT})
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


def test_bar_tells_where_the_run_is(tmp_path, capsys):
    with report.Report(str(tmp_path), "b0", 10, 40) as log:
        log.train(20, TRAIN)
    bars = capsys.readouterr().err.replace("\n", "\r").split("\r")
    assert any(bar.startswith("b0:") and " 10/40 [" in bar for bar in bars)  # goes on from the restored step
    last = bars[-2]
    assert last.startswith("b0:  50%") and " 20/40 [" in last and "<" in last  # time gone < time left
    assert "loss 1.235, top-1 25.0%, rate 0.004, 123 images/s" in last


def test_evaluations_are_printed_for_people(tmp_path, capsys):
    with report.Report(str(tmp_path), "b0", 0, 40) as log:
        log.evaluation(20, {"raw": RESULT, "ema": RESULT | {"top1": 0.5}})
        log.say("a line")
    told = [line for line in capsys.readouterr().out.splitlines() if line]
    assert told == [
        "step 20: raw: top-1 97.50%, top-5 100.00%, loss 0.1234 on 360 examples",
        "step 20: ema: top-1 50.00%, top-5 100.00%, loss 0.1234 on 360 examples",
        "a line",
    ]


def test_a_failure_inside_keeps_what_was_told(tmp_path):
    with pytest.raises(RuntimeError, match="plug"):
        with report.Report(str(tmp_path), "b0", 0, 40) as log:
            log.train(10, TRAIN)
            raise RuntimeError("the plug is pulled")
    assert [line["step"] for line in lines_of(tmp_path)] == [10]


def test_what_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/metrics\.jsonl .* cannot be written"):
        report.Report(str(tmp_path / "file"), "b0", 0, 40)
    with report.Report(str(tmp_path), "b0", 0, 40) as log:
        (tmp_path / "metrics.jsonl").unlink()
        (tmp_path / "metrics.jsonl").mkdir()
        with pytest.raises(UserError, match=r"metrics\.jsonl .* cannot be written"):
            log.train(10, TRAIN)
