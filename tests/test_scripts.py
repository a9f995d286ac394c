"""The wrappers that start a training again, with real processes: a stand-in for the command, and one for gcloud."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parent.parent / "scripts"


def until_done(tmp_path, *statuses, **environment):
    """Run a command that ends with these statuses, one after the other; return the process and how often it ran."""
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
def test_started_again_until_done(tmp_path, statuses, status, runs):
    done, told = until_done(tmp_path, *statuses, TRIES="2")
    assert (done.returncode, told) == (status, ["--a b c"] * runs), done.stderr
    assert ("giving up" in done.stderr) == (status == 137)


def test_a_signal_goes_to_the_command(tmp_path):
    command = tmp_path / "command"
    command.write_text("trap 'exit 75' TERM\ntouch ready\nwhile true; do sleep 0.05; done\n")
    process = subprocess.Popen(["bash", SCRIPTS / "until_done.sh", "bash", command], cwd=tmp_path)
    while not (tmp_path / "ready").exists():
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 75


def test_without_a_command_it_tells_its_use():
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
def test_a_preempted_tpu_is_made_anew(tmp_path, statuses, status):
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
    made = 1 + (255 in statuses)
    assert verbs.count("create") == verbs.count("scp") == made and verbs.count("delete") == made - 1
    assert verbs.count("ssh") == made + len(statuses)  # setting up, and each start
    log = (tmp_path / "log").read_text()
    assert "--accelerator-type=v3-8 --version=tpu-ubuntu2204-base --spot --zone=z" in log
    assert r"efficientnet_tf.train --tpu=local --variant=b4 --set a=b\ c --zone=z" in log
