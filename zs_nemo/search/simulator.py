"""The simulated search engine: a frozen language model writes the documents, useful or noisy as the request asks.

Deviations from ZeroSearch (arXiv 2505.04588, section 3.2) with the short form, which is the quickstart's: one short
document a completion instead of five in one; raw completion prompts with examples instead of a chat prompt; the noisy
variant sees neither question nor answer but a topic of its own to write about. The instruction form asks for all
documents of a search in one completion, as published.
"""

import math
import time
from collections import Counter
from dataclasses import dataclass, replace
from itertools import chain

from zs_nemo.config.search import DocumentsPerCompletion
from zs_nemo.search.all_or_none import all_or_none
from zs_nemo.search.demonstrations import Demonstrations
from zs_nemo.search.document_parser import DocumentBudget, mend, parse_documents, without_cut_end
from zs_nemo.search.judges import contains_answer
from zs_nemo.search.simulator_prompts import MAX_QUERY_CHARACTERS, STOP, ShortPrompts, SimulatorPrompts
from zs_nemo.search.text_generators import EngineTextGenerator
from zs_nemo.types.completion import Prompt, TextCompletion, TextGenerator
from zs_nemo.types.generation import GenerationEngine, SamplingParams, StopReason, Tokenizer
from zs_nemo.types.search import Document, PromptTooLong, SearchFailure, SearchFailureKind, SearchRequest, SearchResult

__all__ = ["MAX_QUERY_CHARACTERS", "SimulatedSearchEngine", "TextSimulator", "mend", "without_cut_end"]


@dataclass(frozen=True, kw_only=True)
class _Part:
    """What one completion is asked for: documents that are all useful or all noisy, by their places in the result."""

    places: tuple[int, ...]
    noisy: bool


@dataclass(frozen=True, kw_only=True)
class _Draft:
    """What became of a part: its documents, none if nothing could be shown, and what they cost."""

    texts: tuple[str, ...]
    defects: Counter[str]
    prompt_tokens: int
    completion_tokens: int


