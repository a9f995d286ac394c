"""Exported files: each format is written for a small network and run by its own runtime."""

import json
import logging
import os
import re
import sys
import zipfile
from pathlib import Path

import fitted
import keras
import numpy as np
import pytest
import tiny
from commands import exit_status, find_error, run_process

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.evaluate import evaluate_model
from efficientnet_tf.export.export import export_model
from efficientnet_tf.export.formats import FORMATS, open_export
from efficientnet_tf.export.quantization import list_kernel_layers, measure_quantization_errors
from efficientnet_tf.models.folding import fold_batch_norm
from efficientnet_tf.models.from_config import build_from_config
from efficientnet_tf.models.model_dir import read_config, restore_model, write_model_dir

IMAGES = 120
CLASSES = [f"class{i}" for i in range(5)]
REDUCED = [(suffix, precision) for suffix, kind in FORMATS.items() for precision in kind.precisions[1:]]
SUFFIXES = [(suffix,) for suffix in FORMATS]


def randomize_batch_norm(model, seed=0):
    rng = np.random.default_rng(seed)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            gamma, beta, mean, variance = layer.get_weights()
            noise = [rng.normal(0, 0.3, gamma.shape) for _ in range(4)]
            layer.set_weights([gamma + noise[0], beta + noise[1], mean + noise[2], variance * np.exp(noise[3])])


def write_run(model_dir, model, config):
    write_model_dir(str(model_dir), model, config, CLASSES)
    return str(model_dir)


@pytest.fixture(scope="module")
def trained():
    """Return a network of two blocks that classifies five colors, and its config.

    Only its last layer is fitted, by ridge regression. This is quick, and the margins between the classes are wide
    enough for agreement to be meaningful.
    """
    options = ["train.ema_decay=0", "model.batch_norm_momentum=0", "model.head_channels=128"]
    options += ["data.synthetic_classes=5", f"data.synthetic_examples={IMAGES}", "eval.batch_size=24"]
    config = tiny.load_config(tiny.SHORT, *options, recipe="smoke")
    keras.utils.set_random_seed(0)
    model = build_from_config(config, 5)
    randomize_batch_norm(model)
    images, labels = fitted.read_split(config, "train")
    model(images[:256], training=True)  # with momentum 0, this sets the batch norm statistics
    fitted.fit_last_layer(model, images, labels)
    return model, config


@pytest.fixture(scope="module")
def run(trained, tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "colors", *trained)


@pytest.fixture(scope="module")
def float32(run, tmp_path_factory):
    """Return (path, result) of the float32 file of each format, by suffix."""
    folder = tmp_path_factory.mktemp("files")
    paths = {suffix: str(folder / f"net{suffix}") for suffix in FORMATS}
    return {suffix: (path, export_model(run, path)) for suffix, path in paths.items()}


def element_types(path):
    """Return the types of the tensors in a file, as its runtime names them."""
    suffix = os.path.splitext(path)[1]
    if suffix == ".onnx":
        import onnx

        return {onnx.TensorProto.DataType.Name(t.data_type) for t in onnx.load(path).graph.initializer}
    if suffix == ".xml":
        import openvino

        nodes = openvino.Core().read_model(path).get_ops()
        return {n.get_element_type().get_type_name() for n in nodes if n.get_type_name() == "Constant"}
    from ai_edge_litert.interpreter import Interpreter

    return {np.dtype(tensor["dtype"]).name for tensor in Interpreter(path).get_tensor_details()}


def constant_products(path):
    """Return the number of multiplications by constants in a network, not counting its convolutions."""
    suffix = os.path.splitext(path)[1]
    if suffix == ".onnx":
        import onnx

        graph = onnx.load(path).graph
        assert not [node for node in graph.node if node.op_type == "BatchNormalization"]
        constants = {tensor.name for tensor in graph.initializer}
        return sum(node.op_type == "Mul" and bool(constants & set(node.input)) for node in graph.node)
    if suffix == ".xml":
        import openvino

        nodes = openvino.Core().read_model(path).get_ops()
        inputs = [[v.get_node() for v in n.input_values()] for n in nodes if n.get_type_name() == "Multiply"]
        return sum(any(node.get_type_name() == "Constant" for node in both) for both in inputs)
    from ai_edge_litert import schema_py_generated as schema

    (graph,) = schema.ModelT.InitFromPackedBuf(Path(path).read_bytes(), 0).subgraphs
    computed = {tensor for operator in graph.operators for tensor in operator.outputs}
    products = [o for o in graph.operators if re.search(rb"/[mM]ul$", graph.tensors[o.outputs[0]].name)]
    return sum(len(computed & set(operator.inputs)) < 2 for operator in products)


# ------------------------------------------------------------------------------------------------ every format


