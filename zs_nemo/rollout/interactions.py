"""From episodes to examples for a simulator: the searches in them, judged, without repetitions, balanced. Pure."""

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from zs_nemo.types.interaction import HELD_OUT, TRAIN, Interaction
from zs_nemo.types.trajectory import Trajectory


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A search and what the judge says of it."""

    interaction: Interaction
    useful: bool


def interactions_of(trajectory: Trajectory, *, outcome: float | None, held_out_share: float) -> list[Interaction]:
    """Return the searches of an episode that were answered, be it with no document.

    ``outcome`` is the token F1 of its answer, None where something else than the policy ended it.
    """
    question = trajectory.question
    return [
        Interaction(
            question_id=question.id,
            question=question.text,
            answers=question.answers,
            split=split_of(question.id, held_out_share),
            turn=number,
            query=turn.query,
            engine=turn.result.source,
            documents=turn.result.documents,
            prediction=trajectory.answer,
            outcome=outcome,
        )
        for number, turn in enumerate(trajectory.turns)
        if turn.query is not None and turn.result is not None
    ]


def one_by_one(found: Sequence[Interaction]) -> list[Interaction]:
    """Return every document of every search as a search that brought it alone."""
    return [replace(each, documents=(document,)) for each in found for document in each.documents]


def without_documents(found: Sequence[Interaction], names: Collection[str]) -> list[Interaction]:
    """Return the searches that brought none of these documents, which are named by their identifiers."""
    return [each for each in found if not any(document.id in names for document in each.documents)]


def split_of(question_id: str, held_out_share: float) -> str:
    """Return the part that all searches for a question belong to, the same in every collection."""
    return HELD_OUT if _draw(question_id) < held_out_share else TRAIN


def select(judged: Sequence[Judged], *, balance: bool) -> list[Judged]:
    """Return what is to be learned from, in an order that does not depend on the order of ``judged``.

    Equal searches count once; where the judge was of two minds about them (the outcome of two episodes), all are left
    out. ``balance`` leaves out the surplus of useful or of useless ones, within each split, and of useless ones first
    those whose query has brought nothing useful: they may well answer that query, if not the question, and a simulator
    that is told the query alone would learn to answer it when it is asked for noise.
    """
    minds: dict[str, set[bool]] = {}
    for item in judged:
        minds.setdefault(item.interaction.id, set()).add(item.useful)
    once = {item.interaction.id: item for item in judged if len(minds[item.interaction.id]) == 1}
    ordered = sorted(once.values(), key=lambda item: _draw(item.interaction.id))
    if not balance:
        return ordered
    helped = {_asked(item) for item in ordered if item.useful}
    ordered.sort(key=lambda item: _asked(item) not in helped)
    kept = []
    for split in (TRAIN, HELD_OUT):
        kinds = [
            [item for item in ordered if item.interaction.split == split and item.useful is u] for u in (True, False)
        ]
        count = min(map(len, kinds))
        kept += [item for kind in kinds for item in kind[:count]]
    return sorted(kept, key=lambda item: _draw(item.interaction.id))


def _asked(item: Judged) -> tuple[str, str]:
    return item.interaction.question_id, item.interaction.query


def _draw(text: str) -> float:
    """Return a number in [0, 1) that the text alone decides."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=7).digest(), "big") / 2**56
