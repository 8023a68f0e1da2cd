"""The pool of endpoints against real servers on the loopback: who is asked, when, and what a failure says."""

import asyncio
import gc
import json
import time
import warnings
from collections import Counter
from contextlib import AsyncExitStack
from typing import Any

import pytest
from aiohttp import web

from tests.completion_server import CompletionServer, completion
from zs_nemo.config.endpoints import ApiKind, EndpointPoolConfig
from zs_nemo.search.completion_form import CompletionForm
from zs_nemo.search.endpoints import EndpointPool
from zs_nemo.search.text_generators import EndpointTextGenerator
from zs_nemo.types.completion import ChatMessage, TextCompletion
from zs_nemo.types.generation import SamplingParams, StopReason
from zs_nemo.types.search import SearchFailure, SearchFailureKind

KEY = "sk-very-secret-0123456789"
DEAD = "http://127.0.0.1:9"  # Nobody listens at the discard port.
SAMPLING = SamplingParams(max_tokens=48, temperature=0.4, stop=("\n",))


def settings(**changes: Any) -> EndpointPoolConfig:
    """Return settings with pauses that suit a test."""
    quick = {"first_pause_s": 0.01, "longest_pause_s": 0.05, "open_s": 0.2, "health_interval_s": 0.0}
    return EndpointPoolConfig(**{"deadline_s": 30.0, "request_timeout_s": 15.0, **quick, **changes})


def text(pool: EndpointPool, api: ApiKind = ApiKind.completions, **extra_body: Any) -> EndpointTextGenerator:
    return EndpointTextGenerator(pool, CompletionForm(model="simulator", api=api, extra_body=extra_body))


async def ask(pool: EndpointPool, seed: int = 1) -> str:
    return (await text(pool).complete("Query: x", SAMPLING, seed)).text


async def failing(status: int, body: str = "out of order", **headers: str) -> web.Response:
    return web.Response(
        status=status, text=body, headers={name.replace("_", "-"): each for name, each in headers.items()}
    )


@pytest.fixture
async def stack():
    """Close what a test opens, in the right order."""
    async with AsyncExitStack() as stack:
        yield stack


async def servers(stack: AsyncExitStack, *names: str) -> list[CompletionServer]:
    return [await stack.enter_async_context(CompletionServer(name=name)) for name in names]


def pool_of(stack: AsyncExitStack, *addresses: str, api_key: str = "", **changes: Any) -> EndpointPool:
    pool = EndpointPool(addresses, settings(**changes), api_key=api_key)
    stack.push_async_callback(pool.close)
    return pool


@pytest.mark.parametrize("api", list(ApiKind))
async def test_a_completion_is_asked_for_and_read_in_both_interfaces(stack: AsyncExitStack, api: ApiKind) -> None:
    (server,) = await servers(stack, "Lima")
    kwargs = {"enable_thinking": False}
    asked_by = text(pool_of(stack, server.url, api_key=KEY), api, chat_template_kwargs=kwargs)
    got = await asked_by.complete("Query: x", SAMPLING, 17)
    assert got == TextCompletion(
        text=" Lima is a city.", stop_reason=StopReason.end_of_text, prompt_tokens=7, completion_tokens=16
    )
    asked = {"messages": [{"role": "user", "content": "Query: x"}]} if api is ApiKind.chat else {"prompt": "Query: x"}
    sampling = {"max_tokens": 48, "temperature": 0.4, "top_p": 1.0, "stop": ["\n"], "seed": 17}
    assert server.bodies == [
        {"model": "simulator", "stream": False, "chat_template_kwargs": kwargs, **asked, **sampling}
    ]
    assert server.paths == [api.value.partition(":")[0]]
    assert server.keys == [f"Bearer {KEY}"]


async def test_the_messages_of_a_chat_are_sent_as_they_are(stack: AsyncExitStack) -> None:
    (server,) = await servers(stack, "Lima")
    chat = (ChatMessage(role="system", content="You write."), ChatMessage(role="user", content="Query: x"))
    await text(pool_of(stack, server.url), ApiKind.chat).complete(chat, SAMPLING, 1)
    assert [tuple(message.values()) for message in server.bodies[0]["messages"]] == [
        ("system", "You write."),
        ("user", "Query: x"),
    ]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ({"text": "a", "finish_reason": "length"}, StopReason.length),
        ({"text": "a", "finish_reason": "stop", "stop_reason": "\n"}, StopReason.stop_string),
        ({"text": "a", "finish_reason": "stop", "stop_reason": 2}, StopReason.end_of_text),
    ],
)
async def test_the_stop_reason_is_told_apart(stack: AsyncExitStack, answer: dict[str, Any], reason: StopReason) -> None:
    (server,) = await servers(stack, "")

    async def speak(body: dict[str, Any]) -> web.Response:
        return web.json_response({"choices": [answer]})

    server.answer = speak
    got = await text(pool_of(stack, server.url)).complete("x", SAMPLING, 1)
    assert got == TextCompletion(text="a", stop_reason=reason, prompt_tokens=0, completion_tokens=0)


