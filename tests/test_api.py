"""The public API: its examples run, its names and signatures are documented, and importing it is cheap."""

import ast
import doctest
import inspect
import io
import re
import subprocess
import sys
from pathlib import Path

import pytest

import efficientnet_tf

# What works without TensorFlow.
LIGHT = {
    *("AugmentConfig", "Coefficients", "Config", "DataConfig", "EvalConfig", "ModelSpec", "OptimizerConfig", "Phase"),
    *("ScheduleConfig", "Stage", "TrainConfig", "UserError", "compound", "count_cost", "fit_budget", "list_variants"),
    *("load_config", "load_variant", "scale_by_phi"),
}


def mark(name, *marks):
    return pytest.param(name, marks=[*marks, *([] if name in LIGHT else [pytest.mark.tensorflow])])


NAMES = [mark(name) for name in efficientnet_tf.__all__]
EXAMPLES = [mark(name, *[pytest.mark.slow] * (name == "train_model")) for name in efficientnet_tf.__all__]


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """Return a folder with the model directory and the image that the examples use."""
    import fitted
    import tensorflow as tf

    folder = tmp_path_factory.mktemp("examples")
    fitted.write_digits_run(folder / "digits")
    images, labels = fitted.read_split(fitted.tiny.load_config(), "test")
    seven = images[labels == 7][0].clip(0, 255).round().astype("uint8")
    tf.io.write_file(str(folder / "seven.png"), tf.io.encode_png(seven))
    return folder


@pytest.fixture
def folder(request, tmp_path, monkeypatch):
    """Change to an empty folder, which holds the files that an example names."""
    monkeypatch.chdir(tmp_path)
    text = inspect.getdoc(getattr(efficientnet_tf, request.getfixturevalue("name"))) or ""
    if "runs/digits" in text and request.getfixturevalue("name") != "train_model":
        Path("runs").mkdir()
        Path("runs/digits").symlink_to(request.getfixturevalue("digits") / "digits")
        Path("seven.png").symlink_to(request.getfixturevalue("digits") / "seven.png")
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("name", EXAMPLES)
def test_example(name, folder):
    value = getattr(efficientnet_tf, name)
    text = inspect.getdoc(value) or ""
    assert re.search(r"^Example:$", text, re.MULTILINE), f"{name} has no example"
    example = doctest.DocTestParser().get_doctest(text, {name: value}, name, None, 0)
    assert example.examples
    log = io.StringIO()
    result = doctest.DocTestRunner().run(example, out=log.write)
    assert not result.failed, log.getvalue()


@pytest.mark.parametrize("name", NAMES)
def test_signature(name):
    """Functions annotate all of their parameters, and the docstring describes each of them."""
    value = getattr(efficientnet_tf, name)
    if inspect.isclass(value):
        return
    signature = inspect.signature(value)
    assert signature.return_annotation is not signature.empty
    arguments = re.search(r"^Args:\n((?:    .*\n|\n)*)", inspect.getdoc(value) + "\n", re.MULTILINE)
    documented = re.findall(r"^    \*{0,2}(\w+):", arguments[1], re.MULTILINE) if arguments else []
    assert documented == list(signature.parameters)
    for parameter in signature.parameters.values():
        assert parameter.annotation is not parameter.empty, parameter


def test_type_checkers_see_what_is_imported_lazily():
    tree = ast.parse(Path(efficientnet_tf.__file__).read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    imported = {alias.name: node.module for node in block.body for alias in node.names}
    assert sorted(imported) == efficientnet_tf.__all__ == sorted(set(efficientnet_tf.__all__))
    light = {name for name, module in imported.items() if module.split(".")[1] in ("config", "scaling")}
    assert light == LIGHT
    for name in sorted(light):
        assert getattr(efficientnet_tf, name) is getattr(sys.modules[imported[name]], name)
    assert (Path(efficientnet_tf.__file__).parent / "py.typed").is_file()


def test_import_is_cheap():
    program = (
        "import sys\n"
        "import efficientnet_tf\n"
        "assert 'train_model' in dir(efficientnet_tf)\n"
        "assert 'efficientnet_tf.config.load' not in sys.modules\n"
        f"for name in {sorted(LIGHT)}:\n"
        "    getattr(efficientnet_tf, name)\n"
        "assert not {'tensorflow', 'keras', 'jax'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_unknown_name():
    with pytest.raises(AttributeError, match="module 'efficientnet_tf' has no attribute 'EfficientNetB9'"):
        _ = efficientnet_tf.EfficientNetB9


@pytest.mark.slow
@pytest.mark.tensorflow
def test_python_api_example_script(tmp_path):
    script = Path(__file__).parent.parent / "scripts/python_api_example.py"
    done = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "'examples': 360" in done.stdout and "[[('7', 0." in done.stdout and "'agreement': " in done.stdout
    for name in ("digits_tour/model.keras", "digits.tflite", "seven_cam.png"):
        assert (tmp_path / "runs" / name).is_file()
