"""How a process is asked to stop, and how it says that it did."""

import signal

EXIT_RESTART = 75  # The process was stopped by a signal and everything is saved: start the same command again.


class StopFlag:
    """Turns signals into a flag, so that a run can save before it ends. Use it as a context manager.

    The first signal sets `asked` and restores the handlers that were there before, so a second one acts as usual.

    Attributes:
        asked: Whether one of the signals has arrived.
    """

    def __init__(self, *signals):
        self.asked = False
        self._signals = signals or (signal.SIGTERM,)
        self._previous = {}

    def __enter__(self):
        self._previous = {number: signal.signal(number, self._ask) for number in self._signals}
        return self

    def _ask(self, *_):
        self.asked = True
        self.__exit__()

    def __exit__(self, *exception):
        for number, handler in self._previous.items():
            signal.signal(number, handler)
