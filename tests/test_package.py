"""The wheel: its files, its metadata and its console script; and the commands at the top of the README."""

import ast
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import efficientnet_tf

ROOT = Path(__file__).resolve().parent.parent

# Import names that differ from the name of the package.
ALIASES = {
    "absl-py": "absl",
    "apache-beam": "apache_beam",
    "pillow": "PIL",
    "pyyaml": "yaml",
    "scikit-learn": "sklearn",
    "tensorflow-cpu": "tensorflow",
}
# Users install torch and timm themselves, as no extra could choose their build. grpc and google.protobuf come with
# TensorFlow.
UNDECLARED = {"google", "grpc", "timm", "torch"}


def imported_packages(source):
    """Yield the top-level names that a module imports anywhere, except its own package."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module]
        else:
            continue
        yield from (name.split(".")[0] for name in names if not name.startswith("efficientnet_tf"))


def read_metadata(wheel, name):
    """Return the text of a file in the wheel's dist-info folder."""
    with zipfile.ZipFile(wheel) as archive:
        return next(archive.read(n).decode() for n in archive.namelist() if n.endswith(f".dist-info/{name}"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("efficientnet_tf", "configs"):
        shutil.copytree(ROOT / name, folder / "source" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "source")
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", folder]
    command += [folder / "source"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    assert done.returncode == 0, done.stderr
    return next(folder.glob("*.whl"))


@pytest.mark.slow
def test_wheel_contains_the_package_data_and_finds_it(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    shipped = {p.relative_to(tmp_path / "efficientnet_tf/configs") for p in tmp_path.rglob("*.yaml")}
    assert shipped == {p.relative_to(ROOT / "configs") for p in (ROOT / "configs").rglob("*.yaml")}
    pages = [path for path in (ROOT / "efficientnet_tf").rglob("*.*") if path.suffix in (".html", ".css", ".js")]
    assert pages and all((tmp_path / path.relative_to(ROOT)).is_file() for path in pages)
    assert (tmp_path / "efficientnet_tf/py.typed").is_file()
    code = (
        "import efficientnet_tf.config.load as c; print(c.CONFIG_DIR); "
        "print(c.load_config('b4', 'digits').model.resolution)"
    )
    environment = {"PYTHONPATH": str(tmp_path), "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path, env=environment
    )
    assert done.stdout.split() == [str(tmp_path / "efficientnet_tf/configs"), "380"]


def test_wheel_contains_every_module(wheel):
    with zipfile.ZipFile(wheel) as archive:
        modules = {name for name in archive.namelist() if name.endswith(".py")}
    assert modules == {str(path.relative_to(ROOT)) for path in (ROOT / "efficientnet_tf").rglob("*.py")}


def test_wheel_requires_no_tensorflow_without_an_extra(wheel):
    """TensorFlow's wheels overwrite each other, so only an extra may require one of them."""
    metadata = read_metadata(wheel, "METADATA")
    requirements = re.findall(r"^Requires-Dist: (.+)$", metadata, re.MULTILINE)
    core = [r for r in requirements if "extra ==" not in r]
    assert not [r for r in core if re.match(r"tensorflow(-cpu|-tpu)?\b(?!-datasets)", r)]
    assert all(re.search(r"<|==", r) for r in core), "every version has an upper bound"
    extras = {match for r in requirements for match in re.findall(r"""extra == ['"](\w+)['"]""", r)}
    assert {"cpu", "gpu", "tpu", "test"} <= extras
    assert any(r.startswith("cloud-tpu-client") and re.search(r"""['"]tpu['"]""", r) for r in requirements)


def test_every_import_is_declared(wheel):
    """Each top-level import of another package belongs to a requirement, of the core or of an extra."""
    requirements = re.findall(r"^Requires-Dist: ([\w.-]+)", read_metadata(wheel, "METADATA"), re.MULTILINE)
    declared = {ALIASES.get(name.lower(), name.lower().replace("-", "_")) for name in requirements}
    with zipfile.ZipFile(wheel) as archive:
        sources = [archive.read(name).decode() for name in archive.namelist() if name.endswith(".py")]
    imported = {name for source in sources for name in imported_packages(source)}
    assert imported - sys.stdlib_module_names - declared <= UNDECLARED


@pytest.mark.slow
def test_wheel_installs_the_console_script(wheel, tmp_path):
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", tmp_path, wheel]
    subprocess.run(command, check=True, capture_output=True)
    script = [tmp_path / "bin/efficientnet-tf", "--version"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(script, capture_output=True, text=True, check=True, cwd=tmp_path, env=environment)
    assert done.stdout == f"{efficientnet_tf.__version__}\n"


def test_top_of_the_readme_has_both_commands():
    first = (ROOT / "README.md").read_text().splitlines()[:25]
    assert any("efficientnet-tf train --variant=b0 --recipe=digits" in line for line in first)
    assert any("pytest" in line for line in first)
