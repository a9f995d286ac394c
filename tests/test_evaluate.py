"""Evaluation on ImageNet's other test sets and by class, and the command.

The test sets are small, in the layouts of the real ones. Expected values are computed by numpy from `model.predict`.
"""

import csv
import functools
import json
import re
import shutil
import sys

import keras
import numpy as np
import PIL.Image
import pytest
import tensorflow as tf
import tiny

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.load import override_config
from efficientnet_tf.data.open import open_source
from efficientnet_tf.data.pipeline import eval_image
from efficientnet_tf.evaluate import evaluate_model, main, make_parser
from efficientnet_tf.evaluation.loop import make_evaluator
from efficientnet_tf.export.evaluation_data import folder_overrides
from efficientnet_tf.export.load import load_model
from efficientnet_tf.models.model_dir import open_model_dir, read_config, restore_model
from efficientnet_tf.models.variables import batch_norm_statistics
from efficientnet_tf.training.checkpoint import Checkpointer
from efficientnet_tf.training.state import create_state

SYNSETS = [f"n{number:08d}" for number in (1440764, 1443537, 1484850, 1491361, 1494475, 1496331)]
SYNSETS += [f"n{number:08d}" for number in (1498041, 1514668, 1514859, 1518878, 1530575, 1531178)]
PER_CLASS = 5


