"""Whether endpoints are told apart that can be used and that cannot, before anything starts."""

import asyncio
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from aiohttp import web

from tests.completion_server import completion
from tests.loopback import serving
from zs_nemo.config.endpoints import ApiKind
from zs_nemo.search import endpoint_health, endpoint_trial
from zs_nemo.search.completion_form import CompletionForm
from zs_nemo.search.endpoint_trial import TRIAL_TOKENS, Trial, check_served
from zs_nemo.types.generation import SamplingParams

LISTED = json.dumps({"data": [{"id": f"models/model-{number}"} for number in range(2000)]}).encode()
SAMPLING = SamplingParams(max_tokens=600, temperature=0.8, stop=("###",))
EXTRA = {"chat_template_kwargs": {"enable_thinking": False}}

Answers = Iterator[web.Response]


async def models(asked: web.Request) -> web.StreamResponse:
    """Answer with the list of models in two parts, the second one a moment later."""
    response = web.StreamResponse()
    await response.prepare(asked)
    await response.write(LISTED[:100])
    await asyncio.sleep(0.01)
    await response.write(LISTED[100:])
    return response


def app(answers: list[web.Response], bodies: list[Any], *, lists: bool = True) -> Callable[[], web.Application]:
    """Return what makes a server that gives these answers to requests for completions, in their order."""

    async def complete(asked: web.Request) -> web.Response:
        bodies.append(await asked.json())
        return answers.pop(0)

    def make() -> web.Application:
        made = web.Application()
        made.add_routes([web.post("/v1/chat/completions", complete)])
        if lists:
            made.add_routes([web.get("/v1/models", models)])
        return made

    return make


def trial(model: str = "model-1999", *, timeout_s: float = 30.0) -> Trial:
    form = CompletionForm(model=model, api=ApiKind.chat, extra_body=EXTRA)
    return Trial(form=form, sampling=SAMPLING, timeout_s=timeout_s)


def fails(url: str, message: str, **changes: Any) -> None:
    with pytest.raises(ValueError, match=rf"search\.endpoints: none of 1 can be used \({url}/v1: {message}"):
        check_served([url], trial(**changes), "sk-hunter2", setting="search.endpoints")


def test_the_list_of_models_is_read_to_its_end_however_it_comes() -> None:
    with serving(app([completion("Hi.", chat=True)], [])) as url:
        assert check_served([url], trial(), setting="search.endpoints") == {}
        fails(url, "it serves models/model-0, models/model-1, .* and not 'another'", model="another")


def test_a_list_without_an_end_is_read_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint_health, "_MAX_BYTES", 50)
    with serving(app([], [])) as url:
        # What is listed is not known, so that the completion decides, which this server has none left of.
        fails(url, "a completion of 16 tokens fails: HTTP 500", model="another")


@pytest.mark.parametrize("lists", [True, False])
def test_a_short_completion_in_the_form_of_the_run_is_what_counts(lists: bool) -> None:
    bodies: list[Any] = []
    with serving(app([completion("Hi.", chat=True)], bodies, lists=lists)) as url:
        assert check_served([url], trial(), setting="search.endpoints") == {}
    (body,) = bodies
    assert body["max_tokens"] == TRIAL_TOKENS and body["chat_template_kwargs"] == {"enable_thinking": False}
    assert (body["model"], body["temperature"], body["stop"]) == ("model-1999", 0.8, ["###"]) and "seed" in body


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ((401, "no such key: sk-hunter2"), r"a completion of 16 tokens fails: HTTP 401: no such key: \*\*\*"),
        ((400, "'max_tokens' is not supported"), r".*HTTP 400: 'max_tokens' is not supported"),
        ((200, "hello"), ".*the answer cannot be used: it is no JSON"),
        ((200, "{}"), ".*the answer cannot be used: the answer has no choices"),
    ],
)
def test_a_model_that_cannot_be_asked_is_told_with_its_error(answer: tuple[int, str], message: str) -> None:
    status, text = answer
    with serving(app([web.Response(status=status, text=text)], [])) as url:
        fails(url, message)


def test_a_server_that_knows_nothing_is_no_endpoint() -> None:
    with serving(web.Application) as url:
        fails(url, "a completion of 16 tokens fails: HTTP 404")


def test_an_endpoint_that_is_busy_is_asked_again_within_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint_trial, "_PAUSE_S", 0.01)
    busy = [web.Response(status=429), web.Response(status=503, headers={"Retry-After": "0"})]
    with serving(app([*busy, completion("Hi.", chat=True)], [])) as url:
        assert check_served([url], trial(), setting="search.endpoints") == {}
    with serving(app([web.Response(status=429, headers={"Retry-After": "60"})], [])) as url:
        fails(url, ".*HTTP 429", timeout_s=5.0)
