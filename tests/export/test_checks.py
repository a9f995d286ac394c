"""What `evaluate`, `export` and `explain` refuse before TensorFlow is imported. This file does not import it either."""

import json
import os
import shutil
from pathlib import Path

import pytest

from efficientnet_tf import evaluate, explain
from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.load import override_config
from efficientnet_tf.export import evaluation_data
from efficientnet_tf.export.check import check_model
from efficientnet_tf.export.export import check_export
from efficientnet_tf.export.overrides import override_data
from efficientnet_tf.export.record import check_record, make_record
from efficientnet_tf.models.run_directory import decides_predictions, read_config

FIXTURES = Path(__file__).parents[1] / "fixtures"
RUN = str(FIXTURES / "old_run")
EXPORTS = [str(FIXTURES / "old_exports" / f"net{suffix}") for suffix in (".tflite", ".onnx", ".xml")]


@pytest.fixture
def run_on_folder(tmp_path):
    """Return a model directory whose images were moved."""
    folder = shutil.copytree(RUN, tmp_path / "run")
    text = (folder / "config.yaml").read_text().replace("source: digits, dir: null", "source: folder, dir: /moved")
    (folder / "config.yaml").write_text(text.replace("eval_split: test", "eval_split: val"))
    return str(folder)


@pytest.mark.parametrize("key", ["model.mean=[1,2,3]", "model.width=2", "data.channels=1", "data.image_size=64"])
def test_keys_of_the_trained_model_cannot_change(key):
    for model in (RUN, f"{RUN}/model.keras", *EXPORTS):
        with pytest.raises(UserError, match="belong to the trained model") as caught:
            evaluate.check_evaluation(model, [key])
        assert key.partition("=")[0] in str(caught.value)
    with pytest.raises(UserError, match="belong to the trained model"):
        check_export(RUN, "new.onnx", overrides=[key])


def test_keys_of_the_data_can_change(tmp_path):
    config = read_config(RUN)
    overrides = [
        "data.cache=memory",
        "eval.batch_size=7",
        "data.crop_padding=5",
        "data.eval_split=val",
        "train.epochs=2",
    ]
    assert override_data(config, overrides) == override_config(config, overrides)
    with pytest.raises(UserError, match="train.epochs: 2.0 -> 3.0"):
        override_data(config, ["train.epochs=3"])
    evaluate.check_evaluation(RUN, ["data.crop_padding=5"])
    with pytest.raises(UserError, match="data.crop_padding: 0 -> 5"):
        check_export(RUN, str(tmp_path / "new.onnx"), overrides=["data.crop_padding=5"])
    evaluate.check_evaluation(RUN, ["data.crop=pad"])
    with pytest.raises(UserError, match="data.crop: 'center' -> 'pad'"):
        check_export(RUN, str(tmp_path / "new.onnx"), overrides=["data.crop=pad"])


def test_an_export_notices_a_changed_crop():
    config = read_config(RUN)
    record = make_record(config, ["a", "b"], "digest")
    changed = override_config(config, ["data.crop=squash"])
    with pytest.raises(UserError, match="data.crop: 'center' -> 'squash'"):
        check_record("net.onnx", record, changed, ["a", "b"], "digest")
    older = json.loads(record)
    del older["config"]["data.crop"]  # as earlier versions wrote it
    check_record("net.onnx", json.dumps(older), config, ["a", "b"], "digest")
    assert decides_predictions("data.crop")


def test_moved_images_are_named_with_the_flag_for_their_place(run_on_folder, tmp_path):
    with pytest.raises(UserError, match="data.dir='/moved' is not a folder"):
        evaluate.check_evaluation(run_on_folder)
    with pytest.raises(UserError, match=r"/moved.* compared on images .* If they were moved, pass data_dir=DIR"):
        check_export(run_on_folder, str(tmp_path / "net.onnx"))
    with pytest.raises(UserError, match="calibrated on those of the training split"):
        check_export(run_on_folder, str(tmp_path / "net.onnx"), "int8")
    assert check_export(run_on_folder, str(tmp_path / "folder")) is None  # A SavedModel needs no images.


