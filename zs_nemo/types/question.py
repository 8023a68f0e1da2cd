"""Questions with their gold answers."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Question:
    """One question of a QA set.

    Example: ``Question(id="facts/capital/FRA", text="What is the capital of France?", answers=("Paris",),
    kind="capital", split="train", evidence=("facts/capital/FRA",))``
    """

    id: str
    """Unique over all sets and splits; begins with the set's name and a slash: ``nq/test/0017``."""
    text: str
    answers: tuple[str, ...]
    """Gold answers; a prediction is graded by its best match. Never empty."""
    kind: str
    """Group for reporting, such as ``capital`` or ``city_country_capital``; in other sets the set's name."""
    split: str
    """``train``, ``validation`` or ``test``."""
    evidence: tuple[str, ...] = ()
    """Identifiers of the corpus documents that support the answer, in the order in which they are needed."""
    answers_are_patterns: bool = False
    """Whether ``answers`` are regular expressions, as in CuratedTREC. Such a question is for evaluation alone."""

    def __post_init__(self) -> None:
        if not self.answers or not all(answer.strip() for answer in self.answers):
            raise ValueError(f"question {self.id!r}: answers={self.answers!r} must name at least one non-empty answer")
