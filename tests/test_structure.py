"""The structure of the source: what each part imports, and that every config key is read."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import efficientnet_tf
from efficientnet_tf.config import schema

PACKAGE = Path(efficientnet_tf.__file__).parent
TREES = {str(path.relative_to(PACKAGE)): ast.parse(path.read_text()) for path in PACKAGE.rglob("*.py")}
# Everything that must work, or fail with a clear message, on a machine without TensorFlow.
LIGHT = (
    "efficientnet_tf",
    "efficientnet_tf.cli",
    "efficientnet_tf.config.load",
    "efficientnet_tf.scaling.budget",
    "efficientnet_tf.benchmark.plot",
    "efficientnet_tf.preflight.checks",
    "efficientnet_tf.preflight.compile",
    "efficientnet_tf.study.designs",
    "efficientnet_tf.study.page",
    "efficientnet_tf.study.runner",
    "efficientnet_tf.visualization.scatter",
)
COMMANDS = (
    "train evaluate predict explain show summary prepare scale search "
    "weights.__main__ export.__main__ benchmark.__main__ preflight.__main__ study.__main__"
).split()
PACKAGES = sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py"))


def imports(tree):
    """Return the dotted names that a module imports anywhere: "keras.layers", "efficientnet_tf.config"."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("module", ["models/builder.py", "models/blocks.py"])
def test_models_import_keras_and_no_backend(module):
    assert {name.split(".")[0] for name in imports(TREES[module])} <= {"re", "sys", "keras", "efficientnet_tf"}


def test_light_modules_import_neither_tensorflow_nor_keras():
    """All in one process, one after the other, so that the failure names the import that brought something heavy."""
    commands = [f"efficientnet_tf.{name}" for name in COMMANDS]
    modules = [*LIGHT, *(f"efficientnet_tf.{name}" for name in PACKAGES), *commands]
    program = (
        "import importlib, sys\n"
        f"for name in {modules}:\n"
        "    importlib.import_module(name)\n"
        "    heavy = {'tensorflow', 'keras', 'jax', 'tensorflow_datasets'} & set(sys.modules)\n"
        "    assert not heavy, (name, heavy)\n"
        f"    if name in {commands}:\n"
        "        sys.modules[name].make_parser().format_help()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_public_names():
    for name in efficientnet_tf.__all__:
        assert getattr(efficientnet_tf, name) is not None
        assert name in dir(efficientnet_tf)
    with pytest.raises(AttributeError, match="no attribute 'EfficientNetB9'"):
        _ = efficientnet_tf.EfficientNetB9


def sections():
    """Return {section: its keys}, as code calls the sections: a ModelSpec is a `spec`, its rows are each a `stage`."""
    keys = {name: set(field.annotation.model_fields) for name, field in schema.Config.model_fields.items()}
    return keys | {"stage": set(schema.Stage.model_fields)}


def last_name(node):
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else None


def read_keys(tree):
    """Return the (section, key) pairs that code reads.

    A section is `config.train`, `train`, what was assigned from it, or by convention `spec`; `settings` may be any.
    """
    known = sections()
    aliases = {"spec": "model"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign):
            for target in node.targets:
                both = isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple)
                pairs = zip(target.elts, node.value.elts, strict=True) if both else [(target, node.value)]
                for name, value in pairs:
                    if isinstance(name, ast.Name) and isinstance(value, ast.Attribute) and value.attr in known:
                        aliases[name.id] = value.attr
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            owner = last_name(node.value)
            for section in known if owner == "settings" and owner not in aliases else [aliases.get(owner, owner)]:
                yield section, node.attr


def test_every_key_is_read_by_some_code():
    trees = [tree for name, tree in TREES.items() if name != "config/schema.py"]
    # In schema.py only properties count: its checks use keys but give them no effect.
    for node in ast.walk(TREES["config/schema.py"]):
        if isinstance(node, ast.FunctionDef) and any(last_name(d) == "property" for d in node.decorator_list):
            assert any(isinstance(n, ast.Attribute) and n.attr == node.name for t in trees for n in ast.walk(t))
            trees.append(node)
    read = {pair for tree in trees for pair in read_keys(tree)}
    unread = [f"{name}.{key}" for name, keys in sections().items() for key in sorted(keys) if (name, key) not in read]
    assert not unread