class TextSimulator:
    """Answers searches by prompting a language model. Implements ``types.search.SearchEngine``.

    What is wrong with raw output is mended and counted in ``SearchResult.defects``; ``document_parser`` names the
    kinds. A completion without a document is drawn again with another keyed seed, and so is a noisy one of which a
    document holds a gold answer, about another topic alone then; the one with fewest of those is shown. A query that is
    too long for the engine is halved until it fits, and counted once as ``long_query``. Documents that are missing in
    the end are left out, and if none is left the call fails with ``SearchFailure`` (empty).
    """

    name = "simulator"

    def __init__(
        self,
        text: TextGenerator,
        prompts: SimulatorPrompts,
        sampling: SamplingParams,
        *,
        budget: DocumentBudget | None = None,
        max_redraws: int = 2,
    ) -> None:
        """Without ``budget`` nothing but the sampling's ``max_tokens`` bounds a document."""
        self._text = text
        self._prompts = prompts
        self._sampling = sampling
        self._budget = budget
        self._max_redraws = max_redraws

    async def search(self, request: SearchRequest) -> SearchResult:
        """Write ``request.num_documents`` documents at once, each completion with its own keyed seed."""
        start = time.perf_counter()
        parts = self._parts(request)
        drafts = await all_or_none(self._draft(request, part) for part in parts)
        placed = {
            place: Document(text=text, noisy=part.noisy)
            for part, draft in zip(parts, drafts, strict=True)
            for place, text in zip(part.places, draft.texts, strict=False)
        }
        defects = Counter(chain.from_iterable(draft.defects.elements() for draft in drafts))
        if defects["long_query"]:
            # There is one query, however many completions it was too long for, and however often it was halved.
            defects["long_query"] = 1
        if not placed:
            raise SearchFailure(
                SearchFailureKind.empty,
                f"the simulator wrote nothing for the query {request.query!r} ({dict(defects)})",
            )
        return SearchResult(
            documents=tuple(placed[place] for place in sorted(placed)),
            source=self.name,
            noisy=request.noisy,
            latency_s=time.perf_counter() - start,
            prompt_tokens=sum(draft.prompt_tokens for draft in drafts),
            completion_tokens=sum(draft.completion_tokens for draft in drafts),
            defects=dict(defects),
        )

    def prompt(self, request: SearchRequest, number: int = 0) -> Prompt:
        """Return the prompt of one completion, of which the ``number``-th document is the first."""
        part = next(part for part in self._parts(request) if number in part.places)
        return self._prompt(request, part)

    def _prompt(self, request: SearchRequest, part: _Part, draw: int = 0) -> Prompt:
        return self._prompts.prompt(
            request, part.places[0], noisy=part.noisy, num_documents=len(part.places), draw=draw
        )

    def _parts(self, request: SearchRequest) -> list[_Part]:
        flags = request.noisy_documents or (request.noisy,) * request.num_documents
        assert len(flags) == request.num_documents, (flags, request.num_documents)
        if self._prompts.documents is DocumentsPerCompletion.one:
            return [_Part(places=(place,), noisy=noisy) for place, noisy in enumerate(flags)]
        by_kind = {kind: tuple(place for place, noisy in enumerate(flags) if noisy is kind) for kind in (False, True)}
        return [_Part(places=places, noisy=kind) for kind, places in by_kind.items() if places]

    async def _draft(self, request: SearchRequest, part: _Part) -> _Draft:
        defects: Counter[str] = Counter()
        prompt_tokens = completion_tokens = 0
        best: tuple[str, ...] = ()
        fewest_leaks = math.inf
        for draw in range(1 + self._max_redraws):
            seed = request.key.seed(f"simulator/{part.places[0]}/{request.attempt}/{draw}")
            while True:
                prompt = self._prompt(request, part, draw)
                try:
                    completion = await self._text.complete(prompt, self._sampling, seed)
                    break
                except PromptTooLong:
                    # The policy's query is what can be shortened: in some scripts a character is several tokens.
                    shorter = request.query[: min(len(request.query), MAX_QUERY_CHARACTERS) // 2]
                    if not shorter.strip():
                        raise
                    request = replace(request, query=shorter)
                    defects["long_query"] += 1
            prompt_tokens += completion.prompt_tokens
            completion_tokens += completion.completion_tokens
            texts, found = self._documents(completion, prompt, len(part.places))
            leaks = sum(contains_answer(text, request.answers) for text in texts) if part.noisy else 0
            defects += found + Counter(leak=leaks)
            if texts and leaks < fewest_leaks:
                best, fewest_leaks = texts, leaks
            if fewest_leaks == 0:
                break
        return _Draft(texts=best, defects=defects, prompt_tokens=prompt_tokens, completion_tokens=completion_tokens)

    def _documents(
        self, completion: TextCompletion, prompt: Prompt, num_documents: int
    ) -> tuple[tuple[str, ...], Counter[str]]:
        if completion.stop_reason is StopReason.filtered:
            return (), Counter(filtered=1)
        if self._prompts.documents is DocumentsPerCompletion.all:
            return parse_documents(completion, num_documents, prompt=prompt, budget=self._budget)
        text, defects = mend(completion, self._budget)
        return ((text,) if text else ()), defects


class SimulatedSearchEngine(TextSimulator):
    """The simulator of the quickstart: one of our own engines and the short form with the facts world's examples."""

    def __init__(
        self,
        engine: GenerationEngine,
        tokenizer: Tokenizer,
        demonstrations: Demonstrations,
        *,
        temperature: float,
        max_tokens: int,
        max_answers: int = 0,
    ) -> None:
        super().__init__(
            EngineTextGenerator(engine, tokenizer),
            ShortPrompts(demonstrations, max_answers=max_answers),
            SamplingParams(max_tokens=max_tokens, temperature=temperature, stop=STOP),
        )
