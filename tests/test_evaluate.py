"""Evaluation as published: ImageNet-ReaL's labels, sets with other or fewer classes, and counts by class.

Small sets in the layouts of the real ones; every expected number by numpy from `model.predict`.
"""

import csv
import json
import re
import shutil

import keras
import numpy as np
import PIL.Image
import pytest
import tensorflow as tf
import tiny

from efficientnet_tf import evaluate
from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.load import override_config
from efficientnet_tf.data.open import open_source
from efficientnet_tf.data.pipeline import eval_image
from efficientnet_tf.evaluate import evaluate_model, main, make_parser
from efficientnet_tf.evaluation.imagenet_labels import match_classes, read_real_labels
from efficientnet_tf.evaluation.loop import make_evaluator
from efficientnet_tf.evaluation.per_class import RIGHT, WRONG, per_class, write_per_class
from efficientnet_tf.models.model_dir import open_model_dir, read_config, restore_model
from efficientnet_tf.models.variables import batch_norm_statistics
from efficientnet_tf.training.checkpoint import Checkpointer, create_state
from efficientnet_tf.visualization import confusion_matrix
from efficientnet_tf.visualization.confusion_matrix import draw_confusion
from efficientnet_tf.visualization.grids import save_picture

SYNSETS = [f"n{number:08d}" for number in (1440764, 1443537, 1484850, 1491361, 1494475, 1496331)]
SYNSETS += [f"n{number:08d}" for number in (1498041, 1514668, 1514859, 1518878, 1530575, 1531178)]
PER_CLASS = 5


def write_photo(path, seed):
    """Write a picture of broad stripes of random colours: a network without training tells many of them apart."""
    rng = np.random.default_rng(seed)
    pixels = np.kron(rng.integers(0, 256, (4, 4, 3)), np.ones((12, 12, 1))).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(pixels).save(path)


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """Make ImageNet's validation images, V2 and A in small: 12 classes, and 4 of them for A."""
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
    """Write a model directory with random weights, other ones for the average, as a run leaves it."""
    config = tiny.load_config(
        tiny.SHORT, "data.source=folder", "data.dir=nowhere", "data.eval_split=val", "eval.batch_size=14", *overrides
    )
    state = create_state(config, len(class_names), 100, tiny.make_strategy(1))
    weights = [*state.model.trainable_variables, *batch_norm_statistics(state.model)]
    parts = [weights]
    if state.ema:
        parts.insert(0, [*state.ema.trainable, *state.ema.statistics])  # the model keeps the last values
    rng = np.random.default_rng(1)
    noise = rng.integers(0, 256, (64, 4, 4, 3)).repeat(8, axis=1).repeat(8, axis=2).astype("float32")
    for part in parts:
        for variable in weights:
            if "moving_variance" not in variable.path:
                variable.assign(variable.numpy() + rng.normal(0, 0.2, variable.shape))
        kernel, bias = state.model.get_layer("predictions").weights
        kernel.assign(rng.normal(0, 2, kernel.shape))
        bias.assign(bias.numpy() - state.model(noise).numpy().mean(axis=0))  # no class is everyone's
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


def predict(run, folder, raw=False):
    """Return (paths, folder names, logits [N, 12]) of all images in class folders, by `model.predict`."""
    model, config, _ = restore_model(run, raw)
    paths = sorted(folder.glob("*/*.png"))
    images = np.stack([eval_image(tf.io.read_file(str(path)), config).numpy() for path in paths])
    return paths, [path.parent.name for path in paths], model.predict(images, verbose=0)


def score(logits, labels):
    logits = logits.astype(float)
    logs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    order = np.argsort(-logits, axis=1)
    return {
        "examples": len(labels),
        "loss": -logs[np.arange(len(labels)), labels].mean(),
        "top1": (order[:, 0] == labels).mean(),
        "top5": (order[:, :5] == np.array(labels)[:, None]).any(axis=1).mean(),
    }


def evaluate_folder(run, strategy, folder, *overrides, **options):
    overrides = [*evaluate.folder_overrides(str(folder)), *overrides]
    return evaluate_model(run, strategy=strategy, overrides=overrides, **options)


