"""A policy behind a server: lossless pieces, closing tags that servers leave out, failures with a name."""

import asyncio
import math

import pytest

from zs_nemo.generation.endpoint_engine import EndpointEngine, PieceTokenizer, with_stop_string
from zs_nemo.qa.tags import STOP_STRINGS
from zs_nemo.types.completion import Prompt, TextCompletion
from zs_nemo.types.generation import SamplingParams, StopReason
from zs_nemo.types.search import SearchFailure, SearchFailureKind

SAMPLING = SamplingParams(max_tokens=40, temperature=0.0, stop=STOP_STRINGS)


class Server:
    def __init__(self, text: str, failure: SearchFailure | None = None) -> None:
        self.text, self.failure = text, failure
        self.prompts: list[Prompt] = []

    async def complete(self, prompt: Prompt, sampling: SamplingParams, seed: int) -> TextCompletion:
        self.prompts.append(prompt)
        if self.failure:
            raise self.failure
        return TextCompletion(text=self.text, stop_reason=StopReason.end_of_text, prompt_tokens=11, completion_tokens=5)


@pytest.mark.parametrize("text", ["", "a", "Zürich\n\n<search>北京 and more</search>", "x" * 1000])
def test_pieces_lose_nothing(text: str) -> None:
    tokenizer = PieceTokenizer()
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text and len(ids) == math.ceil(len(text) / 4)


def test_the_server_is_asked_for_the_text_so_far_and_what_it_used_is_counted() -> None:
    tokenizer, server = PieceTokenizer(), Server("<search>capital of Peru")
    engine = EndpointEngine(server, tokenizer)
    completion = asyncio.run(engine.generate(tokenizer.encode("Question: Where?\n"), SAMPLING, 3))
    assert server.prompts == ["Question: Where?\n"]
    assert completion.text == "<search>capital of Peru</search>" == tokenizer.decode(list(completion.token_ids))
    assert completion.stop_reason is StopReason.stop_string
    assert (engine.num_requests, engine.prompt_tokens, engine.completion_tokens) == (1, 11, 5)


@pytest.mark.parametrize(
    ("prompt", "text", "reason", "expected"),
    [
        ("<search>query</search>\n", "<answer>Lima", StopReason.stop_string, "<answer>Lima</answer>"),
        ("Question\n<answer>", "Lima", StopReason.end_of_text, "Lima</answer>"),
        ("Question\n", "<answer>Lima</answer>", StopReason.end_of_text, "<answer>Lima</answer>"),
        ("Question\n", "<search>a</search><answer>b", StopReason.length, "<search>a</search>"),
        ("Question\n", "<answer>Lim", StopReason.length, "<answer>Lim"),
        ("Question\n", "I do not know", StopReason.end_of_text, "I do not know"),
        ("<search>q</search>\n", "I do not know", StopReason.end_of_text, "I do not know"),
        ("no tags", "at all", StopReason.end_of_text, "at all"),
    ],
)
def test_the_closing_tag_is_the_one_that_is_open(prompt: str, text: str, reason: StopReason, expected: str) -> None:
    assert with_stop_string(prompt, text, reason, STOP_STRINGS)[0] == expected


def test_a_server_that_cannot_be_asked_is_named() -> None:
    failure = SearchFailure(SearchFailureKind.unavailable, "http://host/v1: HTTP 500")
    engine = EndpointEngine(Server("", failure), PieceTokenizer())
    with pytest.raises(RuntimeError, match=r"endpoint\.addresses: the policy cannot be asked .*HTTP 500"):
        asyncio.run(engine.generate([], SAMPLING, 0))
