"""Text in, text out: what a simulator or a judge needs of a language model, wherever that model runs."""

from dataclasses import dataclass
from typing import Protocol

from zs_nemo.types.generation import SamplingParams, StopReason


@dataclass(frozen=True, kw_only=True)
class ChatMessage:
    """One message of a chat."""

    role: str
    """``system``, ``user`` or ``assistant``."""
    content: str


Prompt = str | tuple[ChatMessage, ...]
"""Raw text that the model continues, or a chat to which it writes the next message."""


@dataclass(frozen=True, kw_only=True)
class TextCompletion:
    """What a language model wrote. Untrusted text."""

    text: str
    """Without the stop string where the model's server leaves it out, with it where it does not."""
    stop_reason: StopReason
    prompt_tokens: int
    """As the model's own tokenizer counts them; 0 where a server does not say."""
    completion_tokens: int


class TextGenerator(Protocol):
    """A language model behind text."""

    async def complete(self, prompt: Prompt, sampling: SamplingParams, seed: int) -> TextCompletion:
        """Sample one completion; raise ``SearchFailure`` when the model cannot be reached or answers nonsense."""
        ...
