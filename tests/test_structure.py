"""Tests of the source itself: light imports, limits on length, and that every config key has an effect."""

import ast
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import efficientnet_tf
from efficientnet_tf.config import schema

PACKAGE = Path(efficientnet_tf.__file__).parent
TREES = {str(path.relative_to(PACKAGE)): ast.parse(path.read_text()) for path in PACKAGE.rglob("*.py")}
LONGEST = Path(__file__).parents[1] / "scripts" / "longest.py"
SCHEMA = [f"config/{name}.py" for name in ("schema", "data_schema", "model_schema", "training_schema")]
PACKAGES = sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py"))
# Modules that must work, or fail with a clear message, on a machine without TensorFlow.
LIGHT = [
    "efficientnet_tf",
    "efficientnet_tf.cli",
    *(f"efficientnet_tf.{package}" for package in PACKAGES),
    *(f"efficientnet_tf.{p}.{m.stem}" for p in ("config", "scaling") for m in sorted((PACKAGE / p).glob("*.py"))),
    "efficientnet_tf.benchmark.plot",
    "efficientnet_tf.preflight.checks",
    "efficientnet_tf.preflight.compile",
    "efficientnet_tf.study.designs",
    "efficientnet_tf.study.page",
    "efficientnet_tf.study.runner",
    "efficientnet_tf.visualization.scatter",
    "efficientnet_tf.visualization.stages",
    "efficientnet_tf.visualization.training_report",
]
COMMANDS = [
    f"efficientnet_tf.{name}"
    for name in (
        "train evaluate predict report explain show summary prepare scale search "
        "weights.__main__ export.__main__ benchmark.__main__ preflight.__main__ study.__main__"
    ).split()
]

# ----------------------------------------------------------------------------------------------------- imports


def test_light_modules_import_neither_tensorflow_nor_keras():
    """One process imports the modules one after the other, so that a failure names the module that is to blame."""
    program = (
        "import importlib, sys\n"
        f"for name in {LIGHT + COMMANDS}:\n"
        "    importlib.import_module(name)\n"
        f"    if name in {COMMANDS}:\n"
        "        sys.modules[name].make_parser().format_help()\n"
        "    heavy = {'tensorflow', 'keras', 'jax', 'tensorflow_datasets'} & set(sys.modules)\n"
        "    assert not heavy, (name, heavy)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# ----------------------------------------------------------------------------------------------------- length


@pytest.mark.slow
def test_graphs_are_made_without_autograph():
    # AutoGraph writes Python files into the folder for temporary files, and fails where that folder is full.
    wrong = []
    for name, tree in TREES.items():
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
        known = {id(call.func) for call in calls if any(key.arg == "autograph" for key in call.keywords)}
        uses = (node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node.attr == "function")
        wrong += [f"{name}:{use.lineno}" for use in uses if last_name(use.value) == "tf" and id(use) not in known]
    assert not wrong


def test_no_module_or_function_is_too_long():
    done = subprocess.run([sys.executable, LONGEST], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_docstrings_comments_and_schemas_do_not_count(tmp_path, capsys):
    main = runpy.run_path(str(LONGEST))["main"]
    comment, docstring = "    # comment\n\n" * 40, '    """Docstring.' + "\n" * 40 + '    """\n'
    (tmp_path / "function.py").write_text(f"def short():\n{docstring}{comment}    return 1\n")
    fields = "".join(f'    key{i}: int = {i}\n    """Meaning."""\n' for i in range(200))
    (tmp_path / "schema.py").write_text(f"class Keys(Section):\n{fields}")
    assert main(tmp_path) == 0
    (tmp_path / "long.py").write_text("class A:\n    def long(self):\n" + "        print(1)\n" * 60)
    assert main(tmp_path) == 1
    assert "long.py: A.long has 61 lines of code. A function may have at most 60." in capsys.readouterr().out
    (tmp_path / "long.py").write_text("x = 1\n" * 351)
    assert main(tmp_path) == 1
    assert "long.py has 351 lines. A module may have at most 350." in capsys.readouterr().out


# ----------------------------------------------------------------------------------------------------- config keys


def sections():
    """Return the keys of each section, by the name of the section. The rows of a stage table are called `stage`."""
    keys = {name: set(field.annotation.model_fields) for name, field in schema.Config.model_fields.items()}
    return keys | {"stage": set(schema.Stage.model_fields)}


def last_name(node):
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else None


def read_keys(tree):
    """Return the pairs (section, key) that a module reads.

    A section is recognized as `config.train`, as `train`, or as a variable that one of these was assigned to. By
    convention, `spec` is the section `model`, and `settings` can be any section.
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


def test_every_key_has_an_effect():
    trees = [tree for name, tree in TREES.items() if name not in SCHEMA]
    # In the schema only properties count. Its checks read keys without giving them an effect.
    for node in (node for name in SCHEMA for node in ast.walk(TREES[name])):
        if isinstance(node, ast.FunctionDef) and any(last_name(d) == "property" for d in node.decorator_list):
            assert any(isinstance(n, ast.Attribute) and n.attr == node.name for t in trees for n in ast.walk(t))
            trees.append(node)
    read = {pair for tree in trees for pair in read_keys(tree)}
    unread = [f"{name}.{key}" for name, keys in sections().items() for key in sorted(keys) if (name, key) not in read]
    assert not unread
