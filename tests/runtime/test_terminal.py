"""What a command shows: progress lines, tables, and no log lines of native libraries."""

import io
import subprocess
import sys

import pytest

from efficientnet_tf.runtime import terminal
from efficientnet_tf.runtime.terminal import ProgressBar, make_table, render, show, track

NATIVE_LINES = [
    "2026-01-02 03:04:05.678901: I tensorflow/core/platform/cpu_feature_guard.cc:182] oneDNN is on",
    "2026-01-02 03:04:05.678901: W tensorflow/core/x.cc:1] a warning",
    "2026-01-02 03:04:05.678901: E external/local_xla/y.cc:2] an error of no importance",
    "I0000 00:00:1767323045.123456   42 cpu_client.cc:405] created",
    "W0102 03:04:05.678901 42 z.cc:3] oneDNN supports DT_UINT8 only",
    "WARNING: All log messages before absl::InitializeLog() is called are written to STDERR",
    "INFO: Created TensorFlow Lite XNNPACK delegate for CPU.",
]
FATAL = "F0000 00:00:1767323045.123456   42 check.cc:7] Check failed"
OTHER = "terminate called after throwing an instance of 'std::bad_alloc'"


def run_python(program, *arguments):
    return subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False)


def test_native_log_lines_are_hidden_and_other_lines_are_not():
    program = """
import os, sys
from efficientnet_tf.runtime.terminal import quiet_native_logs
def write(lines):
    for line in lines:
        os.write(2, (line + "\\n").encode())
with quiet_native_logs():
    write(sys.argv[1:])
    print("from Python: I0000 00:00:1 is mine", file=sys.stderr)
print("after the block", file=sys.stderr)
write(["I0000 00:00:1767323045.1   42 a.cc:1] after the block"])
"""
    done = run_python(program, *NATIVE_LINES, FATAL, OTHER)
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    assert not [line for line in NATIVE_LINES if line in lines]
    assert {FATAL, OTHER, "from Python: I0000 00:00:1 is mine"} <= set(lines)
    # The block waits for its filter, so that what follows is written later.
    assert lines[-2:] == ["after the block", "I0000 00:00:1767323045.1   42 a.cc:1] after the block"]


def test_the_last_words_of_a_process_that_dies_are_shown():
    program = """
import os, sys
from efficientnet_tf.runtime.terminal import quiet_native_logs
with quiet_native_logs():
    os.write(2, (sys.argv[1] + "\\n" + sys.argv[2] + "\\n").encode())
    os.abort()
"""
    done = run_python(program, NATIVE_LINES[0], FATAL)
    assert done.returncode == -6
    assert done.stderr.splitlines() == [FATAL]


def test_a_traceback_inside_the_block_is_shown():
    program = """
from efficientnet_tf.runtime.terminal import quiet_native_logs
with quiet_native_logs():
    raise ValueError("wrong")
"""
    done = run_python(program)
    assert done.returncode == 1 and done.stderr.endswith("ValueError: wrong\n")


@pytest.mark.slow
def test_a_child_process_that_lives_on_does_not_block_the_end():
    program = """
import subprocess
from efficientnet_tf.runtime.terminal import quiet_native_logs
with quiet_native_logs():
    child = subprocess.Popen(["sleep", "60"], stdout=subprocess.DEVNULL)
print(child.pid)
child.kill()
"""
    assert run_python(program).returncode == 0


def test_progress_is_plain_lines_in_a_log_file(capsys, monkeypatch):
    monkeypatch.setattr(terminal, "SECONDS_BETWEEN_LINES", 0.0)
    with ProgressBar(total=3, description="train", unit="steps") as bar:
        bar.advance()
        bar.set_status("loss 0.5")
        bar.advance(2)
        bar.print("evaluated")
    out, err = capsys.readouterr()
    assert out == "evaluated\n"
    assert err.splitlines() == ["train: 1 of 3 steps", "train: 3 of 3 steps, loss 0.5"]


def test_a_short_task_prints_nothing_into_a_log_file(capsys):
    with ProgressBar(total=3, description="train") as bar:
        bar.advance(3)
    assert bar.completed == 3
    assert capsys.readouterr() == ("", "")


def test_track_yields_the_items_and_counts_them(capsys, monkeypatch):
    monkeypatch.setattr(terminal, "SECONDS_BETWEEN_LINES", 0.0)
    assert list(track("ab", 2, "read", "files")) == ["a", "b"]
    assert capsys.readouterr().err.splitlines() == ["read: 1 of 2 files", "read: 2 of 2 files"]


def test_a_table_is_plain_text():
    table = make_table(["name", "params"], [("b0", "5,288,548"), None, ("b1", "7,794,184")], title="networks")
    lines = render("costs:", table).splitlines()
    assert lines[:2] == ["costs:", "networks"]
    assert [line.split() for line in lines[2:] if line.strip("─ ")] == [
        ["name", "params"],
        ["b0", "5,288,548"],
        ["b1", "7,794,184"],
    ]
    name, number = next(line for line in lines if "b0" in line), next(line for line in lines if "params" in line)
    assert name.index("b0") < 3 and len(name) == len(number), "names are aligned left and numbers right"


@pytest.mark.parametrize("width", [10, 500])
def test_no_cell_is_cut_off_however_narrow_the_terminal(width, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    cells = [f"{'x' * 40}{i}" for i in range(6)]
    text = render(make_table(list("abcdef"), [cells]))
    assert all(cell in text for cell in cells)
    assert all(line == line.rstrip() for line in text.splitlines())


def test_show_prints_plain_text_into_a_file():
    file = io.StringIO()
    table = make_table(["a"], [("[bold] :cat:",)])
    show("first [1/2] :cat:", table, file=file)
    assert file.getvalue() == render("first [1/2] :cat:", table) + "\n"
    assert "[bold] :cat:" in file.getvalue() and "first [1/2] :cat:" in file.getvalue()


NAME = "a\x1b[31mb\u2028c\udcff"
ESCAPED = r"a\x1b[31mb\u2028c\udcff"


def test_names_in_tables_and_texts_cannot_control_the_terminal(capsys):
    terminal.show(f"{NAME}\nsecond", terminal.make_table(["name"], [[NAME]], left=[0]))
    lines = [line.strip() for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert lines[:2] == [ESCAPED, "second"] and lines[-1] == ESCAPED


def test_names_in_progress_lines_cannot_control_the_terminal(capsys, monkeypatch):
    monkeypatch.setattr(terminal, "SECONDS_BETWEEN_LINES", 0.0)
    with terminal.ProgressBar(2, NAME, "step") as bar:
        bar.set_status(NAME)
        bar.advance()
        bar.print(f"{NAME}\nsecond")
    captured = capsys.readouterr()
    assert captured.err == f"{ESCAPED}: 1 of 2 step, {ESCAPED}\n"
    assert captured.out == f"{ESCAPED}\nsecond\n"


@pytest.mark.parametrize(("encoding", "is_ascii"), [("utf-8", False), ("ascii", True), ("latin-1", True)])
def test_tables_have_lines_that_the_encoding_has(encoding, is_ascii):
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    terminal.show(terminal.make_table(["name"], [["cat"]]), file=file)
    file.seek(0)
    text = file.read()
    assert "cat" in text and text.isascii() == is_ascii
