"""The examples in the simulator's prompts: training questions with queries and the documents that answer them.

All of them are built from training questions of the facts world by a fixed key, so what holds for training text (no
held-out fact in any form) holds for the prompts as well.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property, lru_cache

from zs_nemo.qa.facts import FactsWorld
from zs_nemo.qa.queries import bridge_of, hop_queries, subject_of
from zs_nemo.search.bm25 import query_tokens, tokens
from zs_nemo.types.question import Question

EXAMPLES_PER_GROUP = 3
_LONGEST_SYMBOL = 2
_COMMON_SHARE = 0.3
"""Share of a fact's documents from which on a word belongs to the fact and not to what it is about."""


class Step(Enum):
    """Which of a question's searches a query is."""

    first = "about what the question names"
    last = "about what the first search has brought"


@dataclass(frozen=True, kw_only=True)
class Demonstration:
    """One example: somebody looks for the answer to ``question``, asks ``query`` and is shown ``document``."""

    question: str
    answer: str
    query: str
    document: str


@dataclass(frozen=True, kw_only=True)
class Relation:
    """What is asked of a thing, such as its capital: the words by which a search engine tells it from other facts.

    A real engine that is asked for a name alone returns any of the facts about it.
    """

    words: frozenset[str]
    """Terms that its documents and queries share."""
    rivals: tuple[frozenset[str], ...]
    """The same of other facts about the same things; none if a name is enough to find the document."""

    def is_asked_for_by(self, terms: frozenset[str]) -> bool:
        """Whether a query of these terms speaks of this relation, and of no rival more."""
        if not self.rivals:
            return True
        telling = terms - frozenset.intersection(self.words, *self.rivals)
        score = len(telling & self.words)
        return score > 0 and all(score >= len(telling & rival) for rival in self.rivals)


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
    first_relation: Relation
    last_relation: Relation

    def likeness(self, question: str) -> float:
        """Return how much ``question`` is worded like the questions of this group, in [0, 1]."""
        words = _term_set(question)
        return max(len(words & _term_set(own)) / len(words | _term_set(own)) for own in self.questions)

    def names_subject(self, question: str, query: str) -> bool:
        """Whether the query names something that the question names: a country, a city, an element.

        What the question names are its words that are no part of the wording that the group has in common. A question
        without such words is taken to be named.
        """
        others = (_term_set(own) for own in self.questions if own != question)
        named = _term_set(question).difference(*others)
        return not named or bool(named & set(query_tokens(query)))

    @property
    def has_two_steps(self) -> bool:
        """Whether questions of this group need two searches."""
        return self.first != self.last

    def step_of(self, question: str, query: str, *, searched_before: bool) -> Step | None:
        """Return the step of the question that the query asks for; None if a real engine would not answer it.

        The first step, which of a one-step question is the only one, asks something about what the question names. The
        second asks about something that the question does not name, so it counts only once the policy has searched.
        """
        terms = frozenset(query_tokens(query))
        if self.names_subject(question, query):
            return Step.first if self.first_relation.is_asked_for_by(terms) else None
        if self.has_two_steps and searched_before and self.last_relation.is_asked_for_by(terms):
            return Step.last
        return None


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

    def topic_of(self, text: str) -> str:
        """Return the topic that ``text`` names first, the longest of those that begin there; empty for none."""
        words = tokens(text)
        for place in range(len(words)):
            for length in range(min(self._longest_topic, len(words) - place), 0, -1):
                topic = self._topics_by_words.get(tuple(words[place : place + length]))
                if topic is not None:
                    return topic
        return ""

    @cached_property
    def _topics_by_words(self) -> dict[tuple[str, ...], str]:
        return {tuple(tokens(topic)): topic for topic in self.topics}

    @cached_property
    def _longest_topic(self) -> int:
        return max(map(len, self._topics_by_words), default=0)


def build_demonstrations(world: FactsWorld) -> Demonstrations:
    """Return the examples from the training questions of ``world``."""
    by_kind: dict[str, list[Question]] = defaultdict(list)
    for question in sorted(world.train, key=lambda q: _draw(q.id)):
        by_kind[question.kind].append(question)
    facts = {
        (kind, step): _fact(by_kind[kind], step, world)
        for kind in sorted(by_kind)
        for step in range(len(by_kind[kind][0].evidence))
    }
    groups = tuple(_group(kind, by_kind[kind], world, facts) for kind in sorted(by_kind))
    topics = {subject_of(question) for question in world.train if len(subject_of(question)) > _LONGEST_SYMBOL}
    return Demonstrations(groups=groups, noisy=_noisy(by_kind, world), topics=tuple(sorted(topics, key=_draw)))


@dataclass(frozen=True, kw_only=True)
class _Fact:
    """What one step of one kind of question looks up."""

    kind: str
    """Of the evidence: two kinds of questions may look up the same documents."""
    subjects: frozenset[str]
    words: frozenset[str]

    def relation(self, others: Iterable["_Fact"]) -> Relation:
        """Return the relation, with those as rivals that are about the same things."""
        rivals = {
            other.words
            for other in others
            if other.kind != self.kind and 2 * len(self.subjects & other.subjects) > len(self.subjects)
        }
        return Relation(words=self.words, rivals=tuple(sorted(rivals, key=sorted)))


def _fact(questions: Sequence[Question], step: int, world: FactsWorld) -> _Fact:
    subjects = frozenset(subject_of(question) if step == 0 else bridge_of(question) for question in questions)
    counts: Counter[str] = Counter()
    for question in questions:
        texts = (world.evidence[question.evidence[step]], *hop_queries(question)[step])
        counts.update({term for text in texts for term in query_tokens(text)})
    words = frozenset(term for term, count in counts.items() if count > _COMMON_SHARE * len(questions))
    return _Fact(kind=questions[0].evidence[step].split("/")[1], subjects=subjects, words=words)


def _group(
    kind: str, questions: Sequence[Question], world: FactsWorld, facts: Mapping[tuple[str, int], _Fact]
) -> DemonstrationGroup:
    chosen = _different_wordings(questions)[: 2 * EXAMPLES_PER_GROUP]
    steps = len(chosen[0].evidence)
    if steps == 1:
        last = _examples(chosen[:EXAMPLES_PER_GROUP], 0, world)
        first = last
    else:
        first = _examples(chosen[:EXAMPLES_PER_GROUP], 0, world)
        last = _examples(chosen[EXAMPLES_PER_GROUP:], steps - 1, world)
    return DemonstrationGroup(
        name=kind,
        questions=tuple(q.text for q in chosen),
        first=first,
        last=last,
        first_relation=facts[kind, 0].relation(facts.values()),
        last_relation=facts[kind, steps - 1].relation(facts.values()),
    )


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
