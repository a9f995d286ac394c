"""Evaluation, compared with scipy and scikit-learn, on one replica and on several."""

import dataclasses
import itertools

import numpy as np
import pytest
import scipy.special
import sklearn.metrics
import tensorflow as tf
import tiny

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.load import override_config
from efficientnet_tf.data.open import open_source
from efficientnet_tf.data.pipeline import eval_image
from efficientnet_tf.evaluation.loop import make_evaluator
from efficientnet_tf.evaluation.metrics import format_evaluation
from efficientnet_tf.models.from_config import build_from_config
from efficientnet_tf.models.variables import batch_norm_statistics
from efficientnet_tf.training.state import create_state
from efficientnet_tf.training.tensorflow_loop import make_classifiers, make_state_evaluator

SIZE = 1437  # Training images, from which the schedule computes epochs.


@pytest.fixture(scope="module")
def test_digits():
    """Return the source of the 360 test digits, their pixels float32 [360, 32, 32, 3] and labels int [360]."""
    config = tiny.load_config()
    source = open_source(config.data, "test", training=False)
    return source, *read_one_by_one(source, config)


def read_one_by_one(source, config):
    examples = [source.load(tf.constant(i, tf.int64)) for i in range(source.size)]
    images = np.stack([eval_image(encoded, config).numpy() for encoded, _ in examples])
    return images, np.array([label.numpy() for _, label in examples])


def linear_classifier(classes):
    """Return a function from images to logits, once for TensorFlow and once for numpy."""
    weights = np.random.default_rng(0).normal(size=(32 * 32 * 3, classes)).astype("float32") / 2000

    def logits_of(images):
        return tf.reshape(images, [-1, 32 * 32 * 3]) @ weights

    return logits_of, lambda images: images.reshape(len(images), -1).astype(float) @ weights


def score(labels, logits):
    """Return the metrics of logits as scipy and scikit-learn compute them."""
    losses = -scipy.special.log_softmax(logits.astype(float), axis=1)[np.arange(len(labels)), labels]
    return {
        "examples": len(labels),
        "loss": losses.mean(),
        "top1": sklearn.metrics.accuracy_score(labels, logits.argmax(axis=1)),
        "top5": sklearn.metrics.top_k_accuracy_score(labels, logits, k=5, labels=range(logits.shape[1])),
    }


