"""The reference pages of the documentation site, which are generated from the source."""

import re
import runpy
from pathlib import Path

import pydantic
import pytest

import efficientnet_tf
from efficientnet_tf.commands import COMMANDS, load_command
from efficientnet_tf.config.schema import Config, ModelSpec, Phase, Stage

ROOT = Path(__file__).resolve().parent.parent
REFERENCE = runpy.run_path(str(ROOT / "scripts/reference_pages.py"))
CONCEPTS = runpy.run_path(str(ROOT / "scripts/concept_pages.py"))
GRAPH = runpy.run_path(str(ROOT / "scripts/import_graph.py"))


def list_fields(section, prefix=""):
    """Yield the key and the field of everything that a config can hold."""
    items = {(ModelSpec, "stages"): Stage, (Config.model_fields["train"].annotation, "phases"): Phase}
    for name, field in section.model_fields.items():
        nested = items.get((section, name), field.annotation)
        if section is not Config:
            yield f"{prefix}{name}", field
        if isinstance(nested, type) and issubclass(nested, pydantic.BaseModel):
            yield from list_fields(nested, f"{prefix}{name}.")


def test_every_config_key_has_a_heading_with_its_description_and_default():
    parts = re.split(r"^### `(.+)` \{ #(.+) \}$", REFERENCE["format_config"](), flags=re.MULTILINE)
    assert parts[1::3] == parts[2::3]
    descriptions = dict(zip(parts[1::3], parts[3::3], strict=True))
    fields = dict(list_fields(Config))
    assert set(descriptions) == set(fields)
    for key, field in fields.items():
        assert field.description in descriptions[key]
        assert ("*Required.*" in descriptions[key]) == field.is_required(), key
    assert "*Value:* an integer at least 1. *Default:* `2048`." in descriptions["train.batch_size"]
    assert "*Value:* `none` or `batch_norm` or `body` or " in descriptions["train.freeze"]
    assert "*Value:* a number from 0 to 1. *Default:* `0.001`." in descriptions["data.max_bad_fraction"]


def test_a_config_key_in_a_page_links_to_its_description():
    text = "# `train.epochs`\n\n    `train.epochs`\n\n```\n`train.epochs`\n```\n\nUse `train.epochs=5`, `no.key`\n"
    linked = REFERENCE["link_config_keys"](text, "config.md")
    assert linked == text.replace("`train.epochs=5`", "[`train.epochs=5`](config.md#train.epochs)")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_flag_of_a_command_is_on_its_page(command):
    page = REFERENCE["format_command"](command)
    parser = load_command(command).make_parser()
    flags = set(parser._option_string_actions) - {"-h", "--help"}
    assert flags == set(re.findall(r'^<code id="\w+">(--\w+)', page, re.MULTILINE))
    assert re.sub(r"\W", "", parser.description) in re.sub(r"\W", "", page)
    assert f"(commands/{command}.md)" in REFERENCE["format_commands"]()


def test_the_commands_of_a_page_are_found():
    text = "`export`\n\n    A=1 efficientnet-tf train --x\n    efficientnet-tf predict a.jpg\n"
    assert REFERENCE["list_used_commands"](text) == ["train", "predict"]


def test_every_public_name_is_in_the_python_reference():
    names = set(re.findall(r"^::: efficientnet_tf[\w.]*\.(\w+)$", REFERENCE["format_python"](), re.MULTILINE))
    expected = {name for name in efficientnet_tf.__all__ if not name.startswith("EfficientNet")}
    assert names - {"_construct"} == expected


def test_the_import_graph_has_every_package_above_what_it_imports():
    imports = GRAPH["count_imports"]()
    order = list(imports)
    packages = {path.parent.name for path in (ROOT / "efficientnet_tf").glob("*/__init__.py")}
    assert packages <= set(order)
    assert imports["models"]["scaling"]  # blocks.py imports the numbers of a block
    for title, counts in imports.items():
        assert all(order.index(name) > order.index(title) for name in counts), title
    chain = GRAPH["reduce_graph"]({"a": {"b", "c"}, "b": {"c"}, "c": set()})
    assert chain == {"a": {"b"}, "b": {"c"}, "c": set()}


def test_the_concept_pages_have_their_tables():
    assert "| b7 | 3.1 | 2 | 600 | 6.21 | 7.27 | 7.05 |" in CONCEPTS["format_phi"]()
    source = "\n".join(path.read_text() for path in (ROOT / "efficientnet_tf").rglob("*.py"))
    assert CONCEPTS["format_deviations"]().count("\n- ") + 1 == len(re.findall(r"^ *Deviates", source, re.MULTILINE))
    assert CONCEPTS["format_scaling_figure"]().count("<circle") == 9
