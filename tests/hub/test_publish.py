"""Publishing a model: what is written reads as the same model, and nothing is written if it fails."""

import json
import os
import shutil
import subprocess
import sys

import fitted
import keras
import numpy as np
import pytest
import tiny
import yaml
from commands import exit_status
from hub_cache import fill_cache, run_offline

huggingface_hub = pytest.importorskip("huggingface_hub")

from efficientnet_tf.config.errors import UserError  # noqa: E402
from efficientnet_tf.export.load import load_model  # noqa: E402
from efficientnet_tf.hub.publish import push_model  # noqa: E402
from efficientnet_tf.models.model_dir import restore_model  # noqa: E402


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    model_dir = tmp_path_factory.mktemp("runs") / "digits"
    fitted.write_digits_run(model_dir)
    line = {"kind": "eval/raw", "step": 0, "top1": 0.9, "top5": 0.99, "loss": 0.5, "examples": 360}
    (model_dir / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    config = yaml.safe_load((model_dir / "config.yaml").read_text())
    assert config["train"]["ema_decay"] == 0
    return model_dir


@pytest.fixture(scope="module")
def published(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("published") / "digits"
    assert push_model(run, str(folder), model_license="mit", dataset="digits") == str(folder)
    return folder


@pytest.fixture(scope="module")
def cache(published, tmp_path_factory):
    """Return a home of huggingface_hub that has the model, as a download would leave it."""
    return fill_cache(tmp_path_factory.mktemp("home"), published, "models--user--digits")


def test_the_published_model_is_the_same(run, published):
    before, config, class_names = restore_model(str(run))
    after, config_after, names_after = restore_model(str(published))
    assert names_after == class_names and config_after.model == config.model
    for one, other in zip(before.get_weights(), after.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    alone = keras.saving.load_model(published / "model.keras")
    for one, other in zip(before.get_weights(), alone.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    assert {path.name for path in published.iterdir()} == {
        *("README.md", "checkpoints", "classes.txt", "config.yaml", "metrics.jsonl", "model.keras", "training.yaml")
    }
    assert not list(published.parent.glob("*.unfinished*"))


def test_the_card_has_the_evaluation_of_the_checkpoint(published):
    card = huggingface_hub.ModelCard.load(published / "README.md")
    assert card.data.license == "mit" and card.data.eval_results[0].metric_value == 0.9
    assert "360 images" in card.text


def test_no_path_of_this_machine_is_published(run, tmp_path):
    model_dir = tmp_path / "run"
    shutil.copytree(run, model_dir)
    assert str(tmp_path) not in "".join(path.read_text() for path in model_dir.glob("*.yaml"))
    from efficientnet_tf.hub.publish import _remove_paths

    config = load_model(model_dir).config
    data = config.data.model_copy(update={"dir": "/home/me/photos/", "cache": "/scratch/cache"})
    train = config.train.model_copy(update={"init_from": "/home/me/runs/b0"})
    cleaned = _remove_paths(config.model_copy(update={"data": data, "train": train}))
    assert (cleaned.data.dir, cleaned.data.cache, cleaned.train.init_from) == ("photos", "cache", "b0")
    kept = _remove_paths(config.model_copy(update={"train": train.model_copy(update={"init_from": "hf://a/b"})}))
    assert kept.train.init_from == "hf://a/b" and kept.data == config.data


@pytest.mark.slow
def test_a_model_of_the_hub_is_used_from_the_cache(run, cache, tmp_path):
    code = (
        "import json, numpy, efficientnet_tf as ef\n"
        "model = ef.load_model('hf://user/digits')\n"
        "print(json.dumps(model(numpy.full([2, 32, 32, 3], 99.0)).tolist()))\n"
    )
    done = run_offline(cache, code=code)
    assert done.returncode == 0, done.stderr
    expected = load_model(run)(np.full([2, 32, 32, 3], 99.0))
    np.testing.assert_allclose(json.loads(done.stdout), expected, rtol=1e-5, atol=1e-5)
    train = ["efficientnet_tf.train", "--recipe=digits", "--init_from=hf://user/digits", f"--model_dir={tmp_path}/new"]
    train += ["--variant=" + os.path.join(os.path.dirname(__file__), "../tiny.yaml"), "--set", "train.epochs=0.1"]
    done = run_offline(
        cache, *train, "--set", tiny.SHORT, "--set", "model.head_channels=256", "--set", "schedule.warmup_epochs=0"
    )
    assert done.returncode == 0 and "Starting from hf://user/digits" in done.stdout + done.stderr, done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["predict", "--model_dir=hf://user", "x.png"], "Use hf://user/name"),
        (["predict", "--model_dir=hf://user/a/b", "x.png"], "Use hf://user/name"),
        (["push", "--model_dir={run}", "--to=hf://user/new@v1"], "Leave out @"),
        (["push", "--model_dir={run}", "--to={run}"], "exists. Choose another folder"),
        (["push", "--model_dir={run}", "--to=gs://bucket/x"], "is on gs://"),
        (["push", "--model_dir=missing", "--to=x"], "missing"),
        (["push", "--model_dir={run}/model.keras", "--to=x"], "is not a model directory"),
        (["push", "--model_dir={run}", "--to=/dev/null/x"], "--to=/dev/null/x"),
    ],
)
def test_mistakes(words, message, run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert exit_status(*[word.replace("{run}", str(run)) for word in words]) in (1, 2)
    assert message in capsys.readouterr().err and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["predict", "--model_dir=hf://user/other", "x.png"],
            "the Hub cannot be reached, and this machine has no copy",
        ),
        (["evaluate", "--model_dir=hf://user/digits@v9"], "hf://user/digits@v9 cannot be downloaded"),
        (["weights", "--variant=b0", "--input=hf://user/other", "--output=x"], "cannot be downloaded"),
        (["push", "--model_dir={run}", "--to=hf://user/new"], "you are not logged in"),
    ],
)
def test_what_is_not_possible_is_explained(words, message, run, cache):
    command, *flags = [word.replace("{run}", str(run)) for word in words]
    done = run_offline(cache, f"efficientnet_tf.{command}", *flags)
    assert done.returncode == 1 and message in done.stderr and "Traceback" not in done.stderr, done.stderr


def test_a_failed_upload_is_explained(run):
    """Nothing listens at this address, so the library itself finds out that the Hub cannot be reached."""
    code = f"from efficientnet_tf.hub.publish import push_model\npush_model({str(run)!r}, 'hf://user/new')\n"
    environment = os.environ | {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_TOKEN": "hf_x", "HF_HUB_OFFLINE": "0"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=300)
    assert "UserError: to=hf://user/new cannot be published" in done.stderr


def test_a_folder_that_cannot_be_written_leaves_nothing(run, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="^to=.*file/model"):
        push_model(run, str(tmp_path / "file" / "model"))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
