"""Asks a process to stop and save, and defines the exit status that says that it did."""

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable

EXIT_RESTART = 75  # A signal stopped the process and everything is saved. Start the same command again to go on.


class StopFlag:
    """Turns signals into a flag, so that a run can save before it ends. Use it as a context manager.

    Outside of the main thread, where Python takes no signals, it never asks.

    Args:
        *signals: Numbers of the signals. Defaults to SIGTERM.
        once: Whether a second signal acts as it did before. Otherwise it only sets the flag again.

    Attributes:
        asked: Whether one of the signals has arrived.
    """

    def __init__(self, *signals: int, once: bool = False):
        self.asked = False
        self._signals = signals or (signal.SIGTERM,)
        self._once = once
        self._previous = {}

    def __enter__(self) -> "StopFlag":
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._ask) for number in self._signals}
        return self

    def _ask(self, *_):
        self.asked = True
        if self._once:
            self.__exit__()

    def __exit__(self, *exception) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)


class StopLimit:
    """Ends the process if it does not end by itself within some time of SIGTERM. Use it as a context manager.

    Python runs signal handlers only between its own instructions. While TensorFlow reads data, compiles, evaluates or
    waits for other workers, a `StopFlag` goes unseen. This takes note of the signal in a thread of its own. Outside of
    the main thread it does nothing. There must be a handler for SIGTERM, for example that of a `StopFlag` around it.

    Args:
        seconds: Returns how long the process may still take, now that it does what it does. It is asked again and
            again after the signal.
        last_words: Called before the process ends with `EXIT_RESTART`. It has a minute to save and print something.
    """

    def __init__(self, seconds: Callable[[], float], last_words: Callable[[], None]):
        self._seconds, self._last_words = seconds, last_words
        self._ended = threading.Event()
        self._sockets: tuple[socket.socket, ...] = ()

    def __enter__(self) -> "StopLimit":
        if threading.current_thread() is threading.main_thread():
            self._sockets = reading, writing = socket.socketpair()
            writing.setblocking(False)
            # Python's own handler in C writes the number of each signal there at once.
            self._previous = signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
            self._thread = threading.Thread(target=self._watch, args=[reading], daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *exception) -> None:
        self._ended.set()
        if self._sockets:
            signal.set_wakeup_fd(self._previous)
            reading, writing = self._sockets
            writing.close()
            self._thread.join()
            reading.close()

    def _watch(self, reading: socket.socket) -> None:
        while signal.SIGTERM not in (received := reading.recv(64)):
            if not received:
                return  # The block has ended.
        begun = time.monotonic()
        while time.monotonic() - begun < self._seconds():
            if self._ended.wait(0.1):
                return
        speaker = threading.Thread(target=self._speak, daemon=True)
        speaker.start()
        speaker.join(60)
        os._exit(EXIT_RESTART)

    def _speak(self) -> None:
        with contextlib.suppress(Exception):
            self._last_words()
            sys.stdout.flush()
            sys.stderr.flush()
