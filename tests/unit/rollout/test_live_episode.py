"""What a person sees of an episode, and that looking on changes nothing."""

import asyncio
import io
from collections.abc import AsyncIterator

import pytest
from rich.console import Console

from tests.fakes import CharTokenizer, FixedSearch, ScriptedEngine
from zs_nemo.rollout.callbacks import EngineSearch
from zs_nemo.rollout.episode import EpisodeLimits, EpisodePlan, EpisodeRunner, SearchSetting
from zs_nemo.rollout.live_episode import EpisodePainter, WatchedCallback, WatchedEngine
from zs_nemo.types.generation import CompletionPart, SamplingParams
from zs_nemo.types.keys import SampleKey
from zs_nemo.types.question import Question
from zs_nemo.types.search import Document, SearchFailure, SearchFailureKind, SearchResult
from zs_nemo.types.trajectory import Trajectory

LIMITS = EpisodeLimits(
    max_turns=3, max_turn_tokens=80, max_document_tokens=120, max_sequence_tokens=2000, search_deadline_s=0.2
)
QUESTION = Question(id="asked/0", text="Where?", answers=("(unknown)",), kind="asked", split="test")


def script(text: str) -> str:
    if "Doc 1:" in text:
        return "<think>Found.</think>\n<answer>Paris</answer>"
    return "<think>I look.</think>\n<search>capital of France</search>"


class StreamingScript(ScriptedEngine):
    """Tells its text in parts of three characters."""

    async def stream(self, prompt_ids: list[int], sampling: SamplingParams, seed: int) -> AsyncIterator[CompletionPart]:
        completion = await self.generate(prompt_ids, sampling, seed)
        parts = [completion.text[start : start + 3] for start in range(0, len(completion.text), 3)]
        for number, text in enumerate(parts, start=1):
            yield CompletionPart(text=text, completion=completion if number == len(parts) else None)


class Heard:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str]] = []

    def wrote(self, text: str) -> None:
        self.events.append(("wrote", text))

    def searched(self, query: str) -> None:
        self.events.append(("searched", query))

    def found(self, result: SearchResult) -> None:
        self.events.append(("found", result.documents[0].text))

    def failed(self, failure: SearchFailure) -> None:
        self.events.append(("failed", failure.kind.name))


def episode(engine: ScriptedEngine, search: FixedSearch, heard: Heard | None) -> Trajectory:
    callback = EngineSearch(search)
    setting = SearchSetting(callback=WatchedCallback(callback, heard) if heard else callback, num_documents=1)
    runner = EpisodeRunner(WatchedEngine(engine, heard) if heard else engine, CharTokenizer(), LIMITS)
    plan = EpisodePlan(
        question=QUESTION,
        key=SampleKey(run_seed=1, step=0, prompt=0, member=0),
        prompt_ids=CharTokenizer().encode("Question: Where?\n"),
    )
    return asyncio.run(runner.run(plan, setting, temperature=0.0, top_p=1.0))


@pytest.mark.parametrize("kind", [ScriptedEngine, StreamingScript])
def test_looking_on_changes_nothing_and_tells_all(kind: type[ScriptedEngine]) -> None:
    heard, search = Heard(), FixedSearch()
    watched = episode(kind(script), search, heard)
    assert watched.token_ids == episode(kind(script), FixedSearch(), None).token_ids and watched.answer == "Paris"
    written = "".join(text for event, text in heard.events if event == "wrote")
    assert written == script("") + script("Doc 1:")
    others = [each for each in heard.events if each[0] != "wrote"]
    assert others == [("searched", "capital of France"), ("found", "Paris is the capital of France.")]
    assert len(heard.events) == 4 if kind is ScriptedEngine else len(heard.events) > 20
    assert search.requests[0].answers == (), "no engine is told an answer that nobody knows"


def test_a_search_that_is_tried_again_is_told_once_and_its_failures_each() -> None:
    heard = Heard()
    episode(ScriptedEngine(script), FixedSearch(failures=2, failure_kind=SearchFailureKind.empty), heard)
    kinds = [event for event, _ in heard.events]
    assert kinds == ["wrote", "searched", "failed", "failed", "found", "wrote"]


def painted(color: bool) -> tuple[EpisodePainter, io.StringIO]:
    file = io.StringIO()
    console = Console(
        file=file, force_terminal=color, color_system="standard" if color else None, width=200, highlight=False
    )
    return EpisodePainter(console), file


def test_the_page_of_a_terminal_that_has_no_colours_is_the_text_itself() -> None:
    painter, file = painted(color=False)
    for part in ("<thi", "nk>I lo", "ok.</think>\n<sea", "rch>a < b</search>"):
        painter.wrote(part)
    painter.searched("a < b")
    painter.found(SearchResult(documents=(Document(text="One\ntwo.", id="d1"),), source="bm25"))
    painter.found(SearchResult(documents=(), source="bm25"))
    painter.wrote("<answer>c</ans")
    painter.end("answer: c")
    assert file.getvalue() == (
        "<think>I look.</think>\n<search>a < b</search>\nsearching: a < b\nDoc 1 [d1]: One two.\n"
        "bm25 has found nothing (0.0 s)\n<answer>c</ans\nanswer: c\n"
    )


def test_what_is_in_a_tag_has_its_colour_and_no_text_can_steer_the_terminal() -> None:
    painter, file = painted(color=True)
    painter.wrote("<search>quer")
    painter.wrote("y [red]\x1b[2J</search>")
    shown = file.getvalue()
    assert "\x1b[1;36mquer\x1b[0m" in shown
    assert "[red]" in shown and "\x1b[2J" not in shown
