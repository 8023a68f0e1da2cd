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

    Raises ``ValueError`` for a term that cannot be imported.
    """
    chosen = [(name, _resolve(name), weight) for name, weight in weights.items() if weight]

    def reward(trajectory: Trajectory) -> float:
        total = 0.0
        for name, term, weight in chosen:
            value = term(trajectory)
            total += weight * _checked(value, name, trajectory)
        return total

    return reward


def _checked(value: object, name: str, trajectory: Trajectory) -> float:
    try:
        number = float(value)  # type: ignore[arg-type]  # what is no number is caught
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(
            f"reward term {name!r} returned {value!r} for trajectory {trajectory.key}; it must return a finite number "
            "for every trajectory"
        )
    return number


def _resolve(name: str) -> Reward:
    if name in REWARDS:
        return REWARDS[name]
    module_name, _, function_name = name.rpartition(".")
    try:
        return cast(Reward, getattr(importlib.import_module(module_name), function_name))
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"reward.function={name!r} cannot be imported ({error}); name it as package.module.function and put its "
            "package on PYTHONPATH"
        ) from error
