"""Mistakes in flags, data and directories are found before TensorFlow is imported, which takes seconds."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from efficientnet_tf import cli
from efficientnet_tf.commands import COMMANDS, load_command

FIXTURES = Path(__file__).parent / "fixtures"
MODELS = {
    "evaluate": [],
    "predict": ["note.txt"],
    "explain": ["note.txt"],
    "export": ["--output=net.tflite"],
}
NO_MODELS = {
    "nope": "no such file or folder",
    "empty": "is not a model directory: it has no config.yaml",
    "note.txt": "note.txt is a file",
    "nope.keras": "no such file or folder",
    "nope.tflite": "no such file or folder",
    "broken": "config.yaml: ",
    "cut": "None of the 2 checkpoints in cut can be read: parts are missing",
    "cut/model.keras": "is damaged or not a Keras model",
}
# Command line -> exit status and a part of the sentence.
MISTAKES = {
    f"{command} --model_dir={path} {' '.join(others)}": (1, part)
    for command, others in MODELS.items()
    for path, part in NO_MODELS.items()
} | {
    "report --model_dir=nope": (1, "no such file or folder"),
    "report --model_dir=empty": (1, "is not a model directory: it has no config.yaml"),
    "report --model_dir=note.txt": (1, "note.txt is a file"),
    "report --model_dir=broken": (1, "config.yaml: "),
    "train": (1, "--model_dir is missing"),
    "train --model_dir=run --set=train.epoch=3": (1, "Did you mean 'epochs'?"),
    "train --model_dir=run --set=data.source=folder": (1, "needs data.dir"),
    "train --model_dir=run --recipe=folder --data_dir=nope": (1, "data.dir='nope' is not a folder"),
    "train --model_dir=run --set=data.source=table --data_dir=empty": (1, "has neither train.csv nor train.tsv"),
    "train --model_dir=run --set=data.source=records --data_dir=empty": (1, "has no file train-00000-of-"),
    "train --model_dir=run --set=data.train_split=trian": (1, "Did you mean 'train'?"),
    "train --model_dir=run --device=cpu --tpu=local": (1, "--device=cpu and --tpu=local contradict each other"),
    "train --model_dir=run --device=tpu --replicas=2": (1, "--replicas=2 splits the CPU"),
    "train --model_dir=run --replicas=100000": (1, "--replicas=100000 is out of range"),
    "train --model_dir=note.txt": (1, "note.txt is a file, not a folder"),
    "train --model_dir=note.txt/run": (1, "note.txt is a file, not a folder"),
    "train --model_dir=run --init_from=nope": (1, "train.init_from=nope: no such file or folder"),
    "train --model_dir=run --variant=nope.yaml": (1, "variant file 'nope.yaml' does not exist"),
    "train --model_dir=run --recipe=digts": (1, "Did you mean 'digits'?"),
    "train --model_dir=run --steps=50": (1, "--steps=50 is only for --find_learning_rate"),
    "train --model_dir=run --init_from=note.txt": (1, "note.txt has an unknown format"),
    "train --model_dir=run --init_from=empty": (1, "empty is not a model directory or an export"),
    "train --model_dir=run --replicas=3": (1, "train.batch_size=64 is not divisible by 3 replicas"),
    "evaluate --model_dir=nope --device=cpu --tpu=local": (1, "contradict each other"),
    "evaluate --model_dir=net.onnx --folder=photos": (1, "the model does not have cat, dog"),
    "evaluate --model_dir=net.onnx --real_labels=real.json": (1, "has the labels 10, which the model does not have"),
    "evaluate --model_dir=net.onnx --confusion=a.jpg": (1, "--confusion=a.jpg has an unknown file type"),
    "predict --model_dir=old note.txt": (1, "note.txt cannot be decoded: this is a text file, not an image."),
    "predict --model_dir=old photos --output=a.txt": (1, "Use a name that ends in .csv or .jsonl"),
    "predict --model_dir=old photos --output=nope/a.csv": (1, "'nope' is not a folder"),
    "predict --model_dir=old photos --output=a.csv --json": (1, "exclude each other"),
    "explain --model_dir=old note.txt": (1, "None of 1 image(s) can be read"),
    "explain --model_dir=old photos --method=grad_cam --layer=top_bm": (
        1,
        "unknown --layer=top_bm. Similar names are top_bn",
    ),
    "export --model_dir=old --output=a.onnx --precision=int8 --keep_float=top": (
        1,
        "keep_float=top is not a convolution",
    ),
    "weights --variant=b0 --input=nope --output=out": (1, "--input=nope: no such file or folder"),
    "weights --variant=b99 --input=note.txt --output=out": (1, "unknown variant 'b99'"),
    "weights --variant=b0 --input=note.txt --output=out --set=data.x=1": (1, "data.x: unknown key"),
    "weights --variant=b0 --input=note.txt --output=out": (1, "note.txt has an unknown format"),
    "weights --variant=b0 --input=old/model.keras --output=empty": (1, "--output=empty exists"),
    "show --recipe=folder --data_dir=nope": (1, "data.dir='nope' is not a folder"),
    "show --output=nope/grid.png": (1, "'nope' is not a folder"),
    "show --output=grid.xyz": (1, "grid.xyz"),
    "prepare --data_dir=nope --output=out": (1, "data.dir='nope' is not a folder"),
    "prepare --source=digits --output=out --set=data.x=1": (1, "data.x: unknown key"),
    "report --model_dir=empty --model_dir=./empty": (1, "--model_dir=empty is given twice"),
    "report --model_dir=empty --output=report.pdf": (1, "Use a name that ends in .html"),
    "prepare --source=digits --splits=train --output=note.txt": (1, "note.txt: cannot write 'train' to this folder"),
    "summary --variant=b99": (1, "unknown variant 'b99'"),
    "summary --picture=b0.txt": (1, "--picture=b0.txt cannot be written. Use a name that ends in .png or .jpg"),
    "scale --target_macs=1e9 --output=nope/mine.yaml": (1, "'nope' is not a folder"),
    "study --study=family": (1, "--output_dir is missing"),
    "study --study=family --output_dir=out --variants=b0,b99": (1, "unknown variant 'b99'"),
    "study --study=family --output_dir=out --set=train.x=1": (1, "train.x: unknown key"),
    "train --variant=b3 --recipe=imagenet_v2 --print_config": (1, "has no values for variant 'b3'"),
    "study --study=family --output_dir=out --device=cpu --tpu=x": (1, "contradict each other"),
    "study --study=family --output_dir=out --recipe=folder --data_dir=nope": (1, "data.dir='nope' is not a folder"),
    "search --output_dir=out --recipe=folder --data_dir=nope": (1, "data.dir='nope' is not a folder"),
    "study --study=family --output_dir=out --seeds=1000000000": (1, "more than 100,000 runs"),
    "search --output_dir=out --phi=1e9": (1, "--phi=1e+09 is out of range"),
    "search --output_dir=out --device=cpu --tpu=x": (1, "contradict each other"),
    "benchmark --mode=train --variant=b99": (1, "unknown variant 'b99'"),
    "benchmark --output=nope/speed.json": (1, "nope/speed.json"),
    "preflight --topology=v9:1": (1, "v9:1"),
    "preflight --topology=v5e:2x4 --set=train.x=1": (1, "train.x: unknown key"),
    # Flags.
    "predict --model-dir=run note.txt": (2, "Did you mean '--model_dir'?"),
    "predict -model_dri=run note.txt": (2, "Did you mean '--model_dir'?"),
    "predict --variant=b0 note.txt": (2, "--variant is a flag of train, "),
    "study --studdy=family": (2, "Did you mean '--study'?"),
    "study --study=famly": (2, "Did you mean 'family'?"),
    "train --device=cppu": (2, "Did you mean 'cpu'?"),
    "train --tracker=wanbd": (2, "Did you mean 'wandb'?"),
    "summary --classes=100000000000000000000": (2, "is too large. The largest value is 1000000000"),
    "summary --classes=0": (2, "invalid integer >= 1 value"),
    "summary --memory=1e400": (2, "invalid number > 0 value"),
    "summary --memory=1e300": (2, "is out of range. Use a number from 1e-24 to 1e+24"),
    "scale --target_macs=nan": (2, "invalid number > 0 value"),
}
CODE = """
import contextlib, io, json, sys
from efficientnet_tf import cli
from efficientnet_tf.commands import load_command
for line in json.load(sys.stdin):
    command, *words = line.split()
    module, stderr = load_command(command), io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(stderr):
        try:
            cli.run(module.main, module.make_parser(), [command, "--verbose", *words])
        except SystemExit as stopped:
            status = stopped.code
    heavy = sorted({"tensorflow", "keras", "jax"} & set(sys.modules))
    print(json.dumps([line, status, stderr.getvalue(), heavy]), flush=True)
    if heavy:
        break
