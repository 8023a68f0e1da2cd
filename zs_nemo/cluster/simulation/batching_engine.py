"""An engine with continuous batching, as far as time goes: everything that runs gets one token a step.

Requests are known by numbers. Between two events the batch does not change, so that nothing has to be simulated step by
step: the engine counts the tokens that each of its sequences has got since it was built.
"""

import heapq
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class EngineSpeed:
    """How fast an engine is."""

    step_s: Callable[[int], float]
    """Seconds of a step that gives every sequence of a batch one token, by the size of the batch."""
    prompt_token_s: float
    """Seconds for one token of a prompt; for as long the batch stands still."""
    room: int
    """Sequences that run at once; the others wait in line."""


@dataclass(frozen=True, kw_only=True)
class EngineWork:
    """One request."""

    prompt_tokens: float
    """Those that are not in the prefix cache."""
    new_tokens: float


class BatchingEngine:
    """The state of one engine at a moment that only moves forward."""

    def __init__(self, speed: EngineSpeed) -> None:
        self._speed = speed
        self._now = 0.0
        self._prompt_s = 0.0
        """Work on prompts that is left."""
        self._progress = 0.0
        self._running: list[tuple[float, int]] = []
        self._waiting: deque[tuple[int, EngineWork]] = deque()
        self.busy_s = 0.0
        """Seconds with at least one request."""
        self.sequence_s = 0.0
        """Seconds summed over the sequences that ran."""
        self.num_unfinished = 0

    def add(self, now: float, request: int, work: EngineWork) -> None:
        """Take a request at a moment, not before the engine's own."""
        self.advance(now)
        self.num_unfinished += 1
        self._waiting.append((request, work))
        self._admit()

    def next_s(self) -> float:
        """Return when the next request is done if none is added; infinity if there is none."""
        if not self._running:
            return math.inf
        left = max(0.0, self._running[0][0] - self._progress)
        return self._now + self._prompt_s + left * self._speed.step_s(len(self._running))

    def advance(self, now: float) -> None:
        """Let time pass up to a moment, not after ``next_s``."""
        passed = now - self._now
        self._now = now
        if not self._running:
            return
        self.busy_s += passed
        self.sequence_s += passed * len(self._running)
        on_prompts = min(passed, self._prompt_s)
        self._prompt_s -= on_prompts
        self._progress += (passed - on_prompts) / self._speed.step_s(len(self._running))

    def finish(self, now: float) -> list[int]:
        """Return the requests that are done at ``now``, which is ``next_s``, and let those that wait begin."""
        self.advance(now)
        done = []
        # What is due is due, whatever the sums of small numbers say.
        due = max(self._progress, self._running[0][0]) if self._running else 0.0
        self._progress = max(self._progress, due)
        while self._running and self._running[0][0] <= due:
            done.append(heapq.heappop(self._running)[1])
        self.num_unfinished -= len(done)
        self._admit()
        return done

    def _admit(self) -> None:
        while self._waiting and len(self._running) < self._speed.room:
            request, work = self._waiting.popleft()
            self._prompt_s += work.prompt_tokens * self._speed.prompt_token_s
            heapq.heappush(self._running, (self._progress + work.new_tokens, request))
