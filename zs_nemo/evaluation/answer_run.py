"""Many questions at once: answered, kept as they come, and stopped when too many searches fail."""

import asyncio
import math
from collections.abc import Callable, Sequence

from zs_nemo.evaluation.answer_log import AnswerLog, AnswerRecord
from zs_nemo.evaluation.answerer import Answerer
from zs_nemo.rollout.collector import DeadlineBudgetExceeded, Decoding, SearchBudgetExceeded
from zs_nemo.search.all_or_none import all_or_none
from zs_nemo.types.keys import SampleKey
from zs_nemo.types.question import Question


class FailureBudget:
    """Questions of an evaluation that may stay without a score, because their search failed or their time ran out.

    One for which a simulator wrote nothing is among them: it has no score either, and the others do not stand for it.
    """

    def __init__(self, num_questions: int, max_share: float) -> None:
        self._num_questions = num_questions
        self._max_share = max_share
        self._num_late = 0
        self._failures: list[str] = []

    def note(self, record: AnswerRecord) -> None:
        """Count a record; raise as soon as the evaluation cannot end within the budget.

        ``DeadlineBudgetExceeded`` where time alone ran out, ``SearchBudgetExceeded`` where searches failed.
        """
        if record.has_answer:
            return
        if record.is_late:
            self._num_late += 1
        else:
            self._failures.append(record.failure)
        num_lost = self._num_late + len(self._failures)
        if num_lost <= math.floor(self._max_share * self._num_questions):
            return
        told = (
            f"{num_lost} out of {self._num_questions} questions have no score, more than "
            f"evaluate.max_failed_share={self._max_share:g} allows, and are asked again by the same command"
        )
        if self._num_late:
            told += (
                f"; {self._num_late} did not end within rollout.trajectory_deadline_s: raise it, or lower "
                "rollout.max_concurrency"
            )
        if not self._failures:
            raise DeadlineBudgetExceeded(told)
        raise SearchBudgetExceeded(
            f"{told}; the searches of {len(self._failures)} have failed: look at the engine, or raise "
            f"rollout.search_deadline_s. The last failure: {self._failures[-1]}"
        )


async def answer_all(
    answerer: Answerer,
    questions: Sequence[Question],
    log: AnswerLog,
    budget: FailureBudget,
    *,
    decoding: Decoding,
    key_of: Callable[[Question], SampleKey],
    max_concurrency: int,
    on_done: Callable[[], None],
) -> None:
    """Answer the questions into ``log``. The first failure ends all of them and is raised as it is.

    ``key_of`` gives the key of a question's draws.
    """
    slots = asyncio.Semaphore(max_concurrency)

    async def one(question: Question) -> None:
        async with slots:
            trajectory = await answerer.answer(question, key_of(question), decoding)
        record = AnswerRecord.of(trajectory, answerer.tokenizer)
        log.append(record)
        on_done()
        budget.note(record)

    await all_or_none(one(question) for question in questions)
