"""One episode: the policy thinks, searches, reads and answers, until it is done or a limit is reached."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

from zs_nemo.qa.actions import AnswerAction, SearchAction, parse_action
from zs_nemo.qa.tags import STOP_STRINGS
from zs_nemo.rollout.callbacks import RolloutCallback
from zs_nemo.rollout.documents import information_tokens, smallest_information_block
from zs_nemo.rollout.search_call import search_within_deadline
from zs_nemo.types.generation import Completion, GenerationEngine, SamplingParams, StopReason, Tokenizer
from zs_nemo.types.keys import SampleKey
from zs_nemo.types.question import Question
from zs_nemo.types.search import SearchRequest, SearchResult
from zs_nemo.types.trajectory import Role, Status, Trajectory, Turn


@dataclass(frozen=True, kw_only=True)
class EpisodeLimits:
    """How far an episode may go; see ``config.rollout.RolloutConfig`` for the meaning of each."""

    max_turns: int
    max_turn_tokens: int
    max_document_tokens: int
    max_sequence_tokens: int
    search_deadline_s: float
    trajectory_deadline_s: float = 0.0
    """0 for none."""


@dataclass(frozen=True, kw_only=True)
class EpisodePlan:
    """What one episode starts from."""

    question: Question
    key: SampleKey
    prompt_ids: list[int]
    opened: str = ""
    """Text at the end of the prompt that already belongs to the action, such as an open answer tag."""


@dataclass(frozen=True, kw_only=True)
class SearchSetting:
    """How the searches of a phase are answered."""

    callback: RolloutCallback
    num_documents: int
    noise_probability: float = 0.0
    engine: str = ""
    """Name of the engine behind the callback, for messages."""
    has_deadline: bool = True
    """Whether a search has a deadline of its own. Not where engines of the run answer it: a search that waits there
    waits for its turn, however slow the machine, and an engine that dies or hangs is found and replaced."""
    account: Callable[[], str] = str
    """Says how the servers behind the callback are, for a search that its deadline ends; empty where nothing is known.
    """

    def deadline_s(self, limits: EpisodeLimits) -> float | None:
        """Return the time for one search, None for as long as it takes."""
        return limits.search_deadline_s if self.has_deadline else None


class EpisodeRunner:
    """Runs episodes against a generation engine. Stateless between episodes."""

    def __init__(self, engine: GenerationEngine, tokenizer: Tokenizer, limits: EpisodeLimits) -> None:
        self._engine = engine
        self._tokenizer = tokenizer
        self._limits = limits
        self._smallest_block = smallest_information_block(tokenizer)

    @property
    def max_searches(self) -> int:
        """Searches that one episode makes at most: a turn is left to read the documents of each."""
        return self._limits.max_turns - 1

    async def run(
        self,
        plan: EpisodePlan,
        search: SearchSetting | None,
        *,
        temperature: float,
        top_p: float,
        trajectory: Trajectory | None = None,
        before_turn: Callable[[], Awaitable[None]] | None = None,
    ) -> Trajectory:
        """Run one episode to its end. Without ``search`` the policy has one turn and nothing to look up.

        ``trajectory`` is one that ``begin`` made of the plan, perhaps broken off while it generated or searched: it
        goes on from there, with the draws that it would have had. ``before_turn`` is awaited before every generation,
        by which a caller can hold the episode back.
        """
        trajectory = trajectory or self.begin(plan)
        max_turns = self._limits.max_turns if search else 1
        try:
            async with asyncio.timeout(self._limits.trajectory_deadline_s or None) as deadline:
                status = await self._catch_up(trajectory, plan, search)
                while status is None and len(trajectory.turns) < max_turns:
                    if before_turn is not None:
                        await _held(before_turn, deadline)
                    turn = len(trajectory.turns)
                    status = await self._run_turn(
                        trajectory,
                        plan,
                        search,
                        turn,
                        SamplingParams(
                            max_tokens=min(self._limits.max_turn_tokens, self._room(trajectory)),
                            temperature=temperature,
                            top_p=top_p,
                            stop=STOP_STRINGS,
                        ),
                        is_last=turn == max_turns - 1,
                    )
        except TimeoutError:
            if not deadline.expired():
                raise
            # What it has so far is kept for the record; the request under way is cancelled.
            status = Status.deadline
        trajectory.status = status or trajectory.status
        trajectory.elapsed_s = time.monotonic() - trajectory.began_s
        return trajectory

    def begin(self, plan: EpisodePlan) -> Trajectory:
        """Return the trajectory of an episode that has its prompt and nothing else."""
        size = len(plan.prompt_ids)
        return Trajectory(
            key=plan.key,
            question=plan.question,
            token_ids=list(plan.prompt_ids),
            roles=[Role.prompt] * size,
            generation_logprobs=[0.0] * size,
            began_s=time.monotonic(),
        )

    async def _catch_up(self, trajectory: Trajectory, plan: EpisodePlan, search: SearchSetting | None) -> Status | None:
        """Ask again for the documents that an episode waited for when it was broken off."""
        if not trajectory.turns or trajectory.turns[-1].end < len(trajectory.token_ids):
            return None
        turn = len(trajectory.turns) - 1
        action = parse_action((plan.opened if turn == 0 else "") + trajectory.turns[turn].text)
        # Whatever else a turn can end in ends the episode with it.
        assert search is not None and isinstance(action, SearchAction), "only a search can have been under way"
        return await self._look_up(trajectory, search, action, replace(plan.key, turn=turn))

    def _room(self, trajectory: Trajectory) -> int:
        return self._limits.max_sequence_tokens - len(trajectory.token_ids)

    def _document_budget(self, trajectory: Trajectory) -> int:
        """Return how long documents may be: towards the sequence's end, as long as leaves a whole turn to read them."""
        room, most = self._room(trajectory), self._limits.max_document_tokens
        return most if room > most else room - self._limits.max_turn_tokens

    async def _run_turn(
        self,
        trajectory: Trajectory,
        plan: EpisodePlan,
        search: SearchSetting | None,
        turn: int,
        sampling: SamplingParams,
        *,
        is_last: bool,
    ) -> Status | None:
        """Generate, act, and return how the episode ended, or None to go on."""
        key = replace(plan.key, turn=turn)
        seed = key.seed("sampling")
        asked = time.monotonic()
        completion = await self._engine.generate(trajectory.token_ids, sampling, seed)
        _append_policy_tokens(trajectory, completion, seed, asked)
        opened = plan.opened if turn == 0 else ""
        action = parse_action(opened + completion.text)
        if isinstance(action, AnswerAction):
            trajectory.answer = action.answer
            return Status.answered
        if action is None:
            if completion.stop_reason is not StopReason.length:
                return Status.no_action
            return Status.turn_cut if sampling.max_tokens == self._limits.max_turn_tokens else Status.sequence_limit
        # A search is run only if its documents can be shown and a turn is left to read them.
        if is_last or search is None:
            return Status.turn_limit
        if self._document_budget(trajectory) < self._smallest_block:
            return Status.sequence_limit
        return await self._look_up(trajectory, search, action, key)

    async def _look_up(
        self, trajectory: Trajectory, search: SearchSetting, action: SearchAction, key: SampleKey
    ) -> Status | None:
        """Append the documents of a search, and return None to go on."""
        asked = time.monotonic()
        result = await self._search(trajectory, search, action, key)
        trajectory.turns[-1] = replace(
            trajectory.turns[-1], query=action.query, result=result, search_s=time.monotonic() - asked
        )
        if result is None:
            return Status.search_failed
        ids = information_tokens(result.documents, self._tokenizer, self._document_budget(trajectory))
        trajectory.token_ids += ids
        trajectory.roles += [Role.document if result.documents else Role.notice] * len(ids)
        trajectory.generation_logprobs += [0.0] * len(ids)
        return None

    async def _search(
        self, trajectory: Trajectory, search: SearchSetting, action: SearchAction, key: SampleKey
    ) -> SearchResult | None:
        request = SearchRequest(
            query=action.query,
            question=trajectory.question.text,
            answers=trajectory.question.answers,
            key=key,
            num_documents=search.num_documents,
            noise_probability=search.noise_probability,
        )
        deadline_s = search.deadline_s(self._limits)
        result, failures = await search_within_deadline(search.callback, request, deadline_s, search.account)
        trajectory.search_failures += len(failures)
        if failures:
            trajectory.last_search_failure = str(failures[-1])
            trajectory.search_failure_kind = failures[-1].kind
            trajectory.failed_engine = search.engine
        return result


async def _held(before_turn: Callable[[], Awaitable[None]], deadline: asyncio.Timeout) -> None:
    """Wait for the caller, who may hold the episode back as long as he likes: that is no time of the episode's."""
    when, began = deadline.when(), time.monotonic()
    deadline.reschedule(None)
    await before_turn()
    if when is not None:
        deadline.reschedule(when + time.monotonic() - began)


def _append_policy_tokens(trajectory: Trajectory, completion: Completion, seed: int, asked: float) -> None:
    start = len(trajectory.token_ids)
    trajectory.token_ids += completion.token_ids
    trajectory.roles += [Role.policy] * len(completion.token_ids)
    trajectory.generation_logprobs += completion.logprobs
    trajectory.turns.append(
        Turn(
            start=start,
            end=len(trajectory.token_ids),
            text=completion.text,
            query=None,
            result=None,
            sampling_seed=seed,
            weight_version=completion.weight_version,
            sampled_ids=completion.token_ids,
            began_s=asked - trajectory.began_s,
            generation_s=time.monotonic() - asked,
        )
    )
