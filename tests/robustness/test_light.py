"""Hostile flags, paths, configs, folders and tables are refused without TensorFlow."""

import pytest
from robustness import array_files, container_files, data, words
from robustness.harness import Harness, Writer, report, run_cases
from robustness.kit import Kit

KINDS = [words.paths, words.words, words.numbers, words.configs, words.clusters]
KINDS += [data.layouts, data.tables, data.tasks, array_files.arrays, container_files.containers]


@pytest.fixture(scope="module")
def harness(tmp_path_factory):
    root = tmp_path_factory.mktemp("robustness")
    harness = Harness(root)
    harness.kit = Kit(root)
    harness.shared = [harness.kit.root]
    yield harness
    harness.stop()


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_answers_without_tensorflow(kind, harness):
    writer = Writer(harness.root, kind.__name__, harness.kit)
    kind(writer)
    cases = [case for case in writer.cases if case.light]
    assert cases
    wrong = run_cases(harness, cases)
    assert not wrong, report(kind.__name__, wrong, len(cases))
