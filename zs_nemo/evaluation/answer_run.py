"""Many questions at once: answered, kept as they come, and stopped when too many searches fail."""

import asyncio
import math
from collections.abc import Callable, Sequence

from zs_nemo.evaluation.answer_log import AnswerLog, AnswerRecord
from zs_nemo.evaluation.answerer import Answerer
from zs_nemo.rollout.collector import Decoding, SearchBudgetExceeded
from zs_nemo.types.keys import SampleKey
from zs_nemo.types.question import Question


class FailureBudget:
    """Questions of an evaluation that may stay without an answer because their search failed.

    One for which a simulator wrote nothing is among them: it has no score either, and the others do not stand for it.
    """

    def __init__(self, num_questions: int, max_share: float) -> None:
        self._num_questions = num_questions
        self._max_share = max_share
        self._num_failed = 0

    def note(self, record: AnswerRecord) -> None:
        """Count a record; raise ``SearchBudgetExceeded`` as soon as the evaluation cannot end within the budget."""
        self._num_failed += not record.has_answer
        if self._num_failed > math.floor(self._max_share * self._num_questions):
            raise SearchBudgetExceeded(
                f"the searches of {self._num_failed} out of {self._num_questions} questions have failed, more than "
                f"evaluate.max_failed_share={self._max_share:g} allows; look at the engine, or raise it or "
                f"rollout.search_deadline_s. The questions have no score and are asked again. The last failure: "
                f"{record.failure}"
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

    try:
        async with asyncio.TaskGroup() as tasks:
            for question in questions:
                tasks.create_task(one(question))
    except ExceptionGroup as group:
        raise group.exceptions[0] from group
