"""The noise curriculum: the probability of unhelpful search results, step by step.

Owns the number alone. Who tosses the coin with it is ``rollout.callbacks.SimulatedSearch``.
"""

import math
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from zs_nemo.config.rollout import AdaptiveConfig, CurriculumConfig, CurriculumName
from zs_nemo.types.trajectory import TrajectoryGroup


class NoiseCurriculum(ABC):
    """P(noisy) of every step. What depends on more than the step keeps it in ``state``, for the checkpoint."""

    @staticmethod
    def from_config(curriculum: CurriculumConfig, *, max_steps: int) -> "NoiseCurriculum":
        """Build the curriculum that ``curriculum`` describes, for a run of ``max_steps``."""
        start, end = curriculum.start_noise, curriculum.end_noise
        published = PublishedCurriculum(start_noise=start, end_noise=end, base=curriculum.base, max_steps=max_steps)
        match curriculum.name:
            case CurriculumName.published:
                return published
            case CurriculumName.linear:
                return replace(published, base=1.0)
            case CurriculumName.constant:
                noise = curriculum.constant_noise
                return ConstantCurriculum(noise=published.mean_noise() if noise is None else noise)
            case CurriculumName.reverse:
                return ReverseCurriculum(forward=published)
            case CurriculumName.stepwise:
                steps = curriculum.stepwise
                return StepwiseCurriculum(
                    fractions=tuple(steps.fractions), levels=tuple(steps.levels), max_steps=max_steps
                )
            case CurriculumName.adaptive:
                return AdaptiveCurriculum(curriculum.adaptive, start_noise=start, end_noise=end)

    @abstractmethod
    def noise_at(self, step: int) -> float:
        """Return P(noisy) at ``step``, counted from 0."""

    def observe(self, groups: Sequence[TrajectoryGroup]) -> None:
        """Take note of all graded trajectories of a step that counts. Most curricula do not look."""
        return

    def state(self) -> dict[str, Any]:
        """Return what ``restore`` needs to go on from here, as JSON; empty when the step alone decides."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go back to an earlier ``state``."""
        assert not state, f"this curriculum has no state, and was given {dict(state)}"


@dataclass(frozen=True, kw_only=True)
class PublishedCurriculum(NoiseCurriculum):
    """p_i = p_s + (b^(i/m) - 1) / (b - 1) * (p_e - p_s), arXiv 2505.04588, equation 1."""

    start_noise: float
    """p_s, the probability at step 0"""
    end_noise: float
    """p_e, the probability at step m"""
    base: float
    """b > 0; 1 stands for its limit, a straight line"""
    max_steps: int
    """m"""

    def noise_at(self, step: int) -> float:
        """Return P(noisy) at ``step``; steps past m keep p_e, and a run of no steps stays at p_s."""
        progress = min(step / self.max_steps, 1.0) if self.max_steps else 0.0
        growth = progress if self.base == 1 else (self.base**progress - 1) / (self.base - 1)
        return self.start_noise + growth * (self.end_noise - self.start_noise)

    def mean_noise(self) -> float:
        """Return the mean over the steps 0 to m - 1, all that a run makes; a run of no steps has p_s."""
        return fmean(self.noise_at(step) for step in range(max(self.max_steps, 1)))


@dataclass(frozen=True, kw_only=True)
class ConstantCurriculum(NoiseCurriculum):
    """The same at every step."""

    noise: float

    def noise_at(self, step: int) -> float:
        """Return P(noisy), whatever the step."""
        return self.noise


@dataclass(frozen=True, kw_only=True)
class ReverseCurriculum(NoiseCurriculum):
    """The levels of a run in reverse order: as much noise in all, the most of it first."""

    forward: PublishedCurriculum

    def noise_at(self, step: int) -> float:
        """Return P(noisy) of step m - 1 - ``step``; steps past the end keep p_s."""
        return self.forward.noise_at(max(self.forward.max_steps - 1 - step, 0))


@dataclass(frozen=True, kw_only=True)
class StepwiseCurriculum(NoiseCurriculum):
    """A staircase: ``levels[k]`` from the share ``fractions[k]`` of the run on."""

    fractions: tuple[float, ...]
    """Ascending, the first is 0."""
    levels: tuple[float, ...]
    max_steps: int

    def noise_at(self, step: int) -> float:
        """Return P(noisy) at ``step``; steps past the end keep the last level, and a run of no steps has the first."""
        progress = step / self.max_steps if self.max_steps else 0.0
        return self.levels[bisect_right(self.fractions, progress) - 1]


class AdaptiveCurriculum(NoiseCurriculum):
    """Follows the policy: more noise while its mean reward is above the target, less while it is below.

    The rule and its source are in ``config.rollout.AdaptiveConfig``. The reward is the mean over all trajectories of a
    step, those that met noise included: too much noise then lowers the very number that raised it, and the level
    settles where the policy earns the target. With useful documents alone the level would only ever run to a bound.
    """

    def __init__(self, settings: AdaptiveConfig, *, start_noise: float, end_noise: float) -> None:
        """Begin at ``start_noise``; the level never leaves [``start_noise``, ``end_noise``]."""
        self._settings = settings
        self._least, self._most = start_noise, end_noise
        self._noise = start_noise
        self._reward: float | None = None

    def noise_at(self, step: int) -> float:
        """Return the level that the steps observed so far have led to."""
        return self._noise

    def observe(self, groups: Sequence[TrajectoryGroup]) -> None:
        """Move the level by one step's rewards; without a trajectory it stays."""
        rewards = [reward for group in groups for reward in group.rewards]
        if not rewards:
            return
        settings, mean = self._settings, fmean(rewards)
        past = mean if self._reward is None else self._reward
        self._reward = settings.smoothing * past + (1 - settings.smoothing) * mean
        change = settings.step_size * math.tanh(settings.sensitivity * (self._reward - settings.target_reward))
        self._noise = min(max(self._noise + change, self._least), self._most)

    def state(self) -> dict[str, Any]:
        """Return the level and the smoothed reward, which is None before the first step."""
        return {"noise": self._noise, "reward": self._reward}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go back to an earlier level and reward."""
        self._noise, self._reward = state["noise"], state["reward"]