def real_lists(count, classes=12):
    """Return made-up ReaL labels: none, one, or a few an image."""
    rng = np.random.default_rng(5)
    return [sorted(rng.choice(classes, rng.integers(0, 6), replace=False).tolist()) for _ in range(count)]


def write_json(path, value):
    path.write_text(json.dumps(value))
    return str(path)


# ------------------------------------------------------------------------------------------------ sets of classes


@pytest.mark.parametrize("raw", [False, True])
def test_numbered_folders_are_label_numbers(run, sets, strategy, raw):
    """As in ImageNet-V2, whose folders sort as 0, 1, 10, 11, 2, ..."""
    _, folders, logits = predict(run, sets / "v2", raw)
    expected = score(logits, [int(name) for name in folders])
    assert sorted(set(folders)) != sorted(set(folders), key=int)
    wrong = score(logits, [sorted(set(folders)).index(name) for name in folders])
    assert expected["loss"] != pytest.approx(wrong["loss"], rel=1e-3)
    of_the_other_weights = score(predict(run, sets / "v2", not raw)[-1], [int(name) for name in folders])
    assert expected["loss"] != pytest.approx(of_the_other_weights["loss"], rel=1e-3)
    result = evaluate_folder(run, strategy, sets / "v2", raw=raw)
    assert result == pytest.approx(expected, rel=1e-5)


def expected_of_a(run, sets):
    columns = [2, 3, 7, 10]
    _, folders, logits = predict(run, sets / "imagenet-a")
    labels = [columns.index(SYNSETS.index(name)) for name in folders]
    expected = score(logits[:, columns], labels)
    among_all = score(logits, [columns[label] for label in labels])
    assert expected["top1"] > among_all["top1"]
    return expected | {"classes": 4, "model_classes": 12}


def test_of_a_subset_its_own_logits_compete(run, sets, strategy):
    """As is usual for ImageNet-A and -R."""
    result = evaluate_folder(run, strategy, sets / "imagenet-a")
    assert result == pytest.approx(expected_of_a(run, sets), rel=1e-5)


def open_folder(run, folder):
    config = read_config(run)
    config = override_config(config, evaluate.folder_overrides(str(folder)))
    return config, open_source(config.data, config.data.eval_split, training=False)


def test_a_training_folder_beside_the_set_does_not_matter(run, sets, tmp_path):
    shutil.copytree(sets / "imagenet-a", tmp_path / "imagenet-a")
    shutil.copytree(sets / "val", tmp_path / "train")
    _, source = open_folder(run, tmp_path / "imagenet-a")
    assert list(source.class_names) == [SYNSETS[i] for i in (2, 3, 7, 10)] and source.size == 40


def test_classes_match_by_name_before_number():
    names = [*"abcdefghijkl"]
    assert match_classes(names, names) == list(range(12))
    assert match_classes(["c", "a"], names) == [2, 0]
    assert match_classes(["0", "1", "10", "2"], names) == [0, 1, 10, 2]
    numbered = ["0", "1", "10", "2"]  # of folders that a model was trained on: their own order holds
    assert match_classes(["2", "10"], numbered) == [3, 2]


@pytest.mark.parametrize(
    ("names", "class_names", "parts"),
    [
        (
            ["n01440764", "n01443538"],
            SYNSETS,
            ["the model 12: n01440764", "it does not know n01443538.", "Did you mean 'n01443537'?"],
        ),
        (["0", "12"], SYNSETS, ["label numbers 0 to 11", "it does not know 12."]),
        (["0", "007"], SYNSETS, ["it does not know 007."]),
        (["0", "3"], ["1", "2", "10", "20"], ["it does not know 0, 3."]),  # never by place, where names are numbers
        (["0", "n01440764"], SYNSETS, ["it does not know 0."]),
        ([f"x{i}" for i in range(12)], SYNSETS, ["the 12 classes x0", "x9 and 2 more."]),
    ],
)
def test_classes_that_the_model_does_not_know(names, class_names, parts):
    with pytest.raises(UserError) as caught:
        match_classes(names, class_names)
    for part in parts:
        assert part in str(caught.value)


