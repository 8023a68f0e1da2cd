"""What a simulator is asked: fills the slots of its template for one search.

The short form is made for small models and the facts world: one document a completion, with examples that follow the
question and its step. Its fixed part stands first, which makes an engine's prefix cache useful; what differs between
two calls are the last three lines.
"""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from zs_nemo.config.endpoints import ApiKind
from zs_nemo.config.search import DocumentsPerCompletion, OffTarget
from zs_nemo.qa.rewards import normalise
from zs_nemo.search.demonstrations import Demonstration, Demonstrations, Step
from zs_nemo.search.markup import neutralize
from zs_nemo.search.prompt_template import PromptTemplate, load_template
from zs_nemo.types.completion import Prompt
from zs_nemo.types.search import SearchRequest

MAX_QUERY_CHARACTERS = 300
"""A longer query is cut for the prompt, which must fit the engine."""
MAX_ANSWERS_CHARACTERS = 300
"""Room for gold answers after the first, which always stands in the prompt."""
_SURROGATE = re.compile(r"[\ud800-\udfff]")
"""Half a character, as broken JSON brings it: no tokenizer takes it."""
STOP = ("\n",)
"""A document in a completion of its own is one line."""


class SimulatorPrompts(Protocol):
    """Writes the prompts of a simulator."""

    documents: DocumentsPerCompletion

    def prompt(
        self,
        request: SearchRequest,
        number: int,
        *,
        noisy: bool,
        num_documents: int = 1,
        topic: str = "",
        draw: int = 0,
    ) -> Prompt:
        """Return the prompt for ``num_documents`` documents of ``request``, of which the first is its ``number``-th.

        ``topic`` is what noisy documents are about, where that is known already; otherwise it is drawn, anew for each
        ``draw``. After the first the topic stands for the query as well: a model that has leaked an answer did so
        because it thought of the query.
        """
        ...


class ShortPrompts:
    """The short form with the facts world's examples; see ``useful_prompt`` and ``noisy_prompt``."""

    documents = DocumentsPerCompletion.one

    def __init__(
        self,
        demonstrations: Demonstrations,
        *,
        max_answers: int = 0,
        api: ApiKind = ApiKind.completions,
        off_target: OffTarget = OffTarget.auto,
    ) -> None:
        self._demonstrations = demonstrations
        self._answers_always = off_target is OffTarget.answer
        self._max_answers = max_answers
        self._template = load_template("", self.documents)
        self._api = api

    def prompt(
        self,
        request: SearchRequest,
        number: int,
        *,
        noisy: bool,
        num_documents: int = 1,
        topic: str = "",
        draw: int = 0,
    ) -> Prompt:
        """Return the prompt for one document.

        Without a question or an answer there is nothing that it could help with: it is about the query.
        """
        query = safe_query(request.query)
        if noisy:
            topic = topic or topic_away_from(request, query, number, draw, self._demonstrations)
            slots = _noisy_slots(self._demonstrations, topic if draw else query, topic)
        elif not request.question or not request.answers:
            slots = _noisy_slots(self._demonstrations, query, query)
        else:
            answers = answers_text(request.answers, self._max_answers)
            slots = _useful_slots(
                self._demonstrations,
                request.question,
                answers,
                query,
                searched_before=request.key.turn > 0,
                answers_always=self._answers_always,
            )
        return self._template.render(self._api, slots)


class TemplatePrompts:
    """Any other template. Question and answers are given to it for noisy documents too: the wording is its own."""

    def __init__(
        self,
        template: PromptTemplate,
        documents: DocumentsPerCompletion,
        *,
        num_words: int,
        max_answers: int = 0,
        api: ApiKind = ApiKind.completions,
        demonstrations: Demonstrations | None = None,
        off_target: OffTarget = OffTarget.auto,
    ) -> None:
        """Without ``demonstrations`` there are no examples, and the topic of noisy documents is the query itself.

        Raises ``ValueError`` where answers are to be withheld that cannot be told to be off target without them.
        """
        if off_target is OffTarget.withhold and demonstrations is None:
            raise ValueError(
                "search.off_target=withhold can tell only for the facts world's questions what a query asks for; leave "
                "it at auto for others"
            )
        self._withholds = off_target is OffTarget.withhold
        self.documents = documents
        self._template = template
        self._num_words, self._max_answers = num_words, max_answers
        self._api = api
        self._demonstrations = demonstrations

    def prompt(
        self,
        request: SearchRequest,
        number: int,
        *,
        noisy: bool,
        num_documents: int = 1,
        topic: str = "",
        draw: int = 0,
    ) -> Prompt:
        """Return the prompt for ``num_documents`` documents.

        Where the answer is withheld it is the noisy one, about the query: that is what was learned from what a real
        engine returned for queries that it did not answer.
        """
        query = safe_query(request.query)
        examples: list[dict[str, str]] = []
        if not noisy and self._is_off_target(request, query):
            noisy, topic = True, query
            request = replace(request, question="", answers=())
        if self._demonstrations is not None:
            if noisy:
                topic = topic or topic_away_from(request, query, number, draw, self._demonstrations)
                if draw and self.documents is DocumentsPerCompletion.one:
                    # Of a small model: one that follows instructions draws again from the same prompt, and stays with
                    # what was asked.
                    query = topic
                examples = [_example(example, about) for about, example in self._demonstrations.noisy]
            else:
                examples = [_example(example) for example in self._demonstrations.group_for(request.question).last]
        slots = {
            "query": query,
            "question": one_line(request.question),
            "answers": answers_text(request.answers, self._max_answers) if request.answers else "",
            "noisy": noisy,
            "num_documents": num_documents,
            "num_words": self._num_words,
            "examples": examples,
            "topic": one_line(topic) or query,
        }
        return self._template.render(self._api, slots)

    def _is_off_target(self, request: SearchRequest, query: str) -> bool:
        if not self._withholds or not request.question:
            return False
        assert self._demonstrations is not None
        group = self._demonstrations.group_for(request.question)
        return group.step_of(request.question, query, searched_before=request.key.turn > 0) is None


