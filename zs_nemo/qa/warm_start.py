"""Scripted episodes from training questions, for the supervised start of the policy.

They show the form (think, search, read, answer) and the habits worth having: one search a step, the answer copied from
a document, and a second search when the first document does not help.
"""

import random
import re

from zs_nemo.qa.facts import FactsWorld
from zs_nemo.qa.prompts import information_block
from zs_nemo.qa.queries import bridge_of, hop_queries
from zs_nemo.qa.tags import (
    ANSWER_CLOSE,
    ANSWER_OPEN,
    SEARCH_CLOSE,
    SEARCH_OPEN,
    THINK_CLOSE,
    THINK_OPEN,
)
from zs_nemo.types.keys import SampleKey
from zs_nemo.types.question import Question
from zs_nemo.types.trajectory import Role

UNHELPFUL_SHARE = 0.25
"""Share of the episodes in which one search first brings a document about something else."""

# One short wording each: a small model that has learned several loose phrases goes on inventing more of them when it
# samples, and what it then searches for has nothing to do with the question.
_FIRST_THOUGHT = "I search."
_NEXT_THOUGHT = "The country is {bridge}."
_RETRY_THOUGHT = "I search again."
_LAST_THOUGHT = "I found it."


def scripted_episode(question: Question, world: FactsWorld, key: SampleKey) -> list[tuple[str, Role]]:
    """Return an episode as (text, role) segments that follow ``policy_prompt(question.text)``.

    Policy segments and document segments take turns; the last one is the policy's answer. Queries and the place
    of an unhelpful document are drawn from ``key``. Raises ``ValueError`` for a held-out question.
    """
    if question.split != "train":
        raise ValueError(f"question {question.id!r} is for {question.split}; scripted episodes use training questions")
    draw = random.Random(key.seed("script"))
    hops = hop_queries(question)
    unhelpful_hop = draw.randrange(len(hops)) if draw.random() < UNHELPFUL_SHARE else -1
    segments: list[tuple[str, Role]] = []
    thought = _FIRST_THOUGHT
    for hop, queries in enumerate(hops):
        first, second = draw.sample(queries, 2)
        if hop == unhelpful_hop:
            segments += _search(thought, first, _unrelated(question, world, draw))
            thought, first = _RETRY_THOUGHT, second
        segments += _search(thought, first, world.evidence[question.evidence[hop]])
        last = hop == len(hops) - 1
        thought = _LAST_THOUGHT if last else _NEXT_THOUGHT.format(bridge=bridge_of(question))
    answer = _as_written(question.answers[0], world.evidence[question.evidence[-1]])
    segments.append((_answer(thought, answer), Role.policy))
    return segments


def _search(thought: str, query: str, document: str) -> list[tuple[str, Role]]:
    text = f"{THINK_OPEN}{thought}{THINK_CLOSE}\n{SEARCH_OPEN}{query}{SEARCH_CLOSE}"
    return [(text, Role.policy), (information_block([document]), Role.document)]


def _answer(thought: str, answer: str) -> str:
    return f"{THINK_OPEN}{thought}{THINK_CLOSE}\n{ANSWER_OPEN}{answer}{ANSWER_CLOSE}"


def _as_written(answer: str, document: str) -> str:
    """Return the answer with the capitals that it has in the document, so that answering is copying."""
    match = re.search(re.escape(answer), document, re.IGNORECASE)
    return match[0] if match else answer


def _unrelated(question: Question, world: FactsWorld, draw: random.Random) -> str:
    """Return the evidence of another training question that does not support this one."""
    while True:
        other = draw.choice(world.train)
        if not set(other.evidence) & set(question.evidence):
            return world.evidence[draw.choice(other.evidence)]
