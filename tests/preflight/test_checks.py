"""What would stop a run on a TPU, found before it starts."""

import pytest

from efficientnet_tf.preflight.checks import check_batch, check_files, check_places, check_program


@pytest.mark.parametrize(
    ("batch", "stops", "instead"),
    [(64, None, None), (1024, None, None), (60, True, "take 64"), (72, False, "take 128")],
)
def test_batch(batch, stops, instead):
    findings = check_batch("train.batch_size", batch, replicas=8)
    assert [finding.stops for finding in findings] == ([] if stops is None else [stops])
    assert all(finding.text.endswith(instead) for finding in findings)


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
    assert [finding.stops for finding in check_places(tpu, path, None, hosts)] == stops
    (*_, data_finding) = [None, *check_places(tpu, None, path, hosts)]
    assert data_finding is None if not stops else f"--data_dir={path}" in data_finding.text


def test_fewer_files_than_hosts(tmp_path):
    for i in range(3):
        (tmp_path / f"train-{i:05d}-of-00003").touch()
        (tmp_path / f"validation-{i:05d}-of-00003").touch()
    assert check_files(tmp_path, "train", 2) == check_files(tmp_path, "train", 3) == []
    (finding,) = check_files(tmp_path, "train", 4)
    assert finding.stops and "has 3 record files of 'train' for 4 hosts" in finding.text


def test_what_does_not_fit_stops():
    program = {"fits": False, "message": "Ran out of memory."}
    (finding,) = check_program("train", program, "mixed_bfloat16")
    assert finding.stops and "Ran out of memory." in finding.text and "--largest_batch" in finding.text
    program = {"fits": True, "convolutions": 10, "bfloat16_convolutions": 8}
    (finding,) = check_program("train", program, "mixed_bfloat16")
    assert not finding.stops and finding.text.startswith("2 of 10 convolutions")
    assert check_program("train", program, "float32") == []
