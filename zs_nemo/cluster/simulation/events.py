"""What happens next: a queue of moments with what is to be done at them."""

import heapq
from collections.abc import Callable

Action = Callable[[], None]


class Events:
    """Runs actions in the order of their moments; equal ones in the order in which they were added."""

    def __init__(self) -> None:
        self.now = 0.0
        self._queue: list[tuple[float, int, Action]] = []
        self._count = 0

    def after(self, seconds: float, action: Action) -> None:
        """Have something done ``seconds`` from now."""
        self._count += 1
        heapq.heappush(self._queue, (self.now + max(0.0, seconds), self._count, action))

    def run(self) -> float:
        """Run until nothing is left to do; return the moment of the last action."""
        while self._queue:
            self.now, _, action = heapq.heappop(self._queue)
            action()
        return self.now
