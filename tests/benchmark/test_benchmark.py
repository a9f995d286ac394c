"""What the benchmark command writes; never how quick something was."""

import io
import json
import re

import PIL.Image
import pytest

from efficientnet_tf.benchmark import __main__ as benchmark_command
from efficientnet_tf.benchmark import input as input_lib
from efficientnet_tf.benchmark.plot import draw_speed, importlib
from efficientnet_tf.benchmark.rounds import Worker, WorkerKilled
from efficientnet_tf.benchmark.worker import COPIED_BYTES, EXPORTS, Setting
from efficientnet_tf.config.errors import UserError


def run(*flags):
    return benchmark_command.main(benchmark_command.make_parser().parse_args(flags))


@pytest.fixture
def few_photos(monkeypatch):
    photos = input_lib.make_photos(4)
    monkeypatch.setattr(input_lib, "make_photos", lambda count: (photos * count)[:count])


@pytest.fixture
def memory_aplenty(monkeypatch):
    """Measure whatever else runs here: a small network would be skipped where memory is short just now."""
    monkeypatch.setattr(benchmark_command, "available_memory_bytes", lambda: None)


def test_photos_are_like_imagenets():
    photos = [PIL.Image.open(io.BytesIO(encoded)) for encoded in input_lib.make_photos(8)]
    assert {image.size for image in photos} <= {(500, 375), (375, 500)}
    assert input_lib.make_photos(2) == input_lib.make_photos(2)


@pytest.mark.slow
def test_input_table_and_json(tmp_path, capsys, few_photos):
    output = tmp_path / "input.json"
    run("--sizes=16", "--threads=2", "--rounds=1", "--seconds=0.05", f"--output={output}")
    report, printed = json.loads(output.read_text()), capsys.readouterr()
    assert report["mode"] == "input"
    assert report["environment"]["cpu"] and report["environment"]["cores"] >= 1
    assert {"python", "numpy", "keras"} <= set(report["environment"])
    assert [row["policy"] for row in report["rows"]] == list(input_lib.POLICIES)
    for row in report["rows"]:
        assert (row["size"], row["threads"]) == (16, 2)
        assert 0 < row["low"] <= row["images_per_second"] <= row["high"]
        assert row["of_decode"] > 0 and row["of_none"] > 0
    table = printed.out.splitlines()
    assert len(table) == 2 + 4 and len({len(line) for line in table}) == 1
    assert "8/8" in printed.err  # one turn to warm up


def test_interrupted_it_prints_what_is_complete(tmp_path, capsys, monkeypatch):
    def measure(*_):
        yield from input_lib._summarise(224, 4, {policy: [100.0, 300.0, 200.0] for policy in input_lib.POLICIES})
        raise KeyboardInterrupt

    monkeypatch.setattr(input_lib, "measure_input", measure)
    with pytest.raises(UserError, match="stopped before all was measured; .*not written"):
        run(f"--output={tmp_path}/input.json")
    assert "| autoaugment |               200 | 100 |  300 |      100% |    100% |" in capsys.readouterr().out


def test_output_is_checked_before_measuring(tmp_path, monkeypatch):
    monkeypatch.setattr(input_lib, "measure_input", lambda *_: pytest.fail("measured"))
    with pytest.raises(UserError, match="--output=.* cannot be written"):
        run(f"--output={tmp_path}/missing/input.json")


@pytest.mark.parametrize(
    "flag", ["--seconds=0", "--seconds=x", "--rounds=0", "--sizes=", "--threads=1,-2", "--batch=0"]
)
def test_flags_are_checked(flag, capsys):
    with pytest.raises(SystemExit):
        benchmark_command.make_parser().parse_args([flag])
    assert flag.split("=")[0] in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["train", "infer"])
