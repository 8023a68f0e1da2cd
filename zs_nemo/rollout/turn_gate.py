"""Who may run when many episodes want to: slots by priority, and a gate between the turns of an episode."""

import asyncio
import heapq
import itertools
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

Priority = tuple[int, ...]


class PrioritySlots:
    """A number of slots; one that becomes free goes to the smallest priority that waits. For one event loop."""

    def __init__(self, count: int) -> None:
        self._free = count
        self._waiting: list[tuple[Priority, int, asyncio.Future[None]]] = []
        self._arrivals = itertools.count()

    @asynccontextmanager
    async def slot(self, priority: Priority) -> AsyncIterator[None]:
        """Hold a slot while open."""
        await self._take(priority)
        try:
            yield
        finally:
            self._hand_on()

    async def _take(self, priority: Priority) -> None:
        if self._free:
            self._free -= 1
            return
        granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (priority, next(self._arrivals), granted))
        try:
            await granted
        except asyncio.CancelledError:
            if granted.done() and not granted.cancelled():
                # Granted and cancelled in the same instant: the slot is not lost.
                self._hand_on()
            raise

    def _hand_on(self) -> None:
        while self._waiting:
            _, _, granted = heapq.heappop(self._waiting)
            if not granted.done():
                granted.set_result(None)
                return
        self._free += 1


class TurnGate:
    """Holds episodes back before their next turn. While it is closed and ``close`` has returned, none moves.

    For one event loop.
    """

    def __init__(self) -> None:
        self._open, self._still = asyncio.Event(), asyncio.Event()
        self._open.set()
        self._still.set()
        self._num_moving = 0

    @contextmanager
    def moving(self) -> Iterator[None]:
        """Count an episode as one that moves, but for the time that it spends in ``passed``."""
        self._count(1)
        try:
            yield
        finally:
            self._count(-1)

    async def passed(self) -> None:
        """Return at once, or when the gate is opened again. For what is ``moving``, before each of its turns."""
        if not self._open.is_set():
            self._count(-1)
            try:
                await self._open.wait()
            finally:
                self._count(1)

    async def close(self) -> None:
        """Hold back every episode before its next turn, and wait until all are held back or have ended."""
        self._open.clear()
        await self._still.wait()

    async def open(self) -> None:
        """Let the episodes go on."""
        self._open.set()

    def _count(self, change: int) -> None:
        self._num_moving += change
        if self._num_moving:
            self._still.clear()
        else:
            self._still.set()
