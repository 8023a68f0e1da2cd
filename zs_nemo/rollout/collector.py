"""Many episodes at once: the groups of a training step, or the questions of an evaluation."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zs_nemo.observability.phase import Phase
from zs_nemo.qa.prompts import CLOSED_BOOK_SUFFIX, POLICY_PROMPT, policy_prompt
from zs_nemo.qa.tags import ANSWER_OPEN
from zs_nemo.rollout.documents import smallest_information_block
from zs_nemo.rollout.episode import EpisodeLimits, EpisodePlan, EpisodeRunner, SearchSetting
from zs_nemo.rollout.loop_thread import EpisodeLoop
from zs_nemo.rollout.prompt_form import PromptForm
from zs_nemo.rollout.rewards import Reward
from zs_nemo.search.all_or_none import all_or_none
from zs_nemo.types.generation import Tokenizer
from zs_nemo.types.keys import SampleKey, seed_of_attempt
from zs_nemo.types.question import Question
from zs_nemo.types.search import SearchFailureKind
from zs_nemo.types.trajectory import Status, Trajectory, TrajectoryGroup

_TOKENS_WITHOUT_BYTES = 16
"""More than any tokenizer adds to a text, such as a space in front."""
assert CLOSED_BOOK_SUFFIX.endswith(ANSWER_OPEN)


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How the policy's tokens are chosen."""

    temperature: float
    top_p: float = 1.0


class SearchBudgetExceeded(RuntimeError):  # noqa: N818  (it says what happened)
    """More search calls failed, or brought nothing, than the shares of ``rollout`` or ``evaluate`` allow."""

    def __init__(self, message: str, engine: str = "") -> None:
        """``engine`` is the name of the one that was asked."""
        super().__init__(message)
        self.engine = engine


class DeadlineBudgetExceeded(RuntimeError):  # noqa: N818  (it says what happened)
    """More trajectories passed their deadline than ``rollout.max_deadline_share`` allows, or, in an evaluation, than
    ``evaluate.max_failed_share`` does."""


@dataclass(kw_only=True)
class StepLosses:
    """What the ended trajectories of a step have lost."""

    trajectories: int = 0
    calls: int = 0
    """Search calls, those that failed included."""
    failed: list[Trajectory] = field(default_factory=list)
    empty: list[Trajectory] = field(default_factory=list)
    """Those for whose last search a simulator wrote nothing."""
    late: int = 0

    def note(self, trajectory: Trajectory) -> None:
        """Count a trajectory that has ended."""
        self.trajectories += 1
        self.calls += trajectory.num_searches
        if trajectory.status is Status.deadline:
            self.late += 1
        elif trajectory.status is Status.search_failed:
            self.calls += 1
            is_empty = trajectory.search_failure_kind is SearchFailureKind.empty
            (self.empty if is_empty else self.failed).append(trajectory)


@dataclass(frozen=True, kw_only=True)
class StepBudgets:
    """Shares that a step may lose before it stops; see ``config.rollout.RolloutConfig``."""

    failed: float
    """Of its search calls, for any reason but the next."""
    empty: float = 1.0
    """Of its search calls, because a simulator wrote nothing."""
    late: float = 1.0
    """Of its trajectories, because their time ran out."""

    def check(self, losses: StepLosses, *, trajectories_to_come: int = 0, calls_to_come: int = 0) -> None:
        """Raise ``SearchBudgetExceeded`` or ``DeadlineBudgetExceeded`` when more was lost.

        Of a step that has not ended, when more was lost than its shares allow however the rest goes: so many more
        trajectories, with at most so many search calls.
        """
        calls, all_calls, failed, empty = losses.calls, losses.calls + calls_to_come, losses.failed, losses.empty
        if len(failed) > self.failed * all_calls:
            raise SearchBudgetExceeded(
                f"{len(failed)} of {calls} search calls failed, more than rollout.search_max_failure_share="
                f"{self.failed:g} allows; look at the engine's log, or raise it or rollout.search_deadline_s. "
                f"The last failure: {failed[-1].last_search_failure}",
                engine=failed[-1].failed_engine,
            )
        if len(empty) > self.empty * all_calls:
            raise SearchBudgetExceeded(
                f"for {len(empty)} of {calls} search calls the simulator wrote nothing, more than "
                f"rollout.search_max_empty_share={self.empty:g} allows; look at its template and at what the policy "
                f"asks (trajectories/), or raise it. The last one: {empty[-1].last_search_failure}",
                engine=empty[-1].failed_engine,
            )
        if losses.late > self.late * (losses.trajectories + trajectories_to_come):
            raise DeadlineBudgetExceeded(
                f"{losses.late} of {losses.trajectories} trajectories did not end within "
                f"rollout.trajectory_deadline_s, more than rollout.max_deadline_share={self.late:g} allows; look at "
                "the engines' logs, or raise it"
            )


