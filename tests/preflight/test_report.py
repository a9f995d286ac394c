"""Tests of the report for people, and of the page that is written from the committed reports."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from efficientnet_tf.preflight.report import format_markdown, format_report

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def reports():
    """The committed reports by variant and slice. Their sums over replicas are a count and a number of bytes."""
    found = {}
    for report in json.loads((ROOT / "docs" / "preflight.json").read_text())["reports"]:
        for step in report["steps"].values():
            sums = step["all_reduces"]
            step["all_reduces"] = [{"bytes": sums["bytes"]}] + [{"bytes": 0}] * (sums["count"] - 1)
        found[report["variant"], report["topology"]] = report
    return found


def find_cells(text, label):
    """Return the cells of the row of a table that begins with `label`."""
    (line,) = (line for line in text.splitlines() if line.strip().startswith(label))
    return line.strip().removeprefix(label).split()


def test_all_numbers_of_a_run_that_fits(reports):
    text = format_report(reports["b0", "v3:4x4"])
    assert text.startswith("b0 at 224 pixels, 1,000 classes, mixed_bfloat16\nv3:4x4: 16 chips, 32 replicas, 4 hosts\n")
    assert "TPUStrategy traced 2 of 32 equal replicas." in text
    assert "sums 213 gradients (20.17 MiB)" in text and "as one tensor (0.16 MiB)" in text
    assert "two more tensors over groups of 8 replicas" in text
    assert find_cells(text, "argument, MiB")[0] == "96.9"
    assert find_cells(text, "used, GiB")[0] == "1.44"
    assert find_cells(text, "available, GiB")[0] == "15.48"
    assert find_cells(text, "result") == ["fits", "fits"]
    assert find_cells(text, "convolutions in bfloat16")[:3] == ["242", "of", "242"]
    assert find_cells(text, "sums over replicas, after joining")[0] == "99"
    assert find_cells(text, "time of the arithmetic, ms")[0] == "2.85"
    assert find_cells(text, "images/s that a host must read")[0] == "15,858"
    assert "1,806 images/s at 224 pixels with policy autoaugment on 4 cores (AMD EPYC)" in text
    assert text.endswith("Ready. The steps were compiled. Nothing was run on a TPU.")


def test_a_program_that_does_not_fit_has_no_speed(reports):
    text = format_report(reports["b7", "v3:4x4"])
    assert "DOES NOT FIT" in text and "ERROR: " in text
    assert find_cells(text, "used, GiB")[0] == "27.62"
    assert len(find_cells(text, "temporary, MiB")) == len(find_cells(text, "FLOPs")) == 1  # of the evaluation alone
    assert text.endswith("NOT ready. The steps were compiled. Nothing was run on a TPU.")


def test_the_largest_batch_is_reported(reports):
    found = {"replica_batch": 8, "batch": 256, "compiled": {"8": True, "16": False}}
    text = format_report(reports["b0", "v3:4x4"] | {"largest_batch": found})
    assert "Largest batch: 8 per replica, 256 in total (8 fits, 16 does not fit)." in text


def test_markdown_names_the_command_and_the_versions(reports):
    text = format_markdown(reports["b0", "v3:4x4"] | {"command": "python -m x", "environment": {"libtpu": "0.0.52"}})
    assert text.startswith("# b0 on v3:4x4, without a TPU\n\nWritten by `python -m x`.")
    assert "libtpu 0.0.52\n\n```\nb0 at 224 pixels" in text and text.endswith("```")


def test_the_page_is_written_from_the_committed_reports(tmp_path):
    for path in (ROOT / "docs").glob("preflight*.json"):
        shutil.copy(path, tmp_path)
    command = [sys.executable, ROOT / "scripts" / "preflight_table.py", tmp_path, "--page"]
    subprocess.run(command, check=True)
    assert (tmp_path / "preflight.md").read_text() == (ROOT / "docs" / "preflight.md").read_text()
