"""Models for several labels and for numbers, end to end on digits, checked with scikit-learn."""

import csv
import json
import re

import numpy as np
import pytest
import recast
import sklearn.metrics
import tensorflow as tf
import tiny
from commands import exit_status

from efficientnet_tf import evaluate_model, export_model, load_model, predict_images
from efficientnet_tf.config.errors import UserError
from efficientnet_tf.training.trainer import train_model
from efficientnet_tf.training.transfer import read_initial_weights

SETTINGS = {
    "multilabel": ["data.task=multilabel"],
    "regression": ["data.task=regression", "data.label_columns=value"],
}


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """The folder of the tables, and the digits of the validation images."""
    root = tmp_path_factory.mktemp("recast")
    return root, recast.write_table(root)


def make_config(root, task, *overrides):
    sizes = ["data.image_size=16", "train.batch_size=64", "train.epochs=12", "schedule.warmup_epochs=1"]
    data = ["data.source=table", f"data.dir={root}", "data.eval_split=val"]
    return tiny.load_config(*data, *sizes, tiny.SHORT, "eval.every_epochs=12", *SETTINGS[task], *overrides)


@pytest.fixture(scope="module")
def trained(digits, tmp_path_factory):
    """Function of a task that returns a model directory and the results of training, made once."""
    made = {}

    def train(task):
        if task not in made:
            model_dir = str(tmp_path_factory.mktemp(task))
            made[task] = model_dir, train_model(make_config(digits[0], task), model_dir)
        return made[task]

    return train


def images_of(root):
    """Return the paths of the validation images, in the order of the table."""
    with (root / "val.csv").open() as file:
        return [str(root / row["path"]) for row in csv.DictReader(file)]


def test_labels(trained, digits):
    model_dir, results = trained("multilabel")
    root, values = digits
    model = load_model(model_dir)
    assert (model.task, model.class_names) == ("multilabel", recast.LABELS)
    outputs = model(np.stack([model.load_image(path) for path in images_of(root)]))
    true, predicted = np.array([*map(recast.flags_of, values)]), outputs > 0
    result = evaluate_model(model_dir)
    assert result["f1"] == pytest.approx(sklearn.metrics.f1_score(true, predicted, average="macro"), abs=1e-6)
    assert result["exact"] == pytest.approx(sklearn.metrics.accuracy_score(true, predicted), abs=1e-6)
    probability = 1 / (1 + np.exp(-outputs.astype(float)))
    losses = [sklearn.metrics.log_loss(true[:, i], probability[:, i]) for i in range(2)]
    assert result["loss"] == pytest.approx(np.mean(losses), rel=1e-4)
    assert result == pytest.approx(results["ema"], abs=1e-5)
    assert result["f1"] > 0.75, "chance is about 0.5"


def test_numbers(trained, digits):
    model_dir, results = trained("regression")
    root, values = digits
    model = load_model(model_dir)
    assert (model.task, model.class_names) == ("regression", ["value"])
    outputs = model(np.stack([model.load_image(path) for path in images_of(root)]))[:, 0]
    result = evaluate_model(model_dir)
    assert result["mae"] == pytest.approx(sklearn.metrics.mean_absolute_error(values, outputs), rel=1e-4)
    assert result["r2"] == pytest.approx(sklearn.metrics.r2_score(values, outputs), rel=1e-4, abs=1e-4)
    assert result == pytest.approx(results["ema"], abs=1e-5)
    assert result["r2"] > 0.4, "the mean of the training images has 0"