def mostly_slow(values, quick):
    """Return test parameters, all marked slow except `quick`."""
    return [value if value == quick else pytest.param(*value, marks=pytest.mark.slow) for value in values]


@pytest.mark.parametrize("suffix", FORMATS)
def test_float32_files_match_the_keras_model(run, float32, suffix):
    path, result = float32[suffix]
    assert result["images"] == IMAGES and result["agreement"] == 1
    assert result["difference"] < 1e-4
    assert result["bytes"] == sum(
        os.path.getsize(os.path.join(os.path.dirname(path), name))
        for name in os.listdir(os.path.dirname(path))
        if name in (f"net{suffix}", "net.bin" * (suffix == ".xml"))
    )
    model, *_ = restore_model(run)
    export = open_export(path)
    logits_of, texts = export.compute_logits, export.texts
    for count in (1, 5):
        images = np.random.default_rng(count).uniform(0, 255, (count, 32, 32, 3)).astype(np.float32)
        logits = logits_of(images)
        assert logits.dtype == np.float32
        np.testing.assert_allclose(logits, model(images).numpy(), atol=1e-4)
    for name in ("config.yaml", "classes.txt"):
        with open(os.path.join(run, name)) as file:
            assert texts[name] == file.read()
    assert constant_products(path) == 1, "only the normalization of the pixels may remain"


def test_exports_leave_the_root_logger_alone(float32):
    """OpenVINO's converter raises the root logger's level, which would hide this package's warnings."""
    assert logging.getLogger().level <= logging.WARNING and not logging.getLogger().filters


def test_tensor_names_and_dynamic_batch(float32):
    import onnx
    import openvino

    graph = onnx.load(float32[".onnx"][0]).graph
    for values, name, rest in ((graph.input, "image", [32, 32, 3]), (graph.output, "logits", [5])):
        (value,) = values
        batch, *others = value.type.tensor_type.shape.dim
        assert (value.name, batch.dim_param, [d.dim_value for d in others]) == (name, "N", rest)
    network = openvino.Core().read_model(float32[".xml"][0])
    assert [value.get_any_name() for value in (*network.inputs, *network.outputs)] == ["image", "logits"]
    assert network.input().partial_shape.to_string() == "[?,32,32,3]"
    with zipfile.ZipFile(float32[".tflite"][0]) as archive:
        assert archive.read("classes.txt").split() == [name.encode() for name in CLASSES]


@pytest.mark.parametrize(("suffix", "precision"), mostly_slow(REDUCED, (".xml", "int8")))
def test_reduced_precisions(run, float32, suffix, precision, tmp_path):
    path = str(tmp_path / f"net{suffix}")
    result = export_model(run, path, precision, calibration_images=40)
    assert result["images"] == IMAGES and result["agreement"] >= 0.98
    assert 1e-5 < result["difference"]
    types = {name.lower() for name in element_types(path)}
    expected = {"float16": {"f16", "float16"}, "bfloat16": {"f16"}}.get(precision, {"int8", "i8"})
    assert types & expected
    assert not {name.lower() for name in element_types(float32[suffix][0])} & expected
    export = open_export(path)
    logits_of = export.compute_logits
    assert export.texts["precision"] == precision
    images, _ = fitted.read_split(read_config(run), "val", 5)
    np.testing.assert_allclose(logits_of(images[:1]), logits_of(images)[:1], atol=0.2)


def write_integer_network(run, folder, suffix, io):
    """Export in int8, and return the path of the file and the result."""
    path = str(folder / f"{io}{suffix}")
    return path, export_model(run, path, "int8", calibration_images=40, io=io)


@pytest.mark.parametrize("io", ["int8", "uint8"])
def test_litert_takes_and_returns_integers(run, io, tmp_path):
    from ai_edge_litert.interpreter import Interpreter

    path, result = write_integer_network(run, tmp_path, ".tflite", io)
    assert result["agreement"] >= 0.98
    details = [Interpreter(path).get_input_details()[0], Interpreter(path).get_output_details()[0]]
    assert [d["dtype"] for d in details] == [np.dtype(io)] * 2
    # Pixels are whole numbers, so their integers are exact.
    assert details[0]["quantization"] == (pytest.approx(1, rel=1e-6), 0 if io == "uint8" else -128)


