"""Write the reference pages of the documentation site from the source, in Markdown. Imports no TensorFlow.

`docs/site/hooks.py` calls these functions while the site is built. To read a page in the terminal, run
`python scripts/reference_pages.py config`, or `commands`, `python` or the name of a command.
"""

import argparse
import functools
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import efficientnet_tf
from efficientnet_tf.commands import COMMANDS, load_command
from efficientnet_tf.config.schema import Config

DOCS = Path(__file__).resolve().parent.parent / "docs"
LARGEST_SHOWN = 1e6  # Larger upper bounds of a key only keep out what cannot be computed.


# ------------------------------------------------------------------------------------------------- config keys


def list_sections() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the prefix of the keys and the JSON schema of each section, nested ones after the section they are in."""
    schema = Config.model_json_schema()

    def visit(prefix: str, section: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
        yield prefix, section
        for name, field in section["properties"].items():
            # A section, or a list of sections, such as the stages of a network.
            for reference in (field.get("$ref"), field.get("items", {}).get("$ref")):
                if reference:
                    yield from visit(f"{prefix}{name}.", schema["$defs"][reference.rpartition("/")[2]])

    yield from list(visit("", schema))[1:]


@functools.cache
def list_keys() -> tuple[str, ...]:
    """Return all config keys, such as `train.epochs`."""
    return tuple(f"{prefix}{name}" for prefix, section in list_sections() for name in section["properties"])


def format_config() -> str:
    """Return a heading for each section of the config and for each of its keys, with their descriptions."""
    lines = []
    for prefix, section in list_sections():
        title = prefix.rstrip(".")
        # A nested section is also the value of a key, which has the anchor.
        anchor = f"keys-of-{title}" if title in list_keys() else title
        lines += [f"## {title} {{ #{anchor} }}", section["description"].split("\nExample:")[0].strip()]
        for name, field in section["properties"].items():
            required = name in section.get("required", ())
            lines += [f"### `{prefix}{name}` {{ #{prefix}{name} }}", field.get("description", "")]
            lines.append(f"{describe_values(field)} {describe_default(field, required)}")
    return "\n\n".join(lines)


def describe_default(field: dict[str, Any], required: bool) -> str:
    """Return the sentence that names the default of a key."""
    if required or "default" not in field:
        return "*Required.*"
    default = field["default"]
    if isinstance(default, dict) or (isinstance(default, list) and not default):
        return "*Default:* empty."
    return "*Default:* not set." if default is None else f"*Default:* `{json.dumps(default)}`".replace('"', "") + "."


def describe_values(field: dict[str, Any]) -> str:
    """Return the sentence that says which values a key allows."""
    return f"*Value:* {_describe(field)}."


def _describe(field: dict[str, Any]) -> str:
    if "anyOf" in field:
        return " or ".join(_describe(part) for part in field["anyOf"] if part.get("type") != "null")
    values = field.get("enum", [field["const"]] if "const" in field else [])
    if values:
        return " or ".join(f"`{value}`" for value in values)
    kind = field["type"]
    if kind == "array":
        items = field.get("prefixItems") or [field.get("items", {"type": "string"})]
        if "$ref" in items[0]:
            return "a list of sections, whose keys follow below"
        count = f" of {len(items)} items" if "prefixItems" in field else ""
        return f"a list{count}. Each item is {_describe(items[0])}"
    names = {"boolean": "`true` or `false`", "string": "text", "object": "a mapping"}
    return names.get(kind) or f"{'an integer' if kind == 'integer' else 'a number'}{_describe_bounds(field)}"


def _describe_bounds(field: dict[str, Any]) -> str:
    low, high = field.get("minimum"), field.get("maximum")
    if low is not None and high is not None and high < LARGEST_SHOWN:
        return f" from {low:,g} to {high:,g}"
    words = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
    bounds = [(text, field[key]) for key, text in words.items() if key in field]
    return " and".join(f" {text} {bound:,g}" for text, bound in bounds if bound < LARGEST_SHOWN)


def link_config_keys(markdown: str, page: str) -> str:
    """Return a page on which each config key in code style, alone or with a value, is a link to its description.

    Args:
        markdown: The page.
        page: Path of the page with the descriptions, as a link of this page.
    """
    keys = set(list_keys())

    def link(match: re.Match) -> str:
        return f"[{match[0]}]({page}#{match[1]})" if match[1] in keys else match[0]

    # Fenced and indented code, and headings, stay as they are.
    parts = re.split(r"(^```.*?^```$|^(?: {4}|#)[^\n]*$)", markdown, flags=re.MULTILINE | re.DOTALL)
    pattern = r"(?<![\[`])`([a-z]+\.[a-z_]+)(?:=[^`\n]*)?`(?![\]`])"
    return "".join(part if i % 2 else re.sub(pattern, link, part) for i, part in enumerate(parts))


# ---------------------------------------------------------------------------------------------------- commands


def format_commands() -> str:
    """Return the table of all commands, with links to their pages."""
    rows = [f"| [`{name}`](commands/{name}.md) | {text} |" for name, text in COMMANDS.items()]
    return "\n".join(["| command | what it does |", "|---|---|", *rows])


def list_used_commands(markdown: str) -> list[str]:
    """Return the commands that the code blocks of a page run, in the order of `COMMANDS`."""
    used = set(re.findall(r"^    (?:.* )?efficientnet-tf (\w+)", markdown, re.MULTILINE))
    return [name for name in COMMANDS if name in used]


def format_command(name: str) -> str:
    """Return the page of a command: its purpose and its flags, from its parser.

    Args:
        name: A key of `COMMANDS`.
    """
    parser = load_command(name).make_parser()
    actions = [action for action in parser._actions if not isinstance(action, argparse._HelpAction)]
    parts = [f"# {name}", _escape(parser.description or ""), f"    efficientnet-tf {name} [flags]"]
    for title, chosen in (
        ("Arguments", [a for a in actions if not a.option_strings]),
        ("Required flags", [a for a in actions if a.option_strings and a.required]),
        ("Flags", [a for a in actions if a.option_strings and not a.required]),
    ):
        if chosen:
            parts += [f"## {title}", *map(_format_action, chosen)]
    return "\n\n".join(parts) + "\n"


def _format_action(action: argparse.Action) -> str:
    """Return a flag as an item of a definition list, with an anchor: `commands/train.md#recipe`."""
    value = str(action.metavar or action.dest.upper())
    name, text = action.dest, f"{value} ..." if action.nargs in ("*", "+") else value
    if action.option_strings:
        flag = action.option_strings[-1]
        name, text = flag.lstrip("-"), flag if action.nargs == 0 or action.choices else f"{flag}={value}"
    sentences = [_escape(action.help or "")]
    if action.choices:
        sentences.append(f"*Values:* {', '.join(f'`{choice}`' for choice in action.choices)}.")
    default = action.default
    if action.option_strings and default not in (None, False, "", []):
        default = ",".join(map(str, default)) if isinstance(default, list | tuple) else default
        sentences.append(f"*Default:* `{default}`.")
    return f'<code id="{name}">{_escape_html(text)}</code>\n:   {" ".join(sentences)}'


def _escape(text: str) -> str:
    """Return help text as Markdown, with flags and config keys in code style."""
    keys = "|".join(re.escape(key) for key in sorted(list_keys(), key=len, reverse=True))
    pattern = rf"(?<![\w.-])((?:--[a-z]\w*(?: (?:{keys}))?|{keys})(?:=(?:\.{{3}}|[\w.]*\w))?)(?!\w)"
    parts = re.split(r"(`[^`]*`)", text)
    for i in range(0, len(parts), 2):
        parts[i] = re.sub(pattern, r"`\1`", _escape_html(parts[i]).replace("*", r"\*"))
    return "".join(parts)


def _escape_html(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;")


# --------------------------------------------------------------------------------------------------- Python API


def list_python_groups() -> dict[str, list[str]]:
    """Return the public names by task, from the table of the guide to Python."""
    text = (DOCS / "guides" / "python.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([\w ]+) \| (`.+) \|$", text, re.MULTILINE)
    return {task: [name for name in re.findall(r"`(\w+)`", names)] for task, names in rows}


def format_python() -> str:
    """Return the directives with which mkdocstrings inserts the docstrings of all public names."""
    parts = []
    for task, names in list_python_groups().items():
        constructors = [name for name in names if name.startswith("EfficientNet")]
        parts.append(f"## {task[:1].upper()}{task[1:]}")
        if constructors:
            parts.append(_CONSTRUCTORS)
        parts += [_format_name(name) for name in names if name not in constructors]
    return "\n\n".join(parts)


_CONSTRUCTORS = """`EfficientNetB0` and the other constructors have the arguments and layer names of
`keras.applications`. [Variants](../variants.md) lists all of them, and `help(efficientnet_tf.EfficientNetB0)` documents
the arguments.

::: efficientnet_tf.applications._construct
    options:
      heading: EfficientNetB0
      toc_label: EfficientNetB0
      show_docstring_description: false"""


def _format_name(name: str) -> str:
    module = efficientnet_tf._MODULES[name]
    # The keys of a section are on the page about the config.
    options = "\n    options: {members: false, merge_init_into_class: false}" if module == "config.schema" else ""
    return f"::: efficientnet_tf.{module}.{name}{options}"


if __name__ == "__main__":
    pages = {"config": format_config, "commands": format_commands, "python": format_python}
    print(pages[sys.argv[1]]() if sys.argv[1] in pages else format_command(sys.argv[1]))
