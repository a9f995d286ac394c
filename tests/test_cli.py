"""What all commands share: help texts, flags in error messages, exit statuses and the commands that they print."""

import errno
import json
import logging
import platform
import subprocess
import sys
import tempfile
import threading

import pytest

from efficientnet_tf import cli
from efficientnet_tf.config.errors import UserError
from efficientnet_tf.runtime import failures
from efficientnet_tf.runtime.files import atomic_output


@pytest.fixture
def parser():
    parser = cli.make_parser("train", "Train.")
    parser.add_argument("images", nargs="*", help="Image files.")
    parser.add_argument("--model_dir", required=True, help="Model directory.")
    parser.add_argument("--tpu", help="TPU to use.")
    parser.add_argument("--batch_size", type=cli.positive_int, default=32, help="Images per step.")
    parser.add_argument("--sizes", default=[1, 2.5], help="Sizes.")
    parser.add_argument("--names", type=cli.names, default=[], help="Names.")
    parser.add_argument("--json", action="store_true", help="Print JSON.")
    cli.add_override_arguments(parser)
    return parser


def run(main, parser, *words):
    """Run a command and return its exit status."""
    with pytest.raises(SystemExit) as stopped:
        cli.run(main, parser, ["train", *words])
    return stopped.value.code


def test_help_shows_required_flags_and_useful_defaults(parser):
    text = " ".join(parser.format_help().split())
    assert "Model directory. (required)" in text
    assert "Images per step. (default: 32)" in text
    assert "TPU to use. --batch_size" in text, "a default of None is not shown"
    assert "Print JSON. --data_dir" in text, "a default of False is not shown"
    assert "Sizes. (default: 1,2.5)" in text, "a list is shown as it is typed"
    assert "Names. --json" in text, "an empty list is not shown"


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("batch_size=100 is not divisible by 8.", "--batch_size=100 is not divisible by 8."),
        ("model_dir='runs/a' and tpu='x' differ.", "--model_dir='runs/a' and --tpu='x' differ."),
        ("overrides=['a.b=1'] is wrong.", "--set=['a.b=1'] is wrong."),
        ("train.batch_size=3 is too small.", "train.batch_size=3 is too small."),  # A key of the config.
        ("my_tpu=3", "my_tpu=3"),
        ("--tpu=x", "--tpu=x"),
        ("runs/tpu=x", "runs/tpu=x"),
        ("The batch_size is too large.", "The batch_size is too large."),
        ("replicas=8 is no flag of this command.", "replicas=8 is no flag of this command."),
    ],
)
def test_arguments_in_errors_become_flags(parser, message, expected):
    assert cli.add_flags(message, parser) == expected


def test_an_error_of_the_caller_is_one_message(parser, capfd):
    def main(args):
        raise UserError(f"batch_size={args.batch_size} is too large. Use 16.")

    assert run(main, parser, "--model_dir=a", "--batch_size=64") == cli.EXIT_ERROR
    assert capfd.readouterr() == ("", "error: --batch_size=64 is too large. Use 16.\n")