# ------------------------------------------------------------------------------------------------------ ReaL


def real_score(paths, predicted, lists):
    """Return ReaL accuracy and the number of images that have labels; `predicted` are label numbers."""
    right = [lists[int(re.search(r"val_(\d{8})", path.name)[1]) - 1] for path in paths]
    counted = [(p in r) for p, r in zip(predicted, right, strict=True) if r]
    return {"real": np.mean(counted), "real_examples": len(counted)}


def test_real_labels(run, sets, strategy, tmp_path):
    lists = real_lists(60)
    assert [] in lists and max(map(len, lists)) > 2
    paths, folders, logits = predict(run, sets / "val")
    expected = score(logits, [SYNSETS.index(name) for name in folders])
    expected |= real_score(paths, logits.argmax(axis=1), lists)
    assert expected["real"] != expected["top1"] and 0 < expected["real"] < 1
    path = write_json(tmp_path / "real.json", lists)
    result = evaluate_folder(run, strategy, sets / "val", "data.cache=memory", real_labels=path)
    assert result == pytest.approx(expected, rel=1e-5)


def test_real_labels_of_a_part_of_the_classes(run, sets, strategy, tmp_path):
    """Folders of three classes: these compete, and a label of another class is never met but counts."""
    for label in (1, 4, 8):
        shutil.copytree(sets / "val" / SYNSETS[label], tmp_path / "part" / SYNSETS[label])
    lists = real_lists(60)
    paths, _, logits = predict(run, tmp_path / "part")
    predicted = np.array([1, 4, 8])[logits[:, [1, 4, 8]].argmax(axis=1)]
    path = write_json(tmp_path / "real.json", lists)
    result = evaluate_folder(run, strategy, tmp_path / "part", real_labels=path)
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
    result = evaluate_model(run, strategy=strategy, overrides=overrides, real_labels=path)
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
    """By image/filename, as the official tools write it."""
    paths, folders, logits = predict(run, sets / "val")
    labels = [SYNSETS.index(name) for name in folders]
    lists = real_lists(60)
    path = write_json(tmp_path / "real.json", lists)
    expected = real_score(paths, logits.argmax(axis=1), lists)
    write_records(tmp_path / "named", paths, labels)
    (tmp_path / "named" / "classes.txt").write_text("".join(f"{name}\n" for name in SYNSETS))
    overrides = ["data.source=records", f"data.dir={tmp_path / 'named'}"]
    result = evaluate_model(run, strategy=strategy, overrides=overrides, real_labels=path)
    assert {key: result[key] for key in expected} == pytest.approx(expected)

    write_records(tmp_path / "nameless", paths, labels, key="image/other")
    overrides = ["data.source=records", f"data.dir={tmp_path / 'nameless'}", "data.classes=12"]
    with pytest.raises(UserError, match=r"ILSVRC2012_val_00000001 to 00000060 in their file names.*''"):
        evaluate_model(run, strategy=strategy, overrides=overrides, real_labels=path)


def test_real_labels_of_tensorflow_datasets(run, sets, strategy, tmp_path):
    """By file_name, as imagenet2012 has it."""
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
    result = evaluate_model(run, strategy=strategy, overrides=overrides, real_labels=path)
    expected = real_score(paths, logits.argmax(axis=1), lists)
    assert {key: result[key] for key in expected} == pytest.approx(expected)


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("[[1], [2]", "cannot be read as JSON"),
        ('{"1": [2]}', "expected a list of lists of label numbers, received {'1': [2]}"),
        ("[]", "expected a list of lists of label numbers, received []"),
        ("[[1], 2]", "expected a list of label numbers for image 2, received 2"),
        ('[[1], ["2"]]', 'expected a list of label numbers for image 2, received ["2"]'),
        ("[[1], [true]]", "expected a list of label numbers for image 2, received [true]"),
        ("[[1], [12, -1]]", "allowed are the labels 0 to 11; received -1, 12"),
    ],
)
def test_a_file_that_has_no_real_labels(tmp_path, content, part):
    path = tmp_path / "real.json"
    path.write_text(content)
    with pytest.raises(UserError, match=re.escape(part)) as caught:
        read_real_labels(str(path), SYNSETS, list(range(12)))
    assert str(path) in str(caught.value)


