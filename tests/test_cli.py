"""What all commands share, where no other file's tests have it: the help texts."""

from efficientnet_tf import cli


def test_help_tells_what_must_be_given_and_defaults_that_there_are():
    parser = cli.make_parser("train", "Train.")
    parser.add_argument("images", nargs="+", help="which images")
    parser.add_argument("--model_dir", required=True, help="where it lies")
    parser.add_argument("--tpu", help="which TPU")
    parser.add_argument("--set", action="append", default=[], help="which keys")
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.add_argument("--first", type=int, default=0, help="which first")
    told = " ".join(parser.format_help().split())
    assert "images which images options:" in told
    assert "where it lies (required) --tpu TPU which TPU --set SET which keys --json as JSON --first" in told
    assert told.endswith("which first (default: 0)")