"""


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """Run all command lines in one process. Return the status, the error and the heavy modules of each."""
    folder = tmp_path_factory.mktemp("mistakes")
    (folder / "empty").mkdir()
    (folder / "note.txt").write_text("x")
    (folder / "broken").mkdir()
    (folder / "broken" / "config.yaml").write_text("[" * 1000)
    (folder / "broken" / "classes.txt").write_text("cat\ndog\n")
    for name in ("old", "cut"):
        shutil.copytree(FIXTURES / "old_run", folder / name)
    for path in (*(folder / "cut" / "checkpoints").glob("*.index"), folder / "cut" / "model.keras"):
        path.write_bytes(b"")
    shutil.copy(FIXTURES / "old_exports" / "net.onnx", folder)
    (folder / "real.json").write_text("[[3], [10]]")
    for name in ("cat", "dog"):
        (folder / "photos" / name).mkdir(parents=True)
        (folder / "photos" / name / "0.jpg").write_bytes(b"\xff\xd8\xff")  # begins like an image
    before = sorted(folder.iterdir())
    done = subprocess.run(
        [sys.executable, "-c", CODE],
        input=json.dumps(list(MISTAKES)),
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        timeout=240,
    )
    assert not done.returncode, done.stderr
    assert sorted(folder.iterdir()) == before, "nothing is written"
    return {line: others for line, *others in map(json.loads, done.stdout.splitlines())}


@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_is_a_sentence_before_tensorflow_is_imported(answers, line):
    status, error, heavy = answers[line]
    assert not heavy
    assert (status, MISTAKES[line][1] in error) == (MISTAKES[line][0], True), error
    assert "Traceback" not in error


# Flags that take names, addresses and settings rather than paths. Variants and recipes can be paths of YAML files.
NO_PATHS = {"variant", "recipe", "baseline", "tpu", "topology", "overrides", "storage", "source", "layer", "label"}
NO_PATHS |= {"checkpoint", "name", "host", "license", "dataset"}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("path", "part"),
    [
        ("", "is empty"),
        (" ", "is empty"),
        ("s3://bucket/x", "is on s3://"),
        ("hf://model", "is on hf://"),
        ("https://host/x", "is on https://"),
        ("file:///x", "Write the path itself: /x"),
        ("a\0b", "contains a null character"),
        ("x" * 5000, "is longer than the 4096 bytes"),
    ],
)
def test_every_flag_with_a_path_refuses_what_cannot_be_one(command, path, part, capsys):
    parser = load_command(command).make_parser()
    words = [a.dest for a in parser._actions if a.type is None and a.choices is None and a.nargs != 0]
    assert set(words) <= NO_PATHS, "each flag with a path has the type cli.path or cli.model_path"
    for action in parser._actions:
        if action.type in (cli.path, cli.model_path):
            is_hub = action.type is cli.model_path and path.startswith("hf://")
            with pytest.raises(SystemExit) as stopped:
                parser.parse_args([f"{action.option_strings[0]}={path}"] if action.option_strings else [path])
            expected = "Use hf://user/name" if is_hub else part
            assert stopped.value.code == 2 and expected in capsys.readouterr().err