def test_wrong_outputs_are_refused(tmp_path):
    table = tmp_path / "real.csv"
    table.write_text("1")
    with pytest.raises(UserError, match="is also an input"):
        evaluate.check_evaluation(RUN, real_labels=str(table), per_class=str(table))
    with pytest.raises(UserError, match="real.json: no such file"):
        evaluate.check_evaluation(RUN, real_labels=str(tmp_path / "real.json"))
    os.mkfifo(tmp_path / "fifo.json")
    with pytest.raises(UserError, match="this is a FIFO"):
        evaluate.check_evaluation(RUN, real_labels=str(tmp_path / "fifo.json"))
    with pytest.raises(UserError, match="is not a folder"):
        evaluate.check_evaluation(RUN, per_class=str(tmp_path / "none" / "a.csv"))


def test_raw_weights_of_an_export():
    for model in (f"{RUN}/model.keras", *EXPORTS):
        with pytest.raises(UserError, match="contains one set of weights only"):
            evaluate.check_evaluation(model, raw=True)
    evaluate.check_evaluation(RUN, raw=True)


def test_a_checkpoint_that_is_not_there_is_refused_before_tensorflow_starts(tmp_path):
    for check in (
        lambda model, checkpoint: evaluate.check_evaluation(model, checkpoint=checkpoint),
        lambda model, checkpoint: check_export(model, str(tmp_path / "net.onnx"), checkpoint=checkpoint),
        lambda model, checkpoint: check_model(model, checkpoint=checkpoint),
    ):
        for checkpoint in ("7", "bset", "45 ", "x\x1b"):
            with pytest.raises(UserError, match=r"^checkpoint=.* is not a checkpoint of .*: 22, 45\.$"):
                check(RUN, checkpoint)
        for checkpoint in ("best", "newest", "22"):
            check(RUN, checkpoint)
        with pytest.raises(UserError, match="checkpoint=22: .*contains one model only"):
            check(f"{RUN}/model.keras", "22")


def test_exports_cannot_be_exported(tmp_path):
    for model in (f"{RUN}/model.keras", *EXPORTS):
        with pytest.raises(UserError, match="is not a model directory but a single model"):
            check_export(model, str(tmp_path / "net.onnx"))


def test_names_that_a_format_cannot_hold(run_on_folder, tmp_path):
    Path(run_on_folder, "classes.txt").write_text("".join(f"a\x1b{i}\n" for i in range(10)))
    with pytest.raises(UserError, match=r"classes.txt contains the character U\+001B, which files of OpenVINO"):
        check_export(run_on_folder, str(tmp_path / "net.xml"))


def check_explain(*flags):
    return explain._check(explain.make_parser().parse_args([*map(str, flags)]))


def test_explain_refuses_models_outputs_and_classes(tmp_path):
    pytest.importorskip("matplotlib")
    photo = tmp_path / "a.png"
    photo.write_bytes(b"\xff\xd8\xff")
    output = f"--output={tmp_path / 'out.png'}"
    assert check_explain(f"--model_dir={RUN}", output, photo, photo) == [str(photo)]
    for model in (f"{RUN}/model.keras", *EXPORTS):
        with pytest.raises(UserError, match="is not a model directory. Explanations need the layers"):
            check_explain(f"--model_dir={model}", output, photo)
    with pytest.raises(UserError, match="is also an input, which would be overwritten"):
        check_explain(f"--model_dir={RUN}", f"--output={photo}", photo)
    with pytest.raises(UserError, match=r"class=x\\x1b is not a class of .*\. Use a number from 0 to 9"):
        check_explain(f"--model_dir={RUN}", output, "--class=x\x1b", photo)
    with pytest.raises(UserError, match="no such file"):
        check_explain(f"--model_dir={RUN}", output, tmp_path / "none.png")
    assert sorted(os.listdir(tmp_path)) == ["a.png"]


def test_folder_of_an_evaluation(tmp_path):
    (tmp_path / "file").write_text("")
    for name in ("none", "file"):
        with pytest.raises(UserError, match="folder=.* is not a folder. Pass one that has a folder of images"):
            evaluation_data.locate_data(None, str(tmp_path / name))
