"""What SIGTERM and SIGUSR1 ask of a run: to end in order, after the step that is under way, with a checkpoint of it.

A scheduler sends one of them before it takes the machines away. Asked while no step is under way, a run ends at once:
all that was trained is in the last checkpoint. So it does when SIGTERM follows an earlier request within the step: then
there is no time to finish it.
"""

import contextlib
import os
import signal
from collections.abc import Iterator
from enum import Enum


class StoppedBySignal(KeyboardInterrupt):
    """Raised in the main thread to end the run. Like an interrupt it is no failure, and passes ``except Exception``."""


class _Moment(Enum):
    """What a signal would come into."""

    between_steps = "between steps"
    in_step = "in a step"
    ending = "ending"


class StopRequest:
    """Whether this process has been asked to stop."""

    def __init__(self) -> None:
        self._requested = False
        self._moment = _Moment.between_steps

    @property
    def requested(self) -> bool:
        """Whether a signal has come."""
        return self._requested

    @property
    def is_in_step(self) -> bool:
        """Whether a step is under way."""
        return self._moment is _Moment.in_step

    def listen(self) -> None:
        """Handle SIGTERM and SIGUSR1 of this process from now on. For the main thread."""
        # In this order: launch/slurm takes who handles SIGTERM alone for a recipe without steps.
        for number in (signal.SIGUSR1, signal.SIGTERM):
            signal.signal(number, self._on_signal)

    @contextlib.contextmanager
    def in_step(self) -> Iterator[None]:
        """While open, a first request is noted only; look at ``requested`` afterwards."""
        with self._during(_Moment.in_step):
            yield

    @contextlib.contextmanager
    def ending(self) -> Iterator[None]:
        """While open, no signal changes anything: what was asked for is being done."""
        with self._during(_Moment.ending):
            yield

    @contextlib.contextmanager
    def _during(self, moment: _Moment) -> Iterator[None]:
        self._moment = moment
        try:
            yield
        finally:
            self._moment = _Moment.between_steps

    def _on_signal(self, signum: int, frame: object) -> None:
        again, self._requested = self._requested, True
        if self._moment is _Moment.ending or (again and signum == signal.SIGUSR1):
            return
        if again or self._moment is _Moment.between_steps:
            raise StoppedBySignal
        # Not through the buffered streams: the signal may have come in the middle of a write to them.
        name = signal.Signals(signum).name
        os.write(2, f"{name}: the run ends after this step, with a checkpoint of it\n".encode())


PROCESS_STOP = StopRequest()
"""The one that a recipe's command listens with: signals belong to a process."""
