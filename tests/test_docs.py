"""The documentation: links lead somewhere, commands have these flags, and Python code uses names that exist."""

import ast
import importlib
import re
import shlex
from pathlib import Path

import pytest

import efficientnet_tf
from efficientnet_tf.__main__ import COMMANDS

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]


def list_commands(text):
    """Yield (command, its words) for each line of a code block that runs one of the commands."""
    for line in re.findall(r"^    (.+)$", text, re.MULTILINE):
        for part in line.split("#")[0].split("&&"):
            match = re.search(r"(?:efficientnet-tf |python -m efficientnet_tf\.)(\w+)\s+(--.*)", part)
            if match and not match[2].rstrip().endswith("..."):
                yield match[1], shlex.split(match[2])


def make_parser(command):
    module = importlib.import_module(f"efficientnet_tf.{command}")
    if hasattr(module, "__path__"):
        module = importlib.import_module(f"efficientnet_tf.{command}.__main__")
    return module.make_parser()


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_lead_to_files_and_headings(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith(("http://", "https://")):
            continue
        path, _, heading = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), target
        if heading:
            titles = re.findall(r"^#+ (.+)$", linked.read_text(), re.MULTILINE)
            anchors = {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}
            assert heading in anchors, target


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_commands_have_these_flags(page):
    # A placeholder that is not a valid value of its flag.
    text = page.read_text().replace("--precision=PRECISION", "--precision=float16")
    for command, words in list_commands(text):
        make_parser(command).parse_args(words)


def test_the_readme_lists_every_command():
    listed = re.findall(r"^\| `(\w+)` \|", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(COMMANDS)


@pytest.mark.parametrize("page", NAMES)
def test_python_code_uses_public_names(page):
    for code in re.findall(r"^```python\n(.+?)^```", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom) and node.module == "efficientnet_tf":
                assert {alias.name for alias in node.names} <= set(efficientnet_tf.__all__)
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "ef":
                assert node.attr in efficientnet_tf.__all__


def test_the_guide_to_python_lists_every_public_name():
    text = (ROOT / "docs/guides/python.md").read_text()
    table = text[text.index("| task | names |") :]
    unlisted = [name for name in efficientnet_tf.__all__ if f"`{name}`" not in table]
    covered = re.compile(r"EfficientNet(B|V2B|Lite)\d")
    assert not [name for name in unlisted if not covered.fullmatch(name)]
