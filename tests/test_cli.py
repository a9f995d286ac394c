"""What all commands share: help texts, flags in error messages, exit statuses and the commands that they print."""

import json
import logging

import pytest

from efficientnet_tf import cli
from efficientnet_tf.config.errors import UserError


@pytest.fixture
def parser():
    parser = cli.make_parser("train", "Train.")
    parser.add_argument("images", nargs="*", help="Image files.")
    parser.add_argument("--model_dir", required=True, help="Model directory.")
    parser.add_argument("--tpu", help="TPU to use.")
    parser.add_argument("--batch_size", type=cli.positive_int, default=32, help="Images per step.")
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


def test_other_exceptions_keep_their_traceback(parser):
    def main(args):
        raise KeyError(args.model_dir)

    with pytest.raises(KeyError, match="a"):
        cli.run(main, parser, ["train", "--model_dir=a"])


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
