"""Hostile and odd images, tables, disks, locales and databases, given to every command in one process."""

import pytest
from robustness import array_files, data, images, models
from robustness.harness import Writer, report, run_cases

KINDS = [
    images.pixels,
    images.same_answer,
    images.hostile,
    images.image_bombs,
    data.layouts,
    data.tables,
    data.bad_images,
    array_files.arrays,
    models.full_disks,
    models.locale,
    models.storages,
]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_commands(kind, trained):
    writer = Writer(trained.root, kind.__name__, trained.kit)
    kind(writer)
    # test_light.py runs the others of these kinds.
    shared = kind in (data.layouts, data.tables, array_files.arrays)
    cases = [case for case in writer.cases if not (shared and case.light)]
    assert cases
    wrong = run_cases(trained, cases)
    assert not wrong, report(kind.__name__, wrong, len(cases))