@pytest.mark.slow
@pytest.mark.parametrize("io", ["int8", "uint8"])
def test_onnx_takes_and_returns_integers(run, io, tmp_path):
    import onnxruntime

    path, result = write_integer_network(run, tmp_path, ".onnx", io)
    assert result["agreement"] >= 0.98
    session = onnxruntime.InferenceSession(path)
    assert [value.type for value in (*session.get_inputs(), *session.get_outputs())] == [f"tensor({io})"] * 2
    text = json.loads(session.get_modelmeta().custom_metadata_map["io.json"])
    images, _ = fitted.read_split(read_config(run), "val", 5)
    integers = (images.round() + text["image"]["zero_point"]).astype(io)
    (logits,) = session.run(["logits"], {"image": integers})
    expected = (logits.astype(float) - text["logits"]["zero_point"]) * text["logits"]["scale"]
    np.testing.assert_allclose(open_export(path).compute_logits(images.round()), expected, atol=1e-5)
    float_path, _ = write_integer_network(run, tmp_path, ".onnx", "float32")
    steps = np.abs(open_export(float_path).compute_logits(images.round()) - expected) / text["logits"]["scale"]
    assert steps.max() <= (1.01 if io == "uint8" else 20)  # int8 activations are rounded elsewhere


@pytest.mark.parametrize(("suffix",), mostly_slow(SUFFIXES, (".tflite",)))
def test_files_evaluate_like_the_model_directory(run, float32, suffix):
    strategy = tiny.make_strategy(1)
    path, _ = float32[suffix]
    result = evaluate_model(path, strategy=strategy)
    assert result["examples"] == IMAGES and result["top1"] > 0.9  # a random network would agree by chance
    assert result == pytest.approx(evaluate_model(run, strategy=strategy), abs=1e-4)
    with pytest.raises(UserError, match="contains one set of weights only. Pass the model directory"):
        evaluate_model(path, strategy=strategy, raw=True)


# ------------------------------------------------------------------------------------- int8 that loses too much


def make_wild(model):
    """Give one channel a hundred times the range of the others and no effect on the result, which float32 ignores."""
    gamma, *others = model.get_layer("block2a_bn").get_weights()
    gamma[0] = 3000.0
    model.get_layer("block2a_bn").set_weights([gamma, *others])
    for name in ("block2a_project_conv", "block2a_se_reduce"):
        kernel, *bias = model.get_layer(name).get_weights()
        kernel[:, :, 0] = 0.0
        model.get_layer(name).set_weights([kernel, *bias])


@pytest.fixture(scope="module")
def wild(trained, tmp_path_factory):
    model, config = trained
    model = keras.models.clone_model(model)
    model.set_weights(trained[0].get_weights())
    make_wild(model)
    return write_run(tmp_path_factory.mktemp("runs") / "wild", model, config)


@pytest.mark.slow
@pytest.mark.parametrize(("suffix",), mostly_slow(SUFFIXES, (".xml",)))
def test_failing_int8_export_names_layers_whose_exclusion_helps(wild, suffix, tmp_path):
    path = str(tmp_path / f"net{suffix}")
    with pytest.raises(UserError) as caught:
        export_model(wild, path, "int8", calibration_images=40)
    message = str(caught.value)
    assert re.search(r"top-1 class on only [\d.]+% of 120 images. At least 98% is required", message)
    assert "calibration_images=160 (now 40)" in message
    named = re.findall(r"^  (\w+): ", message, re.MULTILINE)
    assert set(named[:2]) == {"block2a_dwconv", "block2a_project_conv"}
    assert os.listdir(tmp_path) == []
    remedy = re.search(r"keep_float=(\S+)", message)[1].split(",")
    assert remedy == named
    assert export_model(wild, path, "int8", calibration_images=40, keep_float=remedy[:2])["agreement"] >= 0.98


@pytest.mark.slow
def test_quantization_errors_are_measured_per_layer(wild):
    model, config, _ = restore_model(wild)
    folded = fold_batch_norm(model)
    images, _ = fitted.read_split(config, "val", 40)
    errors = measure_quantization_errors(folded, [image[None] for image in images], images)
    assert list(errors) == sorted(list_kernel_layers(folded), key=errors.get, reverse=True)
    ranked = list(errors.values())
    assert ranked[1] > 10 * ranked[2] and 0 < ranked[-1] < ranked[2]
    np.testing.assert_array_equal(folded.predict(images, verbose=0), fold_batch_norm(model).predict(images, verbose=0))