@pytest.mark.parametrize(
    ("api", "choice"),
    [
        (ApiKind.completions, {"text": "Half of", "finish_reason": "content_filter"}),
        (ApiKind.completions, {"text": None, "finish_reason": "content_filter"}),
        (ApiKind.chat, {"message": {"content": None}, "finish_reason": "content_filter"}),
    ],
)
async def test_what_a_content_filter_withholds_is_an_empty_completion_and_no_fault_of_the_endpoint(
    stack: AsyncExitStack, api: ApiKind, choice: dict[str, Any]
) -> None:
    (server,) = await servers(stack, "")
    server.answer = lambda body: failing(200, json.dumps({"choices": [choice]}))
    pool = pool_of(stack, server.url, failures_to_open=1)
    got = await text(pool, api).complete("x", SAMPLING, 1)
    assert (got.text, got.stop_reason) == ("", StopReason.filtered)
    assert (pool.statistics[server.url].failures, len(server.bodies)) == (0, 1)


async def test_the_least_loaded_endpoint_is_asked_and_none_more_than_its_bound(stack: AsyncExitStack) -> None:
    quick, slow = await servers(stack, "quick", "slow")
    gate = asyncio.Event()

    async def wait_at_the_gate(body: dict[str, Any]) -> web.Response:
        await gate.wait()
        return completion("late")

    slow.answer = wait_at_the_gate
    pool = pool_of(stack, quick.url, slow.url, max_concurrency=2)
    asked = [asyncio.ensure_future(ask(pool, seed)) for seed in range(24)]
    assert await until(lambda: sum(each.done() for each in asked) == 22), "what is free goes on"
    assert (len(slow.bodies), slow.in_flight) == (2, 2)
    gate.set()
    assert Counter(await asyncio.gather(*asked)) == {" quick is a city.": 22, "late": 2}
    assert quick.most_in_flight <= 2


async def test_equal_load_is_shared_equally(stack: AsyncExitStack) -> None:
    one, two = await servers(stack, "one", "two")
    pool = pool_of(stack, one.url, two.url)
    for seed in range(6):
        await ask(pool, seed)
    assert len(one.bodies) == len(two.bodies) == 3


async def test_a_dead_endpoint_loses_no_search_and_its_circuit_opens(stack: AsyncExitStack) -> None:
    (alive,) = await servers(stack, "alive")
    pool = pool_of(stack, DEAD, alive.url, failures_to_open=3, open_s=60.0)
    answers = await asyncio.gather(*(ask(pool, seed) for seed in range(20)))
    for seed in range(20):
        answers.append(await ask(pool, seed))
    assert answers == [" alive is a city."] * 40
    dead = pool.statistics[f"{DEAD}/v1"]
    assert dead.failures == dead.requests < 20, "after the first failures nobody goes there any more"
    assert dead.opened == 1


async def test_a_server_that_dies_in_the_middle_loses_no_search(stack: AsyncExitStack) -> None:
    dies, lives = await servers(stack, "dies", "lives")
    dies.delay_s = lives.delay_s = 2.0
    pool = pool_of(stack, dies.url, lives.url, request_timeout_s=20.0)
    asked = [asyncio.ensure_future(ask(pool, seed)) for seed in range(20)]
    assert await until(lambda: dies.in_flight == lives.in_flight == 10)
    lives.delay_s = 0.0
    await dies.stop()
    assert set(await asyncio.gather(*asked)) == {" lives is a city."}


async def test_an_open_circuit_lets_one_request_try_and_closes_when_it_is_answered(stack: AsyncExitStack) -> None:
    (server,) = await servers(stack, "back")
    server.answer = lambda body: failing(500)
    pool = pool_of(stack, server.url, failures_to_open=2, open_s=0.5)
    gate = asyncio.Event()

    async def wait_at_the_gate(body: dict[str, Any]) -> web.Response:
        await gate.wait()
        return completion("back")

    asked = [asyncio.ensure_future(ask(pool))]
    assert await until(lambda: pool.statistics[server.url].opened == 1)
    assert len(server.bodies) == 2, "open after two failures"
    server.answer = wait_at_the_gate
    asked += [asyncio.ensure_future(ask(pool, seed)) for seed in range(5)]
    assert await until(lambda: server.in_flight == 1)
    await asyncio.sleep(0.1)
    assert len(server.bodies) == 3, "half open: one request alone"
    gate.set()
    assert await asyncio.gather(*asked) == ["back"] * 6
    assert not pool._endpoints[0].circuit.is_open


