"""Settings of all tests: the environment, the tiers and the order of the files."""

import ast
import atexit
import functools
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

# Set before anything imports TensorFlow. Subprocesses inherit both.
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["CUDA_VISIBLE_DEVICES"] = "-1"

# The processes of the tests share what JAX has compiled, which takes most of their time. The workers of pytest-xdist
# inherit the folder.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="jax-cache-")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)

# XLA compiles faster if it does not optimize. The tests run few steps, so they do not need fast programs.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

import hypothesis
import pytest

# Keep compiled modules. Otherwise each worker and each subprocess compiles the package and the tests again.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

TESTS = Path(__file__).parent
ROOT = TESTS.parent
# With loadfile each worker takes whole files. A long file that starts last would run alone at the end.
LONGEST = (
    "test_snippets",
    "test_jax_loop",
    "test_workers",
    "test_weights",
    "test_notebooks",
    "test_end_to_end",
    "test_models",
    "test_benchmark",
    "test_preflight",
    "test_quantize",
    "test_tasks",
    "test_commands",
    "test_search",
    "test_step",
    "test_applications",
    "test_pipeline",
    "test_builder",
    "test_transfer",
    "test_evaluate",
    "test_trainer",
)
# Their tests run only if the expression after -m mentions the mark. A test with both marks is of the first tier.
TIERS = ("nightly", "slow")
FRAMEWORKS = {"tensorflow", "keras", "tensorflow_datasets"}
REQUIRE_ALL = os.environ.get("REQUIRE_ALL") == "1"

# By default every run tests the same 40 examples. HYPOTHESIS_PROFILE=random searches for 100 new ones. Machines differ
# in speed, so no example has a time limit.
hypothesis.settings.register_profile("repeatable", max_examples=40, derandomize=True, deadline=None, database=None)
hypothesis.settings.register_profile("random", deadline=None, print_blob=True)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))


def pytest_ignore_collect(collection_path, config):
    """Do not import the test files that need TensorFlow if `-m "not tensorflow"` excludes them."""
    is_test = collection_path.suffix == ".py" and collection_path.name.startswith("test_")
    if is_test and re.search(r"\bnot tensorflow\b", config.option.markexpr or ""):
        return True if needs_tensorflow(collection_path) else None
    return None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items, config):
    """Mark the tests that need TensorFlow, leave out slow ones, and begin with the files that take longest."""
    for item in items:
        users = functions_with_tensorflow(item.path)
        if needs_tensorflow(item.path) or users & {item.originalname, *item.fixturenames}:
            item.add_marker("tensorflow")
        if "browser" in item.fixturenames:
            item.add_marker("slow")
    tiers = {item: next((tier for tier in TIERS if item.get_closest_marker(tier)), None) for item in items}
    left_out = [item for item, tier in tiers.items() if tier and tier not in (config.option.markexpr or "")]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in set(left_out)]
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))


def pytest_collection_finish():
    """Split the CPU into four logical devices for the tests of replicas, before TensorFlow is first used."""
    if "tensorflow" in sys.modules:
        import tensorflow as tf

        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 4)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """With REQUIRE_ALL=1, fail a test that would be skipped because something is not installed."""
    report = yield
    if REQUIRE_ALL and report.skipped and not hasattr(report, "wasxfail"):
        reason = str(report.longrepr[2])
        if re.search("not installed|could not import|not found", reason):
            report.outcome = "failed"
            report.longrepr = f"{reason}. With REQUIRE_ALL=1 this test must not be skipped."
    return report


@functools.cache
def needs_tensorflow(path):
    """Return whether importing a file imports TensorFlow or Keras, directly or through this repository's modules."""
    tree = ast.parse(path.read_text())
    return any(_is_heavy(name) for name in _imported_names(tree.body, inside_functions=False))


@functools.cache
def functions_with_tensorflow(path):
    """Return the names of a file's tests and fixtures that import TensorFlow or Keras in their own body."""
    functions = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)]
    return {f.name for f in functions if any(map(_is_heavy, _imported_names(f.body, inside_functions=True)))}


def _imported_names(nodes, inside_functions):
    """Yield the dotted names that statements import. Imports for type checkers alone do not count."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from _imported_names(node.orelse, inside_functions)
        elif inside_functions or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from _imported_names(ast.iter_child_nodes(node), inside_functions)


@functools.cache
def _is_heavy(name):
    """Return whether importing a dotted name imports TensorFlow or Keras."""
    parts = name.split(".")
    if parts[0] in FRAMEWORKS:
        return True
    for folder in (ROOT, TESTS):
        # The longest prefix that is a module. The rest of the name is an attribute of it.
        for count in range(len(parts), 0, -1):
            module = folder.joinpath(*parts[:count])
            for path in (module.with_suffix(".py"), module / "__init__.py"):
                if path.is_file():
                    # The public API is loaded lazily, so one of its names can bring in anything.
                    is_public_name = count == 1 < len(parts) and parts[0] == "efficientnet_tf"
                    return needs_tensorflow(path) or (is_public_name and not parts[1].startswith("_"))
    return False
