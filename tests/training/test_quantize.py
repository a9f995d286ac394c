"""Training for int8, from the first step to files of three runtimes."""

import shutil

import numpy as np
import pytest
import tensorflow as tf
import tiny

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.load import load_config
from efficientnet_tf.data.open import open_source
from efficientnet_tf.data.pipeline import Failures, sample_images
from efficientnet_tf.evaluate import evaluate_model
from efficientnet_tf.export.export import export_model
from efficientnet_tf.export.formats import open_export
from efficientnet_tf.models.model_dir import list_checkpoints, restore_model_and_limits
from efficientnet_tf.models.quantized import QuantizedNetwork
from efficientnet_tf.training.state import create_state
from efficientnet_tf.training.trainer import train_model

INT8 = "{train.quantize: int8}"
FROZEN = "{train.quantize: int8_frozen}"
PHASES = f"train.phases=[{{until: 0.5, set: {{}}}}, {{until: 0.8, set: {INT8}}}, {{until: 1.0, set: {FROZEN}}}]"
# Ten epochs of digits: float, then int8, whose limits are frozen at last.
SETTINGS = [PHASES, "train.epochs=10", "train.checkpoint_every_epochs=5", "eval.every_epochs=5", "eval.batch_size=90"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Return the directory of a run that ends with int8."""
    model_dir = str(tmp_path_factory.mktemp("int8") / "run")
    config = load_config(tiny.VARIANT, "digits", SETTINGS)
    result = train_model(config, model_dir, tiny.make_strategy(1))
    assert result["finished"]
    return model_dir


def read_images(config):
    """Return the images of the evaluation split as a network gets them, float32 [N, S, S, C]."""
    source = open_source(config.data, config.data.eval_split, training=False)
    return np.stack(list(sample_images(source, config, Failures(source), source.size).as_numpy_iterator()))


def read_checkpoint(model_dir):
    reader = tf.train.load_checkpoint(next(iter(list_checkpoints(model_dir).values())))
    names = [name for name in reader.get_variable_to_shape_map() if name.startswith(("model", "average", "opt", "lim"))]
    return {name: reader.get_tensor(name) for name in names}


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".tflite", ".onnx", ".xml"])
def test_files_compute_what_the_quantized_network_computes(trained, suffix, tmp_path):
    model, config, _, limits = restore_model_and_limits(trained)
    network = QuantizedNetwork(model, learns=False)
    images = read_images(config)
    values = [tf.constant(limits[v.path.partition("_limits/")[0]]) for v in network.limits]
    trainable, others = (
        [tf.convert_to_tensor(v.value) for v in group]
        for group in (model.trainable_variables, model.non_trainable_variables)
    )
    expected = network.stateless_call(trainable, [*others, *values], tf.constant(images))[0].numpy()
    path = str(tmp_path / f"net{suffix}")
    assert export_model(trained, path, "int8")["agreement"] >= 0.98
    logits = open_export(path).compute_logits(images)
    assert np.mean(logits.argmax(1) == expected.argmax(1)) >= 0.98
    assert np.abs(logits - expected).mean() < 0.1 * expected.std()
    assert evaluate_model(path, strategy=tiny.make_strategy(1))["top1"] > 0.9


@pytest.mark.slow
def test_a_run_that_stopped_between_two_phases_ends_the_same_bit_for_bit(trained, tmp_path):
    whole, stopped = read_checkpoint(trained), tmp_path / "stopped"
    shutil.copytree(trained, stopped)
    steps = sorted(list_checkpoints(str(stopped)))
    for step in steps[1:]:
        for path in stopped.rglob(f"step-{step}.*"):
            path.unlink()
    (stopped / "model.keras").unlink()
    config = load_config(tiny.VARIANT, "digits", SETTINGS)
    assert train_model(config, str(stopped), tiny.make_strategy(1))["finished"]
    again = read_checkpoint(str(stopped))
    assert sum(name.startswith("limits") for name in whole) > 20
    for name, value in whole.items():
        np.testing.assert_array_equal(again[name], value, err_msg=name)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (
            ["train.quantize=int8"],
            "train.quantize=int8 keeps the statistics of batch norm, so it needs trained weights.",
        ),
        (
            ["train.quantize=int8", "train.init_from=x", "train.precision=mixed_bfloat16"],
            "needs train.precision=float32",
        ),
    ],
)
def test_what_cannot_be_trained_is_refused(settings, expected):
    config = tiny.load_config(*settings)
    with pytest.raises(UserError, match=expected):
        create_state(config, 10, 100, tiny.make_strategy(1))