@pytest.mark.parametrize("task", [*SETTINGS])
def test_all_metrics(trained, digits, task, tmp_path):
    """The files of the command agree with scikit-learn on the outputs of the model."""
    model_dir, _ = trained(task)
    root, values = digits
    flags = [f"--{name}={tmp_path}/{name}.{end}" for name, end in (("metrics", "json"), ("report", "html"))]
    flags.append(f"--per_class={tmp_path}/rows.json")
    assert exit_status("evaluate", f"--model_dir={model_dir}", *flags) == 0
    found = json.loads((tmp_path / "metrics.json").read_text())
    assert json.loads((tmp_path / "rows.json").read_text()) == found["rows"]
    assert "digit" not in (tmp_path / "report.html").read_text()[:200]
    model = load_model(model_dir)
    outputs = model(np.stack([model.load_image(path) for path in images_of(root)]))
    if task == "regression":
        assert found["summary"]["rmse"] == pytest.approx(
            sklearn.metrics.root_mean_squared_error(values, outputs[:, 0]), rel=1e-4
        )
        return
    true, scores = np.array([*map(recast.flags_of, values)]), 1 / (1 + np.exp(-outputs.astype(float)))
    for average in ("macro", "weighted", "micro"):
        for name in ("precision", "recall", "f1"):
            score = getattr(sklearn.metrics, f"{name}_score")(true, scores > 0.5, average=average)
            assert found["summary"][f"{average}_{name}"] == pytest.approx(score, rel=1e-4)
    for name, function in (("average_precision", "average_precision_score"), ("auroc", "roc_auc_score")):
        score = getattr(sklearn.metrics, function)(true, scores, average="macro")
        assert found["summary"][f"macro_{name}"] == pytest.approx(score, rel=1e-3)


def test_statistics_of_numbers_are_those_of_training(trained):
    model_dir, _ = trained("regression")
    data = load_model(model_dir).config.data
    with open(f"{data.dir}/train.csv") as file:
        values = [float(row["value"]) for row in csv.DictReader(file)]
    assert data.target_mean == pytest.approx([np.mean(values)], rel=1e-5)
    assert data.target_std == pytest.approx([np.std(values)], rel=1e-5)


@pytest.mark.parametrize("task", [*SETTINGS])
def test_a_finished_run_goes_on_with_the_same_command(trained, digits, task):
    """The statistics of the numbers are in the directory only. The command does not state them."""
    model_dir, results = trained(task)
    again = train_model(make_config(digits[0], task), model_dir)
    assert again["finished"] and again["ema"] == pytest.approx(results["ema"])


@pytest.mark.parametrize("task", [*SETTINGS])
def test_predictions(trained, digits, task, tmp_path, capsys):
    model_dir, _ = trained(task)
    paths = images_of(digits[0])[:3]
    answers = predict_images(model_dir, paths)
    logits = load_model(model_dir)(np.stack([load_model(model_dir).load_image(path) for path in paths]))
    for row, answer in zip(logits, answers, strict=True):
        if task == "regression":
            assert answer == [("value", pytest.approx(float(row[0]), rel=1e-5))]
        else:
            expected = dict(zip(recast.LABELS, 1 / (1 + np.exp(-row)), strict=True))
            assert dict(answer) == pytest.approx(expected, rel=1e-4)
            assert answer[0][1] >= answer[1][1]
    for ending in ("csv", "jsonl"):
        output = tmp_path / f"out.{ending}"
        assert exit_status("predict", f"--model_dir={model_dir}", f"--output={output}", *paths) == 0
        lines = output.read_text().splitlines()
        if ending == "csv":
            header = "path,value" if task == "regression" else "path,label_1,probability_1,label_2,probability_2"
            assert lines[0] == header and len(lines) == 4
        elif task == "regression":
            assert json.loads(lines[0])["numbers"] == pytest.approx(dict(answers[0]), rel=1e-5)
        else:
            assert len(json.loads(lines[0])["labels"]) == 2
    capsys.readouterr()
    assert exit_status("predict", f"--model_dir={model_dir}", *paths) == 0
    first = capsys.readouterr().out.splitlines()[0]
    form = (
        r".*: value -?[\d.]+"
        if task == "regression"
        else r".*: ((even|large) [\d.]+%(, )?)+|.*: nothing over the threshold"
    )
    assert re.fullmatch(form, first)


