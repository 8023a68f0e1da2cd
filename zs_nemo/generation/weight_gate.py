"""Keeps requests and weight updates apart within one engine."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class WeightGate:
    """Lets many requests run together, or one weight update or sleep alone.

    An update waits until the requests under way have finished; requests that come in meanwhile wait for the update.
    So every token of a completion is sampled under the same weights. For one event loop.
    """

    def __init__(self) -> None:
        self.version = 0
        """Version of the weights in force."""
        self._running = 0
        self._updating = False
        self._changed = asyncio.Condition()
        self._failure: str | None = None

    @asynccontextmanager
    async def request(self) -> AsyncIterator[int]:
        """Hold the weights for one request; yields their version. Raises when an update or a sleep failed half-way."""
        async with self._changed:
            await self._changed.wait_for(lambda: not self._updating)
            if self._failure is not None:
                raise RuntimeError(self._failure)
            self._running += 1
        try:
            yield self.version
        finally:
            # No await on a lock here: a request that is being cancelled must still be counted out.
            self._running -= 1
            if self._running == 0:
                await asyncio.shield(self._notify())

    @asynccontextmanager
    async def update(self, version: int) -> AsyncIterator[None]:
        """Hold the engine alone while its weights change to ``version``; that opens a closed gate."""
        async with self.alone(f"weights of version {version} could not be loaded"):
            yield
            self.version = version
            self._failure = None

    @asynccontextmanager
    async def alone(self, failure: str) -> AsyncIterator[None]:
        """Hold the engine alone. An error inside closes the gate until weights are loaded.

        Until then requests raise ``failure`` with the error.
        """
        async with self._changed:
            await self._changed.wait_for(lambda: not self._updating)
            self._updating = True
            await self._changed.wait_for(lambda: self._running == 0)
        try:
            yield
        except BaseException as error:
            self._failure = (
                f"{failure} ({type(error).__name__}: {error}); the engine may hold half of its weights and serves "
                "nothing until a load succeeds"
            )
            raise
        finally:
            self._updating = False
            await asyncio.shield(self._notify())

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()