def write_photo(path, seed):
    """Write a picture of broad tiles in random colors, many of which even an untrained network can tell apart."""
    rng = np.random.default_rng(seed)
    pixels = np.kron(rng.integers(0, 256, (4, 4, 3)), np.ones((12, 12, 1))).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(pixels).save(path)


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """Write small copies of ImageNet's validation images, V2 and A: 12 classes, and 4 of them for A."""
    root = tmp_path_factory.mktemp("sets")
    numbers = np.random.default_rng(0).permutation(12 * PER_CLASS) + 1
    for i, number in enumerate(numbers):
        write_photo(root / "val" / SYNSETS[i // PER_CLASS] / f"ILSVRC2012_val_{number:08d}.png", i)
    for label in range(12):
        for i in range(PER_CLASS):
            write_photo(root / "v2" / str(label) / f"{i}.png", 1000 + label * PER_CLASS + i)
    for label in (10, 2, 3, 7):
        for i in range(2 * PER_CLASS):
            write_photo(root / "imagenet-a" / SYNSETS[label] / f"{i}.png", 2000 + label * 100 + i)
    (root / "imagenet-a" / "README.txt").write_text("not a class")
    return root


def save_run(model_dir, class_names, *overrides):
    """Write a model directory as a run does, with random weights that differ between raw and EMA."""
    config = tiny.load_config(
        tiny.SHORT, "data.source=folder", "data.dir=nowhere", "data.eval_split=val", "eval.batch_size=14", *overrides
    )
    state = create_state(config, len(class_names), 100, tiny.make_strategy(1))
    weights = [*state.model.trainable_variables, *batch_norm_statistics(state.model)]
    parts = [weights]
    if state.ema:
        # The raw weights come last, so that they stay in the model.
        parts.insert(0, [*state.ema.trainable, *state.ema.statistics])
    rng = np.random.default_rng(1)
    noise = rng.integers(0, 256, (64, 4, 4, 3)).repeat(8, axis=1).repeat(8, axis=2).astype("float32")
    for part in parts:
        for variable in weights:
            if "moving_variance" not in variable.path:
                variable.assign(variable.numpy() + rng.normal(0, 0.2, variable.shape))
        kernel, bias = state.model.get_layer("predictions").weights
        kernel.assign(rng.normal(0, 2, kernel.shape))
        # Center the logits, so that no class is predicted for all images.
        bias.assign(bias.numpy() - state.model(noise).numpy().mean(axis=0))
        for variable, value in zip(part, weights, strict=True):
            variable.assign(value.numpy())
    open_model_dir(str(model_dir), config, class_names)
    Checkpointer(str(model_dir), state, config).save()
    return str(model_dir)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return save_run(tmp_path_factory.mktemp("runs") / "twelve", SYNSETS)


@pytest.fixture(scope="module")
def strategy():
    return tiny.make_strategy(1)


@functools.cache
def load(run, raw=False):
    return load_model(run, raw)


@functools.cache
def predict(run, folder, raw=False):
    """Return paths, folder names and `model.predict`'s logits [N, 12] of all images in class folders."""
    model = load(run, raw)
    paths = sorted(folder.glob("*/*.png"))
    images = np.stack([eval_image(tf.io.read_file(str(path)), model.config).numpy() for path in paths])
    return paths, [path.parent.name for path in paths], model.keras_model.predict(images, verbose=0)


def score(logits, labels):
    """Return the metrics of logits."""
    logits = logits.astype(float)
    logs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    order = np.argsort(-logits, axis=1)
    scores = {
        "examples": len(labels),
        "loss": -logs[np.arange(len(labels)), labels].mean(),
        "top1": (order[:, 0] == labels).mean(),
    }
    if logits.shape[1] > 5:  # Of up to five classes, it would be 1.
        scores["top5"] = (order[:, :5] == np.array(labels)[:, None]).any(axis=1).mean()
    return scores


def evaluate_folder(model, strategy, folder, *overrides, **options):
    return evaluate_model(model, folder=str(folder), strategy=strategy, overrides=overrides, **options)


def real_lists(count, classes=12):
    """Return random ReaL labels: none, one, or several per image."""
    rng = np.random.default_rng(5)
    return [sorted(rng.choice(classes, rng.integers(0, 6), replace=False).tolist()) for _ in range(count)]


def write_json(path, value):
    path.write_text(json.dumps(value))
    return str(path)


# ------------------------------------------------------------------------------------------------ sets of classes


@pytest.mark.parametrize("raw", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_numbered_folders_are_label_numbers(run, sets, strategy, raw):
    """The folders of ImageNet-V2 are numbers, which sort as 0, 1, 10, 11, 2, ..."""
    _, folders, logits = predict(run, sets / "v2", raw)
    expected = score(logits, [int(name) for name in folders])
    assert sorted(set(folders)) != sorted(set(folders), key=int)
    wrong = score(logits, [sorted(set(folders)).index(name) for name in folders])
    assert expected["loss"] != pytest.approx(wrong["loss"], rel=1e-3)
    other_weights = score(predict(run, sets / "v2", not raw)[-1], [int(name) for name in folders])
    assert expected["loss"] != pytest.approx(other_weights["loss"], rel=1e-3)
    result = evaluate_folder(load(run, raw), strategy, sets / "v2", raw=raw)
    assert result == pytest.approx(expected, rel=1e-5)


def expect_imagenet_a(run, sets):
    """Return the metrics if only the logits of the data's 4 classes compete."""
    columns = [2, 3, 7, 10]
    _, folders, logits = predict(run, sets / "imagenet-a")
    labels = [columns.index(SYNSETS.index(name)) for name in folders]
    expected = score(logits[:, columns], labels)
    among_all = score(logits, [columns[label] for label in labels])
    assert expected["top1"] > among_all["top1"]
    return expected | {"classes": 4, "model_classes": 12}


def test_only_the_classes_of_the_data_compete(run, sets, strategy):
    """This is usual for ImageNet-A and ImageNet-R."""
    result = evaluate_folder(load(run), strategy, sets / "imagenet-a")
    assert result == pytest.approx(expect_imagenet_a(run, sets), rel=1e-5)


def open_folder(run, folder):
    config = read_config(run)
    config = override_config(config, folder_overrides(str(folder)))
    return config, open_source(config.data, config.data.eval_split, training=False)


def test_training_folder_next_to_the_set_does_not_matter(run, sets, tmp_path):
    shutil.copytree(sets / "imagenet-a", tmp_path / "imagenet-a")
    shutil.copytree(sets / "val", tmp_path / "train")
    _, source = open_folder(run, tmp_path / "imagenet-a")
    assert list(source.class_names) == [SYNSETS[i] for i in (2, 3, 7, 10)] and source.size == 40


# ------------------------------------------------------------------------------------------------------ ReaL


def real_score(paths, predicted, lists):
    """Return the ReaL accuracy of predicted label numbers, and the number of images that have labels."""
    labels = [lists[int(re.search(r"val_(\d{8})", path.name)[1]) - 1] for path in paths]
    hits = [prediction in real for prediction, real in zip(predicted, labels, strict=True) if real]
    return {"real": np.mean(hits), "real_examples": len(hits)}


def test_real_labels(run, sets, strategy, tmp_path):
    lists = real_lists(60)
    assert [] in lists and max(map(len, lists)) > 2
    paths, folders, logits = predict(run, sets / "val")
    expected = score(logits, [SYNSETS.index(name) for name in folders])
    expected |= real_score(paths, logits.argmax(axis=1), lists)
    assert expected["real"] != expected["top1"] and 0 < expected["real"] < 1
    path = write_json(tmp_path / "real.json", lists)
    result = evaluate_folder(load(run), strategy, sets / "val", "data.cache=memory", real_labels=path)
    assert result == pytest.approx(expected, rel=1e-5)


def test_real_labels_of_some_classes(run, sets, strategy, tmp_path):
    """With three folders, three classes compete. A label of another class is never hit, but its image counts."""
    for label in (1, 4, 8):
        shutil.copytree(sets / "val" / SYNSETS[label], tmp_path / "part" / SYNSETS[label])
    lists = real_lists(60)
    paths, _, logits = predict(run, tmp_path / "part")
    predicted = np.array([1, 4, 8])[logits[:, [1, 4, 8]].argmax(axis=1)]
    path = write_json(tmp_path / "real.json", lists)
    result = evaluate_folder(load(run), strategy, tmp_path / "part", real_labels=path)
    expected = real_score(paths, predicted, lists)
    assert {key: result[key] for key in expected} == pytest.approx(expected)


def test_real_labels_of_a_table(run, sets, strategy, tmp_path):
    paths, folders, logits = predict(run, sets / "val")
    rows = "".join(f"{path},{name}\n" for path, name in zip(paths, folders, strict=True))
    for split in ("train", "val"):
        (tmp_path / f"{split}.csv").write_text("path,label\n" + rows)
    lists = real_lists(60)
    path = write_json(tmp_path / "real.json", lists)
    overrides = ["data.source=table", f"data.dir={tmp_path}"]
    result = evaluate_model(load(run), strategy=strategy, overrides=overrides, real_labels=path)
    expected = real_score(paths, logits.argmax(axis=1), lists)
    assert {key: result[key] for key in expected} == pytest.approx(expected)


def write_records(folder, paths, labels, key="image/filename"):
    def feature(value):
        if isinstance(value, int):
            return tf.train.Feature(int64_list=tf.train.Int64List(value=[value]))
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))

    folder.mkdir()
    with tf.io.TFRecordWriter(str(folder / "val-00000-of-00001")) as writer:
        for path, label in zip(paths, labels, strict=True):
            values = {"image/encoded": path.read_bytes(), "image/class/label": label + 1, key: path.name.encode()}
            features = tf.train.Features(feature={name: feature(value) for name, value in values.items()})
            writer.write(tf.train.Example(features=features).SerializeToString())


def test_real_labels_of_records(run, sets, strategy, tmp_path):
    """The official tools write the name of the file to image/filename."""
    paths, folders, logits = predict(run, sets / "val")
    labels = [SYNSETS.index(name) for name in folders]
    lists = real_lists(60)
    path = write_json(tmp_path / "real.json", lists)
    expected = real_score(paths, logits.argmax(axis=1), lists)
    write_records(tmp_path / "named", paths, labels)
    (tmp_path / "named" / "classes.txt").write_text("".join(f"{name}\n" for name in SYNSETS))
    overrides = ["data.source=records", f"data.dir={tmp_path / 'named'}"]
    result = evaluate_model(load(run), strategy=strategy, overrides=overrides, real_labels=path)
    assert {key: result[key] for key in expected} == pytest.approx(expected)

    write_records(tmp_path / "nameless", paths, labels, key="image/other")
    overrides = ["data.source=records", f"data.dir={tmp_path / 'nameless'}", "data.classes=12"]
    with pytest.raises(UserError, match=r"file names contain ILSVRC2012_val_00000001 to 00000060, .*''"):
        evaluate_model(load(run), strategy=strategy, overrides=overrides, real_labels=path)


def test_real_labels_of_tensorflow_datasets(run, sets, strategy, tmp_path):
    """The feature file_name has the name of the file, as in imagenet2012."""
    import tensorflow_datasets as tfds

    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(None, None, 3), encoding_format="png"),
            "label": tfds.features.ClassLabel(names=SYNSETS),
            "file_name": tfds.features.Text(),
        }
    )

    class Few(tfds.core.GeneratorBasedBuilder):
        """Validation images."""

        VERSION = tfds.core.Version("1.0.0")
        name = "few_real"

        def _info(self):
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, manager):
            return {"val": self._generate_examples()}

        def _generate_examples(self):
            for path in sorted((sets / "val").glob("*/*.png")):
                yield path.name, {"image": str(path), "label": path.parent.name, "file_name": path.name}

    Few(data_dir=tmp_path).download_and_prepare()
    paths, _, logits = predict(run, sets / "val")
    lists = real_lists(60)
    path = write_json(tmp_path / "real.json", lists)
    overrides = ["data.source=tfds:few_real", f"data.dir={tmp_path}"]
    result = evaluate_model(load(run), strategy=strategy, overrides=overrides, real_labels=path)
    expected = real_score(paths, logits.argmax(axis=1), lists)
    assert {key: result[key] for key in expected} == pytest.approx(expected)