class RolloutCollector:
    """Runs episodes concurrently; each moves on as soon as its own generation or search returns."""

    def __init__(
        self,
        runner: EpisodeRunner,
        tokenizer: Tokenizer,
        reward: Reward,
        *,
        run_seed: int,
        max_concurrency: int,
        budgets: StepBudgets,
        form: PromptForm | None = None,
        loop: EpisodeLoop | None = None,
    ) -> None:
        """``form`` is raw text by default; ``loop`` is where episodes run, by default one of the calling thread's."""
        self._runner = runner
        self._form = form or PromptForm()
        self._tokenizer = tokenizer
        self._reward = reward
        self._run_seed = run_seed
        self._max_concurrency = max_concurrency
        self._budgets = budgets
        self._of_step = StepLosses()
        """Of the rounds of the step so far."""
        # One loop for the life of the collector: engine clients keep connections that belong to a loop.
        self.loop: EpisodeLoop = loop or asyncio.Runner()

    def close(self, close_engines: Callable[[], Coroutine[Any, Any, None]] | None = None) -> None:
        """End the event loop; episodes under way are cancelled. ``close_engines`` runs in it before."""
        try:
            if close_engines is not None:
                self.loop.run(close_engines())
        finally:
            self.loop.close()

    def collect(
        self,
        questions: Sequence[Question],
        search: SearchSetting,
        decoding: Decoding,
        *,
        step: int,
        group_size: int,
        first_prompt: int = 0,
        attempt: int = 0,
        on_done: Callable[[Trajectory], None] | None = None,
    ) -> list[TrajectoryGroup]:
        """Return one group of graded trajectories per question, in the order of the questions.

        ``first_prompt`` is the number of prompts of this step that were collected before, ``attempt`` how often the run
        has returned to a checkpoint: both give draws of their own.
        A trajectory whose search failed, or that passed its deadline, says nothing about the policy: its group goes on
        without it. Raises ``SearchBudgetExceeded`` when too many searches found no answer within their deadline, and
        ``DeadlineBudgetExceeded`` when too many trajectories did not end within theirs: as soon as that is certain,
        and those under way are cancelled.
        """
        plans = self.plan_step(questions, step=step, group_size=group_size, first_prompt=first_prompt, attempt=attempt)
        losses = self._losses_of_step(first_prompt)
        trajectories = self.loop.run(self._run_all(plans, search, decoding, on_done, losses))
        return _in_groups(questions, trajectories, first_prompt)

    def collect_within_quota(
        self,
        plans: Sequence[EpisodePlan],
        search: SearchSetting,
        decoding: Decoding,
        *,
        on_done: Callable[[Trajectory], None],
    ) -> None:
        """Run episodes to their ends, and give each to ``on_done``, until an engine refuses a search.

        What may be spent on it is then spent: those under way go on, and no other begins. Refused searches count
        against no budget; for others it raises as ``collect`` does.
        """
        self.loop.run(self._run_all(plans, search, decoding, on_done, StepLosses(), ends_when_refused=True))

    def plan_step(
        self, questions: Sequence[Question], *, step: int, group_size: int, first_prompt: int = 0, attempt: int = 0
    ) -> list[EpisodePlan]:
        """Return what the episodes of a step begin from, group by group; the arguments are those of ``collect``."""
        run_seed = seed_of_attempt(self._run_seed, attempt)
        return [
            self._plan(question, SampleKey(run_seed=run_seed, step=step, prompt=prompt, member=member))
            for prompt, question in enumerate(questions, start=first_prompt)
            for member in range(group_size)
        ]

    def grouped(
        self, questions: Sequence[Question], trajectories: Sequence[Trajectory], *, first_prompt: int = 0
    ) -> list[TrajectoryGroup]:
        """Return the groups of ended episodes.

        Raises as ``collect`` does when too many were lost of all that the step has collected so far: a later round of
        few prompts has no budgets of its own.
        """
        losses = self._losses_of_step(first_prompt)
        for trajectory in trajectories:
            losses.note(trajectory)
        self._budgets.check(losses)
        return _in_groups(questions, trajectories, first_prompt)

    def _losses_of_step(self, first_prompt: int) -> StepLosses:
        if not first_prompt:
            self._of_step = StepLosses()
        return self._of_step

    def evaluate(
        self,
        questions: Sequence[Question],
        search: SearchSetting | None,
        decoding: Decoding,
        *,
        evaluation_index: int,
        on_done: Callable[[Trajectory], None] | None = None,
    ) -> list[Trajectory]:
        """Return one graded trajectory per question; ``search=None`` is closed book.

        ``evaluation_index`` >= 0 keys the sampling, apart from every training step's.
        """
        plans = [
            self._plan(
                question,
                SampleKey(run_seed=self._run_seed, step=-1 - evaluation_index, prompt=prompt, member=0),
                closed_book=search is None,
            )
            for prompt, question in enumerate(questions)
        ]
        return self.loop.run(self._run_all(plans, search, decoding, on_done, StepLosses()))

    def _plan(self, question: Question, key: SampleKey, *, closed_book: bool = False) -> EpisodePlan:
        opened = CLOSED_BOOK_SUFFIX if closed_book else ""
        prompt_ids = self._form.encode(policy_prompt(question.text), self._tokenizer, opened=opened)
        return EpisodePlan(question=question, key=key, prompt_ids=prompt_ids, opened=ANSWER_OPEN if closed_book else "")

    async def run_episode(
        self,
        plan: EpisodePlan,
        search: SearchSetting | None,
        decoding: Decoding,
        *,
        trajectory: Trajectory | None = None,
        before_turn: Callable[[], Awaitable[None]] | None = None,
    ) -> Trajectory:
        """Run one episode to its end and grade it; ``trajectory`` and ``before_turn`` are ``EpisodeRunner.run``'s."""
        ended = await self._runner.run(
            plan,
            search,
            temperature=decoding.temperature,
            top_p=decoding.top_p,
            trajectory=trajectory,
            before_turn=before_turn,
        )
        ended.reward = self._reward(ended)
        return ended

    def begin_episode(self, plan: EpisodePlan) -> Trajectory:
        """Return the trajectory of an episode that has its prompt and nothing else."""
        return self._runner.begin(plan)

    async def _run_all(
        self,
        plans: Sequence[EpisodePlan],
        search: SearchSetting | None,
        decoding: Decoding,
        on_done: Callable[[Trajectory], None] | None,
        losses: StepLosses,
        *,
        ends_when_refused: bool = False,
    ) -> list[Trajectory]:
        """Return the ended trajectories; ``losses`` are those of the step before, and are added to."""
        slots = asyncio.Semaphore(self._max_concurrency)
        num_to_come = len(plans)
        is_refused = False

        async def run_one(plan: EpisodePlan) -> Trajectory | None:
            nonlocal num_to_come, is_refused
            async with slots:
                if is_refused:
                    return None
                trajectory = await self.run_episode(plan, search, decoding)
            num_to_come -= 1
            if on_done:
                on_done(trajectory)
            if ends_when_refused and trajectory.is_refused:
                is_refused = True
            else:
                losses.note(trajectory)
                self._budgets.check(
                    losses,
                    trajectories_to_come=num_to_come,
                    calls_to_come=num_to_come * self._runner.max_searches,
                )
            return trajectory

        ended = await all_or_none(run_one(plan) for plan in plans)
        self._budgets.check(losses)
        return [trajectory for trajectory in ended if trajectory is not None]


