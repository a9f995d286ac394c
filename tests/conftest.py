"""Shared by all tests. The environment is set before anything imports TensorFlow; subprocesses inherit it."""

import os
import sys

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["CUDA_VISIBLE_DEVICES"] = "-1"

import hypothesis

# The same examples at every run, and no time limit for one of them: machines differ.
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("repeatable")


LONGEST = ("test_end_to_end", "test_step", "test_weights")


def pytest_collection_modifyitems(items):
    """Begin with the files that take longest: workers take whole files, and one that came last would be alone in it."""
    items.sort(key=lambda item: item.path.stem not in LONGEST)


def pytest_collection_finish():
    """Split the CPU into four logical devices, for tests of replicas: TensorFlow is imported by now, but not used."""
    if "tensorflow" in sys.modules:
        import tensorflow as tf

        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 4)
