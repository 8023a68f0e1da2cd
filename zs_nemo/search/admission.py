"""Back-pressure: a bounded number of searches under way, a bounded queue behind them, and a no to the rest."""

import asyncio
import math
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

_LONGEST_RETRY_S = 60
_SMOOTHING = 0.1
"""Weight of the newest search in the mean time of a search."""


class QueueFull(Exception):  # noqa: N818  (an answer to the client, not an error of ours)
    """There is no room for a request; ``retry_after_s`` is when there may be."""

    def __init__(self, retry_after_s: int) -> None:
        super().__init__(f"the queue is full; come back in {retry_after_s} s")
        self.retry_after_s = retry_after_s


class Ticket:
    """The searches of one admitted request."""

    def __init__(self, admission: "Admission", num_searches: int) -> None:
        self._admission = admission
        self.num_unfinished = num_searches

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait for the turn of one of the searches, and hold it."""
        try:
            async with self._admission.turn():
                yield
        finally:
            self.num_unfinished -= 1
            self._admission.num_pending -= 1


class Admission:
    """Owns the counts. A request comes in whole or not at all. For one event loop."""

    def __init__(self, *, max_concurrency: int, max_queue: int) -> None:
        self._max_concurrency = max_concurrency
        self._room = max_concurrency + max_queue
        self._turns = asyncio.Semaphore(max_concurrency)
        self._mean_s = 0.0
        self.num_pending = 0
        """Searches admitted and not finished."""
        self.num_in_flight = 0

    @property
    def num_queued(self) -> int:
        """Searches admitted that wait for their turn."""
        return self.num_pending - self.num_in_flight

    @contextmanager
    def admit(self, num_searches: int) -> Iterator[Ticket]:
        """Take in a request of so many searches, or raise ``QueueFull``."""
        if self.num_pending + num_searches > self._room:
            raise QueueFull(self._retry_after_s())
        self.num_pending += num_searches
        ticket = Ticket(self, num_searches)
        try:
            yield ticket
        finally:
            # Those that never had their turn, because the client has gone or another search of the request failed.
            self.num_pending -= ticket.num_unfinished

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait until fewer than ``max_concurrency`` searches are under way, and be one of them."""
        async with self._turns:
            began = asyncio.get_running_loop().time()
            self.num_in_flight += 1
            try:
                yield
            finally:
                self.num_in_flight -= 1
                took = asyncio.get_running_loop().time() - began
                self._mean_s += (took - self._mean_s) * (_SMOOTHING if self._mean_s else 1.0)

    def _retry_after_s(self) -> int:
        """Return the time in which half of the searches before it should be done, at least a second."""
        work_s = self.num_pending * self._mean_s / self._max_concurrency
        return min(max(1, math.ceil(work_s / 2)), _LONGEST_RETRY_S)
