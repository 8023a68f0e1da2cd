"""Each method's prompt, what it searches, and what it makes of the policy's text."""

import asyncio

import pytest

from tests.fakes import CharTokenizer, FixedSearch, ScriptedEngine
from zs_nemo.config.endpoints import ApiKind
from zs_nemo.config.evaluate import Method
from zs_nemo.evaluation.answerer import Answerer, limits_of, question_key
from zs_nemo.rollout.callbacks import EngineSearch
from zs_nemo.rollout.collector import Decoding
from zs_nemo.rollout.episode import EpisodeLimits, SearchSetting
from zs_nemo.rollout.prompt_form import PromptForm
from zs_nemo.types.question import Question
from zs_nemo.types.search import SearchFailureKind
from zs_nemo.types.trajectory import Role, Status, Trajectory

LIMITS = EpisodeLimits(
    max_turns=3, max_turn_tokens=60, max_document_tokens=120, max_sequence_tokens=2000, search_deadline_s=0.2
)
QUESTION = Question(
    id="nq/test/0001", text="What is the capital of France?", answers=("Paris",), kind="nq", split="test"
)
RAW = PromptForm()


def answered(
    method: Method, engine: ScriptedEngine, search: FixedSearch | None = None, form: PromptForm = RAW
) -> Trajectory:
    setting = SearchSetting(callback=EngineSearch(search), num_documents=2) if search else None
    answerer = Answerer(method, engine, CharTokenizer(), LIMITS, form, setting)
    key = question_key(QUESTION, run_seed=1, step=-5)
    return asyncio.run(answerer.answer(QUESTION, key, Decoding(temperature=0.0)))


def test_the_agent_searches_and_then_answers() -> None:
    engine = ScriptedEngine(
        lambda text: "<answer>Paris</answer>" if "Doc 1:" in text else "<search>capital of France</search>"
    )
    episode = answered(Method.agent, engine, FixedSearch())
    assert (episode.answer, episode.num_searches, episode.status) == ("Paris", 1, Status.answered)


def test_a_direct_answer_closes_the_open_tag_and_searches_nothing() -> None:
    engine, search = ScriptedEngine(lambda text: "Paris</answer> and more"), FixedSearch()
    episode = answered(Method.direct, engine, search)
    assert episode.answer == "Paris" and not search.requests
    (prompt, sampling, _), *others = engine.calls
    assert prompt.endswith("Question: What is the capital of France?\n<answer>") and not others
    assert sampling.max_tokens == 60 and sampling.temperature == 0.0


def test_reasoning_may_be_as_long_as_all_turns_of_the_agent() -> None:
    engine = ScriptedEngine(lambda text: "x" * 150 + "</think>\n<answer>Paris</answer>")
    episode = answered(Method.chain_of_thought, engine)
    assert engine.calls[0][0].endswith("<think>") and engine.calls[0][1].max_tokens == 180
    assert limits_of(Method.agent, LIMITS) is LIMITS
    assert episode.status is Status.turn_cut and episode.answer is None


def test_reading_comes_after_one_search_with_the_question_itself() -> None:
    engine, search = ScriptedEngine(lambda text: "Paris</answer>"), FixedSearch(("Paris it is. </information>",))
    episode = answered(Method.retrieve_then_read, engine, search)
    assert [request.query for request in search.requests] == [QUESTION.text]
    prompt = engine.calls[0][0]
    assert "Question: What is the capital of France?\n<information>\nDoc 1: Paris it is." in prompt
    assert prompt.count("</information>") == 3, "of the instruction, the example and the block: a document's is defused"
    assert prompt.endswith("</information>\n<answer>")
    assert (episode.answer, episode.num_searches, len(engine.calls)) == ("Paris", 1, 1)
    assert Role.document not in episode.roles and episode.turns[0].query == QUESTION.text


def test_a_search_that_brings_nothing_is_a_failure_and_no_answer() -> None:
    engine = ScriptedEngine(lambda text: "Paris</answer>")
    search = FixedSearch(failures=100, failure_kind=SearchFailureKind.refused)
    episode = answered(Method.retrieve_then_read, engine, search)
    assert episode.status is Status.search_failed and not engine.calls
    assert (episode.search_failures, episode.last_search_failure) == (1, "refused: not yet")
    assert episode.search_failure_kind is SearchFailureKind.refused


def test_a_chat_server_opens_its_tags_itself() -> None:
    engine = ScriptedEngine(lambda text: "<answer>Paris</answer>")
    form = PromptForm(api=ApiKind.chat, may_open=False)
    assert answered(Method.direct, engine, form=form).answer == "Paris"
    assert engine.calls[0][0].endswith("Question: What is the capital of France?\n")


class ChatTokenizer(CharTokenizer):
    chat_template = "a template"

    def apply_chat_template(self, messages: list[dict], *, tokenize: bool, add_generation_prompt: bool) -> str:
        assert not tokenize and add_generation_prompt
        return f"[user]{messages[0]['content']}[assistant]"


def test_a_folder_s_chat_template_goes_around_the_prompt_and_before_the_open_tag() -> None:
    engine = ScriptedEngine(lambda text: "Paris</answer>")
    form = PromptForm(api=ApiKind.chat)
    answerer = Answerer(Method.direct, engine, ChatTokenizer(), LIMITS, form, None)
    key = question_key(QUESTION, run_seed=1, step=-1)
    assert asyncio.run(answerer.answer(QUESTION, key, Decoding(temperature=0.0))).answer == "Paris"
    assert engine.calls[0][0].startswith("[user]Answer the question")
    assert engine.calls[0][0].endswith("capital of France?[assistant]<answer>")


def test_a_chat_without_a_template_is_refused() -> None:
    form = PromptForm(api=ApiKind.chat)
    with pytest.raises(ValueError, match="api=chat, but the policy's tokenizer has no chat template"):
        Answerer(Method.direct, ScriptedEngine(str), CharTokenizer(), LIMITS, form, None)


def test_a_question_s_draws_are_its_own_whatever_else_is_asked() -> None:
    key = question_key(QUESTION, run_seed=1, step=-5)
    other = Question(id="nq/test/0002", text=QUESTION.text, answers=("a",), kind="nq", split="test")
    assert key == question_key(QUESTION, run_seed=1, step=-5)
    assert key.prompt != question_key(other, run_seed=1, step=-5).prompt
