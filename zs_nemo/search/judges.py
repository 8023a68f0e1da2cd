"""Says of recorded searches whether their documents helped: what a simulator is taught to write on demand."""

from collections.abc import Sequence
from typing import Protocol

from zs_nemo.qa.rewards import normalise
from zs_nemo.types.interaction import Interaction


class Judge(Protocol):
    """Decides about one search at a time."""

    async def is_useful(self, interaction: Interaction) -> bool | None:
        """Whether the documents help to answer the question; None where the judge cannot say."""
        ...


class OutcomeJudge:
    """Useful is what an episode that answered right was shown, all of its searches: ZeroSearch's first release."""

    def __init__(self, *, threshold: float) -> None:
        """``threshold`` is the token F1 from which an answer counts as right."""
        self._threshold = threshold

    async def is_useful(self, interaction: Interaction) -> bool | None:
        """Whether the episode ended well."""
        return interaction.outcome >= self._threshold


class ContainmentJudge:
    """Useful is what contains a gold answer."""

    async def is_useful(self, interaction: Interaction) -> bool | None:
        """Whether one of the documents contains one of the answers."""
        return any(contains_answer(document.text, interaction.answers) for document in interaction.documents)


def contains_answer(text: str, answers: Sequence[str]) -> bool:
    """Whether the words of one of the answers stand in ``text`` next to each other, after SQuAD's normalisation."""
    padded = f" {normalise(text)} "
    return any(f" {words} " in padded for answer in answers if (words := normalise(answer)))