@pytest.mark.parametrize(
    ("replicas", "batch"),
    [
        *((1, 7), (2, 360), (4, 28)),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in ((1, 120), (1, 361), (2, 14), (2, 700), (4, 400))),
    ],
)
def test_every_image_counts_once(test_digits, replicas, batch):
    source, images, labels = test_digits
    logits_of, logits_by_numpy = linear_classifier(10)
    config = tiny.load_config(f"eval.batch_size={batch}")
    expected = score(labels, logits_by_numpy(images))
    assert 0.02 < expected["top1"] < 0.5 < 2 * expected["top5"]  # A poor classifier shows errors best.
    traced = []
    evaluator = make_evaluator(
        lambda images: traced.append(images.shape) or logits_of(images), source, config, tiny.make_strategy(replicas)
    )
    for _ in range(2):
        assert evaluator() == pytest.approx(expected, rel=1e-6)
        assert traced == replicas * [(batch // replicas, 32, 32, 3)]


def test_reported_progress_changes_no_result(test_digits):
    source, _, _ = test_digits
    logits_of, _ = linear_classifier(10)
    config, strategy, traced, reported = tiny.load_config("eval.batch_size=70"), tiny.make_strategy(1), [], []
    evaluator = make_evaluator(
        lambda images: traced.append(1) or logits_of(images), source, config, strategy, report=reported.append
    )
    assert evaluator() == make_evaluator(logits_of, source, config, strategy)()
    assert reported == [70, 70, 70, 70, 70, 10] and traced == [1]


def test_nan_counts_as_wrong(test_digits):
    source, images, labels = test_digits
    logits_of, logits_by_numpy = linear_classifier(10)
    dark = images.mean(axis=(1, 2, 3)) < np.median(images.mean(axis=(1, 2, 3)))

    def sometimes_nan(pixels):
        mean = tf.reduce_mean(pixels, axis=(1, 2, 3))[:, None]
        return tf.where(mean < np.median(images.mean(axis=(1, 2, 3))), np.nan, logits_of(pixels))

    result = make_evaluator(sometimes_nan, source, tiny.load_config(), tiny.make_strategy(1))()
    light = score(labels[~dark], logits_by_numpy(images[~dark]))
    assert 0 < dark.sum() < 360
    assert result["top1"] == pytest.approx(light["top1"] * (~dark).mean())
    assert result["top5"] == pytest.approx(light["top5"] * (~dark).mean())
    assert np.isnan(result["loss"])


def test_the_first_of_equal_logits_wins(test_digits):
    """As in argmax and scikit-learn. Otherwise a network with equal logits everywhere would be perfect."""
    source, images, labels = test_digits
    logits_of, logits_by_numpy = linear_classifier(10)
    coarse = np.round(logits_by_numpy(images)[..., ::-1] / 3).astype("float32")  # Many are equal.
    order = np.argsort(-coarse, axis=1, kind="stable")
    assert (np.sort(coarse)[:, -1] == np.sort(coarse)[:, -2]).mean() > 0.1

    def coarse_logits_of(pixels):
        return tf.round(tf.reverse(logits_of(pixels), [1]) / 3)

    result = make_evaluator(coarse_logits_of, source, tiny.load_config(), tiny.make_strategy(1))()
    for key, count in (("top1", 1), ("top5", 5)):
        assert result[key] == pytest.approx((order[:, :count] == labels[:, None]).any(axis=1).mean())
    assert result["top1"] == pytest.approx((coarse.argmax(axis=1) == labels).mean())


def test_up_to_five_classes_have_no_top_5():
    config = tiny.load_config("data.synthetic_classes=3", "data.synthetic_examples=50", recipe="smoke")
    source = open_source(config.data, "val", training=False)
    images, labels = read_one_by_one(source, config)
    logits_of, logits_by_numpy = linear_classifier(3)
    logits = logits_by_numpy(images)
    result = make_evaluator(logits_of, source, config, tiny.make_strategy(1))()
    assert result["top1"] == pytest.approx((logits.argmax(axis=1) == labels).mean())
    assert 0 < result["top1"] < 1 and result.keys() == {"examples", "loss", "top1"}
    line = format_evaluation({"raw": result})
    assert line.startswith("top-1 ") and "top-5" not in line and line.endswith(" on 50 images, raw weights")


@pytest.mark.parametrize(
    ("replicas", "batch"), [(4, 7), *(pytest.param(2, batch, marks=pytest.mark.slow) for batch in (7, 1))]
)
def test_batch_that_does_not_fit_the_replicas_changes_no_result(test_digits, replicas, batch):
    source, images, labels = test_digits
    logits_of, logits_by_numpy = linear_classifier(10)
    config = tiny.load_config(f"eval.batch_size={batch}")
    result = make_evaluator(logits_of, source, config, tiny.make_strategy(replicas))()
    assert result == pytest.approx(score(labels, logits_by_numpy(images)), rel=1e-6)


def test_broken_images_are_left_out_up_to_the_limit(tmp_path, caplog):
    rng = np.random.default_rng(0)
    for name, i in itertools.product(("cat", "dog"), range(3)):
        path = tmp_path / "val" / name / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(tf.io.encode_jpeg(rng.integers(0, 256, (40, 50, 3)).astype("uint8")).numpy())
    config = tiny.load_config(f"data.dir={tmp_path}", "eval.batch_size=4", "data.max_bad_fraction=0.4", recipe="folder")
    logits_of, _ = linear_classifier(2)
    strategy = tiny.make_strategy(1)

    source = open_source(config.data, "val", training=False)
    evaluate = make_evaluator(logits_of, source, config, strategy)
    before = evaluate()
    assert before["examples"] == 6 and "unreadable" not in before
    right = [
        logits_of(eval_image(source.load(tf.constant(i, tf.int64))[0], config)[None]).numpy().argmax() == i // 3
        for i in range(6)
    ]
    (tmp_path / "val/dog/1.jpg").write_text("no image")
    (tmp_path / "val/dog/2.jpg").unlink()
    for _ in range(2):
        result = evaluate()
        assert (result["examples"], result["unreadable"]) == (4, 2)
        assert result["top1"] == np.mean(right[:4])
        assert "on 4 of 6 images" in format_evaluation({"raw": result})
    [record] = caplog.records  # not once in each evaluation
    assert record.getMessage() == (
        f"2 of 6 evaluation images could not be read and were left out: {tmp_path}/val/dog/1.jpg: this is a text file, "
        f"not an image; {tmp_path}/val/dog/2.jpg: no such file."
    )
    (tmp_path / "val/cat/0.jpg").write_bytes(b"")
    with pytest.raises(UserError, match=r"3 of 6 images .*bad_fraction=0.4 allows: .*cat/0\.jpg: the file is empty; "):
        evaluate()
    strict = override_config(config, ["data.max_bad_fraction=1.0"])
    for path in (tmp_path / "val").rglob("*.jpg"):
        path.write_bytes(b"")
    with pytest.raises(UserError, match="None of the 6 evaluation images could be read"):
        make_evaluator(logits_of, source, strict, strategy)()


@pytest.mark.parametrize("replicas", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_raw_and_ema_weights_are_evaluated_as_by_keras(test_digits, replicas):
    """Each image is loaded once for both."""
    source, images, labels = test_digits
    loads = []

    def count(index):
        loads.append(int(index))
        return index

    def load(index):
        return source.load(tf.ensure_shape(tf.numpy_function(count, [index], tf.int64), []))

    counted = dataclasses.replace(source, load=load)
    config = tiny.load_config(tiny.SHORT)
    strategy = tiny.make_strategy(replicas)
    state = create_state(config, 10, SIZE, strategy)
    rng = np.random.default_rng(0)
    weights = [*state.model.trainable_variables, *batch_norm_statistics(state.model)]
    emas = [*state.ema.trainable, *state.ema.statistics]
    for variable, name in zip((*weights, *emas), 2 * [v.name for v in weights], strict=True):
        noise = 0 if name == "moving_variance" else rng.normal(0, 0.3, variable.shape)
        variable.assign(tiny.replica_values(variable)[0] * rng.uniform(0.5, 1.5, variable.shape) + noise)
    results = make_state_evaluator(state, counted, config, strategy)()
    assert list(results) == ["raw", "ema"]
    assert sorted(set(loads)) == list(range(360)) and len(loads) <= 360 + config.eval.batch_size  # padding
    plain = build_from_config(config, 10)
    by_path = {v.path: v for v in plain.variables}
    for kind, values in (("raw", weights), ("ema", emas)):
        for variable, value in zip(weights, values, strict=True):
            by_path[variable.path].assign(tiny.replica_values(value)[0])
        expected = score(labels, plain(images, training=False).numpy())
        assert results[kind]["loss"] == pytest.approx(expected["loss"], rel=1e-5)
        for key in ("top1", "top5"):
            assert results[kind][key] == pytest.approx(expected[key], abs=1.5 / 360)  # One close call.
    assert results["raw"]["loss"] != pytest.approx(results["ema"]["loss"], rel=1e-2)
    if replicas == 1:  # Together as alone, to the bit.
        for kind, logits_of in make_classifiers(state, strategy).items():
            assert make_evaluator(logits_of, source, config, strategy)() == results[kind]


def test_without_ema_only_the_raw_weights_are_evaluated():
    config = tiny.load_config(tiny.SHORT, "train.ema_decay=0")
    strategy = tiny.make_strategy(1)
    state = create_state(config, 10, SIZE, strategy)
    assert state.ema is None
    assert list(make_classifiers(state, strategy)) == ["raw"]
