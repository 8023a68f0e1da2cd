"""The examples in the simulator's prompts: training questions with queries and the documents that answer them.

All of them are built from training questions of the facts world by a fixed key, so what holds for training text (no
held-out fact in any form) holds for the prompts as well.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from zs_nemo.qa.facts import FactsWorld
from zs_nemo.qa.queries import hop_queries, subject_of
from zs_nemo.search.bm25 import query_tokens, tokens
from zs_nemo.types.question import Question

EXAMPLES_PER_GROUP = 3
_LONGEST_SYMBOL = 2


@dataclass(frozen=True, kw_only=True)
class Demonstration:
    """One example: somebody looks for the answer to ``question``, asks ``query`` and is shown ``document``."""

    question: str
    answer: str
    query: str
    document: str


@dataclass(frozen=True, kw_only=True)
class DemonstrationGroup:
    """Examples that show how one kind of question is answered.

    A question in two steps has other examples for the first step, where a good document does not hold the answer but
    what leads to it, than for the last step, where it does. With one step both are the same.
    """

    name: str
    questions: tuple[str, ...]
    first: tuple[Demonstration, ...]
    last: tuple[Demonstration, ...]

    def likeness(self, question: str) -> float:
        """Return how much ``question`` is worded like the questions of this group, in [0, 1]."""
        words = _term_set(question)
        return max(len(words & _term_set(own)) / len(words | _term_set(own)) for own in self.questions)

    def asks_about(self, question: str, query: str) -> bool:
        """Whether the query names something that the question names: a country, a city, an element.

        What the question names are its words that are no part of the wording that the group has in common. A question
        without such words is taken to be asked about.
        """
        others = (_term_set(own) for own in self.questions if own != question)
        named = _term_set(question).difference(*others)
        return not named or bool(named & set(query_tokens(query)))

    @property
    def has_two_steps(self) -> bool:
        """Whether questions of this group need two searches."""
        return self.first != self.last

    def is_first_step(self, question: str, query: str) -> bool:
        """Whether the query asks about what the question names, rather than about something found out meanwhile."""
        return self.has_two_steps and self.asks_about(question, query)


@dataclass(frozen=True, kw_only=True)
class Demonstrations:
    """All examples, for useful and for noisy documents."""

    groups: tuple[DemonstrationGroup, ...]
    noisy: tuple[tuple[str, Demonstration], ...]
    """(what the document is about, the example): a document that does not help."""
    topics: tuple[str, ...]
    """What noisy documents can be about: names from training questions."""

    def group_for(self, question: str) -> DemonstrationGroup:
        """Return the group whose questions are worded most like this one; the first of equals."""
        return max(self.groups, key=lambda group: group.likeness(question))

    def topic_away_from(self, texts: Iterable[str], seed: int) -> str:
        """Return a topic that shares no word with any of ``texts``, drawn by ``seed``."""
        avoided = {word for text in texts for word in tokens(text)}
        start = seed % len(self.topics)
        turned = self.topics[start:] + self.topics[:start]
        return next((topic for topic in turned if not avoided & set(tokens(topic))), turned[0])


def build_demonstrations(world: FactsWorld) -> Demonstrations:
    """Return the examples from the training questions of ``world``."""
    by_kind: dict[str, list[Question]] = defaultdict(list)
    for question in sorted(world.train, key=lambda q: _draw(q.id)):
        by_kind[question.kind].append(question)
    groups = tuple(_group(kind, by_kind[kind], world) for kind in sorted(by_kind))
    topics = {subject_of(question) for question in world.train if len(subject_of(question)) > _LONGEST_SYMBOL}
    return Demonstrations(groups=groups, noisy=_noisy(by_kind, world), topics=tuple(sorted(topics, key=_draw)))


def _group(kind: str, questions: Sequence[Question], world: FactsWorld) -> DemonstrationGroup:
    chosen = _different_wordings(questions)[: 2 * EXAMPLES_PER_GROUP]
    steps = len(chosen[0].evidence)
    if steps == 1:
        last = _examples(chosen[:EXAMPLES_PER_GROUP], 0, world)
        first = last
    else:
        first = _examples(chosen[:EXAMPLES_PER_GROUP], 0, world)
        last = _examples(chosen[EXAMPLES_PER_GROUP:], steps - 1, world)
    return DemonstrationGroup(name=kind, questions=tuple(q.text for q in chosen), first=first, last=last)


def _different_wordings(questions: Sequence[Question]) -> list[Question]:
    """Return the questions reordered so that differently worded ones come first."""
    common = [set(tokens(question.text)) for question in questions]
    frequent = {word for words in common for word in words if sum(word in other for other in common) > 2}
    turns: dict[frozenset[str], int] = defaultdict(int)
    ranked = []
    for place, (question, words) in enumerate(zip(questions, common, strict=True)):
        wording = frozenset(words & frequent)
        ranked.append((turns[wording], place, question))
        turns[wording] += 1
    return [question for *_, question in sorted(ranked, key=lambda row: row[:2])]


def _examples(questions: Iterable[Question], step: int, world: FactsWorld) -> tuple[Demonstration, ...]:
    """One example a question; they take turns between the keywords, the question itself and other keywords."""
    examples = []
    for number, question in enumerate(questions):
        keywords, other_keywords, _ = hop_queries(question)[step]
        query = (keywords, question.text if step == 0 else other_keywords, other_keywords)[number % 3]
        document = world.evidence[question.evidence[step]]
        examples.append(
            Demonstration(question=question.text, answer=question.answers[0], query=query, document=document)
        )
    return tuple(examples)


def _noisy(by_kind: dict[str, list[Question]], world: FactsWorld) -> tuple[tuple[str, Demonstration], ...]:
    """Return queries with a document about something else: of the same kind and of another kind."""
    pairs = (
        ("capital", "capital"),
        ("discoverer", "atomic_number"),
        ("city_country", "city_country"),
        ("currency", "region"),
    )
    examples = []
    for kind, other_kind in pairs:
        asked, other = by_kind[kind][0], by_kind[other_kind][-1]
        example = Demonstration(
            question=asked.text,
            answer=asked.answers[0],
            query=hop_queries(asked)[0][0],
            document=world.evidence[other.evidence[0]],
        )
        examples.append((subject_of(other), example))
    return tuple(examples)


@lru_cache(maxsize=4096)
def _term_set(text: str) -> frozenset[str]:
    return frozenset(tokens(text))


def _draw(name: str) -> bytes:
    return hashlib.blake2b(f"demonstration/{name}".encode(), digest_size=8).digest()