def test_a_bug_is_one_sentence_and_its_traceback_is_in_a_log(parser, capfd, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def main(args):
        raise KeyError(f"{args.model_dir}\x1b[2J")

    assert run(main, parser, "--model_dir=a b") == failures.EXIT_BUG == 70
    message = capfd.readouterr().err
    (log,) = tmp_path.iterdir()
    assert message.startswith("error: KeyError: ") and f" is {log}. " in message
    assert "Traceback" not in message and "\x1b" not in message and message.count("\n") == 1
    text = log.read_text()
    assert "command: train '--model_dir=a b'\n" in text and f"python: {platform.python_version()}\n" in text
    assert 'in main\n    raise KeyError(f"{args.model_dir}' in text


def test_a_bug_without_a_place_for_the_log_says_so(parser, capfd, monkeypatch):
    def main(args):
        raise KeyError(1)

    with monkeypatch.context() as patch:
        patch.setattr(tempfile, "tempdir", "/dev/null")
        assert run(main, parser, "--model_dir=a") == failures.EXIT_BUG
    message = capfd.readouterr().err
    assert "error: KeyError: 1. " in message and "Set TMPDIR" in message and "Traceback" not in message


class ResourceExhaustedError(Exception):
    """Named like TensorFlow's, to keep TensorFlow out of these tests."""

    __module__ = "tensorflow.python.framework.errors_impl"


class TensorFlowError(Exception):
    __module__ = "tensorflow.python.framework.errors_impl"


class DataLossError(TensorFlowError):
    __module__ = "tensorflow.python.framework.errors_impl"


def test_an_unknown_error_of_tensorflow_is_a_bug(parser, capfd, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def main(args):
        raise TensorFlowError("Graph execution error:\n\nDetected at node\x1b")

    assert run(main, parser, "--model_dir=a") == failures.EXIT_BUG
    assert "Detected at node\\x1b. This is a bug in efficientnet_tf" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (PermissionError(errno.EACCES, "x", "a/\x1bb"), "a/\\x1bb cannot be read or written: Permission denied."),
        (OSError(errno.EROFS, "x", "a"), "a cannot be read or written: Read-only file system."),
        (OSError(errno.ENAMETOOLONG, "x", "a"), "a cannot be read or written: File name too long."),
        (OSError(errno.EXDEV, "x", "a", None, "b"), "a and b cannot be read or written: Invalid cross-device link."),
        (OSError(errno.ENOSPC, "x"), "A file cannot be read or written: No space left on device."),
        (
            OSError("Can't write data (file write failed: filename = 'a.h5', errno = 28, total write size = 1)"),
            "a.h5 cannot be read or written: No space left on device.",
        ),
        (ModuleNotFoundError("x", name="yaml.reader"), "The Python package of the module yaml is not installed."),
        (
            ImportError("Traceback:\nImportError: lib.so\n\nFailed to load the native TensorFlow runtime."),
            "TensorFlow is installed but cannot be loaded: ImportError: lib.so. Install it again",
        ),
        (MemoryError(), "There is not enough memory. "),
        (ResourceExhaustedError("OOM when allocating"), "There is not enough memory. "),
        (ResourceExhaustedError("a/b; No space left on device"), "a/b cannot be read or written: No space left on dev"),
        (DataLossError("{{node x}} truncated record at 12 [Op:Next]"), "is damaged: truncated record at 12. Restore"),
        (TensorFlowError("a/b; Is a directory"), "a/b cannot be read or written: Is a directory."),
        (TensorFlowError("File system scheme 's3' not implemented (file: 's3://b')"), "Use a local path or gs://."),
        (TensorFlowError("Error executing an HTTP request: code 401\n more"), "Google Cloud Storage cannot be used: "),
        (TensorFlowError("{{f}} UserError: batch_size=3 is odd.\nTraceback (most"), "error: --batch_size=3 is odd.\n"),
        (RecursionError("maximum"), "The input is nested too deeply"),
    ],
)
def test_failures_of_the_system_are_sentences(parser, capfd, error, sentence):
    def main(args):
        raise error

    assert run(main, parser, "--model_dir=a") == cli.EXIT_ERROR
    message = capfd.readouterr().err
    assert message.startswith("error: ") and sentence in message and message.count("\n") == 1


def test_a_failed_write_names_its_file(parser, capfd, tmp_path):
    path = tmp_path / "plot.png"

    def main(args):
        with atomic_output(str(path)), open("/dev/full", "wb", buffering=0) as full:
            full.write(b"x")

    assert run(main, parser, "--model_dir=a") == cli.EXIT_ERROR
    assert capfd.readouterr().err == f"error: {path} cannot be read or written: No space left on device.\n"
    assert not list(tmp_path.iterdir())


def test_an_error_cannot_control_the_terminal(parser, capfd):
    def main(args):
        raise UserError("first \x1b[31m\r\u2028\nsecond \udcff")

    assert run(main, parser, "--model_dir=a") == cli.EXIT_ERROR
    assert capfd.readouterr().err == "error: first \\x1b[31m\\r\\u2028\nsecond \\udcff.\n"


def test_ctrl_c_has_its_own_exit_status(parser, capfd):
    def main(args):
        raise KeyboardInterrupt

    assert run(main, parser, "--model_dir=a") == 130
    assert capfd.readouterr().err == "Interrupted.\n"