def test_a_real_file_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="cannot be read as JSON"):
        read_real_labels(str(tmp_path / "none.json"), SYNSETS, list(range(12)))


def test_real_numbers_are_names_where_the_models_classes_are_numbers(tmp_path):
    path = write_json(tmp_path / "real.json", [[2], [], [10, 1]])
    rows = read_real_labels(path, ["0", "1", "10", "2"], [0, 1, 2, 3])
    assert rows.tolist() == [[-1, -1], [3, -1], [-1, -1], [2, 1]]


def test_examples_without_a_number(run, sets, strategy, tmp_path):
    path = write_json(tmp_path / "real.json", real_lists(60))
    with pytest.raises(UserError, match=r"00000060 in their file names; 1 names have no such number: .*v2/0/0\.png"):
        evaluate_folder(run, strategy, sets / "v2", real_labels=path)
    with pytest.raises(UserError, match="these have none, such as 'digit test 0'"):
        overrides = ["data.source=digits", "data.eval_split=test"]
        evaluate_model(run, strategy=strategy, overrides=overrides, real_labels=path)
    shutil.copytree(sets / "val", tmp_path / "val")
    last = tmp_path / "val" / SYNSETS[-1]
    for name in ("ILSVRC2012_val_00000061.png", "ILSVRC2012_val_000000012.png", "z_ILSVRC2012_val_00000002.png"):
        write_photo(last / name, 0)
    with pytest.raises(UserError, match=r"2 names have no such number: .*_000000012\.png', .*_00000061\.png'$"):
        evaluate_folder(run, strategy, tmp_path / "val", real_labels=path)
    with pytest.raises(UserError, match="none of the 60 examples has labels"):
        path = write_json(tmp_path / "real.json", [[]] * 60)
        evaluate_folder(run, strategy, sets / "val", real_labels=path)


# -------------------------------------------------------------------------------------------------- by class


def test_counts_by_class(run, sets, strategy, tmp_path):
    _, folders, logits = predict(run, sets / "v2")
    order = sorted(set(folders))
    expected = np.zeros((12, 12), int)
    for name, guess in zip(folders, logits.argmax(axis=1), strict=True):
        expected[order.index(name), order.index(str(guess))] += 1
    assert 0 < np.trace(expected) < 60 and len(set(np.diag(expected))) > 1
    table, rows, picture = (tmp_path / name for name in ("by_class.csv", "by_class.json", "matrix.png"))
    result = evaluate_folder(run, strategy, sets / "v2", per_class=str(table), confusion=str(picture))
    assert result["confusion"] == expected.tolist()
    assert result["top1"] == pytest.approx(np.trace(expected) / 60)
    lines = list(csv.DictReader(table.read_text().splitlines()))
    assert list(lines[0]) == ["class", "examples", "correct", "accuracy"]
    assert [line["class"] for line in lines] == [SYNSETS[int(name)] for name in order]
    assert [int(line["examples"]) for line in lines] == [PER_CLASS] * 12
    assert [int(line["correct"]) for line in lines] == np.diag(expected).tolist()
    assert [float(line["accuracy"]) for line in lines] == pytest.approx(np.diag(expected) / PER_CLASS)
    again = evaluate_folder(run, strategy, sets / "v2", per_class=str(rows))
    assert "confusion" not in again
    assert json.loads(rows.read_text()) == again["per_class"] == result["per_class"]
    with PIL.Image.open(picture) as image:
        assert image.format == "PNG" and min(image.size) > 12 * 40