@pytest.mark.slow
def test_images_without_a_number(run, sets, strategy, tmp_path):
    path = write_json(tmp_path / "real.json", real_lists(60))
    with pytest.raises(UserError, match=r"to 00000060, but 1 names have no such number: .*v2/0/0\.png"):
        evaluate_folder(load(run), strategy, sets / "v2", real_labels=path)
    with pytest.raises(UserError, match="this data has no file names. Its first image is 'digit test 0'."):
        overrides = ["data.source=digits", "data.eval_split=test"]
        evaluate_model(load(run), strategy=strategy, overrides=overrides, real_labels=path)
    shutil.copytree(sets / "val", tmp_path / "val")
    last = tmp_path / "val" / SYNSETS[-1]
    for name in ("ILSVRC2012_val_00000061.png", "ILSVRC2012_val_000000012.png", "z_ILSVRC2012_val_00000002.png"):
        write_photo(last / name, 0)
    with pytest.raises(UserError, match=r"2 names have no such number: .*_000000012\.png', .*_00000061\.png'$"):
        evaluate_folder(load(run), strategy, tmp_path / "val", real_labels=path)
    with pytest.raises(UserError, match="None of the 60 images has real labels"):
        path = write_json(tmp_path / "real.json", [[]] * 60)
        evaluate_folder(load(run), strategy, sets / "val", real_labels=path)


