"""What huggingface_hub leaves on a disk after a download, and commands that find nothing but that."""

import os
import shutil
import subprocess
import sys

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def fill_cache(home, folder, name):
    """Store the files of a folder in a home of huggingface_hub as a download of `models--user--name` leaves them."""
    repository = home / "hub" / name
    snapshot = repository / "snapshots" / COMMIT
    (repository / "refs").mkdir(parents=True)
    (repository / "refs/main").write_text(COMMIT)
    for number, path in enumerate(sorted(path for path in folder.rglob("*") if path.is_file())):
        blob = repository / "blobs" / f"{number:040}"
        blob.parent.mkdir(exist_ok=True)
        shutil.copy(path, blob)
        link = snapshot / path.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    return home


def run_offline(home, *words, code=None):
    """Run a command, or Python code, where the Hub cannot be reached but the cache has what was downloaded."""
    start = [sys.executable, *(["-c", code] if code else ["-m", *words])]
    environment = os.environ | {
        "HF_HOME": str(home),
        "HF_HUB_OFFLINE": "1",
        "HF_TOKEN": "",
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    return subprocess.run(start, capture_output=True, text=True, env=environment, timeout=300)
