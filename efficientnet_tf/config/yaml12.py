"""YAML as version 1.2 defines it, where `1e-5` is a number, `on` is a string and `010` is ten.

PyYAML implements version 1.1, which reads these differently. Keys that appear twice are errors here.
"""

import re
from pathlib import Path
from typing import Any

import yaml

from efficientnet_tf.config.errors import UserError


class Loader(yaml.SafeLoader):
    """Reads numbers and booleans as YAML 1.2 does, and refuses duplicate keys."""

    yaml_implicit_resolvers = {
        first: [(tag, regexp) for tag, regexp in rules if not tag.endswith((":bool", ":float", ":int", ":timestamp"))]
        for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        """Build a dict, unless a key appears twice or is not a plain name."""
        seen = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key must be a name", key_node.start_mark)
            if key_node.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key_node.value!r} is given twice", key_node.start_mark
                )
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)


# int("010") is ten. YAML 1.1 reads it as an octal number.
Loader.add_constructor("tag:yaml.org,2002:int", lambda loader, node: int(node.value))
Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|false|False)$"), list("tTfF"))
Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"^[-+]?[0-9]+$"), list("-+0123456789"))
Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+|\.(?:inf|nan))$"),
    list("-+.0123456789"),
)


class Dumper(yaml.SafeDumper):
    """Quotes the strings that `Loader` would read as a number or a boolean."""

    yaml_implicit_resolvers = Loader.yaml_implicit_resolvers


def parse_yaml(text: str, where: object) -> Any:
    """Return the content of a YAML text.

    Args:
        text: The YAML text.
        where: Name of the source of the text, for error messages.

    Raises:
        UserError: If the text is not valid YAML.
    """
    try:
        return yaml.load(text, Loader)  # noqa: S506 - a SafeLoader
    except yaml.YAMLError as error:
        raise UserError(f"{where}: not valid YAML: {error}") from None


def read_mapping(path: Path) -> dict:
    """Return the content of a YAML file that consists of `key: value` lines.

    Raises:
        UserError: If the file cannot be read, is not valid YAML or holds anything but a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    content = parse_yaml(text, path)
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected `key: value` lines, received {type(content).__name__}")
    return content
