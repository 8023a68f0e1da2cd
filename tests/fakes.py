"""Stand-ins that implement the protocols of the product, for tests of what lies between them."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from zs_nemo.types.generation import Completion, SamplingParams, StopReason
from zs_nemo.types.search import Document, SearchFailure, SearchFailureKind, SearchRequest, SearchResult


class CharTokenizer:
    """One token per character: lengths in tests can be counted by eye."""

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Return the code points."""
        return [ord(char) for char in text]

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool = False) -> str:
        """Return the characters."""
        return "".join(chr(token) for token in token_ids)


@dataclass
class ScriptedEngine:
    """Completes a prompt with what ``script(text so far)`` says, up to the first stop string or ``max_tokens``."""

    script: Callable[[str], str]
    delay_s: Callable[[str], float] = lambda text: 0.0
    calls: list[tuple[str, SamplingParams, int]] = field(default_factory=list)

    async def generate(self, prompt_ids: list[int], sampling: SamplingParams, seed: int) -> Completion:
        """Return the scripted completion."""
        prompt = "".join(chr(token) for token in prompt_ids)
        self.calls.append((prompt, sampling, seed))
        await asyncio.sleep(self.delay_s(prompt))
        text = self.script(prompt)
        ends = [text.index(stop) + len(stop) for stop in sampling.stop if stop in text]
        reason = StopReason.stop_string if ends else StopReason.end_of_text
        text = text[: min(ends)] if ends else text
        if len(text) > sampling.max_tokens:
            text, reason = text[: sampling.max_tokens], StopReason.length
        logprobs = tuple(-0.001 * (position + 1) for position in range(len(text)))
        return Completion(
            token_ids=tuple(ord(char) for char in text),
            logprobs=logprobs,
            text=text,
            stop_reason=reason,
            weight_version=3,
        )


@dataclass
class FixedSearch:
    """Answers every search with the same texts; the first ``failures`` calls fail."""

    texts: tuple[str, ...] = ("Paris is the capital of France.",)
    failures: int = 0
    failure_kind: SearchFailureKind = SearchFailureKind.unavailable
    name: str = "fixed"
    tokens: tuple[int, int] = (0, 0)
    """Read and written for a search."""
    requests: list[SearchRequest] = field(default_factory=list)

    async def search(self, request: SearchRequest) -> SearchResult:
        """Return the documents, or fail."""
        self.requests.append(request)
        if len(self.requests) <= self.failures:
            raise SearchFailure(self.failure_kind, "not yet")
        return SearchResult(
            documents=tuple(Document(text=text) for text in self.texts),
            source=self.name,
            noisy=request.noisy,
            prompt_tokens=self.tokens[0],
            completion_tokens=self.tokens[1],
        )