def test_a_threshold(trained, digits, tmp_path, capsys):
    """It leaves out labels in every format, and the tables keep their columns."""
    model_dir, _ = trained("multilabel")
    paths = images_of(digits[0])[:20]
    expected = {path: [p for p in answer if p[1] >= 0.6] for path, answer in zip(
        paths, predict_images(model_dir, paths), strict=True
    )}  # fmt: skip
    assert 0 < sum(map(len, expected.values())) < 40
    flags = [f"--model_dir={model_dir}", "--threshold=0.6", *paths]
    assert exit_status("predict", f"--output={tmp_path}/t.csv", "--top=2", *flags) == 0
    with open(tmp_path / "t.csv") as file:
        for row in csv.DictReader(file):
            names = [row[f"label_{i}"] for i in (1, 2) if row[f"label_{i}"]]
            assert names == [name for name, _ in expected[row["path"]]]
    capsys.readouterr()
    assert exit_status("predict", *flags) == 0
    for line, path in zip(capsys.readouterr().out.splitlines(), paths, strict=True):
        found = [f"{name} {probability:.1%}" for name, probability in expected[path]]
        assert line == f"{path}: {', '.join(found) or 'nothing over the threshold'}"
    assert exit_status("predict", f"--model_dir={trained('regression')[0]}", "--threshold=0.6", *paths) == 1
    assert "--threshold=0.6 is for classes and labels" in capsys.readouterr().err
    assert exit_status("predict", f"--model_dir={model_dir}", "--threshold=1.5", *paths) == 1
    assert "--threshold=1.5 is not possible" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("task", [*SETTINGS])
def test_saved_model(trained, task, tmp_path):
    model_dir, _ = trained(task)
    export_model(model_dir, str(tmp_path / "served"))
    signatures = tf.saved_model.load(str(tmp_path / "served")).signatures
    pixels = np.random.default_rng(0).uniform(0, 255, (2, 16, 16, 3)).astype(np.float32)
    answer = {name: value.numpy() for name, value in signatures["serving_default"](image=pixels).items()}
    np.testing.assert_allclose(answer["logits"], load_model(model_dir)(pixels), rtol=1e-3, atol=1e-4)
    if task == "regression":
        assert "classify_bytes" not in signatures
        np.testing.assert_array_equal(answer["numbers"], answer["logits"])
    else:
        np.testing.assert_allclose(answer["probabilities"], 1 / (1 + np.exp(-answer["logits"])), rtol=1e-4)
    np.testing.assert_allclose(load_model(str(tmp_path / "served"))(pixels), answer["logits"], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("task", [*SETTINGS])
@pytest.mark.parametrize(("ending", "precision"), [("tflite", "float32"), ("tflite", "int8"), ("onnx", "float32")])
def test_files(trained, digits, task, ending, precision, tmp_path):
    model_dir, _ = trained(task)
    output = str(tmp_path / f"model.{ending}")
    result = export_model(model_dir, output, precision, images=200)
    assert result["agreement"] >= 0.98
    exported, model = load_model(output), load_model(model_dir)
    assert (exported.task, exported.class_names) == (model.task, model.class_names)
    pixels = np.stack([model.load_image(path) for path in images_of(digits[0])[:50]])
    expected, found = model(pixels), exported(pixels)
    if precision == "float32":
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)
    elif task == "regression":
        assert np.mean((found - expected) ** 2) < 0.02 * model.config.data.target_std[0] ** 2
    else:
        assert np.mean((found > 0) == (expected > 0)) >= 0.95


@pytest.mark.slow
def test_training_for_int8(trained, digits, tmp_path):
    """Numbers are computed in float from the rounded output of the network."""
    initial = f"train.init_from={trained('regression')[0]}"
    config = make_config(digits[0], "regression", "train.quantize=int8", "train.epochs=4", initial)
    results = train_model(config, str(tmp_path / "run"))
    assert results["ema"]["r2"] > 0.4
    assert export_model(str(tmp_path / "run"), str(tmp_path / "net.tflite"), "int8", images=200)["agreement"] >= 0.98


