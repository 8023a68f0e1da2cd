"""An episode as a person watches it: what the policy writes while it writes it, its searches, what they bring.

The wrappers look on and change nothing: the episode is the one that would have run without them.
"""

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from rich.console import Console
from rich.text import Text

from zs_nemo.qa.tags import ANSWER_OPEN, SEARCH_OPEN, TAG_NAMES, THINK_OPEN
from zs_nemo.rollout.callbacks import RolloutCallback
from zs_nemo.search.markup import without_broken_characters
from zs_nemo.types.generation import Completion, GenerationEngine, SamplingParams, StreamingEngine
from zs_nemo.types.search import SearchFailure, SearchRequest, SearchResult

_TAG = re.compile(rf"</?(?:{'|'.join(TAG_NAMES)})>")
_LONGEST_TAG = max(len(f"</{name}>") for name in TAG_NAMES)
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_STYLES = {THINK_OPEN: "italic bright_black", SEARCH_OPEN: "bold cyan", ANSWER_OPEN: "bold green"}
_TAG_STYLE, _DOCUMENT_STYLE, _PLAIN, _TROUBLE = "bright_black", "yellow", "", "red"


class Watcher(Protocol):
    """Who is told what happens in an episode."""

    def wrote(self, text: str) -> None:
        """Hear what the policy has written since the last time."""
        ...

    def searched(self, query: str) -> None:
        """Hear of a search that begins."""
        ...

    def found(self, result: SearchResult) -> None:
        """Hear what it has brought."""
        ...

    def failed(self, failure: SearchFailure) -> None:
        """Hear that a try has brought nothing."""
        ...


class WatchedEngine:
    """A policy that is looked at over the shoulder. Implements ``types.generation.GenerationEngine``."""

    def __init__(self, engine: GenerationEngine, watcher: Watcher) -> None:
        """Show the text as it comes where ``engine`` can stream, otherwise turn by turn."""
        self._engine = engine
        self._stream: Callable[..., object] | None = getattr(engine, "stream", None)
        self._watcher = watcher

    async def generate(self, prompt_ids: list[int], sampling: SamplingParams, seed: int) -> Completion:
        """Pass the request on."""
        if self._stream is None:
            completion = await self._engine.generate(prompt_ids, sampling, seed)
            self._watcher.wrote(completion.text)
            return completion
        streaming: StreamingEngine = self._engine  # type: ignore[assignment]
        whole: Completion | None = None
        async for part in streaming.stream(prompt_ids, sampling, seed):
            self._watcher.wrote(part.text)
            whole = part.completion or whole
        assert whole is not None, "the last part of a stream holds the whole completion"
        return whole


class WatchedCallback:
    """Searches that are shown. Implements ``rollout.callbacks.RolloutCallback``."""

    def __init__(self, callback: RolloutCallback, watcher: Watcher) -> None:
        self._callback = callback
        self._watcher = watcher

    async def search(self, request: SearchRequest) -> SearchResult:
        """Pass the request on, without the gold answers: to a question that a person asks nobody knows them."""
        if request.attempt == 0:
            self._watcher.searched(request.query)
        try:
            result = await self._callback.search(replace(request, answers=()))
        except SearchFailure as failure:
            self._watcher.failed(failure)
            raise
        self._watcher.found(result)
        return result


class EpisodePainter:
    """Paints an episode on a console as it goes; plain text where that is no terminal. Implements ``Watcher``.

    What is in a tag has its colour. Text of models and of documents can neither style nor steer the terminal.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._style = _PLAIN
        self._held = ""
        """The end of what was written, which may be the beginning of a tag."""
        self._at_line_start = True

    def wrote(self, text: str) -> None:
        """Print the text, but for an end that only the next one can decide about."""
        text = self._held + text
        start = 0
        for tag in _TAG.finditer(text):
            self._print(text[start : tag.start()], self._style)
            self._print(tag[0], _TAG_STYLE)
            self._style = _STYLES.get(tag[0], _PLAIN)
            start = tag.end()
        rest = text[start:]
        opening = rest.rfind("<")
        may_be_tag = opening >= 0 and len(rest) - opening < _LONGEST_TAG
        self._held = rest[opening:] if may_be_tag else ""
        self._print(rest[: len(rest) - len(self._held)], self._style)

    def searched(self, query: str) -> None:
        """Say that the engine is being asked."""
        self._line(f"searching: {query}", _TAG_STYLE)

    def found(self, result: SearchResult) -> None:
        """Print the documents."""
        if not result.documents:
            self._line(f"{result.source} has found nothing ({result.latency_s:.1f} s)", _TROUBLE)
        for number, document in enumerate(result.documents, start=1):
            name = f" [{document.id}]" if document.id else ""
            self._line(f"Doc {number}{name}: {document.text}", _DOCUMENT_STYLE)

    def failed(self, failure: SearchFailure) -> None:
        """Say why a try has failed."""
        self._line(f"the search failed: {failure}", _TROUBLE)

    def end(self, outcome: str) -> None:
        """Print what was held back, and how the episode has ended."""
        held, self._held = self._held, ""
        self._print(held, self._style)
        self._style = _PLAIN
        self._line(outcome, "bold")

    def _line(self, text: str, style: str) -> None:
        if not self._at_line_start:
            self._print("\n", _PLAIN)
        self._print(" ".join(text.split()) + "\n", style)

    def _print(self, text: str, style: str) -> None:
        if not text:
            return
        clean = _CONTROL.sub("", without_broken_characters(text))
        self._console.print(Text(clean, style=style), end="", soft_wrap=True)
        self._at_line_start = clean.endswith("\n")
