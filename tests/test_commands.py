"""The console script: its help, its mistakes, and that a command prints only lines of its own."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from efficientnet_tf import __main__ as entry
from efficientnet_tf import __version__

TINY = str(Path(__file__).parent / "tiny.yaml")
OWN_LINES = (
    r"tiny: 19,188 parameters, 32 pixels, 10 classes",
    r"Data: digits, 1,437 training and 360 evaluation images",
    r"Device: 1 x CPU, float32",
    r"Steps: 22 of 64 images each, 1 epoch",
    r"Results: .+",
    r"step \d+: top-1 .+ on 360 images",
    r"Finished: .+/model\.keras",
    r"tiny: \d+ of 22 steps.*",  # The progress, every half minute.
)
FOREIGN = re.compile(
    r"^[IWEF]\d{4} |^\d{4}-\d\d-\d\d |^(INFO|WARNING)|tensorflow/|absl|oneDNN|XNNPACK|Warning:", re.MULTILINE
)


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "efficientnet_tf", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
        env={name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"},
    )


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_help_lists_every_command_with_one_sentence(arguments, capsys):
    assert entry.main(arguments) == 0
    listed = dict(re.findall(r"^  (\w+) +(.+\.)$", capsys.readouterr().out, re.MULTILINE))
    assert listed == entry.COMMANDS


def test_version(capsys):
    assert entry.main(["--version"]) == 0
    assert capsys.readouterr().out == f"{__version__}\n"


def test_unknown_command_names_the_nearest_one(capsys):
    assert entry.main(["evalute", "--model_dir=x"]) == 2
    message = capsys.readouterr().err
    assert "error: unknown command 'evalute'." in message and "Did you mean 'evaluate'?" in message
    assert "preflight" in message, "the message lists what is allowed"


@pytest.mark.parametrize("command", entry.COMMANDS)
def test_every_command_has_help_in_full_sentences(command, capsys):
    with pytest.raises(SystemExit) as stopped:
        entry.main([command, "--help"])
    assert not stopped.value.code
    text = capsys.readouterr().out
    assert f"efficientnet_tf.{command}" in text and "--verbose" in text


def test_an_error_is_one_message_that_names_the_flag():
    done = run("summary", "--variant=b99")
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("error: ") and "b99" in done.stderr
    assert "Traceback" not in done.stderr and len(done.stderr.splitlines()) == 1


def test_unknown_flag_names_the_nearest_one():
    done = run("summary", "--varaint=b0")
    assert done.returncode == 2 and "Did you mean '--variant'?" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("start", [["-m", "efficientnet_tf.summary"], ["-m", "efficientnet_tf", "summary"]])
def test_names_outside_of_ascii_work_in_a_locale_without_utf8(tmp_path, start):
    (tmp_path / "gr\u00f6\u00dfe.yaml").write_text("baseline: b0\nwidth: 1.5\n", encoding="utf-8")
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(
        [sys.executable, *start, "--variant=gr\u00f6\u00dfe.yaml"],
        capture_output=True,
        check=False,
        cwd=tmp_path,
        env=os.environ | locale,
        timeout=240,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.startswith(rb"gr\xf6\xdfe: depth 1, width 1.5") and done.stdout.isascii()
    assert rb"\u" not in done.stdout, "the lines of tables are ASCII, too"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Return a model directory, and the finished process of its training."""
    model_dir = tmp_path_factory.mktemp("runs") / "digits"
    short = ["--set", "train.epochs=1", "--set", "schedule.warmup_epochs=0"]
    return model_dir, run("train", f"--variant={TINY}", "--recipe=digits", f"--model_dir={model_dir}", *short)


@pytest.mark.slow
@pytest.mark.tensorflow
def test_train_prints_only_its_own_lines(trained):
    _, done = trained
    assert done.returncode == 0, done.stderr
    lines = [*done.stdout.splitlines(), *done.stderr.splitlines()]
    assert not [line for line in lines if not any(re.fullmatch(pattern, line) for pattern in OWN_LINES)]
    assert len(done.stdout.splitlines()) >= 6


@pytest.mark.slow
@pytest.mark.tensorflow
def test_verbose_shows_the_messages_of_other_libraries(trained):
    done = run("evaluate", f"--model_dir={trained[0]}", "--verbose")
    assert done.returncode == 0 and FOREIGN.search(done.stderr), done.stderr


@pytest.mark.slow
@pytest.mark.tensorflow
@pytest.mark.parametrize("output", ["net.tflite", "saved_model"])
def test_export_and_evaluate_print_no_lines_of_other_libraries(trained, output, tmp_path):
    exported = run("export", f"--model_dir={trained[0]}", f"--output={tmp_path / output}", "--images=10")
    evaluated = run("evaluate", f"--model_dir={tmp_path / output}")
    for done in (exported, evaluated):
        assert done.returncode == 0, done.stderr
        assert not FOREIGN.search(done.stdout + done.stderr), done.stderr
