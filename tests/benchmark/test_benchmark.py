"""Tests of what the benchmark command writes. No test depends on how fast something is."""

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import PIL.Image
import pytest
import tiny
from hostile import NAMES
from outputs import full_disk

from efficientnet_tf.benchmark import __main__ as command
from efficientnet_tf.benchmark import rounds
from efficientnet_tf.benchmark.input import POLICIES, make_photos, measure_input, summarize_rates
from efficientnet_tf.benchmark.networks import NetworkBenchmark, Plan
from efficientnet_tf.benchmark.plot import draw_speed
from efficientnet_tf.benchmark.report import format_markdown
from efficientnet_tf.benchmark.rounds import Worker, WorkerKilled
from efficientnet_tf.benchmark.setting import Setting, name_in_keras, name_in_timm
from efficientnet_tf.benchmark.worker import COPIED_BYTES, EXPORTS
from efficientnet_tf.config.errors import UserError
from efficientnet_tf.runtime.terminal import ProgressBar


def parse(*flags):
    return command.make_parser().parse_args(flags)


def measure_networks(plan, **options):
    """Return the rows of a plan, the skipped cases and the progress bar."""
    benchmark = NetworkBenchmark(plan, **{"available_bytes": lambda: None} | options)
    with ProgressBar(benchmark.total, "networks") as bar:
        return list(benchmark.measure(bar)), benchmark.skipped, bar


# ---------------------------------------------------------------------------------------------------- the input


@pytest.mark.tensorflow
def test_photos_are_like_those_of_imagenet():
    photos = [PIL.Image.open(io.BytesIO(encoded)) for encoded in make_photos(8)]
    assert {image.size for image in photos} <= {(500, 375), (375, 500)}
    assert make_photos(2) == make_photos(2)


@pytest.mark.slow
def test_table_and_json_of_the_input(tmp_path, capsys):
    output = tmp_path / "input.json"
    measurements = measure_input([16], [2], rounds=1, seconds=0.05, photos=4)
    command.report(parse("--sizes=16", "--threads=2", "--rounds=1", f"--output={output}"), measurements, [])
    report = json.loads(output.read_text())
    assert report["mode"] == "input"
    assert report["command"].startswith("python -m efficientnet_tf.benchmark --sizes=16 --threads=2 --rounds=1")
    assert report["environment"]["cpu"] and report["environment"]["cores"] >= 1
    assert {"python", "numpy", "keras"} <= set(report["environment"])
    assert [row["policy"] for row in report["rows"]] == list(POLICIES)
    for row in report["rows"]:
        assert (row["size"], row["threads"]) == (16, 2)
        assert 0 < row["low"] <= row["images_per_second"] <= row["high"]
        assert row["of_decode"] > 0 and row["of_none"] > 0
    table = capsys.readouterr().out.splitlines()
    assert len(table) == 2 + 4 and len({len(line) for line in table}) == 1


# -------------------------------------------------------------------------------------------------- the command


def test_after_an_interrupt_the_table_has_what_is_complete(tmp_path, capsys):
    def measure():
        yield from summarize_rates(224, 4, {policy: [100.0, 300.0, 200.0] for policy in POLICIES})
        raise KeyboardInterrupt

    with pytest.raises(UserError, match="stopped before everything was measured. --output=.* was not written"):
        command.report(parse(f"--output={tmp_path}/input.json"), measure(), [])
    assert "| autoaugment |               200 | 100 |  300 |      100% |    100% |" in capsys.readouterr().out


@pytest.mark.parametrize(
    "flag", ["--seconds=0", "--seconds=x", "--rounds=0", "--sizes=", "--threads=1,-2", "--batch=0"]
)
def test_values_of_flags_are_checked(flag, capsys):
    with pytest.raises(SystemExit):
        parse(flag)
    assert flag.split("=")[0] in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--output={}/missing/input.json"], "--output=.* cannot be written"),
        (["--mode=train", "--picture={}/a.jpg"], "picture=.*a.jpg has no known ending.*.png or .svg"),
        (["--mode=train", "--picture={}/missing/a.png"], "--picture=.* cannot be written"),
        (["--mode=input", "--picture={}/a.png"], "--picture plots networks.*Use --mode=train, infer or export"),
        (["--mode=train", "--seconds=1e20"], "--seconds=1e\\+20 is too long. Use at most 3600"),
        (
            ["--mode=train", "--compare=kears"],
            "--compare=kears is not known. Use keras or timm or jax or keras_fit_jax. Did you mean 'keras'",
        ),
        (
            ["--mode=infer", "--compare=keras_fit_jax"],
            "--compare=keras_fit_jax is not measured with --mode=infer. Use keras or timm or jax.",
        ),
    ],
)
def test_flags_are_checked_before_measuring(tmp_path, flags, message):
    with pytest.raises(UserError, match=message):
        command.check_flags(parse(*(flag.format(tmp_path) for flag in flags)))


