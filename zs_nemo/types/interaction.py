"""What a policy asked a real engine and got, recorded to teach a simulator from.

One JSON object a line::

    {"id": "…", "question_id": "facts/capital/FRA", "question": "What is the capital of France?", "answers": ["Paris"],
     "split": "train", "turn": 0, "query": "capital of France", "engine": "bm25",
     "documents": [{"id": "facts/capital/FRA", "text": "Paris is the capital of France.", "score": 11.2}],
     "prediction": "Paris", "outcome": 1.0}

Examples have ``useful`` besides, and may be Parquet: ``search/example_files.py`` has the columns.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from zs_nemo.types.search import Document

TRAIN, HELD_OUT = "train", "held_out"
"""The parts of a collection."""


@dataclass(frozen=True, kw_only=True)
class Interaction:
    """One search of one episode, with how the episode ended."""

    question_id: str
    question: str
    answers: tuple[str, ...]
    """All gold answers."""
    split: str
    """``TRAIN`` or ``HELD_OUT``; all searches for one question are in the same part."""
    turn: int
    """Which turn of the episode asked, from 0."""
    query: str
    engine: str
    documents: tuple[Document, ...]
    """In the engine's order; empty where it found none, which makes no example."""
    prediction: str | None
    """What the episode answered in the end; None if it did not."""
    outcome: float | None
    """Token F1 of the prediction, in [0, 1]; None where a later search failed or time ran out before there was one."""

    @property
    def id(self) -> str:
        """The same for equal searches: question, query and documents decide."""
        parts = (self.question_id, self.query, *(document.text for document in self.documents))
        return hashlib.blake2b("\x1f".join(parts).encode(), digest_size=8).hexdigest()

    def to_row(self) -> dict[str, Any]:
        """Return it as a JSON object."""
        return {"id": self.id, **asdict(self)}

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> "Interaction":
        """Read a JSON object. Raises ``ValueError`` naming what is missing or of the wrong kind."""
        if not isinstance(row, Mapping):
            raise ValueError("not an interaction: no JSON object")
        values: dict[str, Any] = {name: row.get(name) for name in cls.__dataclass_fields__}
        try:
            documents = tuple(Document(**document) for document in row["documents"])
            interaction = cls(**{**values, "documents": documents, "answers": tuple(row["answers"])})
        except (KeyError, TypeError) as error:
            raise ValueError(f"not an interaction: {error}") from error
        texts = [interaction.question_id, interaction.question, interaction.query, interaction.split]
        texts += [*interaction.answers, *(document.text for document in documents)]
        whole = all(isinstance(text, str) for text in texts) and not isinstance(row["answers"], str)
        if not whole or not interaction.answers or not isinstance(interaction.turn, int):
            raise ValueError(
                "not an interaction: question, query and split must be texts, turn a number, answers a list of texts, "
                "documents a list of objects with a text"
            )
        return interaction