# ------------------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("net.onnx", {"precision": "dynamic"}, "for ONNX Runtime. Choose one of float32, float16, int8."),
        ("net.tflite", {"precision": "bfloat16"}, "for LiteRT. Choose one of float32, float16, dynamic, int8."),
        ("net.xml", {"keep_float": ["stem_conv"]}, "keep_float=stem_conv applies to precision=int8 only"),
        ("net.tflite", {"io": "int8"}, "io=int8 needs a network that is int8 throughout, received precision=float32"),
        ("net", {"io": "uint8"}, "io=uint8 needs a network that is int8 throughout, received precision=float32"),
        ("net.xml", {"precision": "int8", "io": "int8"}, "for OpenVINO. Choose one of float32."),
        ("net.onnx", {"precision": "int8", "io": "int4"}, "Choose one of float32, int8, uint8."),
        (
            "net.tflite",
            {"precision": "int8", "io": "int8", "keep_float": ["stem_conv"]},
            "received keep_float=stem_conv",
        ),
        (
            "net.xml",
            {"precision": "int8", "keep_float": ["stem_cov"]},
            "keep_float=stem_cov is not a convolution or dense layer of the model, which has stem_conv ... "
            "predictions. Did you mean 'stem_conv'?",
        ),
        ("none/net.onnx", {}, "is not a folder"),
        ("there.onnx", {}, "there.onnx exists"),
        ("there.xml", {}, "there.bin exists"),
        ("net.onnx", {"overrides": ["data.eval_split=test"]}, "has no split 'test'"),
    ],
)
def test_invalid_arguments(run, name, options, expected, tmp_path):
    for there in ("there.onnx", "there.bin"):
        (tmp_path / there).write_text("precious")
    with pytest.raises(UserError) as caught:
        export_model(run, str(tmp_path / name), **options)
    assert expected in str(caught.value)
    assert sorted(os.listdir(tmp_path)) == ["there.bin", "there.onnx"]
    assert (tmp_path / "there.bin").read_text() == "precious"


@pytest.mark.parametrize(
    ("suffix", "module"),
    [(".tflite", "ai_edge_litert.interpreter"), (".onnx", "tf2onnx"), (".xml", "openvino")],
)
def test_missing_package(run, suffix, module, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)  # marks a module as not importable
    extra = {".tflite": "litert", ".onnx": "onnx", ".xml": "openvino"}[suffix]
    with pytest.raises(UserError, match=rf"needs the module {module} .*pip install 'efficientnet_tf\[{extra}\]'"):
        export_model(run, str(tmp_path / f"net{suffix}"))


def test_file_that_differs_is_not_written(trained, tmp_path):
    model = keras.models.clone_model(trained[0])
    model.set_weights(trained[0].get_weights())
    kernel, bias = model.get_layer("predictions").get_weights()
    model.get_layer("predictions").set_weights([kernel, bias * np.nan])  # NaN differs even from itself
    run = write_run(tmp_path / "nan", model, trained[1])
    with pytest.raises(UserError, match="differs from the Keras model by nan .* was not written"):
        export_model(run, str(tmp_path / "net.xml"))
    assert os.listdir(tmp_path) == ["nan"]


@pytest.mark.parametrize("suffix", FORMATS)
def test_broken_files(float32, suffix, tmp_path):
    path = tmp_path / f"net{suffix}"
    with pytest.raises(UserError, match="no such file"):
        open_export(str(path))
    path.write_bytes(Path(float32[suffix][0]).read_bytes()[:1000])
    (tmp_path / "net.bin").write_bytes(b"0")
    with pytest.raises(UserError, match=rf"net\{suffix} is damaged"):
        open_export(str(path))


def strip(path, stripped):
    """Write a copy of an exported file without its texts."""
    if path.suffix == ".onnx":
        import onnx

        network = onnx.load(path)
        del network.metadata_props[:]
        onnx.save(network, stripped)
    elif path.suffix == ".xml":
        import openvino

        network = openvino.Core().read_model(path)
        openvino.save_model(openvino.Model(network.outputs, network.get_parameters()), stripped)
    else:
        with zipfile.ZipFile(path) as archive:
            start = archive.infolist()[0].header_offset
        stripped.write_bytes(path.read_bytes()[:start])


@pytest.mark.parametrize("suffix", FORMATS)
def test_files_of_other_tools_are_refused(float32, suffix, tmp_path):
    strip(Path(float32[suffix][0]), tmp_path / f"net{suffix}")
    with pytest.raises(UserError, match="because it does not contain config.yaml, classes.txt, precision"):
        evaluate_model(str(tmp_path / f"net{suffix}"), strategy=tiny.make_strategy(1))


@pytest.mark.slow
def test_command(run, tmp_path, capsys):
    output = tmp_path / "net.xml"
    done = run_process("export", f"--model_dir={run}", f"--output={output}", "--precision=bfloat16")
    assert done.returncode == 0, done.stderr
    assert re.search(r"bfloat16, 0\.1 MB\)\. In OpenVINO, on 120 images .* agrees on (99|100)\.\d+%", done.stdout)
    done = run_process("evaluate", f"--model_dir={output}")
    assert done.returncode == 0 and done.stdout.endswith("on 120 images, exported model\n"), done.stderr
    status = exit_status("export", f"--model_dir={run}", f"--output={tmp_path / 'out'}", "--precision=int8")
    assert "--precision=int8 does not apply to --output=" in find_error(status, capsys.readouterr().err)