def test_without_matplotlib_a_plot_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UserError, match=r"picture=.*a.png draws with matplotlib, .* 'efficientnet_tf\[picture\]'"):
        command.check_flags(parse("--mode=train", f"--picture={tmp_path}/a.png"))


def test_when_every_case_is_skipped_that_is_an_error(tmp_path):
    output = tmp_path / "networks.json"
    skipped = [{"variant": "b7", "reason": "one process would take 180 GiB"}]
    with pytest.raises(UserError, match="Nothing was measured"):
        command.report(parse("--mode=train", f"--output={output}"), [], skipped)
    assert json.loads(output.read_text())["skipped"] == skipped


def test_markdown_shows_shares_in_percent_and_unknown_values_as_blanks():
    rows = [{"name": "a", "of_keras": 0.5, "peak_mib": None}, {"name": "b", "of_keras": 1.25, "peak_mib": 1234.5}]
    assert format_markdown(rows).splitlines() == [
        "| name | of keras | peak mib |",
        "|-----:|---------:|---------:|",
        "|    a |      50% |          |",
        "|    b |     125% |    1,234 |",
    ]


# ------------------------------------------------------------------------------------------------------ networks


def test_names_of_networks_in_other_libraries():
    assert [name_in_keras(variant) for variant in ("b0", "v2-b3", "v2-s")] == [
        *("EfficientNetB0", "EfficientNetV2B3", "EfficientNetV2S")
    ]
    names = {
        "b7": "tf_efficientnet_b7",
        "lite4": "tf_efficientnet_lite4",
        "v2-b0": "tf_efficientnetv2_b0",
        "v2-xl": "tf_efficientnetv2_xl",
        "edgetpu-s": "efficientnet_es",
        "tiny": "test_efficientnet",
    }
    assert {variant: name_in_timm(variant) for variant in names} == names


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["train", pytest.param("infer", marks=pytest.mark.nightly)])
def test_networks_are_measured_next_to_keras(mode):
    plan = Plan(mode, ["b0"], [2], compare=["keras"], rounds=2, seconds=0.01, sizes=[32], threads=[1])
    (ours, keras), skipped, _ = measure_networks(plan)
    assert (ours["implementation"], keras["implementation"]) == ("efficientnet_tf", "keras") and not skipped
    for row in (ours, keras):
        assert (row["variant"], row["size"], row["batch"], row["threads"]) == ("b0", 32, 2, 1)
        assert 0 < row["low"] <= row["images_per_second"] <= row["high"]
        assert row["milliseconds"] == pytest.approx(2000 / row["images_per_second"], rel=0.01)
        assert row["gmacs"] == pytest.approx(0.0097, abs=1e-4)
        assert row["start_seconds"] > row["first_step_seconds"] > 0
        assert row["peak_mib"] > 200 and row["copy_gb_per_second"] > 0
        # 8.4 million multiply-adds per image at 32 pixels, three times as many in training, two operations each.
        flops = row["images_per_second"] * 2 * 8.4e6 * (3 if mode == "train" else 1)
        assert row["of_product"] == pytest.approx(flops / row["product_gflops"] / 1e9, rel=0.5)
    assert ours["of_keras"] == pytest.approx(ours["images_per_second"] / keras["images_per_second"], rel=0.01)
    assert keras["of_keras"] == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "exports",
    [
        pytest.param(("litert:float32", "onnx:int8", "openvino:bfloat16"), id="one of each runtime"),
        pytest.param(EXPORTS, id="all", marks=pytest.mark.nightly),
    ],
)
def test_exported_files_are_measured(exports, tmp_path):
    variant = tmp_path / "wide.yaml"
    variant.write_text(Path(tiny.VARIANT).read_text().replace("width: 1.0", "width: 8.0"))
    plan = Plan("export", [str(variant)], [2], rounds=1, seconds=0.01, sizes=[32], exports=exports)
    rows, _, _ = measure_networks(plan)
    assert [row["implementation"] for row in rows] == ["efficientnet_tf", *exports]
    sizes = {row["implementation"]: row["file_mib"] for row in rows}
    assert sizes.pop("efficientnet_tf") is None
    whole = sizes["litert:float32"]
    assert whole > 3 and all(whole / 4 < size < 1.1 * whole for size in sizes.values())
    shares = {"float32": (0.9, 1.1), "float16": (0.4, 0.6), "bfloat16": (0.4, 0.6), "int8": (0.2, 0.5)}
    for name, size in sizes.items():
        low, high = shares.get(name.partition(":")[2], (0.2, 1))
        assert low * whole < size < high * whole, name


