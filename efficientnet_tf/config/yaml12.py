"""TODO docstring (from config)."""

import re

import yaml

from efficientnet_tf.config.errors import UserError

# --------------------------------------------------------------------------------------------------- YAML


class Loader(yaml.SafeLoader):
    """YAML 1.2's numbers and booleans (1e-5 is a number, `on` a string), and no key twice."""

    yaml_implicit_resolvers = {
        first: [(tag, regexp) for tag, regexp in rules if not tag.endswith((":bool", ":float", ":int", ":timestamp"))]
        for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node, deep=False):
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


Loader.add_constructor("tag:yaml.org,2002:int", lambda loader, node: int(node.value))  # 010 is ten
Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|false|False)$"), list("tTfF"))
Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"^[-+]?[0-9]+$"), list("-+0123456789"))
Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+|\.(?:inf|nan))$"),
    list("-+.0123456789"),
)


class Dumper(yaml.SafeDumper):
    """Quotes the strings that _Loader would read as something else."""

    yaml_implicit_resolvers = Loader.yaml_implicit_resolvers


def parse_yaml(text, where):
    try:
        return yaml.load(text, Loader)  # noqa: S506 - a SafeLoader
    except yaml.YAMLError as error:
        raise UserError(f"{where}: not valid YAML: {error}") from None


def read_mapping(path):
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    content = parse_yaml(text, path)
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected `key: value` lines, received {type(content).__name__}")
    return content
