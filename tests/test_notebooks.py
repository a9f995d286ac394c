"""The notebooks of the documentation: they run, and what is committed is what they printed."""

import json
import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted(ROOT.glob("docs/notebooks/*.ipynb"))
NAMES = [path.stem for path in NOTEBOOKS]


def list_cells(path):
    """Yield (source, its outputs) for each cell with code."""
    for cell in json.loads(path.read_text())["cells"]:
        if cell["cell_type"] == "code":
            yield "".join(cell["source"]), cell["outputs"], cell["execution_count"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_outputs_are_committed_and_of_one_run(path):
    counts = [count for _, _, count in list_cells(path)]
    assert counts == list(range(1, len(counts) + 1))
    assert any(outputs for _, outputs, _ in list_cells(path))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_outputs_have_no_warnings_and_no_paths_of_a_machine(path):
    for _, outputs, _ in list_cells(path):
        for output in outputs:
            assert output["output_type"] != "error"
            assert output.get("name") != "stderr", output["text"]
            text = json.dumps([output.get("text"), output.get("data", {}).get("text/plain")])
            assert not re.search(r"/(home|root|work|usr)/|Warning:", text), text


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_links_lead_to_files(path):
    cells = json.loads(path.read_text())["cells"]
    text = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    for target in re.findall(r"\]\(([^)\s#]+)", text):
        assert target.startswith("https://") or (path.parent / target).exists(), target


@pytest.mark.slow
@pytest.mark.tensorflow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_a_notebook_runs(path):
    notebook = runpy.run_path(str(ROOT / "scripts/run_notebooks.py"))["run"](path)
    assert all(output.output_type != "error" for cell in notebook.cells for output in cell.get("outputs", ()))