class FakeWorker:
    """A worker without a process."""

    def __init__(self, setting):
        self.setting, self.start_seconds = setting, 1.0
        self.facts = {"peak_bytes": 2**30, "first_step_seconds": 0.5}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def run(self, _):
        return 0.5


class MortalWorker(FakeWorker):
    """A worker of this package that is killed at a batch of 64."""

    def run(self, seconds):
        if self.setting.batch == 64 and self.setting.implementation == "efficientnet_tf":
            raise WorkerKilled("efficientnet_tf ended with status -9: no message")
        return super().run(seconds)


@pytest.mark.parametrize(
    ("options", "longest_step_seconds", "reason"),
    [
        ({"available_bytes": lambda: 3 * 2**30}, None, "2 processes would take .* only 3.0 GiB are available"),
        ({"worker": MortalWorker}, None, "efficientnet_tf ended with status -9"),
        ({}, 1, "a step would take .* longer than 1 s"),
    ],
)
def test_a_case_that_cannot_be_measured_is_skipped(capsys, options, longest_step_seconds, reason):
    plan = Plan("train", ["b0"], [1, 64, 2], compare=["keras"], threads=[1], longest_step_seconds=longest_step_seconds)
    rows, skipped, bar = measure_networks(plan, **{"worker": FakeWorker} | options)
    assert [row["batch"] for row in rows] == [1, 1, 2, 2]
    (case,) = skipped
    assert (case["variant"], case["size"], case["batch"], case["threads"]) == ("b0", 224, 64, 1)
    assert re.match(reason, case["reason"])
    assert f"skipped: b0, 224 pixels, batch 64, 1 thread: {case['reason']}" in capsys.readouterr().err
    assert bar.completed == bar.total == 48


# ------------------------------------------------------------------------------------------------------- workers


@pytest.mark.tensorflow
def test_a_worker_that_cannot_run_says_why():
    setting = Setting("keras", variant="b9", size=32, batch=1)
    with pytest.raises(UserError, match="keras ended with status 1: .*EfficientNetB9"), Worker(setting):
        pass


@pytest.mark.slow
@pytest.mark.tensorflow
def test_a_worker_that_is_killed_is_an_error():
    with Worker(Setting("copy")) as worker:
        assert worker.run(0.01) > 0 and worker.start_seconds > worker.facts["first_step_seconds"] > 0
        assert worker.facts["peak_bytes"] > COPIED_BYTES
        os.kill(worker.pid, signal.SIGKILL)
        with pytest.raises(WorkerKilled, match="copy ended with status -9"):
            worker.run(0.01)


ANSWER = '{"seconds": 0.5, "facts": {}}'


def start_worker(program):
    """Return a worker that runs a program in place of a network."""
    return Worker(Setting("copy"), (sys.executable, "-c", f"import os, sys, time\n{program}\n"))


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("os.abort()", "copy ended with status -6, killed by SIGABRT: no message"),
        ("os.kill(os.getpid(), 40)", "copy ended with status -40, killed by signal 40"),
        ("os.write(2, b'\\xffa\\x1b[31mb'); sys.exit(3)", r"copy ended with status 3: .a\\x1b\[31mb"),
        ("pass", "copy ended with status 0: no message"),
        ("print('junk')", "copy did not answer with a time but with b'junk"),
        ("os.write(1, bytes(range(256)) * 9)", r"copy did not answer with a time but with b'\\x00"),
        ("os.write(1, b'x' * 2**21)", "copy did not answer with a time but with b'xxx"),
        ("print('[' * 9**6)", "copy did not answer with a time"),
        ("print('{}')", "copy did not answer with a time"),
        ('print(\'{"seconds": 1, "facts": 3}\')', "copy did not answer with a time"),
        ('print(\'{"seconds": NaN, "facts": {}}\')', "copy answered that it took nan seconds"),
        ('print(\'{"seconds": 0, "facts": {}}\')', "copy answered that it took 0.0 seconds"),
        ("time.sleep(60)", "copy did not answer for 1 seconds"),
        pytest.param("os.close(1); time.sleep(60)", "copy closed its output", marks=pytest.mark.slow),
    ],
)
def test_a_worker_that_dies_or_hangs_or_prints_anything_is_a_sentence(monkeypatch, program, reason):
    monkeypatch.setattr(rounds, "ANSWER_SECONDS", 1.0 if "sleep" in program else 60.0)
    with pytest.raises(UserError, match=reason) as raised, start_worker(program):
        pass
    assert str(raised.value).isprintable() and len(str(raised.value)) < 600


def test_a_worker_that_ends_between_two_measurements_is_a_sentence():
    with start_worker(f"print({ANSWER!r}, flush=True)") as worker:
        os.waitid(os.P_PID, worker.pid, os.WEXITED | os.WNOWAIT)
        with pytest.raises(UserError, match="copy ended with status 0"):
            worker.run(1)