def _in_groups(
    questions: Sequence[Question], trajectories: Sequence[Trajectory], first_prompt: int
) -> list[TrajectoryGroup]:
    groups = [TrajectoryGroup(question=question, trajectories=[]) for question in questions]
    for trajectory in trajectories:
        group = groups[trajectory.key.prompt - first_prompt]
        (group.lost if trajectory.status.is_lost else group.trajectories).append(trajectory)
    return groups


def questions_of_step(
    questions: Sequence[Question], step: int, count: int, run_seed: int, *, stream: str = Phase.rl.value
) -> list[Question]:
    """Return the ``count`` questions of one step: a function of its arguments alone, so that a resume repeats it.

    Every epoch is a permutation of its own; a step may reach over the end of one into the next. Streams have orders of
    their own, so that reinforcement learning does not begin with the questions that the warm start has just shown.
    """

    @lru_cache(maxsize=1)
    def order(epoch: int) -> NDArray[np.int64]:
        key = SampleKey(run_seed=run_seed, step=epoch, prompt=0, member=0)
        return np.random.default_rng(key.seed(f"question order/{stream}")).permutation(len(questions))

    places = (divmod(position, len(questions)) for position in range(step * count, (step + 1) * count))
    return [questions[int(order(epoch)[offset])] for epoch, offset in places]


def check_prompts_fit(
    questions: Sequence[Question],
    tokenizer: Tokenizer,
    limits: EpisodeLimits,
    *,
    form: PromptForm | None = None,
    prompt: str = POLICY_PROMPT,
    document_tokens: int = 0,
) -> None:
    """Refuse limits under which a question would be cut or no document could be shown; nothing is ever cut silently.

    ``prompt`` is the text around ``{question}``; ``document_tokens`` are shown with it, before the first turn. A chat
    with a tokenizer that has no template is refused, too.
    """
    form = form or PromptForm()
    form.check(tokenizer)
    smallest = smallest_information_block(tokenizer)
    if limits.max_document_tokens <= smallest:
        raise ValueError(
            f"rollout.max_document_tokens={limits.max_document_tokens} must be more than {smallest}, the tokens of an "
            "empty <information> block"
        )
    room = limits.max_sequence_tokens - limits.max_turn_tokens - document_tokens
    around = len(form.encode("", tokenizer))
    for question in questions:
        text = prompt.format(question=question.text)
        # A token is at least a byte, so that the many short questions of a large set need not be encoded.
        if len(text.encode()) + around + _TOKENS_WITHOUT_BYTES <= room:
            continue
        size = len(form.encode(text, tokenizer))
        if size > room:
            documents = f", its documents (rollout.max_document_tokens={document_tokens})" if document_tokens else ""
            raise ValueError(
                f"rollout.max_sequence_tokens={limits.max_sequence_tokens} cannot hold the prompt of question "
                f"{question.id!r} ({size} tokens){documents} and one turn "
                f"(rollout.max_turn_tokens={limits.max_turn_tokens}); "
                "raise it or shorten the question"
            )