def test_networks_table_and_json(tmp_path, capsys, memory_aplenty, mode):
    output = tmp_path / "networks.json"
    run(
        *(f"--mode={mode}", "--variant=b0", "--sizes=32", "--batch=2", "--threads=1", "--compare=keras"),
        *("--rounds=2", "--seconds=0.01", f"--output={output}"),
    )
    report = json.loads(output.read_text())
    assert report["mode"] == mode and report["environment"]["cpu"]
    ours, keras = report["rows"]
    assert (ours["contestant"], keras["contestant"]) == ("efficientnet_tf", "keras")
    for row in (ours, keras):
        assert (row["variant"], row["size"], row["batch"], row["threads"]) == ("b0", 32, 2, 1)
        assert 0 < row["low"] <= row["images_per_second"] <= row["high"]
        assert row["milliseconds"] == pytest.approx(2000 / row["images_per_second"], rel=0.01)
        assert row["gmacs"] == pytest.approx(0.0097, abs=1e-4)
        assert (
            row["peak_mib"] > 200
            and row["start_seconds"] > row["first_step_seconds"] > 0
            and row["copy_gb_per_second"] > 0
        )
        # 8.4 million multiply-adds an image at 32 pixels, in training three times, of two operations each.
        flops = row["images_per_second"] * 2 * 8.4e6 * (3 if mode == "train" else 1)
        assert row["of_product"] == pytest.approx(flops / row["product_gflops"] / 1e9, rel=0.5)
    assert ours["of_keras"] == pytest.approx(ours["images_per_second"] / keras["images_per_second"], rel=0.01)
    assert keras["of_keras"] == 1
    assert len(capsys.readouterr().out.splitlines()) == 2 + 2


@pytest.mark.slow
def test_exported_files_are_contestants(tmp_path, memory_aplenty):
    output = tmp_path / "exported.json"
    run("--mode=export", "--sizes=32", "--batch=2", "--rounds=1", "--seconds=0.01", f"--output={output}")
    rows = json.loads(output.read_text())["rows"]
    assert [row["contestant"] for row in rows] == ["efficientnet_tf", *EXPORTS]
    sizes = {row["contestant"]: row["file_mib"] for row in rows}
    assert sizes.pop("efficientnet_tf") is None
    assert all(5 < size < 22 for size in sizes.values()) and sizes["litert:int8"] < 8 < sizes["litert:float16"] < 12


ROW = {"variant": "b0", "size": 224, "batch": 8, "threads": 4, "contestant": "efficientnet_tf", "gmacs": 0.4}
ROW |= {"milliseconds": 80.0, "product_gflops": 500}


def test_the_picture_holds_the_rows_numbers():
    rows = [ROW, ROW | {"variant": "b4", "gmacs": 4.4, "milliseconds": 640.0}]
    rows += [row | {"contestant": "keras", "milliseconds": 2 * row["milliseconds"]} for row in rows]
    axes = draw_speed(rows, "train").axes[0]
    drawn = {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
    assert drawn == {
        "efficientnet_tf": [[0.4, 10], [4.4, 80]],
        "keras": [[0.4, 20], [4.4, 160]],
        # Six operations for each multiply-add in training.
        "matrix product: 500 GFLOP/s": [[0.4, pytest.approx(4.8)], [4.4, pytest.approx(52.8)]],
    }
    assert [text.get_text() for text in axes.texts] == ["b0", "b4"]
    ends = draw_speed(rows, "infer").axes[0].lines[-1].get_ydata()
    assert list(ends) == pytest.approx([1.6, 17.6])


def test_each_batch_and_number_of_threads_has_a_line():
    rows = [ROW | {"batch": batch, "threads": threads} for batch in (1, 8) for threads in (1, 4)]
    lines = draw_speed(rows, "infer").axes[0].lines
    drawn = [line.get_label() for line in lines]
    told = ["batch 1, 1 thread", "batch 1, 4 threads", "batch 8, 1 thread", "batch 8, 4 threads"]
    assert drawn[:4] == [f"efficientnet_tf, {text}" for text in told]
    assert drawn[4:] == ["matrix product, 1 thread: 500 GFLOP/s", "matrix product, 4 threads: 500 GFLOP/s"]
    colours, markers = [line.get_color() for line in lines[:4]], [line.get_marker() for line in lines[:4]]
    assert colours[:2] == colours[2:] and colours[0] != colours[1]
    assert markers[0] == markers[1] != markers[2] == markers[3]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--mode=train", "--picture={}/a.jpg"], "--picture=.*a.jpg: the name must end in .png or .svg"),
        (["--mode=train", "--picture={}/missing/a.png"], "--picture=.* cannot be written"),
        (["--mode=input", "--picture={}/a.png"], "--mode=train, infer or export, received input"),
    ],
)
def test_a_picture_is_checked_before_measuring(tmp_path, monkeypatch, flags, message):
    monkeypatch.setattr(benchmark_command, "_measure", lambda *_: pytest.fail("measured"))
    with pytest.raises(UserError, match=message):
        run(*(flag.format(tmp_path) for flag in flags))


