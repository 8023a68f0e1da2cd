"""Where the time of a run goes."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zs_nemo.observability.timeline import Timeline


class StageTimer:
    """Accumulates seconds by stage. For one thread.

    A stage inside a stage stops the clock of the outer one, so that the stages add up to at most the wall time::

        with timer("evaluation"):
            with timer("refit"):   # counts as refit alone
                ...
    """

    def __init__(
        self,
        on_stage: Callable[[str], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
        timeline: "Timeline | None" = None,
    ) -> None:
        self._on_stage = on_stage
        self._timeline = timeline
        self._clock = clock
        self._began = clock()
        self._totals: dict[str, float] = {}
        self._taken: dict[str, float] = {}
        self._open: list[str] = []
        self._resumed = self._began

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Count the time of the block for ``stage``, also when the block raises."""
        self._credit()
        self._open.append(stage)
        self._announce()
        if self._timeline is not None:
            self._timeline.begin(stage)
        try:
            yield
        finally:
            self._credit()
            self._open.pop()
            self._announce()
            if self._timeline is not None:
                self._timeline.end(stage)

    @property
    def totals(self) -> dict[str, float]:
        """Seconds by stage since the timer was made, an open stage included."""
        self._credit()
        return dict(self._totals)

    @property
    def wall_s(self) -> float:
        """Seconds since the timer was made."""
        return self._clock() - self._began

    def take(self) -> dict[str, float]:
        """Return the seconds by stage since the last ``take``: the times of one step."""
        totals = self.totals
        taken = {stage: spent - self._taken.get(stage, 0.0) for stage, spent in totals.items()}
        self._taken = totals
        return {stage: spent for stage, spent in taken.items() if spent > 0}

    def _credit(self) -> None:
        now = self._clock()
        if self._open:
            self._totals[self._open[-1]] = self._totals.get(self._open[-1], 0.0) + now - self._resumed
        self._resumed = now

    def _announce(self) -> None:
        if self._on_stage is not None:
            self._on_stage(self._open[-1] if self._open else "")


def duration(seconds: float) -> str:
    """Write a time as 0:42, 12:03 or 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
