"""Asks a process to stop and save, and defines the exit status that says that it did."""

import signal
import threading

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
