"""Shared by all tests. The environment is set before anything imports TensorFlow; subprocesses inherit it."""

import os

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["CUDA_VISIBLE_DEVICES"] = "-1"

import hypothesis

# The same examples at every run, and no time limit for one of them: machines differ.
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("repeatable")