async def test_a_probe_that_fails_keeps_the_circuit_open(stack: AsyncExitStack) -> None:
    (server,) = await servers(stack, "")
    times: list[float] = []

    def broken(body: dict[str, Any]) -> Any:
        times.append(time.monotonic())
        return failing(500)

    server.answer = broken
    pool = pool_of(stack, server.url, failures_to_open=1, open_s=0.2)
    asked = asyncio.ensure_future(ask(pool))
    assert await until(lambda: pool.statistics[server.url].opened == 3)
    assert len(times) == 3, "one request, and then one probe after each pause"
    assert min(times[1] - times[0], times[2] - times[1]) > 0.15
    asked.cancel()
    await asyncio.gather(asked, return_exceptions=True)


async def test_no_endpoint_alive_is_a_failure_within_the_deadline_that_names_each_with_its_error(
    stack: AsyncExitStack,
) -> None:
    (broken,) = await servers(stack, "")
    broken.answer = lambda body: failing(500, "CUDA out of memory")
    pool = pool_of(stack, DEAD, broken.url, deadline_s=1.0, request_timeout_s=1.0)
    began = time.monotonic()
    with pytest.raises(SearchFailure) as failure:
        await ask(pool)
    assert 0.9 < time.monotonic() - began < 10.0
    assert failure.value.kind is SearchFailureKind.unavailable
    message = str(failure.value)
    assert f"{DEAD}/v1: ClientConnectorError" in message
    assert f"{broken.url}: HTTP 500: CUDA out of memory" in message


