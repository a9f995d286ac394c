"""Hostile and odd images, models, weights, records and databases, given to every command in one process."""

import pytest
from robustness import data, images, models
from robustness.harness import Harness, Writer, report, run_cases
from robustness.kit import TrainedKit

KINDS = [
    models.ordinary,
    images.pixels,
    images.same_answer,
    images.hostile,
    images.image_bombs,
    data.layouts,
    data.tables,
    data.bad_images,
    models.model_directories,
    models.weights,
    models.exports,
    models.records,
    models.full_disks,
    models.storages,
    models.locale,
]


@pytest.fixture(scope="module")
def harness(tmp_path_factory):
    root = tmp_path_factory.mktemp("robustness")
    harness = Harness(root)
    harness.kit = TrainedKit(root, harness)
    harness.shared = [harness.kit.root]
    yield harness
    harness.kit.close()
    harness.stop()


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_commands(kind, harness):
    writer = Writer(harness.root, kind.__name__, harness.kit)
    kind(writer)
    # test_light.py runs the others of these kinds.
    shared = kind in (data.layouts, data.tables)
    cases = [case for case in writer.cases if not (shared and case.light)]
    assert cases
    wrong = run_cases(harness, cases)
    assert not wrong, report(kind.__name__, wrong, len(cases))
