"""The published loop's order of work: a turn of all trajectories, then the searches of all, ten at a time."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace

from zs_nemo.qa.actions import SearchAction, parse_action
from zs_nemo.qa.prompts import policy_prompt
from zs_nemo.qa.tags import STOP_STRINGS
from zs_nemo.rollout.documents import information_tokens
from zs_nemo.rollout.episode import EpisodeLimits, SearchSetting
from zs_nemo.types.generation import GenerationEngine, SamplingParams, Tokenizer
from zs_nemo.types.keys import SampleKey
from zs_nemo.types.question import Question
from zs_nemo.types.search import SearchFailure, SearchRequest, SearchResult

SEARCH_THREADS = 10


@dataclass
class Row:
    """One trajectory under way."""

    question: Question
    key: SampleKey
    token_ids: list[int]
    num_turns: int = 0
    query: str | None = ""
    """What it asks for after its last turn; None when it is done."""
    policy_tokens: int = 0


class BarrierRunner:
    """Runs trajectories turn by turn. Kinder than the published loop: no new client a call, no text encoded again."""

    def __init__(
        self, engine: GenerationEngine, tokenizer: Tokenizer, limits: EpisodeLimits, *, search_threads: int
    ) -> None:
        self._engine = engine
        self._tokenizer = tokenizer
        self._limits = limits
        self._threads = asyncio.Semaphore(search_threads)

    def rows(self, questions: Sequence[Question], *, run_seed: int, step: int, group_size: int) -> list[Row]:
        """Return the trajectories of a step with the keys, and so the seeds, that our own collector gives them."""
        return [
            Row(
                question=question,
                key=SampleKey(run_seed=run_seed, step=step, prompt=prompt, member=member),
                token_ids=self._tokenizer.encode(policy_prompt(question.text), add_special_tokens=False),
            )
            for prompt, question in enumerate(questions)
            for member in range(group_size)
        ]

    async def run(self, rows: Sequence[Row], search: SearchSetting, *, temperature: float) -> None:
        """Run all trajectories to their ends."""
        for turn in range(self._limits.max_turns):
            active = [row for row in rows if row.query is not None]
            await asyncio.gather(*(self._generate(row, turn, temperature) for row in active))
            asking = [row for row in active if row.query is not None]
            if turn < self._limits.max_turns - 1:
                await asyncio.gather(*(self._search(row, search, turn) for row in asking))

    async def _generate(self, row: Row, turn: int, temperature: float) -> None:
        limits = self._limits
        sampling = SamplingParams(
            max_tokens=min(limits.max_turn_tokens, limits.max_sequence_tokens - len(row.token_ids)),
            temperature=temperature,
            stop=STOP_STRINGS,
        )
        completion = await self._engine.generate(row.token_ids, sampling, replace(row.key, turn=turn).seed("sampling"))
        row.token_ids += completion.token_ids
        row.policy_tokens += len(completion.token_ids)
        row.num_turns += 1
        action = parse_action(completion.text)
        fits = limits.max_sequence_tokens - len(row.token_ids) > limits.max_document_tokens
        row.query = action.query if isinstance(action, SearchAction) and fits else None

    async def _search(self, row: Row, search: SearchSetting, turn: int) -> None:
        request = SearchRequest(
            query=row.query or "",
            question=row.question.text,
            answers=row.question.answers,
            key=replace(row.key, turn=turn),
            num_documents=search.num_documents,
            noise_probability=search.noise_probability,
        )
        try:
            async with self._threads:
                result: SearchResult = await search.callback.search(request)
        except SearchFailure:
            row.query = None
            return
        row.token_ids += information_tokens(result.documents, self._tokenizer, self._limits.max_document_tokens)
