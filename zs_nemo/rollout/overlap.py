"""Rolls out the episodes of later steps while an earlier one trains (``rollout.max_staleness`` > 0).

Every step trains on the episodes of its own prompts, as without overlap, with the same prompts, coins and seeds; only
the weights that they are sampled with are older. With ``max_staleness`` k the episodes of step s may begin when weights
of version s - k are served. One that has not ended when the weights change goes on under the new ones with its next
turn; the engines hold a refit back until the turns under way have ended. A step waits for its own episodes alone, which
are first in line for the slots: what is too long for the time of one step has the time of k + 1.

Owns which episodes are under way, in which order they may run, and what a checkpoint keeps of them. Owns no randomness,
no refit, and no loss: that the tokens are older than the weights is corrected by ``algorithm.importance``.
"""

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from zs_nemo.rollout.collector import Decoding, RolloutCollector
from zs_nemo.rollout.episode import EpisodePlan, SearchSetting
from zs_nemo.rollout.rewards import RewardFailed
from zs_nemo.rollout.saved_episodes import Row, episode_row, key_of, trajectory_of
from zs_nemo.rollout.turn_gate import PrioritySlots, TurnGate
from zs_nemo.types.keys import SampleKey
from zs_nemo.types.question import Question
from zs_nemo.types.trajectory import Trajectory, TrajectoryGroup


@dataclass(frozen=True, kw_only=True)
class StepDraw:
    """What the episodes of a step, or of a further round of it, begin from. Fixed when its prompts are drawn."""

    step: int
    questions: Sequence[Question]
    search: SearchSetting
    """Holds the noise of the step that the prompts were drawn for, whenever their searches run."""
    decoding: Decoding
    group_size: int
    first_prompt: int = 0
    """Prompts of this step that were drawn before; 0 in its first round."""
    attempt: int = 0
    """How often the run had returned to a checkpoint."""


@dataclass(eq=False, kw_only=True)
class _Episode:
    plan: EpisodePlan
    trajectory: Trajectory | None = None
    """None before it has begun."""
    ended: bool = False


@dataclass(eq=False, kw_only=True)
class _Round:
    draw: StepDraw
    episodes: list[_Episode]
    task: "asyncio.Task[None]"


