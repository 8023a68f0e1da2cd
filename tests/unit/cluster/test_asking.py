"""A question at the terminal, with a scripted policy in place of processes."""

import io
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from rich.console import Console

from recipes import ask as recipe
from tests.fakes import CharTokenizer, FixedSearch, ScriptedEngine
from zs_nemo.cluster import asking
from zs_nemo.cluster.answering import Answering, AskedPolicy
from zs_nemo.config.ask import AskRecipeConfig
from zs_nemo.config.search import Bm25SearchConfig, NoSearchConfig
from zs_nemo.rollout.callbacks import EngineSearch
from zs_nemo.rollout.episode import SearchSetting
from zs_nemo.rollout.prompt_form import PromptForm


def script(text: str) -> str:
    if text.endswith("<answer>"):
        return "from memory</answer>"
    if "Peru" not in text.rpartition("Question: ")[2]:
        return "I do not know."
    return "<answer>Lima</answer>" if "Doc 1:" in text else "<search>capital of Peru</search>"


@pytest.fixture
def policy(monkeypatch: pytest.MonkeyPatch) -> ScriptedEngine:
    engine = ScriptedEngine(script)

    @contextmanager
    def answering(cfg: AskRecipeConfig, *more: object) -> Iterator[Answering]:
        found = SearchSetting(callback=EngineSearch(FixedSearch(("Lima is it.",), name="bm25")), num_documents=1)
        yield Answering(
            policy=AskedPolicy(
                engine=engine,
                tokenizer=CharTokenizer(),
                form=PromptForm(),
            ),
            search=None if isinstance(cfg.search, NoSearchConfig) else found,
            remote=None,
            simulator=None,
        )

    monkeypatch.setattr(asking, "answering", answering)
    monkeypatch.setattr(asking, "load_facts_world", lambda data: None)
    return engine


def shown(cfg: AskRecipeConfig, *questions: str) -> tuple[list[str | None], str]:
    file = io.StringIO()
    return asking.ask(cfg, questions, Console(file=file, width=200, highlight=False)), file.getvalue()


def test_thoughts_searches_documents_and_the_answer_are_shown(policy: ScriptedEngine) -> None:
    answers, text = shown(AskRecipeConfig(search=Bm25SearchConfig()), "Capital of Peru?", "And of Mars?")
    assert answers == ["Lima", None]
    order = ["<search>capital of Peru</search>", "searching: capital of Peru", "Doc 1: Lima is it.", "answer: Lima"]
    assert sorted(order, key=text.index) == order
    assert "(1 searches, " in text and "no answer: the policy ended its text" in text


def test_without_an_engine_it_answers_from_memory(policy: ScriptedEngine) -> None:
    answers, text = shown(AskRecipeConfig(search=NoSearchConfig()), "Capital of Peru?")
    assert answers == ["from memory"] and "searching" not in text


def test_the_command_tells_settings_from_questions(
    policy: ScriptedEngine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert recipe.main(["Capital of Peru, a=b?", "search.num_documents=2", "--no-color"]) == 0
    assert "answer: Lima" in capsys.readouterr().out
    assert recipe.main(["Of Mars?"]) == 1, "without an answer it is no success"
    assert recipe.main(["Of Peru?", "search.num_docs=2"]) == 2
    assert "search.num_docs" in capsys.readouterr().err
    assert recipe.main(["Of Peru?", "temperature=-1"]) == 2


def test_questions_are_read_until_the_input_ends(policy: ScriptedEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("Capital of Peru?\n"))
    assert recipe.main([]) == 0 and len(policy.calls) == 2
