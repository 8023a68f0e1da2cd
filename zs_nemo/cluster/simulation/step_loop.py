"""Plays a training loop: collect, score, train, refit, and with ``max_staleness`` the next collection meanwhile."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from zs_nemo.cluster.simulation.cluster_model import ClusterModel, EngineRole
from zs_nemo.cluster.simulation.episodes import EpisodesUnderWay, EpisodeWork
from zs_nemo.cluster.simulation.events import Events
from zs_nemo.cluster.simulation.fleet import Fleet

DrawStep = Callable[[int], list[EpisodeWork]]


@dataclass(frozen=True, kw_only=True)
class PlayedSteps:
    """What came out, as means over the steps that count."""

    step_s: float
    stage_s: dict[str, float]
    """The driver's stages; ``rollout`` is what it waited for episodes."""
    episode_s: float
    search_s: float
    busy: dict[str, float]
    """Share of the time in which a role's engines, or the ranks, had something to do."""
    sequences: dict[str, float]
    """Sequences that one engine of a role ran at once, in the mean over all of the time."""


class StepLoop:
    """One run of a few steps."""

    def __init__(self, cluster: ClusterModel, draw: DrawStep, num_steps: int) -> None:
        self._cluster = cluster
        self._draw = draw
        self._num_steps = num_steps
        self._events = Events()
        self._generation = self._fleet(cluster.generation)
        self._simulator = self._fleet(cluster.simulator) if cluster.simulator else None
        self._episodes = EpisodesUnderWay(
            self._events, self._generation, self._simulator, max_concurrency=cluster.max_concurrency
        )
        self._begun = 0
        self._ended: set[int] = set()
        self._awaited = -1
        self._step_began: list[float] = []
        self._rollout_ended: list[float] = []
        self._refit_s: list[float] = []

    def play(self) -> PlayedSteps:
        """Play all steps."""
        self._events.after(0.0, lambda: self._refit(0))
        self._events.run()
        return self._result()

    def _fleet(self, role: EngineRole) -> Fleet:
        return Fleet(self._events, role.speed, role.count)

    @property
    def _ahead(self) -> int:
        # Where ranks and engines share what they compute on, collecting meanwhile would take what it gives.
        return self._cluster.max_staleness if self._cluster.is_apart else 0

    def _refit(self, step: int) -> None:
        began = self._events.now
        self._step_began.append(began)
        if step == self._num_steps:
            return

        def drained() -> None:
            self._events.after(self._cluster.refit_s, served)

        def served() -> None:
            self._refit_s.append(self._events.now - began)
            self._generation.resume()
            self._collect(step)

        # No turn mixes weights: the engines hold a refit back until the turns under way have ended.
        self._generation.drain(drained)

    def _collect(self, step: int) -> None:
        last = min(step + self._ahead, self._num_steps - 1)
        self._awaited = step
        while self._begun <= last:
            self._begin(self._begun)
            self._begun += 1
        if step in self._ended:
            self._train(step)

    def _begin(self, step: int) -> None:
        def done() -> None:
            self._ended.add(step)
            if self._awaited == step:
                self._train(step)

        self._episodes.begin(self._draw(step), done)

    def _train(self, step: int) -> None:
        self._awaited = -1
        self._rollout_ended.append(self._events.now)
        self._events.after(sum(self._cluster.stage_s.values()), lambda: self._refit(step + 1))

    def _result(self) -> PlayedSteps:
        first = self._num_steps // 2
        counted = range(first, self._num_steps)
        began, ended = self._step_began, self._rollout_ended
        step_s = (began[-1] - began[first]) / len(counted)
        refit_s = sum(self._refit_s[step] for step in counted) / len(counted)
        waited = sum(ended[step] - began[step] for step in counted) / len(counted) - refit_s
        whole = began[-1]
        fleets = {"generation": self._generation} | ({"simulator": self._simulator} if self._simulator else {})
        busy = {name: sum(fleet.busy_s) / (len(fleet.busy_s) * whole) for name, fleet in fleets.items()}
        ranks_s = sum(self._cluster.stage_s.values())
        return PlayedSteps(
            step_s=step_s,
            stage_s={"refit": refit_s, "rollout": waited, **self._cluster.stage_s},
            episode_s=float(np.mean(self._episodes.episode_s)),
            search_s=float(np.mean(self._episodes.search_s)) if self._episodes.search_s else 0.0,
            busy=busy | {"training": ranks_s / step_s},
            sequences={name: fleet.sequence_s / (len(fleet.busy_s) * whole) for name, fleet in fleets.items()},
        )
