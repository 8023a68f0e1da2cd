"""Token ids in, token ids and logprobs out."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from enum import Enum
from typing import Protocol


class StopReason(Enum):
    """Why an engine stopped to generate."""

    stop_string = "one of the stop strings was completed; it is part of the output"
    end_of_text = "the model sampled its end-of-text token; the token is part of the output"
    length = "max_tokens was reached"
    filtered = "the server's content filter withheld it; nothing of the output is there"


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How to sample one completion."""

    max_tokens: int
    temperature: float = 1.0
    """0.0 is greedy."""
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    """Generation ends with the token that completes one of these strings."""


@dataclass(frozen=True, kw_only=True)
class Completion:
    """What an engine sampled, exactly as it sampled it."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    """Per token, under the distribution that was sampled from (after temperature and top-p)."""
    text: str
    """The decoded tokens, stop string included. For finding actions only: never encoded again."""
    stop_reason: StopReason
    weight_version: int
    """The refit version under which every one of these tokens was sampled."""


@dataclass(frozen=True, kw_only=True)
class CompletionPart:
    """What an engine has written since the part before it."""

    text: str
    completion: Completion | None = None
    """The whole completion, with the last part alone; its text is that of all parts."""


class EngineDied(RuntimeError):  # noqa: N818  (it says what happened)
    """The process in which an engine computes has ended: it will never answer, and another one may."""


class GenerationEngine(Protocol):
    """A language model that completes token ids."""

    async def generate(self, prompt_ids: list[int], sampling: SamplingParams, seed: int) -> Completion:
        """Sample one completion. ``seed`` makes it repeatable whatever else is in the batch."""
        ...


class StreamingEngine(GenerationEngine, Protocol):
    """An engine that can also tell what it writes while it writes it."""

    def stream(self, prompt_ids: list[int], sampling: SamplingParams, seed: int) -> AsyncIterator[CompletionPart]:
        """Sample the completion that ``generate`` would return, part by part."""
        ...


class Tokenizer(Protocol):
    """The part of a Hugging Face tokenizer that this project uses."""

    def __hash__(self) -> int:
        """Tell tokenizers apart, where what they made of a text is kept."""
        ...

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Turn text into token ids."""
        ...

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool = False) -> str:
        """Turn token ids into text."""
        ...
