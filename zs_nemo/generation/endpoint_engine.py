"""A policy behind an OpenAI-compatible server, as a ``GenerationEngine``: for asking it, never for training on it.

A server speaks text and tells neither token ids nor a tokenizer that could be had here. So its "tokens" are pieces of
text of about four characters, of which nothing is lost: what was sampled is what the episode goes on from, and limits
in tokens hold approximately.
"""

import re

from zs_nemo.types.completion import TextGenerator
from zs_nemo.types.generation import Completion, SamplingParams, StopReason
from zs_nemo.types.search import SearchFailure

CHARACTERS_PER_TOKEN = 4
"""What English text has with the usual tokenizers."""
_PIECE = re.compile(rf".{{1,{CHARACTERS_PER_TOKEN}}}", re.DOTALL)


class PieceTokenizer:
    """Cuts text into pieces and puts them together again without loss. Implements ``types.generation.Tokenizer``."""

    def __init__(self) -> None:
        self._ids: dict[str, int] = {}
        self._pieces: list[str] = []

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Return one number a piece, the same for the same piece in this process."""
        return [self._id(piece) for piece in _PIECE.findall(text)]

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool = False) -> str:
        """Return the text that was encoded."""
        return "".join(self._pieces[token] for token in token_ids)

    def _id(self, piece: str) -> int:
        number = self._ids.setdefault(piece, len(self._pieces))
        if number == len(self._pieces):
            self._pieces.append(piece)
        return number


class EndpointEngine:
    """Completes pieces of text through a server. Implements ``types.generation.GenerationEngine``.

    Logprobs are not known and are NaN; the weight version is always 0.
    """

    def __init__(self, text: TextGenerator, tokenizer: PieceTokenizer) -> None:
        self._text = text
        self._tokenizer = tokenizer
        self.num_requests = self.prompt_tokens = self.completion_tokens = 0
        """What was asked and written so far, in the server's own tokens where it tells them."""

    async def generate(self, prompt_ids: list[int], sampling: SamplingParams, seed: int) -> Completion:
        """Sample one completion; raise ``RuntimeError`` when no endpoint brings one within its deadline."""
        prompt = self._tokenizer.decode(prompt_ids)
        try:
            found = await self._text.complete(prompt, sampling, seed)
        except SearchFailure as failure:
            raise RuntimeError(f"endpoint.addresses: the policy cannot be asked ({failure})") from failure
        self.num_requests += 1
        self.prompt_tokens += found.prompt_tokens
        self.completion_tokens += found.completion_tokens
        text, reason = with_stop_string(prompt, found.text, found.stop_reason, sampling.stop)
        ids = tuple(self._tokenizer.encode(text))
        return Completion(
            token_ids=ids, logprobs=(float("nan"),) * len(ids), text=text, stop_reason=reason, weight_version=0
        )


def with_stop_string(prompt: str, text: str, reason: StopReason, stop: tuple[str, ...]) -> tuple[str, StopReason]:
    """Return the completion up to and with the closing tag that ended it, and why it ended.

    Most servers leave the stop string out and do not say which it was: it is the one whose tag is still open. A text
    that ended by itself with an open tag is closed likewise, for the two cannot be told apart.
    """
    ends = [text.index(each) + len(each) for each in stop if each in text]
    if ends:
        return text[: min(ends)], StopReason.stop_string
    if reason in (StopReason.length, StopReason.filtered):
        return text, reason
    whole = prompt + text
    opened = {whole.rfind(each.replace("</", "<", 1)): each for each in stop}
    last = max(opened, default=-1)
    if last >= 0 and not any(each in whole[last:] for each in stop):
        return text + opened[last], StopReason.stop_string
    return text, reason
