"""Says of recorded searches whether their documents helped: what a simulator is taught to write on demand."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from zs_nemo.qa.rewards import normalise
from zs_nemo.search.simulator_prompts import one_line
from zs_nemo.types.completion import ChatMessage, TextGenerator
from zs_nemo.types.generation import SamplingParams
from zs_nemo.types.interaction import Interaction
from zs_nemo.types.keys import SampleKey

JUDGE_SAMPLING = SamplingParams(max_tokens=16, temperature=0.0)
"""Of a language model that judges."""
_VERDICT = re.compile(r"\s*verdict\s*:\s*(useful|useless)\s*[.!]?\s*", re.IGNORECASE)
_MAX_DOCUMENT_CHARACTERS = 2000
_RUBRIC = """\
You judge what a search engine has returned. You are told a question, its correct answer, what somebody typed into the \
search engine to find that answer, and the passages that came back.

The passages are useful if somebody who reads them comes nearer to the answer: they state it, or they state what has \
to be known before it can be found. They are useless if they are about something else, if they only repeat the \
question, or if what they state about it is wrong.

Answer with one line and nothing else: "Verdict: useful" or "Verdict: useless"."""


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
        """Whether the episode ended well; None where something else than the policy ended it."""
        return None if interaction.outcome is None else interaction.outcome >= self._threshold


class ContainmentJudge:
    """Useful is what contains a gold answer."""

    async def is_useful(self, interaction: Interaction) -> bool | None:
        """Whether one of the documents contains one of the answers."""
        return any(contains_answer(document.text, interaction.answers) for document in interaction.documents)


class EvidenceJudge(ContainmentJudge):
    """Useful is what the question set names as evidence, so that the first of two steps can be useful too."""

    def __init__(self, evidence: Mapping[str, Sequence[str]]) -> None:
        """``evidence`` has the identifiers of the documents that support a question's answer, by its own identifier."""
        self._evidence = evidence

    async def is_useful(self, interaction: Interaction) -> bool | None:
        """Whether one of the documents is evidence; where none is named, whether one contains an answer.

        None where none is evidence and one contains an answer all the same, such as a city that is named for another
        reason: a simulator that took it for useless would learn to put answers into noisy documents.
        """
        named = self._evidence.get(interaction.question_id)
        if not named:
            return await super().is_useful(interaction)
        if any(document.id in named for document in interaction.documents):
            return True
        return None if await super().is_useful(interaction) else False


@dataclass(frozen=True, kw_only=True)
class LlmVerdict:
    """What a language model has said of one search."""

    useful: bool | None
    """None for an answer that holds no verdict."""
    prompt_tokens: int
    """As its server counts them; 0 where it does not say."""
    completion_tokens: int


class LlmJudge:
    """Asks a language model, and takes nothing for a verdict but a verdict."""

    def __init__(self, model: TextGenerator, *, seed: int) -> None:
        self._model = model
        self._seed = seed

    async def verdict(self, interaction: Interaction) -> LlmVerdict:
        """Return what the model says. Raises ``SearchFailure`` as the model does."""
        key = SampleKey(run_seed=self._seed, step=0, prompt=int(interaction.id, 16) % 2**31, member=0)
        completion = await self._model.complete(judge_prompt(interaction), JUDGE_SAMPLING, key.seed("judge"))
        said = _VERDICT.fullmatch(completion.text)
        return LlmVerdict(
            useful=None if said is None else said[1].lower() == "useful",
            prompt_tokens=completion.prompt_tokens,
            completion_tokens=completion.completion_tokens,
        )


def judge_prompt(interaction: Interaction) -> tuple[ChatMessage, ...]:
    """Return what the model is asked; documents and query stand in fields of one line each."""
    documents = (one_line(document.text)[:_MAX_DOCUMENT_CHARACTERS] for document in interaction.documents)
    case = (
        f"Question: {one_line(interaction.question)}",
        f"Correct answer: {' or '.join(map(one_line, interaction.answers))}",
        f"Typed into the search engine: {one_line(interaction.query)}",
        *(f"Passage {number}: {text}" for number, text in enumerate(documents, start=1)),
    )
    return ChatMessage(role="system", content=_RUBRIC), ChatMessage(role="user", content="\n".join(case))


def contains_answer(text: str, answers: Sequence[str]) -> bool:
    """Whether the words of one of the answers stand in ``text`` next to each other, after SQuAD's normalisation."""
    padded = f" {normalise(text)} "
    return any(f" {words} " in padded for answer in answers if (words := normalise(answer)))