def test_an_exception_in_a_thread_is_one_sentence(parser, capfd, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    hook = threading.excepthook

    def main(args):
        thread = threading.Thread(target=lambda: {}["key"])
        thread.start()
        thread.join()

    assert not run(main, parser, "--model_dir=a")
    message = capfd.readouterr().err
    assert message.startswith("error: KeyError: 'key'. ") and "Traceback" not in message
    assert threading.excepthook is hook


@pytest.mark.parametrize(
    ("redirection", "status", "message"),
    [
        ("| true", 1, ""),
        ("> /dev/full", 1, "error: Standard output cannot be written: No space left on device.\n"),
        (">&-", 0, ""),
        (">&- 2>&- <&-", 0, ""),
    ],
)
def test_output_that_cannot_be_written(redirection, status, message):
    code = "from efficientnet_tf import cli; cli.run(lambda args: print('x' * 10**6), cli.make_parser('a', 'b'), ['a'])"
    done = subprocess.run(
        ["bash", "-c", f'"$0" -c "$1" {redirection}; exit ${{PIPESTATUS[0]}}', sys.executable, code],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (status, message)


def test_a_missing_tensorflow_says_how_to_install_it(parser, capfd):
    def main(args):
        raise ModuleNotFoundError("No module named 'tensorflow'", name="tensorflow")

    assert run(main, parser, "--model_dir=a") == cli.EXIT_ERROR
    assert "pip install 'efficientnet_tf[cpu]'" in capfd.readouterr().err


@pytest.mark.parametrize("status", [0, 3, 75])
def test_exit_status_is_what_the_command_returns(parser, status):
    assert run(lambda args: status, parser, "--model_dir=a") == status


def test_warnings_of_this_package_are_shown_and_others_are_not(parser, capfd):
    def main(args):
        logging.getLogger("efficientnet_tf.data").warning("2 images are damaged.")
        logging.getLogger("tensorflow").error("something else")

    assert not run(main, parser, "--model_dir=a")
    assert capfd.readouterr().err == "warning: 2 images are damaged.\n"


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--model_dri=a"], ["unrecognized arguments: --model_dri=a", "Did you mean '--model_dir'?"]),
        (["--model_dir=a", "--batch_size=0"], ["--batch_size: invalid integer >= 1 value: '0'"]),
        (["--model_dir=a", "--batch=3"], ["unrecognized arguments: --batch=3"]),  # No abbreviations.
        ([], ["--model_dir"]),
    ],
)
def test_wrong_flags_exit_with_status_2(parser, words, parts, capsys):
    required = [] if not words or "model_dir=" in words[0] else ["--model_dir=a"]
    assert run(lambda args: 0, parser, *required, *words) == 2
    message = capsys.readouterr().err
    assert all(part in message for part in parts), message


@pytest.mark.parametrize(
    ("parse", "text", "value"),
    [
        (cli.positive_int, "3", 3),
        (cli.positive_ints, "1,2,4", [1, 2, 4]),
        (cli.index, "0", 0),
        (cli.names, "b0,,b1", ["b0", "b1"]),
        (cli.positive_number, "1.8e9", 1.8e9),
    ],
)
def test_values_of_flags(parse, text, value):
    assert parse(text) == value


@pytest.mark.parametrize(
    ("parse", "text"),
    [
        (cli.positive_int, "0"),
        (cli.positive_int, "1.5"),
        (cli.positive_ints, "1,0"),
        (cli.index, "-1"),
        (cli.positive_number, "nan"),
        (cli.positive_number, "inf"),
        (cli.positive_number, "-1"),
    ],
)
def test_values_that_a_flag_does_not_take(parse, text):
    with pytest.raises(ValueError):
        parse(text)


def test_data_dir_is_quoted_as_an_override(parser):
    args = parser.parse_args(["--model_dir=a", '--data_dir=it\'s: a "folder"', "--set", "train.epochs=3"])
    first, second = cli.overrides(args)
    assert json.loads(first.removeprefix("data.dir=")) == 'it\'s: a "folder"' and second == "train.epochs=3"


def test_a_command_is_printed_as_the_shell_takes_it(parser):
    args = parser.parse_args(["--model_dir=a", "--tpu=my tpu", "--batch_size=32", "--json", "--set", "train.epochs=3"])
    printed = cli.format_command(parser, args, required=["--model_dir=a"], omitted=["json"])
    assert printed == "python -m efficientnet_tf.train --model_dir=a --tpu='my tpu' --set train.epochs=3"
