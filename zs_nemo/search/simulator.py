"""The simulated search engine: a frozen language model writes the documents, useful or noisy as the request asks.

Deviations from ZeroSearch (arXiv 2505.04588, section 3.2): one short document a completion instead of five in one; raw
completion prompts with examples instead of a chat prompt; the noisy variant sees neither question nor answer but a
topic of its own to write about.
"""

import asyncio
import re
import time
from collections import Counter
from dataclasses import dataclass
from itertools import chain

from zs_nemo.search.demonstrations import Demonstrations
from zs_nemo.search.markup import count_control_tags, neutralize
from zs_nemo.search.simulator_prompts import STOP, noisy_prompt, one_line, useful_prompt
from zs_nemo.types.generation import Completion, GenerationEngine, SamplingParams, StopReason, Tokenizer
from zs_nemo.types.search import Document, SearchFailure, SearchFailureKind, SearchRequest, SearchResult

MAX_QUERY_CHARACTERS = 300
"""A longer query is cut for the prompt, which must fit the engine."""
_ATTEMPTS = 2
_MIN_WORDS_WHEN_CUT = 4
_SPECIAL_TOKEN = re.compile(r"<\|[^|<>]*\|>")
"""Such as <|im_end|>, with which the model ends its text."""
_PROMPT_FIELDS = re.compile(r"\b(Question|Query|Text|Text that (?:mentions|leads to) [^:]*):", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class _Draft:
    """What became of one document: its text, which is empty if nothing could be shown, and what it cost."""

    text: str
    defects: Counter[str]
    prompt_tokens: int
    completion_tokens: int


class SimulatedSearchEngine:
    """Answers searches by prompting a language model. Implements ``types.search.SearchEngine``.

    What is wrong with raw output is mended and counted in ``SearchResult.defects``:

    - ``empty``: nothing but white space. Asked again once with another keyed seed; a document that is empty twice is
      left out, and if none is left the call fails with ``SearchFailure`` (empty).
    - ``cut``: the document reached ``max_tokens``. It ends at its last whole sentence, else at its last whole word.
    - ``control_tag``: the document held our own tags; they are made harmless.
    - ``prompt_echo``: the model went on with the fields of its prompt ("Query: ..."); what comes from there is removed.
    """

    name = "simulator"

    def __init__(
        self,
        engine: GenerationEngine,
        tokenizer: Tokenizer,
        demonstrations: Demonstrations,
        *,
        temperature: float,
        max_tokens: int,
    ) -> None:
        self._engine = engine
        self._tokenizer = tokenizer
        self._demonstrations = demonstrations
        self._sampling = SamplingParams(max_tokens=max_tokens, temperature=temperature, stop=STOP)

    async def search(self, request: SearchRequest) -> SearchResult:
        """Write ``request.num_documents`` documents at once, each with its own keyed seed."""
        start = time.perf_counter()
        jobs = (self._document(request, number) for number in range(request.num_documents))
        drafts = await asyncio.gather(*jobs)
        documents = tuple(Document(text=draft.text) for draft in drafts if draft.text)
        defects = Counter(chain.from_iterable(draft.defects.elements() for draft in drafts))
        if not documents:
            raise SearchFailure(
                SearchFailureKind.empty,
                f"the simulator wrote nothing for the query {request.query!r} ({dict(defects)})",
            )
        return SearchResult(
            documents=documents,
            source=self.name,
            noisy=request.noisy,
            latency_s=time.perf_counter() - start,
            prompt_tokens=sum(draft.prompt_tokens for draft in drafts),
            completion_tokens=sum(draft.completion_tokens for draft in drafts),
            defects=dict(defects),
        )

    def prompt(self, request: SearchRequest, number: int = 0) -> str:
        """Return the prompt for one document. The query is the policy's text: one line, no tags, limited in length."""
        query = one_line(neutralize(request.query))[:MAX_QUERY_CHARACTERS]
        if request.noisy:
            away_from = (query, request.question, *request.answers)
            topic = self._demonstrations.topic_away_from(away_from, request.key.seed(f"simulator/topic/{number}"))
            return noisy_prompt(self._demonstrations, query, topic)
        if not (request.question and request.answers):
            # Asked by who knows neither, such as another trainer through the server: the query alone is to go by.
            return noisy_prompt(self._demonstrations, query, query)
        return useful_prompt(
            self._demonstrations, request.question, request.answers[0], query, searched_before=request.key.turn > 0
        )

    async def _document(self, request: SearchRequest, number: int) -> _Draft:
        prompt_ids = self._tokenizer.encode(self.prompt(request, number))
        defects: Counter[str] = Counter()
        prompt_tokens = completion_tokens = 0
        text = ""
        for attempt in range(_ATTEMPTS):
            seed = request.key.seed(f"simulator/{number}/{request.attempt}/{attempt}")
            completion = await self._engine.generate(prompt_ids, self._sampling, seed)
            prompt_tokens += len(prompt_ids)
            completion_tokens += len(completion.token_ids)
            text, found = mend(completion)
            defects += found
            if text:
                break
        return _Draft(text=text, defects=defects, prompt_tokens=prompt_tokens, completion_tokens=completion_tokens)


def mend(completion: Completion) -> tuple[str, Counter[str]]:
    """Return the document in a completion, and what was wrong with it. The document may be empty."""
    defects: Counter[str] = Counter()
    text = _SPECIAL_TOKEN.sub(" ", completion.text).lstrip().split("\n", 1)[0]
    if echo := _PROMPT_FIELDS.search(text):
        defects["prompt_echo"] += 1
        text = text[: echo.start()]
    elif completion.stop_reason is StopReason.length:
        defects["cut"] += 1
        text = without_cut_end(text)
    if tags := count_control_tags(text):
        defects["control_tag"] += tags
        text = neutralize(text)
    text = one_line(text.replace("\ufffd", ""))
    if not any(character.isalnum() for character in text):
        defects["empty"] += 1
        text = ""
    return text, defects


def without_cut_end(text: str) -> str:
    """Return ``text`` up to its last whole sentence if that has a few words, else up to its last whole word."""
    sentence = re.match(r".*[.!?](?=\s|$)", text)
    if sentence and len(sentence[0].split()) >= _MIN_WORDS_WHEN_CUT:
        return sentence[0]
    head, space, _ = text.rpartition(" ")
    return head if space else text
