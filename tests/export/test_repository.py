"""Model repositories of servers, the signature that names classes, and the requests for warming up."""

import io

import fitted
import numpy as np
import pytest
import tensorflow as tf
from commands import exit_status
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from PIL import Image

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.export import repository
from efficientnet_tf.export.load import load_model
from efficientnet_tf.export.repository import export_to_repository, find_place
from efficientnet_tf.export.warmup import PATH


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    model_dir = tmp_path_factory.mktemp("runs") / "digits"
    fitted.write_digits_run(model_dir)
    return str(model_dir)


@pytest.fixture(scope="module")
def served(run, tmp_path_factory):
    """Return a repository of TensorFlow Serving."""
    folder = tmp_path_factory.mktemp("repository") / "models"
    result = export_to_repository(run, str(folder), "tf_serving", "digits")
    assert result["output"] == str(folder / "digits" / "1")
    return folder


def encode_image(seed, form="png"):
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 50, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(file, form)
    return file.getvalue()


def make_prediction_log():
    """Return the message PredictionLog of TensorFlow Serving, from the numbers and types of its published fields."""
    file = descriptor_pb2.FileDescriptorProto(name="serving.proto", package="serving", syntax="proto3")
    string, message, repeated = 9, 11, 3
    messages = {
        "ModelSpec": [("name", 1, string, ""), ("signature_name", 3, string, "")],
        "PredictRequest": [("model_spec", 1, message, ".serving.ModelSpec"), ("inputs", 2, message, "map")],
        "PredictLog": [("request", 1, message, ".serving.PredictRequest")],
        "PredictionLog": [("predict_log", 6, message, ".serving.PredictLog")],
    }
    for name, fields in messages.items():
        added = file.message_type.add(name=name)
        for field, number, kind, type_name in fields:
            new = added.field.add(name=field, number=number, type=kind, label=1)
            if type_name == "map":
                entry = added.nested_type.add(name="InputsEntry")
                entry.options.map_entry = True
                entry.field.add(name="key", number=1, type=string, label=1)
                entry.field.add(name="value", number=2, type=12, label=1)  # bytes: a TensorProto, which is parsed below
                new.label, type_name = repeated, f".serving.{name}.InputsEntry"
            if type_name:
                new.type_name = type_name
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("serving.PredictionLog"))


def read_warmup(folder):
    """Return {signature: tensor} of the requests in a SavedModel."""
    message, requests = make_prediction_log(), {}
    for record in tf.data.TFRecordDataset(str(folder / PATH)):
        request = message.FromString(record.numpy()).predict_log.request
        tensor = type(tf.make_tensor_proto(0)).FromString(request.inputs["image"])
        requests[request.model_spec.signature_name] = tf.make_ndarray(tensor)
    return requests


@pytest.mark.slow
def test_a_version_for_tensorflow_serving(served, run):
    folder = served / "digits" / "1"
    assert (folder / "saved_model.pb").exists() and [path.name for path in served.iterdir()] == ["digits"]
    loaded, original = load_model(folder), load_model(run)
    pixels = np.random.default_rng(0).uniform(0, 255, (3, 32, 32, 3)).astype(np.float32)
    np.testing.assert_allclose(loaded(pixels), original(pixels), rtol=1e-5, atol=1e-5)


def test_warmup_requests_fit_the_signatures(served):
    folder = served / "digits" / "1"
    signatures = tf.saved_model.load(str(folder)).signatures
    requests = read_warmup(folder)
    assert set(requests) == set(signatures)
    for name, image in requests.items():
        assert signatures[name](image=tf.constant(image))


def test_classes_are_named(served, run):
    classify = tf.saved_model.load(str(served / "digits" / "1")).signatures["classify_bytes"]
    files = [encode_image(0), encode_image(1, "jpeg"), encode_image(2)]
    answer = {key: value.numpy() for key, value in classify(image=tf.constant(files)).items()}
    for number, expected in enumerate(load_model(run).predict(files, top=5)):
        assert [name.decode() for name in answer["classes"][number]] == [name for name, _ in expected]
        np.testing.assert_allclose(answer["probabilities"][number], [value for _, value in expected], rtol=1e-4)


def test_a_second_version_and_versions_that_exist(served, run):
    with pytest.raises(UserError, match=r"version=1: .*digits/1 exists. Choose a higher version"):
        export_to_repository(run, str(served), "tf_serving", "digits")
    assert find_place(str(served), "tf_serving", "digits", 2) == str(served / "digits" / "2")


def test_repository_of_triton(run, tmp_path):
    pytest.importorskip("tf2onnx")
    root = tmp_path / "models"
    result = export_to_repository(run, str(root), "triton", "my-digits", 3, images=20)
    assert result["output"] == str(root / "my-digits" / "3" / "model.onnx")
    assert sorted(path.name for path in (root / "my-digits").iterdir()) == ["3", "classes.txt", "config.pbtxt"]
    text = (root / "my-digits" / "config.pbtxt").read_text()
    assert 'name: "my-digits"' in text and "dims: [ 32, 32, 3 ]" in text and "dims: [ 10 ]" in text
    assert (root / "my-digits" / "classes.txt").read_text().split() == [str(digit) for digit in range(10)]
    assert load_model(result["output"]).class_names == [str(digit) for digit in range(10)]

    (root / "my-digits" / "classes.txt").write_text("cat\ndog\n")
    with pytest.raises(UserError, match="belongs to a model with other images or classes"):
        export_to_repository(run, str(root), "triton", "my-digits", 4)
    assert not (root / "my-digits" / "4").exists()


def test_repository_of_openvino_model_server(run, tmp_path):
    pytest.importorskip("openvino")
    result = export_to_repository(run, str(tmp_path / "models"), "ovms", "digits", images=20)
    names = {path.name for path in (tmp_path / "models" / "digits" / "1").iterdir()}
    assert names == {"digits.xml", "digits.bin"} and load_model(result["output"]).image_size == 32


@pytest.mark.parametrize("layout", repository.LAYOUTS)
def test_a_failed_export_leaves_nothing(run, layout, tmp_path):
    with pytest.raises(UserError, match="keep_float"):
        export_to_repository(run, str(tmp_path / "a" / "b"), layout, "x", keep_float=["stem_conv"])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--layout=tf_serving", "--name=a/b"], "--name=a/b: a name starts with"),
        (["--layout=tf_serving", "--name=.."], "a name starts with"),
        (["--layout=triton", "--version=0"], "--version"),
        (["--layout=torchserve"], "torchserve"),
        (["--name=digits"], "--name=digits applies to --layout=tf_serving|ovms|triton only"),
        (["--layout=ovms", "--output=/dev/null/x"], "cannot be created"),
        (["--layout=ovms", "--output=gs://bucket/x"], "is on gs://"),
    ],
)
def test_mistakes(run, flags, message, tmp_path, capsys):
    output = [] if any(flag.startswith("--output") for flag in flags) else [f"--output={tmp_path}/models"]
    assert exit_status("export", f"--model_dir={run}", *output, *flags) in (1, 2)
    assert message in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_requests_are_short(served):
    assert (served / "digits" / "1" / PATH).stat().st_size < 2000
