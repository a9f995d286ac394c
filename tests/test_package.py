"""What is installed: the wheel, its configs, its metadata; and that the README says what is there."""

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


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


def test_wheel_brings_its_configs_and_finds_them(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    shipped = {p.relative_to(tmp_path / "efficientnet_tf/configs") for p in tmp_path.rglob("*.yaml")}
    assert shipped == {p.relative_to(ROOT / "configs") for p in (ROOT / "configs").rglob("*.yaml")}
    assert (tmp_path / "efficientnet_tf/study/page.html").is_file()
    code = "import efficientnet_tf.config.load as c; print(c.CONFIG_DIR); print(c.load_config('b4', 'digits').model.resolution)"
    environment = {"PYTHONPATH": str(tmp_path), "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path, env=environment
    )
    assert done.stdout.split() == [str(tmp_path / "efficientnet_tf/configs"), "380"]


def test_wheel_never_asks_for_a_tensorflow(wheel):
    """A TensorFlow comes by extra alone: beside another one, each would overwrite the other's files."""
    with zipfile.ZipFile(wheel) as archive:
        metadata = next(archive.read(n).decode() for n in archive.namelist() if n.endswith("METADATA"))
    requirements = re.findall(r"^Requires-Dist: (.+)$", metadata, re.MULTILINE)
    core = [r for r in requirements if "extra ==" not in r]
    assert not [r for r in core if re.match(r"tensorflow(-cpu|-tpu)?\b(?!-datasets)", r)]
    assert all(re.search(r"[<=]", r) for r in core), "every version is bounded"
    extras = {match for r in requirements for match in re.findall(r'extra == "(\w+)"', r)}
    assert {"cpu", "gpu", "tpu", "test"} <= extras
    assert any(r.startswith("cloud-tpu-client") and '"tpu"' in r for r in requirements)


def test_first_lines_of_the_readme_hold_both_commands():
    first = (ROOT / "README.md").read_text().splitlines()[:20]
    assert any("efficientnet_tf.train --variant=b0 --recipe=digits" in line for line in first)
    assert any("pytest" in line for line in first)
