"""The engines of one role: a request goes to the one with the fewest under way, as in ``EnginePool``."""

from collections.abc import Sequence

from zs_nemo.cluster.simulation.batching_engine import BatchingEngine, EngineSpeed, EngineWork
from zs_nemo.cluster.simulation.events import Action, Events


class Fleet:
    """Engines that take requests and say when they are done."""

    def __init__(self, events: Events, speed: EngineSpeed, count: int) -> None:
        self._events = events
        self._engines = [BatchingEngine(speed) for _ in range(count)]
        self._versions = [0] * count
        """How often an engine's batch has changed: a moment that was planned before is no longer one."""
        self._on_done: dict[int, Action] = {}
        self._num_requests = 0
        self._held: list[tuple[EngineWork, Action]] | None = None
        self._on_drained: Action | None = None

    def ask(self, work: EngineWork, on_done: Action) -> None:
        """Begin a request now, or when a refit is over, and call ``on_done`` at its end."""
        if self._held is not None:
            self._held.append((work, on_done))
            return
        index = min(range(len(self._engines)), key=lambda each: self._engines[each].num_unfinished)
        number, self._num_requests = self._num_requests, self._num_requests + 1
        self._on_done[number] = on_done
        self._engines[index].add(self._events.now, number, work)
        self._plan(index)

    def drain(self, on_drained: Action) -> None:
        """Begin no request any more, and call ``on_drained`` when those under way are done."""
        self._held, self._on_drained = [], on_drained
        self._check_drained()

    def resume(self) -> None:
        """Begin what was held back."""
        held, self._held = self._held or [], None
        for work, on_done in held:
            self.ask(work, on_done)

    @property
    def busy_s(self) -> Sequence[float]:
        """Seconds with at least one request, by engine."""
        return [engine.busy_s for engine in self._engines]

    @property
    def sequence_s(self) -> float:
        """Seconds summed over sequences and engines."""
        return sum(engine.sequence_s for engine in self._engines)

    def _check_drained(self) -> None:
        if self._on_drained is not None and not any(engine.num_unfinished for engine in self._engines):
            action, self._on_drained = self._on_drained, None
            action()

    def _plan(self, index: int) -> None:
        self._versions[index] += 1
        version, engine = self._versions[index], self._engines[index]

        def finish() -> None:
            if version != self._versions[index]:
                return
            done = engine.finish(self._events.now)
            self._plan(index)
            for number in done:
                self._on_done.pop(number)()
            self._check_drained()

        if engine.num_unfinished:
            self._events.after(engine.next_s() - self._events.now, finish)