class StepsAhead:
    """Collects the steps of a training run, up to ``max_staleness`` of them ahead. For one calling thread.

    Rounds are begun and ended in the collector's loop, which must be one that moves on by itself (``LoopThread``).
    """

    def __init__(
        self,
        collector: RolloutCollector,
        draw: Callable[[int], StepDraw],
        *,
        max_staleness: int,
        num_steps: int,
        max_concurrency: int,
    ) -> None:
        """``draw`` is asked for a later step when its episodes may begin; ``num_steps`` are those of the whole run.

        Of all steps together ``max_concurrency`` episodes are under way at once.
        """
        self._collector = collector
        self._loop = collector.loop
        self._draw = draw
        self._max_staleness = max_staleness
        self._num_steps = num_steps
        self._rounds: dict[tuple[int, int], _Round] = {}
        """By step and first prompt."""
        self._slots = PrioritySlots(max_concurrency)
        self._gate = TurnGate()
        self._attempt = 0
        self._saved: dict[SampleKey, Row] = {}
        self._saved_noise: dict[int, float] = {}

    def collect(self, draw: StepDraw) -> list[TrajectoryGroup]:
        """Return the groups of ``draw`` when all of its episodes have ended, and begin those of the steps after it.

        To be called when the engines serve the weights that ``draw.step`` begins with. Raises what an episode under way
        raised, of whatever step, and ``SearchBudgetExceeded`` when too many searches of this one failed.
        """
        last = min(draw.step + self._max_staleness, self._num_steps - 1)
        later = [self._draw(step) for step in range(draw.step + 1, last + 1) if (step, 0) not in self._rounds]
        trajectories = self._loop.run(self._collect(draw, later))
        ages = [draw.step - turn.weight_version for item in trajectories for turn in item.turns]
        assert max(ages, default=0) <= self._max_staleness, f"step {draw.step} got tokens of {max(ages)} versions ago"
        return self._collector.grouped(draw.questions, trajectories, first_prompt=draw.first_prompt)

    def noise_of(self, step: int) -> float | None:
        """Return P(noisy) with which a step's prompts were drawn; None when they have not been drawn yet."""
        begun = self._rounds.get((step, 0))
        return self._saved_noise.get(step) if begun is None else begun.draw.search.noise_probability

    def metrics(self) -> dict[str, float]:
        """Return how many episodes of later steps have begun, and how many of those have ended."""
        begun = [each for each in self._episodes() if each.trajectory is not None]
        return {
            "rollout/ahead_begun": float(len(begun)),
            "rollout/ahead_ended": float(sum(each.ended for each in begun)),
        }

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Let no episode move while open: they wait between two turns, and hold nothing of an engine but its cache."""
        self._loop.run(self._gate.close())
        try:
            yield
        finally:
            self._loop.run(self._gate.open())

    def state(self) -> tuple[dict[str, Any], list[Row]]:
        """Return what ``restore`` needs, as JSON: facts about the draws, and a row for every episode that has begun.

        Episodes go on meanwhile. What is kept of one under way ends with its last whole turn; the draw of a turn or a
        search that is lost is made again after a resume.
        """
        return self._loop.run(self._state())

    def restore(self, state: Mapping[str, Any], rows: Sequence[Row], *, attempt: int) -> None:
        """Take up the episodes of a checkpoint, each when its step is collected or may begin.

        Draws of an earlier ``attempt`` than the current one are what a return to a checkpoint is to get away from: they
        are left.
        """
        self.drop()
        self._attempt = attempt
        if state["attempt"] == attempt:
            self._saved = {key_of(row): row for row in rows}
            self._saved_noise = {int(step): noise for step, noise in state["noise"].items()}

    def drop(self) -> None:
        """Cancel all episodes and forget them."""
        self._saved, self._saved_noise = {}, {}
        self._loop.run(self._cancel())

    async def _collect(self, draw: StepDraw, later: Sequence[StepDraw]) -> list[Trajectory]:
        place = (draw.step, draw.first_prompt)
        if place not in self._rounds:
            self._begin(draw)
        for each in later:
            self._begin(each)
        await self._until_ended(self._rounds[place])
        return [each.trajectory for each in self._rounds.pop(place).episodes if each.trajectory is not None]

    async def _until_ended(self, wanted: _Round) -> None:
        """Wait for one round; raise at once what an episode of any round raises."""
        while True:
            under_way = []
            for task in [each.task for each in self._rounds.values()]:
                if task.done():
                    task.result()
                else:
                    under_way.append(task)
            if wanted.task.done():
                return
            await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)

    def _begin(self, draw: StepDraw) -> None:
        plans = self._collector.plan_step(
            draw.questions,
            step=draw.step,
            group_size=draw.group_size,
            first_prompt=draw.first_prompt,
            attempt=draw.attempt,
        )
        episodes = [self._episode(plan) for plan in plans]
        task = asyncio.create_task(self._run_round(draw, episodes))
        self._attempt = draw.attempt
        self._saved_noise.pop(draw.step, None)
        self._rounds[draw.step, draw.first_prompt] = _Round(draw=draw, episodes=episodes, task=task)

    def _episode(self, plan: EpisodePlan) -> _Episode:
        row = self._saved.pop(plan.key, None)
        if row is None:
            return _Episode(plan=plan)
        trajectory = trajectory_of(row, plan, now_s=time.monotonic())
        return _Episode(plan=plan, trajectory=trajectory, ended=row["ended"])

    async def _run_round(self, draw: StepDraw, episodes: Sequence[_Episode]) -> None:
        tasks = [asyncio.create_task(self._run_episode(draw, each)) for each in episodes if not each.ended]
        try:
            # Not a task group: the first failure is to come out as itself.
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _run_episode(self, draw: StepDraw, episode: _Episode) -> None:
        plan = episode.plan
        async with self._slots.slot((plan.key.step, plan.key.prompt, plan.key.member)):
            with self._gate.moving():
                await self._gate.passed()
                episode.trajectory = episode.trajectory or self._collector.begin_episode(plan)
                try:
                    await self._collector.run_episode(
                        plan, draw.search, draw.decoding, trajectory=episode.trajectory, before_turn=self._gate.passed
                    )
                except RewardFailed:
                    # It has ended and has no reward: a checkpoint could neither go on with it nor train on it.
                    episode.trajectory = None
                    raise
                episode.ended = True

    async def _state(self) -> tuple[dict[str, Any], list[Row]]:
        drawn = {each.draw.step: each.draw.search.noise_probability for each in self._rounds.values()}
        facts = {"attempt": self._attempt, "noise": self._saved_noise | drawn}
        now_s = time.monotonic()
        begun = [(each.trajectory, each.ended) for each in self._episodes() if each.trajectory is not None]
        rows = [episode_row(trajectory, ended=ended, now_s=now_s) for trajectory, ended in begun]
        return facts, [*self._saved.values(), *rows]

    async def _cancel(self) -> None:
        tasks = [each.task for each in self._rounds.values()]
        self._rounds.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _episodes(self) -> list[_Episode]:
        return [episode for each in list(self._rounds.values()) for episode in each.episodes]
