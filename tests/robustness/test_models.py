"""Hostile and odd model directories, weights, exports and records, given to every command in one process."""

import pytest
from robustness import models
from robustness.harness import Writer, report, run_cases

KINDS = [
    models.ordinary,
    models.model_directories,
    models.weights,
    models.exports,
    models.records,
]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_models(kind, trained):
    writer = Writer(trained.root, kind.__name__, trained.kit)
    kind(writer)
    assert writer.cases
    wrong = run_cases(trained, writer.cases)
    assert not wrong, report(kind.__name__, wrong, len(writer.cases))
