"""What the benchmark command writes; never how quick something was."""

import io
import json

import PIL.Image
import pytest

from efficientnet_tf import benchmark
from efficientnet_tf.config import UserError


def run(*flags):
    return benchmark.main(benchmark.make_parser().parse_args(flags))


@pytest.fixture
def few_photos(monkeypatch):
    photos = benchmark.make_photos(4)
    monkeypatch.setattr(benchmark, "make_photos", lambda count: (photos * count)[:count])


def test_photos_are_like_imagenets():
    photos = [PIL.Image.open(io.BytesIO(encoded)) for encoded in benchmark.make_photos(8)]
    assert {image.size for image in photos} <= {(500, 375), (375, 500)}
    assert benchmark.make_photos(2) == benchmark.make_photos(2)


@pytest.mark.slow
def test_input_table_and_json(tmp_path, capsys, few_photos):
    output = tmp_path / "input.json"
    run("--sizes=16", "--threads=2", "--rounds=1", "--seconds=0.05", f"--output={output}")
    report, printed = json.loads(output.read_text()), capsys.readouterr()
    assert report["mode"] == "input"
    assert report["environment"]["cpu"] and report["environment"]["cores"] >= 1
    assert {"python", "numpy", "keras"} <= set(report["environment"])
    assert [row["policy"] for row in report["rows"]] == list(benchmark.POLICIES)
    for row in report["rows"]:
        assert (row["size"], row["threads"]) == (16, 2)
        assert 0 < row["low"] <= row["images_per_second"] <= row["high"]
        assert row["of_decode"] > 0 and row["of_none"] > 0
    table = printed.out.splitlines()
    assert len(table) == 2 + 4 and len({len(line) for line in table}) == 1
    assert "8/8" in printed.err  # one turn to warm up


def test_interrupted_it_prints_what_is_complete(tmp_path, capsys, monkeypatch):
    def measure(*_):
        yield from benchmark._summarise(224, 4, {policy: [100.0, 300.0, 200.0] for policy in benchmark.POLICIES})
        raise KeyboardInterrupt

    monkeypatch.setattr(benchmark, "measure_input", measure)
    with pytest.raises(UserError, match="stopped before all was measured; .*not written"):
        run(f"--output={tmp_path}/input.json")
    assert "| autoaugment |               200 | 100 |  300 |      100% |    100% |" in capsys.readouterr().out


def test_output_is_checked_before_measuring(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, "measure_input", lambda *_: pytest.fail("measured"))
    with pytest.raises(UserError, match="--output=.* cannot be written"):
        run(f"--output={tmp_path}/missing/input.json")


@pytest.mark.parametrize("flag", ["--seconds=0", "--seconds=x", "--rounds=0", "--sizes=", "--threads=1,-2"])
def test_flags_are_checked(flag, capsys):
    with pytest.raises(SystemExit):
        benchmark.make_parser().parse_args([flag])
    assert flag.split("=")[0] in capsys.readouterr().err
