"""Where episodes run: an event loop that stands still between two calls, or one that goes on in a thread of its own."""

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any, Protocol, TypeVar

T = TypeVar("T")


class EpisodeLoop(Protocol):
    """What a collector needs of an event loop. ``asyncio.Runner`` is one: it moves only while ``run`` is under way."""

    def run(self, coro: Coroutine[Any, Any, T]) -> T:
        """Run to the end and return the result; what else is under way in the loop moves on meanwhile."""
        ...

    def close(self) -> None:
        """Cancel what is under way, and end."""
        ...


class LoopThread:
    """An event loop that goes on while the thread that made it computes. Implements ``EpisodeLoop``."""

    def __init__(self) -> None:
        """Start the thread; it does not keep the process alive."""
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="episodes", daemon=True)
        self._thread.start()
        self._ready.wait()

    def run(self, coro: Coroutine[Any, Any, T]) -> T:
        """Run to the end, from another thread, and return the result. An interrupt of the waiting cancels it."""
        future = asyncio.run_coroutine_threadsafe(coro, self._loop)
        try:
            return future.result()
        finally:
            future.cancel()

    def close(self) -> None:
        """Cancel what is under way, and wait for the thread to end. May be called again."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._closing.set)
            self._thread.join()

    def _serve(self) -> None:
        # Its end cancels all tasks and shuts down generators and the executor.
        with asyncio.Runner() as runner:
            runner.run(self._until_closed())

    async def _until_closed(self) -> None:
        self._loop, self._closing = asyncio.get_running_loop(), asyncio.Event()
        self._ready.set()
        await self._closing.wait()
