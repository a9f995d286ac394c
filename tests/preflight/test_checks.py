"""Tests of the checks that find what would stop a TPU run."""

import pytest

from efficientnet_tf.preflight.checks import check_batch, check_files, check_places, check_program


@pytest.mark.parametrize(
    ("batch", "stops", "instead"),
    [(64, None, None), (1024, None, None), (60, True, "Use 64."), (72, False, "Use 128.")],
)
def test_batch(batch, stops, instead):
    problems = check_batch("train.batch_size", batch, replicas=8)
    assert [problem.stops for problem in problems] == ([] if stops is None else [stops])
    assert all(problem.text.endswith(instead) for problem in problems)


@pytest.mark.parametrize(
    ("tpu", "hosts", "path", "stops"),
    [
        (None, 1, "runs", []),
        ("local", 1, "runs", []),
        ("local", 4, "runs", [False]),
        ("my-tpu", 1, "runs", [True]),
        ("grpc://10.0.0.2:8470", 1, "/data", [True]),
        ("my-tpu", 4, "gs://bucket/runs", []),
        ("my-tpu", 4, None, []),
    ],
)
def test_places(tpu, hosts, path, stops):
    assert [problem.stops for problem in check_places(tpu, path, None, hosts)] == stops
    (*_, data_problem) = [None, *check_places(tpu, None, path, hosts)]
    assert data_problem is None if not stops else f"data_dir={path}" in data_problem.text


def test_fewer_files_than_hosts(tmp_path):
    for i in range(3):
        (tmp_path / f"train-{i:05d}-of-00003").touch()
        (tmp_path / f"validation-{i:05d}-of-00003").touch()
    assert check_files(tmp_path, "train", 2) == check_files(tmp_path, "train", 3) == []
    (problem,) = check_files(tmp_path, "train", 4)
    assert problem.stops and "has 3 record files of split 'train', too few for 4 hosts" in problem.text


def test_a_program_that_does_not_fit_stops_the_run():
    program = {"fits": False, "message": "Ran out of memory."}
    (problem,) = check_program("train", program, "mixed_bfloat16")
    assert problem.stops and "Ran out of memory." in problem.text and "largest_batch" in problem.text
    program = {"fits": True, "convolutions": 10, "bfloat16_convolutions": 8}
    (problem,) = check_program("train", program, "mixed_bfloat16")
    assert not problem.stops and problem.text.startswith("2 of 10 convolutions")
    assert check_program("train", program, "float32") == []
