"""The lock of a directory: who holds it, what happens when its owner is killed, and what a deleted directory means."""

import contextlib
import fcntl
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading

import pytest

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.runtime import lock as lock_lib
from efficientnet_tf.runtime.lock import check_unlocked, lock_directory, lock_output

OWNER = """
import sys
from efficientnet_tf.runtime.lock import lock_directory
with lock_directory(sys.argv[1], "training"):
    print("locked", flush=True)
    sys.stdin.read()
"""


@contextlib.contextmanager
def other_process(path):
    """Hold the lock of a directory in another process within the block."""
    command = [sys.executable, "-c", OWNER, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        try:
            yield process
        finally:
            process.kill()


def test_the_second_owner_is_refused_with_the_name_of_the_first(tmp_path):
    with other_process(tmp_path / "run") as process:
        message = (
            rf"^model_dir=.*run is in use by process {process.pid} on .*training since 20.*Wait until it has ended"
        )
        with pytest.raises(UserError, match=message), lock_directory(str(tmp_path / "run"), "training"):
            pass
        with pytest.raises(UserError, match=message):
            check_unlocked(str(tmp_path / "run"))
        process.communicate("")  # It ends by itself, and leaves nothing.
        assert os.listdir(tmp_path / "run") == []
    check_unlocked(str(tmp_path / "run"))


def test_a_killed_owner_is_replaced_at_once(tmp_path):
    with other_process(tmp_path) as process:
        process.send_signal(signal.SIGKILL)
        # Not even waited for: the run is started again while the killed process is ending.
        with lock_directory(str(tmp_path), "training") as lock:
            assert lock.find_loss() is None
    assert os.listdir(tmp_path) == []
    check_unlocked(str(tmp_path / "nothing"))


def test_one_process_has_it_only_once(tmp_path):
    with lock_directory(str(tmp_path), "training"):
        with pytest.raises(UserError, match=f"in use by process {os.getpid()} "), lock_directory(str(tmp_path), "x"):
            pass
        with lock_directory(str(tmp_path / "other"), "training"), lock_output(str(tmp_path), "export"):
            pass
    with lock_directory(str(tmp_path), "training"):
        pass


def test_many_that_start_together_have_it_one_after_the_other(tmp_path):
    inside, most, refused = [], [], []

    def enter():
        for _ in range(5):
            try:
                with lock_directory(str(tmp_path / "run"), "training"):
                    inside.append(1)
                    most.append(len(inside))
                    inside.pop()
            except UserError:
                refused.append(1)

    threads = [threading.Thread(target=enter) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most) == 1 and len(most) + len(refused) == 40
    assert os.listdir(tmp_path / "run") == []


@pytest.mark.parametrize(
    ("change", "loss"),
    [
        (lambda path: shutil.rmtree(path), "was deleted or moved"),
        (lambda path: path.rename(path.with_name("moved")), "was deleted or moved"),
        (lambda path: (shutil.rmtree(path), path.write_text("file")), "was deleted or moved"),
        (lambda path: (shutil.rmtree(path), path.mkdir(), (path / "lock").touch()), "was deleted and created again"),
        (lambda path: (path / "lock").write_text('{"pid": 7, "token": "x"}'), "was taken over by process 7 on"),
    ],
)
def test_a_directory_that_is_gone(tmp_path, change, loss):
    path = tmp_path / "run"
    with lock_directory(str(path), "training") as lock:
        lock.check()
        change(path)
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(UserError, match=f"^model_dir={path} {loss}.*Nothing more is written to it"):
            lock.check()
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "content", [b"", b"garbage", b"\xff\x00", b"[1]", b"null", b"[" * 5000, b'{"pid": "\\u001b[31m"}']
)
def test_whatever_is_in_the_file_of_a_dead_owner(tmp_path, content, monkeypatch):
    monkeypatch.setattr(lock_lib, "WATCH_SECONDS", 0.1)
    (tmp_path / "lock").write_bytes(content)
    with lock_directory(str(tmp_path), "training") as lock:
        lock.check()
    assert os.listdir(tmp_path) == []


def test_names_in_the_file_are_escaped(tmp_path):
    (tmp_path / "lock").write_bytes(b'{"pid": "\\u001b[31m"}')
    with open(tmp_path / "lock") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(UserError, match=r"process \\x1b\[31m on \?"), lock_directory(str(tmp_path), "training"):
            pass


@pytest.mark.parametrize("kind", ["fifo", "folder"])
def test_something_else_in_its_place(tmp_path, kind):
    (os.mkfifo if kind == "fifo" else os.mkdir)(tmp_path / "lock")
    with pytest.raises(UserError, match="not a regular file|Is a directory"), lock_directory(str(tmp_path), "training"):
        pass
    check_unlocked(str(tmp_path))


def write_foreign(path, **owner):
    """Write the lock of a process on another machine, which the kernel of this one does not guard."""
    content = {"host": "elsewhere", "boot": "another", "pid": 7, "token": "theirs", "purpose": "training", **owner}
    (path / "lock").write_text(json.dumps(content))


def test_an_owner_on_another_machine_is_watched_before_it_is_replaced(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(lock_lib, "WATCH_SECONDS", 0.3)
    write_foreign(tmp_path)
    with caplog.at_level(logging.WARNING), lock_directory(str(tmp_path), "training") as lock:
        lock.check()
    assert "was used by process 7 on elsewhere" in caplog.text


@pytest.mark.parametrize("guarded", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_an_owner_on_another_machine_that_lives_is_respected(tmp_path, monkeypatch, guarded):
    monkeypatch.setattr(lock_lib, "WATCH_SECONDS", 20)
    if not guarded:  # as a file system without locks answers

        def refuse(*_):
            raise OSError(lock_lib.errno.ENOLCK, "No locks available")

        monkeypatch.setattr(fcntl, "flock", refuse)
    write_foreign(tmp_path)
    beats = threading.Timer(0.2, os.utime, [tmp_path / "lock"])
    beats.start()
    with pytest.raises(UserError, match="in use by process 7 on elsewhere"), lock_directory(str(tmp_path), "training"):
        pass
    beats.join()
    assert json.loads((tmp_path / "lock").read_text())["token"] == "theirs"


def test_a_living_owner_gives_signs_of_life(tmp_path, monkeypatch):
    monkeypatch.setattr(lock_lib, "HEARTBEAT_SECONDS", 0.05)
    with lock_directory(str(tmp_path), "training"):
        os.utime(tmp_path / "lock", (0, 0))
        for _ in range(200):
            if (tmp_path / "lock").stat().st_mtime > 0:
                break
            threading.Event().wait(0.05)
        assert (tmp_path / "lock").stat().st_mtime > 0


def test_remote_paths_are_not_protected_and_say_so(caplog):
    with caplog.at_level(logging.WARNING), lock_directory("gs://bucket/run", "training") as lock:
        assert lock.find_loss() is None
    assert "nothing keeps a second process from writing" in caplog.text
    check_unlocked("gs://bucket/run")


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(UserError, match="cannot be written: Not a directory"),
        lock_directory(f"{tmp_path}/file/x", "x"),
    ):
        pass
