"""One entry point for every command: `python -m efficientnet_tf COMMAND`, or `efficientnet-tf COMMAND`."""

import sys
from collections.abc import Sequence

from efficientnet_tf import __version__
from efficientnet_tf.commands import COMMANDS, load_command
from efficientnet_tf.config.errors import suggest
from efficientnet_tf.config.text import escape, shorten
from efficientnet_tf.runtime.failures import guard, use_utf8


def main(argv: Sequence[str] | None = None) -> int | str | None:
    """Run the command that the first argument names.

    Args:
        argv: The arguments after the program's name. Defaults to those of the process.

    Returns:
        The exit status. A command that is run ends the process with its own.
    """
    if argv is None:
        use_utf8()
    argv = sys.argv[1:] if argv is None else list(argv)
    return guard(lambda: _run(argv), ["efficientnet_tf", *argv])


def _run(argv: list[str]) -> int:
    name = argv[0] if argv else "--help"
    if name in ("-h", "--help"):
        width = max(map(len, COMMANDS))
        print("usage: efficientnet-tf COMMAND [--help] ...\n\nEfficientNet and compound scaling. The commands are:\n")
        print("\n".join(f"  {command:{width}}  {text}" for command, text in COMMANDS.items()))
        print("\n`efficientnet-tf COMMAND --help` shows the flags of a command.")
        return 0
    if name == "--version":
        print(__version__)
        return 0
    if name not in COMMANDS:
        print(f"error: unknown command '{shorten(escape(name))}'.{suggest(name, COMMANDS)}", file=sys.stderr)
        print(f"The commands are {', '.join(COMMANDS)}.", file=sys.stderr)
        return 2
    module = load_command(name)
    from efficientnet_tf import cli

    return cli.run(module.main, module.make_parser(), [module.__name__.removesuffix(".__main__"), *argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