def test_replicas_count_the_same(run, sets, tmp_path):
    """With padding: 60 images in batches of 16."""
    path = write_json(tmp_path / "real.json", real_lists(60))
    options = {"real_labels": path, "confusion": str(tmp_path / "matrix.png")}
    results = [
        evaluate_folder(run, tiny.make_strategy(count), sets / "val", "eval.batch_size=16", **options)
        for count in (1, 2)
    ]
    assert np.sum(results[1]["confusion"]) == 60
    for key in ("confusion", "real", "real_examples", "top1", "top5"):
        assert results[0][key] == results[1][key]


def test_nan_has_no_class(run, sets, strategy):
    config, source = open_folder(run, sets / "v2")

    def logits_of(images):
        return tf.where(tf.range(12) == 3, np.nan, tf.zeros([tf.shape(images)[0], 12]))

    evaluator = make_evaluator(logits_of, source, config, strategy, confusion=True)
    with pytest.raises(UserError, match="60 examples have NaN among their logits"):
        evaluator()


def test_a_class_without_examples_has_no_accuracy(tmp_path):
    rows = per_class(np.array([[3, 1], [0, 0]]), ["a, b", "c"])
    assert rows[1] == {"class": "c", "examples": 0, "correct": 0, "accuracy": None}
    write_per_class(str(tmp_path / "t.csv"), rows)
    assert (tmp_path / "t.csv").read_text() == 'class,examples,correct,accuracy\n"a, b",4,3,0.75\nc,0,0,\n'


def test_picture_shows_shares_of_rows():
    counts = np.array([[8, 2, 0], [0, 0, 0], [1, 0, 0]])
    image = draw_confusion(counts, ["ant", "bee", "a name that is much too long to be written in full"], "t")
    cell, left, top = 44, None, None
    pixels = np.asarray(image).astype(int)
    full = (pixels == WRONG).all(axis=-1)  # the last row's first cell: all of its row
    ys, xs = np.nonzero(full)
    left, top = xs.min() - 1, ys[xs < xs.min() + cell].min() - 1 - 2 * cell

    def colour(row, column):
        return tuple(pixels[top + row * cell + 4, left + column * cell + 4])

    assert colour(2, 0) == WRONG
    assert colour(0, 0) == confusion_matrix._blend(RIGHT, 0.8)
    assert colour(0, 1) == confusion_matrix._blend(WRONG, 0.2)
    assert colour(0, 2) == colour(1, 1) == (255, 255, 255)


@pytest.mark.parametrize("classes", [2, 100])
def test_every_number_of_classes_makes_a_picture(classes):
    counts = np.random.default_rng(0).integers(0, 2000, (classes, classes))
    image = draw_confusion(counts, [f"class {i}" for i in range(classes)], "a title")
    assert image.width < 2200 and image.height < 2200


def test_a_picture_of_too_many_classes(strategy, tmp_path):
    names = [f"class{i:03d}" for i in range(101)]
    run = save_run(tmp_path / "run", names)
    for i, name in enumerate(names):
        write_photo(tmp_path / "set" / name / "0.png", i)
    with pytest.raises(UserError, match=r"the data has 101 classes, a picture shows at most 100; --per_class"):
        evaluate_folder(run, strategy, tmp_path / "set", confusion=str(tmp_path / "matrix.png"))


@pytest.mark.parametrize(
    ("option", "path", "part"),
    [
        ("per_class", "table.txt", "--per_class=table.txt: the name must end in .csv or .json"),
        ("confusion", "matrix.jpg", "--confusion=matrix.jpg: the name must end in .png"),
        ("per_class", "/dev/null/t.csv", "--per_class=/dev/null/t.csv cannot be written: '/dev/null' is not a folder"),
    ],
)
def test_files_that_cannot_be_written_stop_before_the_work(option, path, part):
    with pytest.raises(UserError, match=re.escape(part)):
        evaluate_model("nowhere", strategy=None, **{option: path})


