"""A network labels images, and another one learns from them: `predict --soft`, and `data.pseudo_labels` of training."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import recast
import tiny
from commands import exit_status, run_here

from efficientnet_tf import evaluate_model, predict_images
from efficientnet_tf.config.errors import UserError
from efficientnet_tf.training.trainer import train_model

SIZES = ["data.image_size=16", "train.batch_size=32", "schedule.warmup_epochs=1", "eval.every_epochs=20"]
SIZES += ["optimizer.name=adamw", "optimizer.learning_rate=0.05", "optimizer.rho=0.99", "train.ema_decay=0"]
SIZES += ["model.batch_norm_momentum=0.9", tiny.SHORT]
LABELED, UNLABELED = 200, 300


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Return a folder with a teacher, and the images that it has labeled, which it was not trained on."""
    root = tmp_path_factory.mktemp("digits")
    recast.write_table(root)
    lines = (root / "train.csv").read_text().splitlines()
    (root / "train.csv").write_text("\n".join(lines[: 1 + LABELED]))
    images = [str(root / line.split(",")[0]) for line in lines[1 + LABELED :][:UNLABELED]]
    train_model(make_config(root), str(root / "teacher"))
    assert not run_here("predict", "--soft", f"--model_dir={root}/teacher", f"--output={root}/soft.parquet", *images)
    return root, images


def make_config(root, *overrides):
    data = ["data.source=table", f"data.dir={root}", "data.label_columns=value", "data.eval_split=val"]
    return tiny.load_config(*data, *SIZES, "train.epochs=20", *overrides)


def test_the_file_has_the_probabilities_of_all_classes(run):
    root, images = run
    table = pq.read_table(root / "soft.parquet")
    names = json.loads(table.schema.metadata[b"class_names"])
    assert names == [str(digit) for digit in range(10)] and table.column("path").to_pylist() == images
    expected = [dict(answer) for answer in predict_images(str(root / "teacher"), images[:20], top=10)]
    found = [dict(zip(names, row, strict=True)) for row in table.column("probabilities").to_pylist()[:20]]
    for row, answer in zip(found, expected, strict=True):
        assert row == pytest.approx(answer, abs=1e-6)


@pytest.mark.slow
def test_a_student_learns_from_them(run, caplog):
    root, _ = run
    config = make_config(
        root, f"data.pseudo_labels={root}/soft.parquet", "data.pseudo_confidence=0.2", "train.epochs=16"
    )
    train_model(config, str(root / "student"))
    assert "images are added to 200 with labels." in caplog.text
    logged = [json.loads(line) for line in (root / "student" / "metrics.jsonl").read_text().splitlines()]
    assert max(row["step"] for row in logged) > 8 * LABELED // 32  # An epoch has more images.
    top1 = {name: evaluate_model(str(root / name))["top1"] for name in ("teacher", "student")}
    assert top1["teacher"] > 0.6 and top1["student"] > top1["teacher"] - 0.05


def test_other_tables_in_parquet(run, tmp_path):
    root, images = run
    output = tmp_path / "top.parquet"
    assert not run_here("predict", f"--model_dir={root}/teacher", f"--output={output}", "--top=2", *images[:5])
    table = pq.read_table(output)
    assert table.column_names == ["path", "label_1", "probability_1", "label_2", "probability_2"]
    expected = predict_images(str(root / "teacher"), images[:5], top=2)
    assert [row["label_1"] for row in table.to_pylist()] == [answer[0][0] for answer in expected]
    np.testing.assert_allclose(table.column("probability_2"), [answer[1][1] for answer in expected], atol=1e-6)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--soft"], "--soft writes a table of probabilities. Add --output=FILE.parquet."),
        (["--soft", "--output=x.csv"], "--soft writes a table of probabilities. Add --output=FILE.parquet."),
        (["--soft", "--output=x.parquet", "--top=3"], "leave out --top and --threshold"),
    ],
)
def test_flags_that_do_not_fit(run, flags, message, capsys):
    root, images = run
    assert exit_status("predict", f"--model_dir={root}/teacher", *flags, images[0]) == 1
    assert message in capsys.readouterr().err


def test_records_cannot_have_them(run, tmp_path, capsys):
    root, _ = run
    labels = f"data.pseudo_labels={root}/soft.parquet"
    assert exit_status("prepare", "--source=table", f"--data_dir={root}", f"--output={tmp_path}", "--set", labels) == 1
    assert "data.pseudo_labels cannot be written" in capsys.readouterr().err


def test_missing_file(run):
    root, _ = run
    with pytest.raises(UserError, match=r"nothing\.parquet"):
        train_model(make_config(root, f"data.pseudo_labels={root}/nothing.parquet"), str(root / "none"))
