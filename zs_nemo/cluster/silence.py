"""How long a process has been asked without an answer."""

import threading
import time
from collections.abc import Callable


class Silence:
    """Counts the time in which at least one question was open and none was answered. May be used from any thread.

    A question that is taken back is no answer: who never answers is found out even by callers with little patience.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._num_open = 0
        self._spent_s = 0.0
        self._since = 0.0
        self.last_answer = 0.0
        """When the last answer came, by the clock."""

    def asked(self) -> None:
        """Count a question."""
        with self._lock:
            if self._num_open == 0:
                self._since = self._clock()
            self._num_open += 1

    def answered(self) -> None:
        """Count an answer, be it an error: the process is at work."""
        with self._lock:
            self._num_open -= 1
            self._spent_s, self._since = 0.0, self._clock()
            self.last_answer = self._since

    def withdrawn(self) -> None:
        """Count a question that nobody waits for any more."""
        with self._lock:
            self._num_open -= 1
            if self._num_open == 0:
                self._spent_s += self._clock() - self._since

    @property
    def is_asked(self) -> bool:
        """Whether somebody waits for an answer."""
        return self._num_open > 0

    @property
    def seconds(self) -> float:
        """Seconds of silence so far; 0 while nobody waits."""
        with self._lock:
            return self._spent_s + self._clock() - self._since if self._num_open else 0.0