def test_without_matplotlib_the_picture_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"not installed: pip install 'efficientnet_tf\[picture\]'"):
        run("--mode=train", f"--picture={tmp_path}/a.png")


class Runner:
    """A contestant that starts nothing; `dies` says at which batch a signal ends it."""

    dies = None

    def __init__(self, setting):
        self.setting, self.start_seconds = setting, 1.0
        self.facts = {"peak_bytes": 2**30, "first_step_seconds": 0.5}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def run(self, _):
        if self.setting.batch == self.dies and self.setting.contestant == "efficientnet_tf":
            raise WorkerKilled("efficientnet_tf ended with status -9: no message")
        return 0.5


@pytest.mark.parametrize(
    ("setup", "flags", "reason"),
    [
        (
            lambda patch: patch.setattr(benchmark_command, "available_memory_bytes", lambda: 3 * 2**30),
            [],
            "2 processes would take",
        ),
        (lambda patch: patch.setattr(Runner, "dies", 64), [], "efficientnet_tf ended with status -9"),
        (lambda patch: None, ["--longest_step=1"], "a step would take .* longer than 1 s"),
    ],
)
def test_what_cannot_be_measured_is_told_and_does_not_end_the_table(
    tmp_path, capsys, memory_aplenty, monkeypatch, setup, flags, reason
):
    monkeypatch.setattr(benchmark_command, "Worker", Runner)
    setup(monkeypatch)
    output = tmp_path / "networks.json"
    run("--mode=train", "--batch=1,64,2", "--compare=keras", "--threads=1", *flags, f"--output={output}")
    report, printed = json.loads(output.read_text()), capsys.readouterr()
    assert [row["batch"] for row in report["rows"]] == [1, 1, 2, 2]
    (told,) = report["skipped"]
    assert (told["variant"], told["size"], told["batch"], told["threads"]) == ("b0", 224, 64, 1)
    assert re.match(reason, told["reason"])
    assert f"skipped: b0, 224 pixels, batch 64, 1 thread: {told['reason']}" in printed.err and "48/48" in printed.err
    command = "python -m efficientnet_tf.benchmark --mode=train --batch=1,64,2 --compare=keras --threads=1"
    assert report["command"].startswith(command)


def test_a_contestant_that_cannot_run_says_why():
    setting = Setting("keras", variant="b9", size=32, batch=1)
    with pytest.raises(UserError, match="keras ended with status 1: .*EfficientNetB9"), Worker(setting):
        pass


def test_a_contestant_that_is_killed_is_an_error():
    with Worker(Setting("copy")) as runner:
        assert runner.run(0.01) > 0 and runner.start_seconds > runner.facts["first_step_seconds"] > 0
        assert runner.facts["peak_bytes"] > COPIED_BYTES
        runner._process.kill()
        with pytest.raises(WorkerKilled, match="copy ended with status -9"):
            runner.run(0.01)


def test_who_is_compared_is_checked():
    with pytest.raises(UserError, match="--compare=kears: allowed are keras, timm. Did you mean 'keras'"):
        run("--mode=train", "--compare=kears")
