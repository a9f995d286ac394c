"""The end of a process after SIGTERM: by itself, or by a limit while it does something that cannot be interrupted."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from efficientnet_tf.runtime.signals import EXIT_RESTART, StopFlag, StopLimit

PROGRAM = """
import time
from efficientnet_tf.runtime.signals import StopFlag, StopLimit

def speak():
    print("last words", flush=True)
    {words}

with StopFlag() as flag, StopLimit(lambda: {seconds}, speak):
    print("ready", flush=True)
    {work}
print("ended by itself", flag.asked)
"""


def end(work, seconds="0.2", words="pass"):
    """Send SIGTERM to a process while it works; return its status, what it printed, and the seconds it took."""
    program = PROGRAM.format(work=work, seconds=seconds, words=words)
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        begun = time.monotonic()
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=60)
    return process.returncode, out, time.monotonic() - begun


@pytest.mark.parametrize("work", ["time.sleep(100)", "open({fifo!r}).read()"])
def test_a_process_that_cannot_be_interrupted_ends_with_last_words(tmp_path, work):
    os.mkfifo(tmp_path / "fifo")
    status, out, seconds = end(work.format(fifo=str(tmp_path / "fifo")))
    assert (status, out) == (EXIT_RESTART, "last words\n")
    assert seconds < 30


def test_the_last_words_may_fail():
    assert end("time.sleep(100)", words="raise OSError")[:2] == (EXIT_RESTART, "last words\n")


def test_a_process_that_stops_by_itself_is_left_alone():
    work = "while not flag.asked: time.sleep(0.05)"
    assert end(work, seconds="50")[:2] == (0, "ended by itself True\n")


def test_without_a_signal_nothing_happens():
    handler, threads = signal.getsignal(signal.SIGTERM), threading.active_count()
    with StopFlag() as flag, StopLimit(lambda: 0, pytest.fail):
        assert threading.active_count() == threads + 1
    assert not flag.asked and threading.active_count() == threads
    assert signal.getsignal(signal.SIGTERM) is handler


def test_in_another_thread_it_does_nothing():
    def enter():
        with StopLimit(lambda: 0, pytest.fail):
            done.append(True)

    done = []
    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert done
