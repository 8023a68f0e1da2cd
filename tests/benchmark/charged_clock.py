"""An event loop in which waiting costs nothing and computing costs the CPU time that it takes.

What a program does takes as long as on an idle machine, however busy the machine is, and an hour of waiting for engines
is over at once.
"""

import asyncio
import gc
import selectors
import time


class _SkippingSelector(selectors.DefaultSelector):
    """Skips the time until the next timer instead of waiting for it."""

    skipped_s = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Return what is ready; if nothing is, let ``timeout`` pass."""
        if timeout is None:
            return super().select(None)
        ready = super().select(0)
        if not ready:
            self.skipped_s += max(0.0, timeout)
        return ready


class ChargedLoop(asyncio.SelectorEventLoop):
    """The loop. For programs of one thread that wait for timers alone."""

    def __init__(self, *, charges: bool = True) -> None:
        self._charges = charges
        self._skipping = _SkippingSelector()
        super().__init__(self._skipping)

    def time(self) -> float:
        """Return the seconds that were skipped, and the CPU seconds of this thread if they are charged."""
        return self._skipping.skipped_s + (time.thread_time() if self._charges else 0.0)


class ChargedLoopPolicy(asyncio.DefaultEventLoopPolicy):
    """Makes every new event loop a charged one, also those that the product makes for itself."""

    newest: ChargedLoop | None = None

    def __init__(self, *, charges: bool) -> None:
        super().__init__()
        self._charges = charges

    def new_event_loop(self) -> ChargedLoop:
        """Return a new loop."""
        self.newest = ChargedLoop(charges=self._charges)
        return self.newest


class Stopwatch:
    """Measures what is done while open, in one new event loop. Use with ``with``.

    With ``charges=False`` the loop's clock stands still while the program computes: reading the CPU time of a thread
    takes a system call, which would be a part of ``cpu_s``.
    """

    seconds = 0.0
    """On the loop's clock: waiting that was skipped and, if it is charged, CPU time of this thread."""
    cpu_s = 0.0
    """CPU time of the whole process."""

    def __init__(self, *, charges: bool = True) -> None:
        self._charges = charges

    def __enter__(self) -> "Stopwatch":
        gc.collect()
        self._policy = ChargedLoopPolicy(charges=self._charges)
        asyncio.set_event_loop_policy(self._policy)
        self._began, self._cpu = time.thread_time() if self._charges else 0.0, time.process_time()
        return self

    def __exit__(self, *error: object) -> None:
        self.cpu_s = time.process_time() - self._cpu
        if self._policy.newest is not None:
            self.seconds = self._policy.newest.time() - self._began
        asyncio.set_event_loop_policy(None)
