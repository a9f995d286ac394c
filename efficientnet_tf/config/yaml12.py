"""YAML as version 1.2 defines it, where `1e-5` is a number, `on` is a string and `010` is ten.

PyYAML implements version 1.1, which reads these differently. Keys that appear twice are errors here. So is what no
config needs but a file from a stranger may hold to exhaust memory or time: deep nesting, aliases that expand to very
many values, numbers of thousands of digits, and tags.
"""

import re
from pathlib import Path
from typing import Any, NoReturn

import yaml
from yaml.composer import ComposerError
from yaml.constructor import ConstructorError
from yaml.reader import ReaderError

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.local_files import read_local_text
from efficientnet_tf.config.text import escape, shorten

LIMIT_BYTES = 256 * 2**10  # of a text. A complete config has 3 kB
MOST_VALUES = 20_000  # with aliases expanded
MOST_DEPTH = 32
MOST_DIGITS = 100

_TAGS = ("null", "bool", "int", "float", "str", "seq", "map")


class Loader(yaml.SafeLoader):
    """Reads numbers and booleans as YAML 1.2 does, and refuses duplicate keys and what exceeds the limits."""

    yaml_implicit_resolvers = {
        first: [(tag, regexp) for tag, regexp in rules if not tag.endswith((":bool", ":float", ":int", ":timestamp"))]
        for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def __init__(self, stream: str):
        super().__init__(stream)
        self._depth = self._count = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Compose a node, unless it is nested too deeply or one of too many."""
        self._depth += 1
        self._count += 1
        if self._depth > MOST_DEPTH or self._count > MOST_VALUES:
            problem = f"{MOST_VALUES:,} values" if self._depth <= MOST_DEPTH else f"{MOST_DEPTH} levels of nesting"
            raise ComposerError(None, None, f"more than {problem}", self.peek_event().start_mark)
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1

    def get_single_node(self) -> yaml.Node | None:
        """Compose the document, unless its aliases expand to too many values."""
        node = super().get_single_node()
        if node is not None:
            _count_values(node, {})
        return node

    def construct_scalar(self, node: yaml.ScalarNode | yaml.MappingNode) -> Any:
        r"""Return the text of a scalar. Two escapes such as `"\ud83d\ude00"` are one character, as in JSON."""
        text = super().construct_scalar(node)
        if isinstance(text, str) and re.search("[\ud800-\udbff][\udc00-\udfff]", text):
            return text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")
        return text

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        """Build a dict, unless a key appears twice or is not a plain name."""
        if not isinstance(node, yaml.MappingNode):
            raise ConstructorError(None, None, "expected keys and values", node.start_mark)
        seen = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag not in _KEY_TAGS:
                raise ConstructorError(None, None, _explain_key(key_node), key_node.start_mark)
            if key_node.value in seen:
                name = shorten(repr(key_node.value))
                raise ConstructorError(None, None, f"key {name} is given twice", key_node.start_mark)
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """Return the value of a node, or raise an error that names its place."""
        try:
            return super().construct_object(node, deep)
        except (ValueError, KeyError, AttributeError, TypeError):
            kind, text = node.tag.rpartition(":")[2], shorten(repr(node.value))
            raise ConstructorError(None, None, f"{text} is not of type {kind}", node.start_mark) from None


def _explain_key(node: yaml.Node) -> str:
    received = f", received {shorten(node.value)}" if isinstance(node, yaml.ScalarNode) else ""
    return f"a key must be a name{received}"


_KEY_TAGS = ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge")


def _count_values(node: yaml.Node, counts: dict[yaml.Node, int]) -> int:
    """Return the number of values in a node, in which an alias counts as much as what it stands for.

    Args:
        node: The node.
        counts: The numbers of the nodes that are counted already, 0 for those that are being counted.
    """
    count = counts.get(node)
    if count is None:
        counts[node] = 0
        parts = node.value if isinstance(node, yaml.CollectionNode) else []
        nodes = [part for pair in parts for part in (pair if isinstance(pair, tuple) else (pair,))]
        count = counts[node] = 1 + sum(_count_values(part, counts) for part in nodes)
    if count == 0:
        raise ComposerError(None, None, "an alias contains itself", node.start_mark)
    if count > MOST_VALUES:
        message = f"more than {MOST_VALUES:,} values, counting aliases by what they stand for"
        raise ComposerError(None, None, message, node.start_mark)
    return count


def _construct_int(loader: Loader, node: yaml.ScalarNode) -> int:
    if len(node.value) > MOST_DIGITS:
        message = f"a number of {len(node.value):,} digits, more than the {MOST_DIGITS} that are allowed"
        raise ConstructorError(None, None, message, node.start_mark)
    return int(node.value)  # int("010") is ten. YAML 1.1 reads it as an octal number.


def _refuse_tag(_: Loader, node: yaml.Node) -> NoReturn:
    tag = shorten(node.tag.replace("tag:yaml.org,2002:", "!!"))
    raise ConstructorError(None, None, f"the tag {tag} is not allowed", node.start_mark)


Loader.yaml_constructors = {
    tag: construct
    for tag, construct in yaml.SafeLoader.yaml_constructors.items()
    if tag is not None and tag.removeprefix("tag:yaml.org,2002:") in _TAGS
}
Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)
Loader.yaml_constructors[None] = _refuse_tag
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
        UserError: If the text is not valid YAML, or exceeds the limits of `Loader`.
    """
    name = shorten(escape(str(where)))
    if len(text) > LIMIT_BYTES:
        raise UserError(f"{name}: the text has {len(text):,} characters, more than the {LIMIT_BYTES:,} allowed.")
    try:
        return yaml.load(text, Loader)  # noqa: S506 - a SafeLoader
    except yaml.YAMLError as error:
        raise UserError(f"{name}: not valid YAML: {_explain(error)}") from None


def _explain(error: yaml.YAMLError) -> str:
    """Return a sentence for an error of PyYAML, which has several lines and shows the text as it is."""
    if isinstance(error, ReaderError):
        return f"the character number {error.position + 1:,} is not allowed."
    problem = getattr(error, "problem", None) or str(error)
    context = getattr(error, "context", None)
    mark = getattr(error, "problem_mark", None)
    reason = escape(shorten(f"{context}, {problem}" if context else problem, 300)).rstrip(".")
    return reason + (f", in line {mark.line + 1}, column {mark.column + 1}." if mark else ".")


def read_mapping(path: Path) -> dict:
    """Return the content of a YAML file that consists of `key: value` lines.

    Raises:
        UserError: If the file cannot be read, is not valid YAML or holds anything but a mapping.
    """
    content = parse_yaml(read_local_text(str(path), LIMIT_BYTES), path)
    if not isinstance(content, dict):
        received = "nothing" if content is None else type(content).__name__
        raise UserError(f"{escape(str(path))}: expected `key: value` lines, received {received}.")
    return content
