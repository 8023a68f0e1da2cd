"""Answers one question by one method: the agent, or a baseline without its freedom to search."""

import time
from dataclasses import replace

from zs_nemo.config.evaluate import Method
from zs_nemo.qa.prompts import CHAIN_OF_THOUGHT_PROMPT, DIRECT_PROMPT, POLICY_PROMPT, RETRIEVED_PROMPT
from zs_nemo.qa.tags import ANSWER_OPEN, THINK_OPEN
from zs_nemo.rollout.collector import Decoding
from zs_nemo.rollout.documents import information_tokens
from zs_nemo.rollout.episode import EpisodeLimits, EpisodePlan, EpisodeRunner, SearchSetting
from zs_nemo.rollout.prompt_form import PromptForm
from zs_nemo.rollout.search_call import search_within_deadline
from zs_nemo.types.generation import GenerationEngine, Tokenizer
from zs_nemo.types.keys import SampleKey
from zs_nemo.types.question import Question
from zs_nemo.types.search import SearchRequest, SearchResult
from zs_nemo.types.trajectory import Status, Trajectory, Turn

PROMPTS = {
    Method.agent: POLICY_PROMPT,
    Method.retrieve_then_read: RETRIEVED_PROMPT,
    Method.chain_of_thought: CHAIN_OF_THOUGHT_PROMPT,
    Method.direct: DIRECT_PROMPT,
}
OPENED = {
    Method.agent: "",
    Method.retrieve_then_read: ANSWER_OPEN,
    Method.chain_of_thought: THINK_OPEN,
    Method.direct: ANSWER_OPEN,
}
"""What stands open at the end of a prompt, for the policy to close."""


class Answerer:
    """Answers questions with one policy by one method. For any number of questions at once."""

    def __init__(
        self,
        method: Method,
        engine: GenerationEngine,
        tokenizer: Tokenizer,
        limits: EpisodeLimits,
        form: PromptForm,
        search: SearchSetting | None,
    ) -> None:
        """Take over the parts; raise ``ValueError`` for a chat with a tokenizer that has no template for it."""
        form.check(tokenizer)
        assert search is not None or not method.searches
        self._method = method
        self.tokenizer = tokenizer
        self._limits = limits_of(method, limits)
        self._form = form
        self._search = search
        self._runner = EpisodeRunner(engine, tokenizer, self._limits)

    async def answer(self, question: Question, key: SampleKey, decoding: Decoding) -> Trajectory:
        """Return the episode. Where a search brought nothing, its status is ``search_failed``."""
        if self._method is Method.retrieve_then_read:
            return await self._retrieve_then_read(question, key, decoding)
        search = self._search if self._method is Method.agent else None
        plan = self._plan(question, key, PROMPTS[self._method].format(question=question.text))
        return await self._runner.run(plan, search, temperature=decoding.temperature, top_p=decoding.top_p)

    async def _retrieve_then_read(self, question: Question, key: SampleKey, decoding: Decoding) -> Trajectory:
        assert self._search is not None
        began = time.monotonic()
        request = SearchRequest(
            query=question.text,
            question=question.text,
            answers=question.answers,
            key=key,
            num_documents=self._search.num_documents,
            noise_probability=self._search.noise_probability,
        )
        deadline_s = self._search.deadline_s(self._limits)
        result, failures = await search_within_deadline(
            self._search.callback, request, deadline_s, self._search.account
        )
        search_s = time.monotonic() - began
        if result is None:
            trajectory = Trajectory(
                key=key,
                question=question,
                token_ids=[],
                roles=[],
                generation_logprobs=[],
                status=Status.search_failed,
                began_s=began,
            )
        else:
            ids = information_tokens(result.documents, self.tokenizer, self._limits.max_document_tokens)
            prompt = PROMPTS[self._method].format(question=question.text) + self.tokenizer.decode(ids)
            plan = self._plan(question, key, prompt)
            trajectory = await self._runner.run(plan, None, temperature=decoding.temperature, top_p=decoding.top_p)
        trajectory.turns.insert(0, _first_search(question.text, result, search_s))
        trajectory.search_failures += len(failures)
        if failures:
            trajectory.last_search_failure = str(failures[-1])
            trajectory.search_failure_kind = failures[-1].kind
        trajectory.elapsed_s = time.monotonic() - began
        return trajectory

    def _plan(self, question: Question, key: SampleKey, prompt: str) -> EpisodePlan:
        opened = OPENED[self._method] if self._form.may_open else ""
        ids = self._form.encode(prompt, self.tokenizer, opened=opened)
        return EpisodePlan(question=question, key=key, prompt_ids=ids, opened=opened)


def limits_of(method: Method, limits: EpisodeLimits) -> EpisodeLimits:
    """Return the limits of a method: reasoning in one turn may be as long as all of the agent's turns together."""
    if method is Method.agent:
        return limits
    num_turns = limits.max_turns if method is Method.chain_of_thought else 1
    return replace(limits, max_turns=1, max_turn_tokens=num_turns * limits.max_turn_tokens)


def question_key(question: Question, *, run_seed: int, step: int) -> SampleKey:
    """Return the key of a question's draws: of the question itself, whatever else is asked.

    So a sample of a set is answered as it is within the whole set, and a resumed run as one that was not broken off.
    """
    named = SampleKey(run_seed=run_seed, step=step, prompt=0, member=0)
    return replace(named, prompt=named.seed(f"question/{question.id}"))


def _first_search(query: str, result: SearchResult | None, search_s: float) -> Turn:
    """Return the turn of a search that was made for the policy: without a token of its own."""
    return Turn(
        start=0, end=0, text="", query=query, result=result, sampling_seed=0, weight_version=0, search_s=search_s
    )
