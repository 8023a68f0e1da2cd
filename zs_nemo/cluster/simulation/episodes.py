"""Episodes over engines, without a runner that costs anything: each moves on the moment its own request returns."""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from zs_nemo.cluster.simulation.batching_engine import EngineWork
from zs_nemo.cluster.simulation.events import Action, Events
from zs_nemo.cluster.simulation.fleet import Fleet


@dataclass(frozen=True, kw_only=True)
class SearchWork:
    """One search: a wait of its own, and what the simulator's engines have to do for it."""

    latency_s: float = 0.0
    requests: tuple[EngineWork, ...] = ()
    """Begun together after the wait; the search ends with the last of them."""


@dataclass(frozen=True, kw_only=True)
class TurnWork:
    """One turn: a generation and, unless it is the last, a search."""

    generation: EngineWork
    search: SearchWork | None = None


EpisodeWork = Sequence[TurnWork]


class EpisodesUnderWay:
    """Runs episodes, at most ``max_concurrency`` of them at once, in the order in which they were given."""

    def __init__(self, events: Events, generation: Fleet, simulator: Fleet | None, *, max_concurrency: int) -> None:
        self._events = events
        self._generation = generation
        self._simulator = simulator
        self._free = max_concurrency
        self._waiting: deque[Action] = deque()
        self.search_s: list[float] = []
        """How long every search took."""
        self.episode_s: list[float] = []
        """How long every episode took from its first request on."""

    def begin(self, episodes: Iterable[EpisodeWork], on_all_done: Action) -> None:
        """Begin a batch of episodes and call ``on_all_done`` when the last of them has ended."""
        batch = list(episodes)
        left = len(batch)

        def one_done() -> None:
            nonlocal left
            left -= 1
            if left == 0:
                on_all_done()

        for episode in batch:
            self._waiting.append(self._starter(episode, one_done))
        self._fill()

    def _fill(self) -> None:
        while self._free and self._waiting:
            self._free -= 1
            self._waiting.popleft()()

    def _starter(self, episode: EpisodeWork, on_done: Action) -> Action:
        def start() -> None:
            began = self._events.now

            def end() -> None:
                self.episode_s.append(self._events.now - began)
                self._free += 1
                self._fill()
                on_done()

            self._turn(episode, 0, end)

        return start

    def _turn(self, episode: EpisodeWork, number: int, on_done: Action) -> None:
        turn = episode[number]
        is_last = number == len(episode) - 1

        def generated() -> None:
            if is_last or turn.search is None:
                on_done()
            else:
                self._search(turn.search, lambda: self._turn(episode, number + 1, on_done))

        self._generation.ask(turn.generation, generated)

    def _search(self, search: SearchWork, on_done: Action) -> None:
        began = self._events.now

        def found() -> None:
            self.search_s.append(self._events.now - began)
            on_done()

        self._events.after(search.latency_s, lambda: self._simulate(search.requests, found))

    def _simulate(self, requests: Sequence[EngineWork], on_done: Action) -> None:
        if not requests:
            on_done()
            return
        assert self._simulator is not None, "a search that needs a simulator has one"
        left = len(requests)

        def one_done() -> None:
            nonlocal left
            left -= 1
            if left == 0:
                on_done()

        for request in requests:
            self._simulator.ask(request, one_done)


def rollout_s(build: Callable[[Events], EpisodesUnderWay], episodes: Sequence[EpisodeWork]) -> float:
    """Return how long a batch of episodes takes on engines that have nothing else to do."""
    events = Events()
    ended = [0.0]
    build(events).begin(episodes, lambda: ended.__setitem__(0, events.now))
    events.run()
    return ended[0]
