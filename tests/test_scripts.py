"""The scripts that restart training, with stand-ins for the command and for gcloud, and the pages about speed."""

import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parent.parent / "scripts"
TINY = Path(__file__).with_name("tiny.yaml")


def until_done(tmp_path, *statuses, **environment):
    """Run a command that ends with these statuses, one after the other. Return the process and the calls."""
    (tmp_path / "statuses").write_text("".join(f"{status}\n" for status in statuses))
    command = tmp_path / "command"
    command.write_text(
        'read -r status < statuses; sed -i 1d statuses; echo "$@" >> runs\n'
        'if [ "$status" -gt 128 ]; then kill -$((status - 128)) $$; fi; exit "$status"\n'
    )
    done = subprocess.run(
        ["bash", SCRIPTS / "until_done.sh", "bash", command, "--a", "b c"],
        cwd=tmp_path,
        env=os.environ | {"PAUSE": "0", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    return done, (tmp_path / "runs").read_text().splitlines()


@pytest.mark.parametrize(
    ("statuses", "status", "runs"),
    [
        ((0,), 0, 1),
        ((75, 75, 0), 0, 3),
        ((137, 75, 134, 0), 0, 4),
        ((1, 0), 1, 1),
        ((75, 2, 0), 2, 2),
        ((137, 139, 137, 0), 137, 3),  # TRIES=2
    ],
)
def test_command_is_started_again_until_it_is_done(tmp_path, statuses, status, runs):
    done, calls = until_done(tmp_path, *statuses, TRIES="2")
    assert (done.returncode, calls) == (status, ["--a b c"] * runs), done.stderr
    assert ("giving up" in done.stderr) == (status == 137)


def test_signal_is_passed_to_the_command(tmp_path):
    command = tmp_path / "command"
    command.write_text("trap 'exit 75' TERM\ntouch ready\nwhile true; do sleep 0.05; done\n")
    process = subprocess.Popen(["bash", SCRIPTS / "until_done.sh", "bash", command], cwd=tmp_path)
    while not (tmp_path / "ready").exists():
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 75


def test_usage():
    done = subprocess.run(["bash", SCRIPTS / "until_done.sh"], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "bash scripts/until_done.sh .venv/bin/python" in done.stdout


GCLOUD = r"""
echo "$*" >> "$LOG"
case "$4" in
  describe) [ -e state ] && cat state || exit 1 ;;
  create) echo READY > state ;;
  delete) rm state ;;
  ssh) case "$*" in *until_done.sh*)
    read -r status < statuses; sed -i 1d statuses
    [ "$status" != 255 ] || echo PREEMPTED > state
    exit "$status" ;; esac ;;
esac
"""


@pytest.mark.parametrize(("statuses", "status"), [((0,), 0), ((255, 75, 0), 0), ((255, 1), 1)])
def test_preempted_tpu_is_created_again(tmp_path, statuses, status):
    (tmp_path / "bin").mkdir()
    gcloud = tmp_path / "bin" / "gcloud"
    gcloud.write_text(f"#!/usr/bin/env bash\n{GCLOUD}")
    gcloud.chmod(0o755)
    (tmp_path / "statuses").write_text("".join(f"{s}\n" for s in statuses))
    for arguments in (
        ["init", "-q"],
        ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "--allow-empty", "-mx"],
    ):
        subprocess.run(["git", *arguments], cwd=tmp_path, check=True)
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "ZONE": "z", "TYPE": "v3-8", "PAUSE": "0", "LOG": str(tmp_path / "log")}
    done = subprocess.run(
        ["bash", SCRIPTS / "tpu_until_done.sh", "mine", "--variant=b4", "--set", "a=b c"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == status, done.stderr
    verbs = [line.split()[3] for line in (tmp_path / "log").read_text().splitlines()]
    created = 1 + (255 in statuses)
    assert verbs.count("create") == verbs.count("scp") == created and verbs.count("delete") == created - 1
    assert verbs.count("ssh") == created + len(statuses)  # once for each set-up and each start
    log = (tmp_path / "log").read_text()
    assert "--accelerator-type=v3-8 --version=tpu-ubuntu2204-base --spot --zone=z" in log
    assert r"efficientnet_tf.train --tpu=local --variant=b4 --set a=b\ c --zone=z" in log


@pytest.mark.slow
def test_the_page_of_speed_is_written_from_its_files(tmp_path):
    folder = tmp_path / "speed"
    folder.mkdir()
    row = {"variant": "b0", "size": 224, "batch": 8, "threads": 4, "implementation": "efficientnet_tf", "gmacs": 0.39}
    row |= {"images_per_second": 100.0, "low": 90.0, "high": 110.0, "of_product": 0.2, "milliseconds": 80.0}
    row |= {"peak_mib": 900, "start_seconds": 7.5, "first_step_seconds": 1.5, "product_gflops": 500}
    report = {"command": "python -m efficientnet_tf.benchmark --mode=infer", "environment": {"cpu": "a", "cores": 4}}
    left_out = [{"variant": "b7", "size": 600, "batch": 64, "threads": 1, "reason": "a step would take 37 s"}]

    def write(name, mode, rows, skipped=()):
        content = report | {"mode": mode, "rows": rows, "skipped": list(skipped)}
        (folder / f"{name}.json").write_text(json.dumps(content))

    grown = [row | {"variant": f"b{i}", "gmacs": 0.39 * 2**i, "threads": t} for t in (1, 4) for i in range(3)]
    write("scale_infer", "infer", grown[1:], left_out)
    exported = [
        row | {"batch": b, "implementation": c, "file_mib": 20.5}
        for b in (1, 32)
        for c in ("onnx:int8", "onnx:float32")
    ]
    write("deploy", "export", exported)
    agreement = [{"implementation": "onnx:float32", "images": 360, "difference": 1e-6, "agreement": 0.9975}]
    agreement += [{"implementation": "onnx:int8", "error": "run by ONNX Runtime in int8, ... less than 98%"}]
    (folder / "agreement.json").write_text(json.dumps({"commands": ["python -m ..."], "rows": agreement}))
    done = subprocess.run([sys.executable, SCRIPTS / "speed_table.py", folder, "--page"], check=False)
    assert done.returncode == 0 and (folder / "scale_infer.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "speed.md").read_text()
    tables = {
        line.split("|")[1].strip(): [c.strip() for c in line.split("|")] for line in page.splitlines() if "|" in line
    }
    assert tables["onnx:float32"][2:3] == ["360"]  # the last table that has it
    assert "below 98 %: not written" in page and "99.75%" in page and "20.5" in page
    assert "- b7 at 600 pixels, batch 64, threads 1: a step would take 37 s" in page
    assert "    python -m efficientnet_tf.benchmark --mode=infer\n" in page and "![" in page
    missing = page.rpartition("Not measured yet: ")[2].strip(".\n").split(", ")
    assert {"train_b0", "train_v2_s", "deploy_bfloat16"} <= set(missing) and not {"deploy", "scale_infer"} & set(
        missing
    )


@pytest.mark.slow
def test_the_gpu_benchmark_measures_without_tensorflow(tmp_path):
    (tmp_path / "tensorflow.py").write_text("raise ImportError('not here')")
    path = f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"
    words = ["--implementations=jax", f"--variants={TINY}", "--sizes=32", "--batch=2", "--seconds=0.01", "--rounds=1"]
    done = subprocess.run(
        [sys.executable, SCRIPTS / "gpu_benchmark.py", *words, f"--output={tmp_path / 'gpu.json'}"],
        env=os.environ | {"PYTHONPATH": path, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "gpu.json").read_text())
    assert report["environment"]["jax"] and [row["mode"] for row in report["rows"]] == ["train", "infer"]
    for row in report["rows"]:
        assert (row["implementation"], row["device"], row["device_peak_mib"]) == ("jax", "cpu", None)
        assert 0 < row["low"] <= row["images_per_second"] <= row["high"]


def test_the_gpu_benchmark_checks_its_flags():
    words = [sys.executable, SCRIPTS / "gpu_benchmark.py", "--implementations=jaks"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and done.stderr == "error: --implementations=jaks is not known. Use jax or timm.\n"


def test_the_page_of_variants_is_what_its_script_writes():
    page = runpy.run_path(str(SCRIPTS / "variants_table.py"))["format_page"]()
    assert (SCRIPTS.parent / "docs" / "variants.md").read_text() == page


def test_the_page_of_real_weights_is_written_from_its_files(tmp_path):
    """Writing it again changes nothing, so that its figures are those of the committed files."""
    docs = SCRIPTS.parent / "docs"
    shutil.copytree(docs / "real_weights", tmp_path / "real_weights")
    code = "import sys, pathlib, real_weights; real_weights.write_page(pathlib.Path(sys.argv[1]))"
    words = [sys.executable, "-c", code, tmp_path / "real_weights"]
    subprocess.run(words, cwd=SCRIPTS, check=True)
    assert (tmp_path / "real_weights.md").read_text() == (docs / "real_weights.md").read_text()