class Clock:
    """Lets the event loop's time pass at will."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._passed_s = 0.0
        loop = asyncio.get_running_loop()
        true_time = loop.time
        monkeypatch.setattr(loop, "time", lambda: true_time() + self._passed_s)

    def advance(self, seconds: float) -> None:
        self._passed_s += seconds


async def test_a_slow_endpoint_makes_calls_wait_for_their_turn_and_loses_none(
    stack: AsyncExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    (server,) = await servers(stack, "slow")
    gate = asyncio.Semaphore(0)

    async def wait_at_the_gate(body: dict[str, Any]) -> web.Response:
        await gate.acquire()
        return completion("late")

    server.answer = wait_at_the_gate
    clock = Clock(monkeypatch)
    pool = pool_of(stack, server.url, max_concurrency=1, deadline_s=30.0, request_timeout_s=25.0)
    asked = [asyncio.ensure_future(ask(pool, seed)) for seed in range(4)]
    for number in range(1, 5):
        assert await until(lambda: len(server.bodies) == number)  # noqa: B023
        clock.advance(20.0)
        gate.release()
    assert await asyncio.gather(*asked) == ["late"] * 4
    assert "requests have waited up to 60 s for a turn: raise pool.max_concurrency=1" in pool.account()


async def test_a_turn_is_not_waited_for_where_nobody_is_answered(
    stack: AsyncExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    (server,) = await servers(stack, "")
    server.answer = lambda body: failing(429, Retry_After="1000")
    clock = Clock(monkeypatch)
    pool = pool_of(stack, server.url, max_concurrency=1, deadline_s=30.0)
    asked = [asyncio.ensure_future(ask(pool, seed)) for seed in range(2)]
    assert await until(lambda: pool.statistics[server.url].pushed_back == 1)
    clock.advance(31.0)
    for failure in await asyncio.gather(*asked, return_exceptions=True):
        assert isinstance(failure, SearchFailure) and "no answer within 30 s from any of 1 endpoints" in str(failure)
    assert "waited up to 31 s for a turn" in str(failure)
    assert all(endpoint.in_flight == 0 for endpoint in pool._endpoints)


async def test_a_far_endpoint_is_asked_through_the_proxy(
    stack: AsyncExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    (proxy,) = await servers(stack, "")
    monkeypatch.setenv("http_proxy", proxy.url.removesuffix("/v1"))
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    # It answers by itself, whoever was meant.
    assert await ask(pool_of(stack, "http://far.example:8000")) == " A city is a city."
    assert await ask(pool_of(stack, "http://far.example/v1")) == " A city is a city."
    assert len(proxy.bodies) == 2


async def test_an_endpoint_that_hangs_is_left_for_another_one(stack: AsyncExitStack) -> None:
    hangs, answers = await servers(stack, "hangs", "answers")
    hangs.delay_s = 30.0
    pool = pool_of(stack, hangs.url, answers.url, request_timeout_s=0.5)
    assert await ask(pool) == " answers is a city."
    assert pool.statistics[hangs.url].failures >= 1
    assert await until(lambda: hangs.given_up == 1), "the request that nobody waits for is ended"


async def test_retry_after_is_honoured_and_opens_no_circuit(stack: AsyncExitStack) -> None:
    (server,) = await servers(stack, "busy")
    times: list[float] = []

    async def busy(body: dict[str, Any]) -> web.Response:
        times.append(time.monotonic())
        return completion("at last") if len(times) > 1 else await failing(503, Retry_After="1")

    server.answer = busy
    pool = pool_of(stack, server.url, failures_to_open=1, open_s=60.0)
    assert await ask(pool) == "at last"
    assert times[1] - times[0] > 0.95
    statistics = pool.statistics[server.url]
    assert (statistics.pushed_back, statistics.failures, statistics.opened) == (1, 0, 0)


@pytest.mark.parametrize("retry_after", ["60", "9" * 400])
async def test_who_is_pushed_back_goes_elsewhere_at_once(stack: AsyncExitStack, retry_after: str) -> None:
    busy, free = await servers(stack, "busy", "free")
    busy.answer = lambda body: failing(429, Retry_After=retry_after)
    pool = pool_of(stack, busy.url, free.url)
    began = time.monotonic()
    assert [await ask(pool, seed) for seed in range(4)] == [" free is a city."] * 4
    assert time.monotonic() - began < 20.0
    assert len(busy.bodies) == 1


@pytest.mark.parametrize("status", [400, 422])
async def test_a_request_that_is_refused_is_not_repeated(stack: AsyncExitStack, status: int) -> None:
    strict, other = await servers(stack, "", "")
    strict.answer = other.answer = lambda body: failing(status, "max_tokens is too large")
    pool = pool_of(stack, strict.url, other.url)
    with pytest.raises(SearchFailure, match=r"refuses the request: HTTP .*max_tokens is too large") as failure:
        await ask(pool)
    assert failure.value.kind is SearchFailureKind.invalid
    assert len(strict.bodies) + len(other.bodies) == 1


@pytest.mark.parametrize(
    "answer",
    [
        "no json",
        "[]",
        "{}",
        '{"choices": []}',
        '{"choices": [{"text": 3, "finish_reason": "stop"}]}',
        '{"choices": [{"text": "half", "finish_reason": "abort"}]}',
        "[" * 100_000,
    ],
    ids=["text", "list", "object", "no choice", "number", "aborted", "nested"],
)
async def test_an_answer_that_is_none_is_asked_for_elsewhere(stack: AsyncExitStack, answer: str) -> None:
    odd, sound = await servers(stack, "", "sound")
    odd.answer = lambda body: failing(200, answer)
    pool = pool_of(stack, odd.url, sound.url)
    assert await ask(pool) == " sound is a city."
    assert pool.statistics[odd.url].failures == 1
    assert pool._endpoints[0].last_error.startswith("the answer cannot be used")


async def test_nothing_but_answers_that_are_none_is_a_failure_of_the_protocol(stack: AsyncExitStack) -> None:
    (odd,) = await servers(stack, "")
    odd.answer = lambda body: failing(200, "no json")
    with pytest.raises(SearchFailure, match="the answer cannot be used: it is no JSON") as failure:
        await ask(pool_of(stack, odd.url, deadline_s=1.0, request_timeout_s=1.0))
    assert failure.value.kind is SearchFailureKind.invalid


async def test_an_answer_without_end_is_not_read_to_its_end(
    stack: AsyncExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zs_nemo.search.endpoints.MAX_ANSWER_BYTES", 1000)
    endless, sound = await servers(stack, "", "sound")
    endless.answer = lambda body: failing(200, "x" * 100_000)
    assert await ask(pool_of(stack, endless.url, sound.url)) == " sound is a city."


async def test_a_redirect_is_not_followed(stack: AsyncExitStack) -> None:
    away, other = await servers(stack, "", "other")
    away.answer = lambda body: failing(307, Location=f"{other.url}/completions")
    with pytest.raises(SearchFailure, match="HTTP 307"):
        await ask(pool_of(stack, away.url, api_key=KEY, deadline_s=1.0, request_timeout_s=1.0))
    assert not other.bodies


async def test_the_slow_tail_is_asked_for_at_another_endpoint_and_the_loser_is_ended(stack: AsyncExitStack) -> None:
    one, two = await servers(stack, "one", "two")
    pool = pool_of(stack, one.url, two.url, hedge_quantile=0.9)
    for seed in range(30):
        await ask(pool, seed)
    assert sum(each.hedges for each in pool.statistics.values()) <= 10
    won, ended = pool.statistics[two.url].hedges_won, pool.statistics[one.url].cancelled
    one.delay_s = 14.0
    began = time.monotonic()
    for seed in range(20):
        assert await ask(pool, seed) == " two is a city."
        if pool.statistics[two.url].hedges_won > won:
            break
    assert time.monotonic() - began < 10.0
    assert pool.statistics[two.url].hedges_won > won and pool.statistics[one.url].cancelled > ended
    assert await until(lambda: one.in_flight == 0 and one.given_up >= 1)


async def test_without_the_setting_no_second_request_is_sent(stack: AsyncExitStack) -> None:
    one, two = await servers(stack, "one", "two")
    pool = pool_of(stack, one.url, two.url)
    for seed in range(30):
        await ask(pool, seed)
    one.delay_s = two.delay_s = 0.2
    await ask(pool)
    assert len(one.bodies) + len(two.bodies) == 31


async def test_a_health_check_finds_a_dead_endpoint_and_one_that_is_back(stack: AsyncExitStack) -> None:
    (server,) = await servers(stack, "back")
    server.health_status = 503
    pool = pool_of(stack, server.url, health_interval_s=0.05, failures_to_open=2, open_s=60.0)
    assert not pool.trouble(), "nobody has asked it yet"
    await ask(pool)
    assert await until(lambda: pool.statistics[server.url].opened == 1)
    assert f"{server.url}: HTTP 503" in pool.trouble()
    server.health_status = 200
    assert await until(lambda: not pool.trouble()), "without a request, which a load balancer would not send"
    assert await asyncio.wait_for(ask(pool), 20.0) == " back is a city.", "long before the 60 s are over"


async def test_the_key_stands_in_no_error_even_if_the_server_repeats_it(stack: AsyncExitStack) -> None:
    told, strict = await servers(stack, "", "")
    told.answer = lambda body: failing(401, f"Incorrect API key provided: {KEY}. " + "x" * 250 + KEY)
    strict.answer = lambda body: failing(400, f"bad key {KEY}")
    for server in (told, strict):
        with pytest.raises(SearchFailure) as failure:
            await ask(pool_of(stack, server.url, api_key=KEY, deadline_s=1.0, request_timeout_s=1.0))
        assert "***" in str(failure.value) and "sk-very" not in str(failure.value)
        assert server.keys[0] == f"Bearer {KEY}"


async def test_a_call_that_is_cancelled_gives_its_place_back(stack: AsyncExitStack) -> None:
    (server,) = await servers(stack, "slow")
    server.delay_s = 5.0
    pool = pool_of(stack, server.url, max_concurrency=1)
    running, waiting = (asyncio.ensure_future(ask(pool, seed)) for seed in range(2))
    await until(lambda: server.in_flight == 1)
    for call in (waiting, running):
        call.cancel()
    await asyncio.gather(running, waiting, return_exceptions=True)
    server.delay_s = 0.0
    assert await asyncio.wait_for(ask(pool), 20.0) == " slow is a city."


def test_a_pool_serves_one_event_loop_after_another_and_leaves_nothing_open() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pool = EndpointPool([DEAD], settings(deadline_s=0.1, request_timeout_s=0.1))
        for _ in range(2):
            with pytest.raises(SearchFailure):
                asyncio.run(ask(pool))
        gc.collect()


async def test_pauses_are_keyed_by_the_seed_and_grow(stack: AsyncExitStack) -> None:
    from zs_nemo.search.endpoints import _Call

    def pauses(seed: int) -> list[float]:
        call = _Call("/completions", b"", str, seed)
        return [call.pause_s(number, settings(first_pause_s=1.0, longest_pause_s=100.0)) for number in range(6)]

    assert pauses(1) == pauses(1) != pauses(2)
    assert all(0.5 * 2**n <= pause <= 1.5 * 2**n for n, pause in enumerate(pauses(1)))


async def until(condition: Any, timeout_s: float = 20.0) -> bool:
    """Wait for a condition; return whether it came true."""
    end = time.monotonic() + timeout_s
    while not condition() and time.monotonic() < end:
        await asyncio.sleep(0.01)
    return bool(condition())