@pytest.mark.parametrize("task", [*SETTINGS])
def test_what_is_for_classes_only(trained, digits, task, tmp_path, capsys):
    model_dir, _ = trained(task)
    assert exit_status("evaluate", f"--model_dir={model_dir}", f"--confusion={tmp_path}/a.png") == 1
    message = f"--confusion={tmp_path}/a.png is for a model that predicts classes, and this one has data.task={task}"
    assert message in capsys.readouterr().err
    assert exit_status("push", f"--model_dir={model_dir}", f"--to={tmp_path}/published") == 1
    assert f"has data.task={task}" in capsys.readouterr().err
    if task == "regression":
        integers = [f"--output={tmp_path}/net.tflite", "--precision=int8", "--io=int8"]
        assert exit_status("export", f"--model_dir={model_dir}", *integers) == 1
        assert "--io=int8 is not available for data.task=regression" in capsys.readouterr().err
        assert exit_status("serve", f"--model_dir={model_dir}") == 1
        assert "predicts numbers" in capsys.readouterr().err
        photo = images_of(digits[0])[0]
        assert exit_status("explain", f"--model_dir={model_dir}", f"--output={tmp_path}/e.png", photo) == 1
        assert "predicts numbers" in capsys.readouterr().err


def test_a_new_task_has_a_new_head(trained, digits):
    """The names are the same, but the outputs mean something else."""
    model_dir, _ = trained("regression")
    data = ["data.task=multilabel", "data.label_columns=[even, large]"]
    config = make_config(digits[0], "multilabel", *data, f"train.init_from={model_dir}", "train.epochs=1")
    assert "classes or the task are different" in read_initial_weights(config, ["value"]).message


@pytest.mark.parametrize(
    ("task", "override", "message"),
    [
        ("multilabel", "train.loss=cross_entropy", "train.loss=cross_entropy is not for data.task=multilabel. Use one"),
        ("regression", "train.loss=bce", "train.loss=bce is not for data.task=regression. Use one of mse, mae, huber"),
        ("multilabel", "eval.best=top1", "eval.best=top1 is not for data.task=multilabel. Use one of f1, exact, loss"),
        ("regression", "eval.best=f1", "eval.best=f1 is not for data.task=regression. Use one of mae, r2, loss"),
        ("regression", "data.target_std=[1, 2]", "need one value each"),
        ("multilabel", "data.target_mean=[1]", "are for data.task=regression"),
        ("multilabel", "data.label_columns=[path]", "names columns of labels, each once, received ['path']"),
        ("multilabel", "data.label_columns=[a, A]", "each once, received ['a', 'A']"),
        ("multilabel", "data.task=labels", "Input should be 'classification', 'multilabel' or 'regression'"),
        ("multilabel", "data.label_separator=", "data.label_separator"),
        ("regression", "data.target_std=[0]", "greater than 0"),
    ],
)
def test_configs_that_contradict_themselves(digits, task, override, message):
    with pytest.raises(UserError) as caught:
        make_config(digits[0], task, override)
    assert message in str(caught.value)


def test_statistics_for_another_count_of_numbers(digits, tmp_path):
    config = make_config(digits[0], "regression", "data.target_mean=[1, 2]", "data.target_std=[1, 2]")
    with pytest.raises(UserError, match="data.target_mean has 2 values, but the data has 1 numbers: value"):
        train_model(config, str(tmp_path / "run"))


@pytest.mark.parametrize(
    ("task", "changes"),
    [
        ("multilabel", ["data.task=classification"]),
        ("regression", ["data.task=classification"]),
        ("regression", ["data.target_mean=[1]", "data.target_std=[1]"]),
    ],
)
def test_a_run_keeps_its_task(trained, digits, task, changes):
    model_dir, _ = trained(task)
    with pytest.raises(UserError, match="belongs to a run with another config"):
        train_model(make_config(digits[0], task, *changes), model_dir)


@pytest.mark.slow
@pytest.mark.parametrize("best", ["exact", pytest.param("mae", marks=pytest.mark.nightly), "r2"])
def test_the_best_checkpoint_by_each_metric(digits, best, tmp_path):
    task = "multilabel" if best == "exact" else "regression"
    config = make_config(digits[0], task, f"eval.best={best}", "eval.every_epochs=1", "train.epochs=3")
    result = train_model(config, str(tmp_path / "run"))
    with open(tmp_path / "run" / "metrics.jsonl") as file:
        lines = [json.loads(line) for line in file]
    values = {line["step"]: line[best] for line in lines if line["kind"] == "eval/ema"}
    assert len(values) == 3
    assert result["best_step"] == (min if best == "mae" else max)(values, key=values.__getitem__)
