"""The reward of a trajectory: a weighted sum of terms, chosen by the settings of ``reward``.

A term is any function from a trajectory to a number. Write your own and name it in ``reward.function``; what it may
look at is the ``Trajectory``: the question with its gold answers, the turns with their queries and documents, the
answer. ``retrieval_diversity`` below is one to start from.
"""

import importlib
import math
from collections.abc import Callable, Mapping
from typing import cast

from zs_nemo.qa.rewards import grade, normalise
from zs_nemo.types.trajectory import Trajectory

Reward = Callable[[Trajectory], float]


class RewardFailed(RuntimeError):  # noqa: N818  (it says what happened)
    """A term of the reward raised an error, or returned something else than a finite number."""


def f1(trajectory: Trajectory) -> float:
    """Return the answer's token F1, the largest over the gold answers, in [0, 1]."""
    return grade(trajectory.answer, trajectory.question).f1


def strict_exact_match(trajectory: Trajectory) -> float:
    """Return 1.0 if the whole answer equals a gold answer after normalisation, else 0.0."""
    return grade(trajectory.answer, trajectory.question).em


def retrieval_diversity(trajectory: Trajectory) -> float:
    """Return how little the queries of a trajectory repeat one another, in [0, 1].

    1 less the mean Jaccard overlap of the queries' words over all pairs. A trajectory with fewer than two searches has
    nothing that could differ and gets 0, so that the term rewards a second, different query and never a lone one.
    """
    queries = [set(normalise(turn.query).split()) for turn in trajectory.turns if turn.query and turn.result]
    overlaps = [
        len(first & second) / len(first | second) if first | second else 1.0
        for index, first in enumerate(queries)
        for second in queries[index + 1 :]
    ]
    return 1.0 - sum(overlaps) / len(overlaps) if overlaps else 0.0


REWARDS: dict[str, Reward] = {
    "f1": f1,
    "exact_match": strict_exact_match,
    "retrieval_diversity": retrieval_diversity,
}


def build_reward(weights: Mapping[str, float]) -> Reward:
    """Return the sum of the named terms times their weights, without those of weight 0.

    Raises ``ValueError`` for a term that cannot be imported or called. The sum raises ``RewardFailed`` for a trajectory
    that a term cannot grade.
    """
    chosen = [(name, _resolve(name), weight) for name, weight in weights.items() if weight]

    def reward(trajectory: Trajectory) -> float:
        total = 0.0
        for name, term, weight in chosen:
            total += weight * _graded(trajectory, name, term)
        return total

    return reward


def _graded(trajectory: Trajectory, name: str, term: Reward) -> float:
    graded = f"question {trajectory.question.id!r}, trajectory {trajectory.key}"
    try:
        value = term(trajectory)
    except Exception as error:
        # Code of the user's own, which may raise anything.
        raise RewardFailed(f"reward term {name!r} raised {_told(error)} for {graded}; mend the term") from error
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        # The last is a tensor's of several elements.
        number = math.nan
    if not math.isfinite(number):
        raise RewardFailed(
            f"reward term {name!r} returned {value!r} for {graded}; it must return a finite number for every trajectory"
        )
    return number


def _told(error: Exception) -> str:
    """Return an error with its kind, without which the text of some says little: ``KeyError: 'title'``."""
    return f"{type(error).__name__}: {error}"


def _resolve(name: str) -> Reward:
    if name in REWARDS:
        return REWARDS[name]
    module_name, _, function_name = name.rpartition(".")
    try:
        term = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"reward.function={name!r} cannot be imported ({error}); name it as package.module.function and put its "
            "package on PYTHONPATH"
        ) from error
    except Exception as error:
        # What a module of the user's own does when it is imported, its syntax included.
        raise ValueError(f"reward.function={name!r} cannot be imported ({_told(error)}); mend {module_name}") from error
    if not callable(term):
        raise ValueError(
            f"reward.function={name!r} is no function but of type {type(term).__name__}; name one that takes a "
            "Trajectory and returns a number"
        )
    return cast(Reward, term)