# -------------------------------------------------------------------------------------------------- by class


def test_results_per_class(run, sets, strategy, tmp_path):
    _, folders, logits = predict(run, sets / "v2")
    order = sorted(set(folders))
    expected = np.zeros((12, 12), int)
    for name, guess in zip(folders, logits.argmax(axis=1), strict=True):
        expected[order.index(name), order.index(str(guess))] += 1
    assert 0 < np.trace(expected) < 60 and len(set(np.diag(expected))) > 1
    table, rows, picture = (tmp_path / name for name in ("by_class.csv", "by_class.json", "matrix.png"))
    result = evaluate_folder(load(run), strategy, sets / "v2", per_class=str(table), confusion=str(picture))
    assert result["confusion"] == expected.tolist()
    assert result["top1"] == pytest.approx(np.trace(expected) / 60)
    lines = list(csv.DictReader(table.read_text().splitlines()))
    assert list(lines[0]) == ["class", "examples", "correct", "accuracy"]
    assert [line["class"] for line in lines] == [SYNSETS[int(name)] for name in order]
    assert [int(line["examples"]) for line in lines] == [PER_CLASS] * 12
    assert [int(line["correct"]) for line in lines] == np.diag(expected).tolist()
    assert [float(line["accuracy"]) for line in lines] == pytest.approx(np.diag(expected) / PER_CLASS)
    again = evaluate_folder(load(run), strategy, sets / "v2", per_class=str(rows))
    assert "confusion" not in again
    assert json.loads(rows.read_text()) == again["per_class"] == result["per_class"]
    with PIL.Image.open(picture) as image:
        assert image.format == "PNG" and min(image.size) > 12 * 40


@pytest.mark.slow
def test_results_do_not_depend_on_replicas(run, sets, tmp_path):
    """60 images in batches of 16 need padding, and three replicas share batches of 18."""
    path = write_json(tmp_path / "real.json", real_lists(60))
    options = {"real_labels": path, "confusion": str(tmp_path / "matrix.png")}
    results = [
        evaluate_folder(run, tiny.make_strategy(count), sets / "val", "eval.batch_size=16", **options)
        for count in (1, 3)
    ]
    assert np.sum(results[1]["confusion"]) == 60
    for key in ("confusion", "real", "real_examples", "top1", "top5"):
        assert results[0][key] == results[1][key]


def test_nan_belongs_to_no_class(run, sets, strategy):
    config, source = open_folder(run, sets / "v2")

    def logits_of(images):
        return tf.where(tf.range(12) == 3, np.nan, tf.zeros([tf.shape(images)[0], 12]))

    evaluator = make_evaluator(logits_of, source, config, strategy, confusion=True)
    with pytest.raises(UserError, match="The logits of 60 images contain NaN"):
        evaluator()


def test_too_many_classes_for_a_picture(strategy, tmp_path):
    names = [f"class{i:03d}" for i in range(101)]
    run = save_run(tmp_path / "run", names)
    for i, name in enumerate(names):
        write_photo(tmp_path / "set" / name / "0.png", i)
    with pytest.raises(
        UserError, match=r"confusion=.* cannot show the data's 101 classes, at most 100. Use per_class=FILE.csv"
    ):
        evaluate_folder(load(run), strategy, tmp_path / "set", confusion=str(tmp_path / "matrix.png"))


