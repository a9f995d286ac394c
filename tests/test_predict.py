"""The command `predict` with exported files, which it runs without importing TensorFlow."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from commands import exit_status, run_here
from PIL import Image

from efficientnet_tf import predict
from efficientnet_tf.export.loaded import LoadedModel

EXPORTS = Path(__file__).parent / "fixtures" / "old_exports"
FORMATS = {".tflite": "ai_edge_litert", ".onnx": "onnxruntime", ".xml": "openvino"}
HEAVY = {"tensorflow", "keras", "jax", "pandas", "matplotlib", "scipy", "sklearn", "h5py"}
CODE = """
import json, sys
from efficientnet_tf import predict
for path in sys.argv[2:]:
    predict.main(predict.make_parser().parse_args(["--json", f"--model_dir={path}", sys.argv[1]]))
print(json.dumps(sorted(sys.modules)))
"""


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Return a folder of 40 pictures, two of which are broken."""
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for number in range(40):
        pixels = np.kron(rng.integers(0, 256, (4, 5, 3)), np.ones((9, 10, 1))).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02}.jpg")
    (folder / "07.jpg").write_text("not an image")
    (folder / "39.jpg").write_bytes(b"")
    return folder


def read_rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_an_exported_file_answers_without_tensorflow(photos):
    for module in FORMATS.values():
        pytest.importorskip(module)
    command = [sys.executable, "-c", CODE, photos / "00.jpg", *(EXPORTS / f"net{suffix}" for suffix in FORMATS)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    *answers, modules = map(json.loads, done.stdout.splitlines())
    assert not HEAVY & set(modules) and {"PIL", *FORMATS.values()} <= set(modules)
    first, *others = ({label["label"]: label["probability"] for label in answer["labels"]} for answer in answers)
    assert len(others) == 2 and others == [pytest.approx(first, abs=1e-5)] * 2


def test_results_are_written_as_a_table_or_as_json_lines(photos, tmp_path, capsys):
    pytest.importorskip("onnxruntime")
    table, lines = tmp_path / "answers.csv", tmp_path / "answers.jsonl"
    for output in (table, lines):
        words = [f"--model_dir={EXPORTS / 'net.onnx'}", "--top=2", f"--output={output}", photos]
        assert run_here("predict", *words) == 1  # two files are broken
        printed = capsys.readouterr()
        assert printed.out.startswith(f"{output}: 40 images in ") and printed.out.endswith(" images/s\n")
        assert "07.jpg cannot be decoded" in printed.err and "2 file(s) could not be read" in printed.err
    answers = [json.loads(line) for line in lines.read_text().splitlines()]
    assert len(answers) == 38 and answers[7]["path"] == str(photos / "08.jpg")
    for row, answer in zip(read_rows(table), answers, strict=True):
        (first, second), path = answer["labels"], answer["path"]
        assert list(row) == ["path", "label_1", "probability_1", "label_2", "probability_2"]
        assert (row["path"], row["label_1"], row["label_2"]) == (path, first["label"], second["label"])
        assert float(row["probability_1"]) == first["probability"] >= second["probability"]


def test_an_interrupted_run_leaves_the_old_file_and_no_part_of_the_new_one(photos, tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    (tmp_path / "answers.csv").write_text("old")

    def interrupt(self, images, top, tta):
        yield [("cat", 1.0)] * top
        raise KeyboardInterrupt

    monkeypatch.setattr(LoadedModel, "iterate_predictions", interrupt)
    words = [f"--model_dir={EXPORTS / 'net.onnx'}", f"--output={tmp_path / 'answers.csv'}", photos]
    assert exit_status("predict", *words) == 130
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("answers.csv", "old")]


@pytest.mark.parametrize(("count", "is_long"), [(predict.LONG_LIST, False), (predict.LONG_LIST + 1, True)])
def test_long_lists_report_how_fast_they_were(photos, capsys, count, is_long):
    pytest.importorskip("onnxruntime")
    run_here("predict", f"--model_dir={EXPORTS / 'net.onnx'}", *sorted(photos.iterdir())[:count])
    printed = capsys.readouterr()
    assert len(printed.out.splitlines()) == count - 1, "one of the first files is broken"
    assert (f"{count} images in " in printed.err) == is_long