def useful_prompt(
    demonstrations: Demonstrations, question: str, answer: str, query: str, *, searched_before: bool = False
) -> str:
    """Return a prompt for a document that helps as far as the query goes.

    It tells the model what it must know to write one: the question and a gold answer. In the first of two steps the
    examples show documents that lead to the answer without it.

    A query that does not ask for what the question needs, be it that it names something else or nothing but a name,
    gets a document about what it asks, and the model sees no answer: a simulator that answers whatever is asked would
    teach a policy that queries do not matter. ``searched_before`` is whether the policy has searched already.
    """
    return _short(_useful_slots(demonstrations, question, answer, query, searched_before=searched_before))


def noisy_prompt(demonstrations: Demonstrations, query: str, topic: str) -> str:
    """Return a prompt for a document that does not help: it is about ``topic`` instead.

    The model sees neither the question nor an answer. Without a topic it writes what it knows about the query, which
    is the answer in one case of ten.
    """
    return _short(_noisy_slots(demonstrations, query, topic))


def answers_text(answers: Sequence[str], max_answers: int = 0) -> str:
    """Return gold answers as they stand in a prompt: "Lima or Ciudad de los Reyes".

    Spellings that differ in case, accents and punctuation alone are named once. ``max_answers`` is the most that are
    named, 0 for all; the list ends where it gets too long for a prompt.
    """
    spellings: dict[str, str] = {}
    for answer in answers:
        spellings.setdefault(_folded(answer), one_line(answer))
    first, *others = list(spellings.values())[: max_answers or None]
    room = MAX_ANSWERS_CHARACTERS
    named = [first]
    for answer in others:
        room -= len(answer)
        if room < 0:
            break
        named.append(answer)
    return " or ".join(named)


def topic_away_from(request: SearchRequest, query: str, number: int, draw: int, demonstrations: Demonstrations) -> str:
    """Return what a noisy document is about: drawn by the request's key, away from what it asks for."""
    seed = request.key.seed(f"simulator/topic/{number}/{draw}")
    return demonstrations.topic_away_from((query, request.question, *request.answers), seed)


def safe_query(query: str) -> str:
    """Return the policy's text as one line of limited length without control tags."""
    return one_line(neutralize(query))[:MAX_QUERY_CHARACTERS]


def one_line(text: str) -> str:
    """Return ``text`` without line breaks, so that it cannot end its field of the prompt, and fit to be encoded."""
    return " ".join(_SURROGATE.sub("", text).split())


def _useful_slots(
    demonstrations: Demonstrations,
    question: str,
    answers: str,
    query: str,
    *,
    searched_before: bool,
    answers_always: bool = False,
) -> dict[str, object]:
    group = demonstrations.group_for(question)
    step = group.step_of(question, query, searched_before=searched_before)
    if step is None and not answers_always:
        return _noisy_slots(demonstrations, query, query)
    first_of_two = group.has_two_steps and step is Step.first
    return {
        "noisy": False,
        "examples": [_example(example) for example in (group.first if first_of_two else group.last)],
        "cue": "leads to" if first_of_two else "mentions",
        "question": one_line(question),
        "query": one_line(query),
        "answers": one_line(answers),
    }


def _noisy_slots(demonstrations: Demonstrations, query: str, topic: str) -> dict[str, object]:
    return {
        "noisy": True,
        "examples": [_example(example, about) for about, example in demonstrations.noisy],
        "query": one_line(query),
        "topic": one_line(topic),
    }


def _short(slots: dict[str, object]) -> str:
    prompt = load_template("", DocumentsPerCompletion.one).render(ApiKind.completions, slots)
    assert isinstance(prompt, str)
    return prompt


def _example(example: Demonstration, topic: str = "") -> dict[str, str]:
    return {
        "question": one_line(example.question),
        "query": one_line(example.query),
        "answer": one_line(example.answer),
        "topic": one_line(topic),
        "document": example.document,
    }


def _folded(answer: str) -> str:
    plain = "".join(c for c in unicodedata.normalize("NFKD", answer) if not unicodedata.combining(c))
    return normalise(plain) or plain