@pytest.mark.parametrize(
    ("option", "path", "part"),
    [
        (
            "per_class",
            "table.txt",
            "per_class=table.txt has an unknown file type. Use a name that ends in .csv or .json.",
        ),
        ("confusion", "matrix.jpg", "confusion=matrix.jpg has an unknown file type. Use a name that ends in .png."),
        (
            "per_class",
            "/dev/null/t.csv",
            "per_class=/dev/null/t.csv cannot be written because '/dev/null' is not a folder.",
        ),
    ],
)
def test_unwritable_files_are_reported_before_the_work(option, path, part):
    with pytest.raises(UserError, match=re.escape(part)):
        evaluate_model("nowhere", strategy=None, **{option: path})


def test_missing_matplotlib_is_reported_before_the_work(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UserError, match="confusion draws with matplotlib, which is not installed"):
        evaluate_model("nowhere", strategy=None, confusion="matrix.png")


# -------------------------------------------------------------------------------------------------- the command


def call(capsys, *arguments):
    main(make_parser().parse_args([*map(str, arguments), "--device=cpu"]))
    return capsys.readouterr().out


def test_output_of_the_command(run, sets, tmp_path, capsys):
    for label in (1, 4, 8):
        shutil.copytree(sets / "val" / SYNSETS[label], tmp_path / "part" / SYNSETS[label])
    table, picture = tmp_path / "t.csv", tmp_path / "m.png"
    lists = [[number % 12] for number in range(60)]
    arguments = [f"--model_dir={run}", f"--folder={tmp_path / 'part'}", f"--per_class={table}"]
    arguments += [f"--confusion={picture}", f"--real_labels={write_json(tmp_path / 'real.json', lists)}"]
    lines = call(capsys, *arguments).splitlines()
    assert re.fullmatch(r"top-1 \d+\.\d\d%, loss \d+\.\d+ on 15 images, EMA", lines[0])
    assert re.fullmatch(r"ImageNet-ReaL: \d+\.\d\d% of the 15 images with labels", lines[1])
    assert lines[2] == "Only the data's 3 of the model's 12 classes compete."
    assert re.fullmatch(rf"{table}: 3 classes, the worst is n\d{{8}} with \d of 5 images correct", lines[3])
    assert (
        lines[4] == f"{picture}: 3 classes, the true ones as rows and the predicted ones as columns" and len(lines) == 5
    )
    said = json.loads(call(capsys, *arguments, "--json"))
    keys = {"examples", "loss", "top1", "real", "real_examples", "classes", "model_classes", "per_class"}
    assert said.keys() == keys | {"confusion"}
    assert f"top-1 {said['top1']:.2%}" in lines[0] and f"{said['real']:.2%}" in lines[1]


def test_run_without_ema_is_raw(sets, tmp_path, capsys):
    run = save_run(tmp_path / "run", SYNSETS, "train.ema_decay=0")
    assert call(capsys, f"--model_dir={run}", f"--folder={sets / 'v2'}").endswith(", raw weights\n")


def test_two_places_for_the_images(run):
    arguments = make_parser().parse_args([f"--model_dir={run}", "--folder=a", "--data_dir=b"])
    with pytest.raises(UserError, match="folder=a and data_dir=b both say where the images are. Give only one."):
        main(arguments)


def test_folder_overrides():
    assert folder_overrides("gs://bucket/a b/imagenet-a/")[1:3] == [
        'data.dir="gs://bucket/a b"',
        'data.train_split="imagenet-a"',
    ]


def test_exported_model(run, sets, strategy, tmp_path):
    model, config, _ = restore_model(run)
    archive = keras.export.ExportArchive()
    archive.track(model)
    shape = tf.TensorSpec([None, config.image_size, config.image_size, 3], tf.float32, name="image")
    archive.add_endpoint("serving_default", lambda image: {"logits": model(image, training=False)}, [shape])
    archive.write_out(str(tmp_path / "exported"), verbose=False)
    for name in ("config.yaml", "classes.txt"):
        shutil.copy(f"{run}/{name}", tmp_path / "exported" / "assets")
    result = evaluate_folder(str(tmp_path / "exported"), strategy, sets / "imagenet-a")
    assert result == pytest.approx(expect_imagenet_a(run, sets), rel=1e-4)
    with pytest.raises(UserError, match="contains one set of weights only"):
        evaluate_folder(str(tmp_path / "exported"), strategy, sets / "imagenet-a", raw=True)
