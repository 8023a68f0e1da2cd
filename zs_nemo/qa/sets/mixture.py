"""Puts sets together: a part of each, in given shares, in an order of which every beginning is a fair sample."""

from collections.abc import Sequence
from itertools import zip_longest

import numpy as np

from zs_nemo.types.keys import SampleKey
from zs_nemo.types.question import Question


def sample(questions: Sequence[Question], count: int, seed: int, of: str) -> list[Question]:
    """Return ``count`` of the questions, drawn by ``seed`` and the set's name ``of``, in their order; 0 for all.

    Raises ``ValueError`` if there are fewer.
    """
    if count > len(questions):
        raise ValueError(
            f"{count} questions of {of!r} are asked for, and it has {len(questions)}; ask for at most those"
        )
    if not count:
        return list(questions)
    return [questions[index] for index in sorted(_order(len(questions), seed, f"sample/{of}")[:count])]


def mix(sets: Sequence[Sequence[Question]], weights: Sequence[float], seed: int) -> list[Question]:
    """Return an epoch in which the sets have the shares ``weights``; no weights for every question once.

    The epoch is as short as it can be with every question in it at least once: one set is there once, the others are
    repeated, whole for as often as they fit and then a part that ``seed`` draws.
    """
    if not weights:
        return [question for questions in sets for question in questions]
    length = max(len(questions) / weight for questions, weight in zip(sets, weights, strict=True))
    epoch: list[Question] = []
    for number, (questions, weight) in enumerate(zip(sets, weights, strict=True)):
        copies, rest = divmod(max(round(weight * length), len(questions)), len(questions))
        drawn = _order(len(questions), seed, f"mixture/{number}")[:rest]
        epoch += list(questions) * copies + [questions[index] for index in sorted(drawn)]
    return epoch


def interleave(sets: Sequence[Sequence[Question]]) -> list[Question]:
    """Return the questions of all sets by turns, so that the first n are spread over the sets."""
    return [question for turn in zip_longest(*sets) for question in turn if question is not None]


def _order(length: int, seed: int, purpose: str) -> list[int]:
    key = SampleKey(run_seed=seed, step=0, prompt=0, member=0)
    return [int(index) for index in np.random.default_rng(key.seed(purpose)).permutation(length)]
