"""What the benchmark command writes; never how quick something was."""

import io
import json

import PIL.Image
import pytest

from efficientnet_tf import benchmark, contestants, input_speed
from efficientnet_tf.config import UserError


def run(*flags):
    return benchmark.main(benchmark.make_parser().parse_args(flags))


@pytest.fixture
def few_photos(monkeypatch):
    photos = input_speed.make_photos(4)
    monkeypatch.setattr(input_speed, "make_photos", lambda count: (photos * count)[:count])


def test_photos_are_like_imagenets():
    photos = [PIL.Image.open(io.BytesIO(encoded)) for encoded in input_speed.make_photos(8)]
    assert {image.size for image in photos} <= {(500, 375), (375, 500)}
    assert input_speed.make_photos(2) == input_speed.make_photos(2)


@pytest.mark.slow
def test_input_table_and_json(tmp_path, capsys, few_photos):
    output = tmp_path / "input.json"
    run("--sizes=16", "--threads=2", "--rounds=1", "--seconds=0.05", f"--output={output}")
    report, printed = json.loads(output.read_text()), capsys.readouterr()
    assert report["mode"] == "input"
    assert report["environment"]["cpu"] and report["environment"]["cores"] >= 1
    assert {"python", "numpy", "keras"} <= set(report["environment"])
    assert [row["policy"] for row in report["rows"]] == list(input_speed.POLICIES)
    for row in report["rows"]:
        assert (row["size"], row["threads"]) == (16, 2)
        assert 0 < row["low"] <= row["images_per_second"] <= row["high"]
        assert row["of_decode"] > 0 and row["of_none"] > 0
    table = printed.out.splitlines()
    assert len(table) == 2 + 4 and len({len(line) for line in table}) == 1
    assert "8/8" in printed.err  # one turn to warm up


def test_interrupted_it_prints_what_is_complete(tmp_path, capsys, monkeypatch):
    def measure(*_):
        yield from input_speed._summarise(224, 4, {policy: [100.0, 300.0, 200.0] for policy in input_speed.POLICIES})
        raise KeyboardInterrupt

    monkeypatch.setattr(input_speed, "measure_input", measure)
    with pytest.raises(UserError, match="stopped before all was measured; .*not written"):
        run(f"--output={tmp_path}/input.json")
    assert "| autoaugment |               200 | 100 |  300 |      100% |    100% |" in capsys.readouterr().out


def test_output_is_checked_before_measuring(tmp_path, monkeypatch):
    monkeypatch.setattr(input_speed, "measure_input", lambda *_: pytest.fail("measured"))
    with pytest.raises(UserError, match="--output=.* cannot be written"):
        run(f"--output={tmp_path}/missing/input.json")


@pytest.mark.parametrize(
    "flag", ["--seconds=0", "--seconds=x", "--rounds=0", "--sizes=", "--threads=1,-2", "--batch=0"]
)
def test_flags_are_checked(flag, capsys):
    with pytest.raises(SystemExit):
        benchmark.make_parser().parse_args([flag])
    assert flag.split("=")[0] in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["train", "infer"])
def test_networks_table_and_json(tmp_path, capsys, mode):
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
        assert row["peak_mib"] > 200 and row["start_seconds"] > 1 and row["copy_gb_per_second"] > 0
        # 8.4 million multiply-adds an image at 32 pixels, in training three times, of two operations each.
        flops = row["images_per_second"] * 2 * 8.4e6 * (3 if mode == "train" else 1)
        assert row["of_product"] == pytest.approx(flops / row["product_gflops"] / 1e9, rel=0.5)
    assert ours["of_keras"] == pytest.approx(ours["images_per_second"] / keras["images_per_second"], rel=0.01)
    assert keras["of_keras"] == 1
    assert len(capsys.readouterr().out.splitlines()) == 2 + 2


@pytest.mark.slow
def test_exported_files_are_contestants(tmp_path):
    output = tmp_path / "exported.json"
    run("--mode=export", "--sizes=32", "--batch=2", "--rounds=1", "--seconds=0.01", f"--output={output}")
    names = [row["contestant"] for row in json.loads(output.read_text())["rows"]]
    assert names == ["efficientnet_tf", *contestants.EXPORTS]


def test_a_contestant_that_cannot_run_says_why():
    setting = contestants.Setting("keras", variant="b9", size=32, batch=1)
    with pytest.raises(UserError, match="keras ended with status 1: .*EfficientNetB9"), contestants.Contestant(setting):
        pass


def test_a_contestant_that_is_killed_is_an_error():
    with contestants.Contestant(contestants.Setting("copy")) as runner:
        assert runner.run(0.01) > 0 and runner.start_seconds > 0 and runner.peak_bytes > contestants.COPIED_BYTES
        runner._process.kill()
        with pytest.raises(UserError, match="copy ended with status -9"):
            runner.run(0.01)


def test_who_is_compared_is_checked():
    with pytest.raises(UserError, match="--compare=kears: allowed are keras, timm. Did you mean 'keras'"):
        run("--mode=train", "--compare=kears")