def test_a_worker_gets_the_steps_and_its_time_is_divided():
    program = (
        f'print({ANSWER!r}, flush=True)\nn = int(input())\nprint(\'{{"seconds": %d, "facts": {{"n": %d}}}}\' % (n, n))'
    )
    with start_worker(program) as worker:
        assert worker.run(7) == 1 and worker.facts == {"n": 7}


@pytest.mark.parametrize("flag", ["--output=", "--picture="])
def test_outputs_that_are_no_files_or_inputs_are_refused(tmp_path, flag):
    os.mkfifo(tmp_path / "fifo.png")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "net.png").write_text("")
    for path, reason in (
        ("fifo.png", "it is a FIFO"),
        ("folder.png", "it is a folder"),
        ("/dev/null", "it is a device"),
        ("net.png", "is also an input"),
    ):
        with pytest.raises(UserError, match=reason):
            command.check_flags(parse("--mode=train", flag + str(tmp_path / path), f"--variant={tmp_path}/net.png"))
    with pytest.raises(UserError, match="is also an input"):
        command.check_flags(parse("--mode=train", f"--output={tmp_path}/a.png", f"--picture={tmp_path}/a.png"))


def test_a_full_disk_leaves_no_report_and_no_plot(tmp_path, capsys):
    for flag in (f"--output={tmp_path}/a.json", f"--picture={tmp_path}/a.png"):
        with full_disk(100), pytest.raises(UserError, match="cannot be written: File too large"):
            command.report(parse("--mode=train", flag), [ROW], [])
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------------------------------ the plot

ROW = {"variant": "b0", "size": 224, "batch": 8, "threads": 4, "implementation": "efficientnet_tf", "gmacs": 0.4}
ROW |= {"milliseconds": 80.0, "product_gflops": 500}


def test_the_plot_has_the_numbers_of_the_rows():
    rows = [ROW, ROW | {"variant": "b4", "gmacs": 4.4, "milliseconds": 640.0}]
    rows += [row | {"implementation": "keras", "milliseconds": 2 * row["milliseconds"]} for row in rows]
    axes = draw_speed(rows, "train").axes[0]
    lines = {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
    assert lines == {
        "efficientnet_tf": [[0.4, 10], [4.4, 80]],
        "keras": [[0.4, 20], [4.4, 160]],
        # Six operations for each multiply-add in training.
        "matrix product: 500 GFLOP/s": [[0.4, pytest.approx(4.8)], [4.4, pytest.approx(52.8)]],
    }
    assert [text.get_text() for text in axes.texts] == ["b0", "b4"]
    ends = draw_speed(rows, "infer").axes[0].lines[-1].get_ydata()
    assert list(ends) == pytest.approx([1.6, 17.6])


def test_the_plot_and_the_table_show_names_literally():
    rows = [ROW | {"variant": name, "implementation": name, "gmacs": 0.4 + i} for i, name in enumerate(NAMES)]
    figure = draw_speed(rows, "infer", "$x$ and $")
    figure.draw_without_rendering()
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels[:4] == NAMES[:4] and len(labels) == len(NAMES) + 1
    table = format_markdown([row | {"implementation": "a|b"} for row in rows])
    assert len(table.split("\n")) == 2 + len(rows) and table.replace("\n", "").isprintable()
    assert table.split("\n")[2].count("|") - table.split("\n")[2].count("\\|") == table.split("\n")[0].count("|")


def test_each_batch_and_number_of_threads_has_a_line():
    rows = [ROW | {"batch": batch, "threads": threads} for batch in (1, 8) for threads in (1, 4)]
    lines = draw_speed(rows, "infer").axes[0].lines
    labels = [line.get_label() for line in lines]
    measured = ["batch 1, 1 thread", "batch 1, 4 threads", "batch 8, 1 thread", "batch 8, 4 threads"]
    assert labels[:4] == [f"efficientnet_tf, {text}" for text in measured]
    assert labels[4:] == ["matrix product, 1 thread: 500 GFLOP/s", "matrix product, 4 threads: 500 GFLOP/s"]
    colors, markers = [line.get_color() for line in lines[:4]], [line.get_marker() for line in lines[:4]]
    assert colors[:2] == colors[2:] and colors[0] != colors[1]
    assert markers[0] == markers[1] != markers[2] == markers[3]


@pytest.mark.slow
def test_the_page_is_written_from_the_committed_measurements(tmp_path):
    docs = Path(__file__).parents[2] / "docs"
    shutil.copytree(docs / "speed", tmp_path / "speed")
    script = docs.parent / "scripts" / "speed_table.py"
    subprocess.run([sys.executable, script, tmp_path / "speed", "--page"], check=True)
    assert (tmp_path / "speed.md").read_text() == (docs / "speed.md").read_text()