def test_what_cannot_be_written_after_all(tmp_path):
    for name in ("t.csv", "t.png"):
        (tmp_path / name).mkdir()
    with pytest.raises(UserError, match="--per_class=.*cannot be written"):
        write_per_class(str(tmp_path / "t.csv"), per_class(np.eye(2), "ab"))
    with pytest.raises(UserError, match="--confusion=.*cannot be written"):
        save_picture(PIL.Image.new("RGB", (2, 2)), str(tmp_path / "t.png"), "--confusion")


def test_no_pillow_is_said_before_the_work(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "PIL", None)
    with pytest.raises(UserError, match="draws with Pillow, which is not installed"):
        evaluate_model("nowhere", strategy=None, confusion="matrix.png")


# -------------------------------------------------------------------------------------------------- the command


def call(capsys, *arguments):
    main(make_parser().parse_args([*map(str, arguments), "--device=cpu"]))
    return capsys.readouterr().out


def test_what_the_command_prints(run, sets, tmp_path, capsys):
    for label in (1, 4, 8):
        shutil.copytree(sets / "val" / SYNSETS[label], tmp_path / "part" / SYNSETS[label])
    table, picture = tmp_path / "t.csv", tmp_path / "m.png"
    lists = [[number % 12] for number in range(60)]
    arguments = [f"--model_dir={run}", f"--folder={tmp_path / 'part'}", f"--per_class={table}"]
    arguments += [f"--confusion={picture}", f"--real_labels={write_json(tmp_path / 'real.json', lists)}"]
    lines = call(capsys, *arguments).splitlines()
    assert re.fullmatch(r"ema: top-1 \d+\.\d\d%, top-5 100\.00%, loss \d+\.\d+ on 15 examples", lines[0])
    assert re.fullmatch(r"real labels: \d+\.\d\d% of the 15 examples that have any", lines[1])
    assert lines[2] == "only the data's 3 of the model's 12 classes compete"
    assert re.fullmatch(rf"{table}: 3 classes, the worst n\d{{8}}, \d+ of 5", lines[3])
    assert lines[4] == f"{picture}: 3 classes, true ones down, predicted ones across" and len(lines) == 5
    said = json.loads(call(capsys, *arguments, "--json"))
    keys = {"examples", "loss", "top1", "top5", "real", "real_examples", "classes", "model_classes", "per_class"}
    assert said.keys() == keys | {"confusion"}
    assert f"top-1 {said['top1']:.2%}" in lines[0] and f"{said['real']:.2%}" in lines[1]


def test_a_run_without_an_average_is_raw(sets, tmp_path, capsys):
    run = save_run(tmp_path / "run", SYNSETS, "train.ema_decay=0")
    assert call(capsys, f"--model_dir={run}", f"--folder={sets / 'v2'}").startswith("raw: ")


def test_two_places_for_the_images(run):
    arguments = make_parser().parse_args([f"--model_dir={run}", "--folder=a", "--data_dir=b"])
    with pytest.raises(UserError, match="--folder=a and --data_dir=b both say where the images are"):
        main(arguments)


def test_folders_are_named_as_they_are():
    assert evaluate.folder_overrides("gs://bucket/a b/imagenet-a/")[1:3] == [
        'data.dir="gs://bucket/a b"',
        'data.train_split="imagenet-a"',
    ]


def test_an_exported_model_is_evaluated_on_a_subset_too(run, sets, strategy, tmp_path):
    model, config, _ = restore_model(run)
    archive = keras.export.ExportArchive()
    archive.track(model)
    shape = tf.TensorSpec([None, config.image_size, config.image_size, 3], tf.float32, name="image")
    archive.add_endpoint("serving_default", lambda image: {"logits": model(image, training=False)}, [shape])
    archive.write_out(str(tmp_path / "exported"), verbose=False)
    for name in ("config.yaml", "classes.txt"):
        shutil.copy(f"{run}/{name}", tmp_path / "exported" / "assets")
    result = evaluate_folder(str(tmp_path / "exported"), strategy, sets / "imagenet-a")
    assert result == pytest.approx(expected_of_a(run, sets), rel=1e-4)
    with pytest.raises(UserError, match="holds the average only"):
        evaluate_folder(str(tmp_path / "exported"), strategy, sets / "imagenet-a", raw=True)
