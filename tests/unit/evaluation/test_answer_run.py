"""Answers are kept as they come, and too many failed searches end an evaluation."""

import asyncio
from functools import partial
from pathlib import Path

import pytest

from tests.fakes import CharTokenizer, FixedSearch, ScriptedEngine
from zs_nemo.config.evaluate import Method
from zs_nemo.evaluation.answer_log import AnswerLog, AnswerRecord
from zs_nemo.evaluation.answer_run import FailureBudget, answer_all
from zs_nemo.evaluation.answerer import Answerer, question_key
from zs_nemo.rollout.callbacks import EngineSearch
from zs_nemo.rollout.collector import DeadlineBudgetExceeded, Decoding, SearchBudgetExceeded
from zs_nemo.rollout.episode import EpisodeLimits, SearchSetting
from zs_nemo.rollout.prompt_form import PromptForm
from zs_nemo.types.generation import Completion, SamplingParams
from zs_nemo.types.keys import SampleKey
from zs_nemo.types.question import Question
from zs_nemo.types.search import SearchFailureKind
from zs_nemo.types.trajectory import Status, Trajectory

LIMITS = EpisodeLimits(
    max_turns=2, max_turn_tokens=60, max_document_tokens=120, max_sequence_tokens=2000, search_deadline_s=0.2
)
QUESTIONS = [
    Question(id=f"{name}/test/{number:04d}", text=f"{name} {number}?", answers=("yes",), kind=name, split="test")
    for number in range(10)
    for name in ("nq", "popqa")
]


def script(prompt: str) -> str:
    return "<answer>yes</answer>" if "<information>\nDoc" in prompt else "<search>look</search>"


def answer(
    folder: Path, search: FixedSearch, *, max_share: float = 0.1, engine: ScriptedEngine | None = None
) -> AnswerLog:
    log = AnswerLog(folder, QUESTIONS)
    setting = SearchSetting(callback=EngineSearch(search), num_documents=1)
    form = PromptForm()
    answerer = Answerer(Method.agent, engine or ScriptedEngine(script), CharTokenizer(), LIMITS, form, setting)
    known = log.read()
    todo = [each for each in QUESTIONS if each.id not in known or not known[each.id].has_answer]
    asyncio.run(
        answer_all(
            answerer,
            todo,
            log,
            FailureBudget(len(QUESTIONS), max_share),
            decoding=Decoding(temperature=0.0),
            key_of=partial(question_key, run_seed=1, step=-1),
            max_concurrency=1,
            on_done=lambda: None,
        )
    )
    return log


def test_every_set_has_its_file_and_every_answer_its_line(tmp_path: Path) -> None:
    log = answer(tmp_path, FixedSearch())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["nq_test.jsonl", "popqa_test.jsonl"]
    record = log.read()["nq/test/0003"]
    assert (record.row.em, record.row.searches, record.queries) == (1.0, 1, ("look",))
    assert record.policy_tokens == len("<search>look</search>") + len("<answer>yes</answer>")
    assert [part["role"] for part in record.segments] == ["prompt", "policy", "document", "policy"]


def test_what_is_answered_is_not_asked_again_after_a_crash_in_a_line(tmp_path: Path) -> None:
    answer(tmp_path, FixedSearch())
    path = tmp_path / "nq_test.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:6]) + lines[6][:50])
    search = FixedSearch()
    assert len(answer(tmp_path, search).read()) == 20
    assert len(search.requests) == 4


def test_an_engine_without_a_document_is_counted_and_the_answer_scored(tmp_path: Path) -> None:
    engine = ScriptedEngine(lambda text: "<answer>yes</answer>" if "No results" in text else "<search>x</search>")
    record = answer(tmp_path, FixedSearch(()), engine=engine).read()["nq/test/0000"]
    assert (record.empty_searches, record.row.em, record.has_answer) == (1, 1.0, True)


def test_a_failed_search_within_the_budget_has_no_answer_and_is_asked_again(tmp_path: Path) -> None:
    search = FixedSearch(failures=2, failure_kind=SearchFailureKind.refused)
    known = answer(tmp_path, search).read()
    failed = [record for record in known.values() if not record.has_answer]
    assert len(known) == 20 and len(failed) == 2 and failed[0].failure == "refused: not yet"
    again = FixedSearch()
    assert all(record.has_answer for record in answer(tmp_path, again).read().values())
    assert len(again.requests) == 2


def test_above_the_budget_it_stops_at_once_and_keeps_what_it_has(tmp_path: Path) -> None:
    search = FixedSearch(failures=100, failure_kind=SearchFailureKind.refused)
    with pytest.raises(SearchBudgetExceeded, match=r"3 out of 20 questions .*max_failed_share=0\.1 .*refused: not yet"):
        answer(tmp_path, search)
    assert len(search.requests) <= 4
    assert len(AnswerLog(tmp_path, QUESTIONS).read()) >= 3


def test_questions_whose_time_ran_out_are_told_from_failed_searches() -> None:
    key = SampleKey(run_seed=1, step=-1, prompt=0, member=0)
    late = Trajectory(key=key, question=QUESTIONS[0], token_ids=[], roles=[], generation_logprobs=[])
    late.status, late.last_search_failure = Status.deadline, "timeout: a first try"
    record = AnswerRecord.of(late, CharTokenizer())
    assert record.loss == "deadline"
    with pytest.raises(DeadlineBudgetExceeded, match=r"1 did not end within rollout\.trajectory_deadline_s") as raised:
        FailureBudget(10, 0.0).note(record)
    assert "search" not in str(raised.value)
    late.status = Status.search_failed
    budget = FailureBudget(10, 0.1)
    budget.note(record)
    told = r"2 out of 10 .*; 1 did not end .*; the searches of 1 have failed.*first try"
    with pytest.raises(SearchBudgetExceeded, match=told):
        budget.note(AnswerRecord.of(late, CharTokenizer()))


def test_a_policy_that_cannot_be_asked_ends_all_with_its_own_error(tmp_path: Path) -> None:
    class Gone(ScriptedEngine):
        async def generate(self, prompt_ids: list[int], sampling: SamplingParams, seed: int) -> Completion:
            raise RuntimeError("it is gone")

    with pytest.raises(RuntimeError, match=r"^it is gone$"):
        answer(tmp_path, FixedSearch(), engine=Gone(script))
