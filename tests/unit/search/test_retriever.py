"""The retriever's client against small servers that speak, stretch or break Search-R1's protocol."""

import asyncio
import json
import socket
import traceback
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web

from tests.loopback import serving
from zs_nemo.config.remote_search import RetrieverSearchConfig
from zs_nemo.search import http_client
from zs_nemo.search.retriever import RetrieverSearch, parse_answer
from zs_nemo.types.keys import SampleKey
from zs_nemo.types.search import Document, SearchFailure, SearchFailureKind, SearchRequest, SearchResult

KEY = SampleKey(run_seed=1, step=0, prompt=0, member=0)
TOKEN = "s3cr3t"
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def request(query: str = "capital of Peru", num_documents: int = 2) -> SearchRequest:
    return SearchRequest(query=query, question="?", answers=("x",), key=KEY, num_documents=num_documents)


def app_of(handler: Handler) -> Callable[[], web.Application]:
    def make() -> web.Application:
        app = web.Application()
        app.add_routes([web.post("/retrieve", handler), web.get("/retrieve", handler)])
        return app

    return make


async def echo(asked: web.Request) -> web.Response:
    """Answer every query with documents that name it, as many as are wanted."""
    body = await asked.json()
    found = [
        [
            {"document": {"id": f"{query}/{place}", "contents": f'"{query}"\nText {place}.'}, "score": 1.0 - place / 10}
            for place in range(body["topk"])
        ]
        for query in body["queries"]
    ]
    return web.json_response({"result": found})


def settings(url: str, **changes: Any) -> RetrieverSearchConfig:
    return RetrieverSearchConfig(url=url, **changes)


def search_all(cfg: RetrieverSearchConfig, *requests: SearchRequest, environment: Any = None) -> list[SearchResult]:
    """Run searches at once on one client, and close it."""

    async def run() -> list[SearchResult]:
        engine = RetrieverSearch(cfg, environment or {})
        try:
            return await asyncio.gather(*map(engine.search, requests))
        finally:
            await engine.aclose()

    return asyncio.run(run())


def failure_of(handler: Handler, **changes: Any) -> SearchFailure:
    with serving(app_of(handler)) as url, pytest.raises(SearchFailure) as caught:
        search_all(settings(url, **changes), request())
    assert url in str(caught.value), "the failure names the endpoint"
    return caught.value


@pytest.mark.parametrize("suffix", ["", "/", "/retrieve"])
def test_a_search_is_asked_in_search_r1s_form_and_its_documents_come_back_in_order(suffix: str) -> None:
    bodies = []

    async def handler(asked: web.Request) -> web.Response:
        bodies.append(await asked.json())
        return await echo(asked)

    with serving(app_of(handler)) as url:
        (result,) = search_all(settings(url + suffix), request())
    assert bodies == [{"queries": ["capital of Peru"], "topk": 2, "return_scores": True}]
    assert result.documents == (
        Document(text='"capital of Peru"\nText 0.', id="capital of Peru/0", score=1.0),
        Document(text='"capital of Peru"\nText 1.', id="capital of Peru/1", score=0.9),
    )
    assert result.source == "retriever" and 0 < result.latency_s < 10 and not result.noisy


def test_without_scores_the_server_is_told_so() -> None:
    async def handler(asked: web.Request) -> web.Response:
        assert (await asked.json())["return_scores"] is False
        return web.json_response({"result": [[{"id": 5, "contents": "Lima."}]]})

    with serving(app_of(handler)) as url:
        (result,) = search_all(settings(url, return_scores=False), request())
    assert result.documents == (Document(text="Lima.", id="5"),)


@pytest.mark.parametrize(
    ("entry", "document"),
    [
        ({"document": {"id": "a", "contents": "T"}, "score": 2}, Document(text="T", id="a", score=2.0)),
        ({"document": {"contents": "T"}}, Document(text="T")),
        ({"id": "a", "contents": "T"}, Document(text="T", id="a")),
        ({"id": None, "contents": '"No title."\nT'}, Document(text="T")),
        ({"document": "T", "score": 0.5}, Document(text="T", score=0.5)),
        ("T", Document(text="T")),
        ({"title": "Lima", "text": "T"}, Document(text='"Lima"\nT')),
        ({"title": "", "text": "T"}, Document(text="T")),
    ],
)
def test_every_form_that_servers_use_is_understood(entry: Any, document: Document) -> None:
    assert parse_answer({"result": [[entry]]}, 1, 3) == [(document,)]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ([], 'no object with a list "result"'),
        ({"results": []}, 'no object with a list "result"'),
        ({"result": []}, "0 entries for 1 queries"),
        ({"result": [{}]}, "entry 0: is no list"),
        ({"result": [[7]]}, "neither an object nor a text"),
        ({"result": [[{"document": {"id": "a"}}]]}, 'no text "contents"'),
        ({"result": [[{"document": {"contents": 7}}]]}, 'no text "contents"'),
        ({"result": [[{"document": "T", "score": "high"}]]}, "the score 'high' is no number"),
    ],
)
def test_an_answer_that_breaks_the_protocol_is_an_invalid_failure(answer: Any, reason: str) -> None:
    async def handler(asked: web.Request) -> web.Response:
        return web.json_response(answer)

    failure = failure_of(handler)
    assert failure.kind is SearchFailureKind.invalid and reason in str(failure)


def test_more_documents_than_were_asked_for_are_cut_off() -> None:
    assert len(parse_answer({"result": [["a", "b", "c"]]}, 1, 2)[0]) == 2


def reply(status: int, body: str = "", **headers: str) -> Handler:
    async def handler(asked: web.Request) -> web.Response:
        return web.Response(status=status, text=body, headers={k.replace("_", "-"): v for k, v in headers.items()})

    return handler


@pytest.mark.parametrize(
    ("handler", "kind", "reason"),
    [
        (reply(500, "boom"), SearchFailureKind.unavailable, "status 500: boom"),
        (reply(404, "nothing here"), SearchFailureKind.invalid, "status 404: nothing here"),
        (reply(401), SearchFailureKind.invalid, "status 401"),
        (reply(200, "<html>"), SearchFailureKind.invalid, "no JSON: <html>"),
        (reply(200, "[" * 200_000), SearchFailureKind.invalid, "no JSON"),
        (reply(307, Location="http://127.0.0.1:1/other"), SearchFailureKind.invalid, "redirects (status 307)"),
        (reply(503, Retry_After="3600"), SearchFailureKind.unavailable, "is busy (status 503)"),
    ],
)
def test_an_answer_without_documents_is_a_typed_failure(handler: Handler, kind: SearchFailureKind, reason: str) -> None:
    failure = failure_of(handler, timeout_s=5.0)
    assert failure.kind is kind and reason in str(failure)


def test_a_server_that_does_not_answer_is_a_timeout() -> None:
    async def handler(asked: web.Request) -> web.Response:
        await asyncio.sleep(30)
        raise AssertionError

    failure = failure_of(handler, timeout_s=0.2)
    assert failure.kind is SearchFailureKind.timeout and "no answer within 0.2 s" in str(failure)


def test_a_port_where_nobody_listens_is_unavailable_with_the_systems_reason() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(SearchFailure, match="refused") as caught:
            search_all(settings(url), request())
    assert caught.value.kind is SearchFailureKind.unavailable and url in str(caught.value)


def test_an_answer_that_has_no_end_is_invalid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_client, "_MAX_ANSWER_BYTES", 2**20)
    failure = failure_of(reply(200, "x" * (2**20 + 1)))
    assert failure.kind is SearchFailureKind.invalid and "more than 1 MiB" in str(failure)


@pytest.mark.parametrize(
    ("status", "retry_after", "least_s"),
    [
        (429, "1", [1.0, 1.0, 1.0, 1.0]),
        (503, "", [0.5, 1.0, 2.0, 4.0]),
        (503, "0", [0.5, 1.0, 2.0, 4.0]),
        (503, "Wed, 21 Oct 2015 07:28:00 GMT", [0.5, 1.0, 2.0, 4.0]),
    ],
)
def test_a_busy_server_is_asked_again_after_the_pause_that_it_names(
    status: int, retry_after: str, least_s: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    sleep = asyncio.sleep

    async def remember(delay: float) -> None:
        pauses.append(delay)
        await sleep(0)

    calls = []

    async def handler(asked: web.Request) -> web.Response:
        calls.append(1)
        if len(calls) <= len(least_s):
            return web.Response(status=status, headers={"Retry-After": retry_after} if retry_after else {})
        return await echo(asked)

    with serving(app_of(handler)) as url:
        monkeypatch.setattr(http_client.asyncio, "sleep", remember)
        (result,) = search_all(settings(url), request())
    assert len(result.documents) == 2 and len(calls) == 5
    # What comes after them is not the client's.
    assert all(least <= pause <= 1.25 * least for least, pause in zip(least_s, pauses, strict=False))


def test_a_pause_can_be_named_as_a_date() -> None:
    assert http_client.asked_pause_s("Wed, 21 Oct 2015 07:28:00 GMT") == 0.0
    assert http_client.asked_pause_s("Fri, 01 Jan 2100 00:00:00 GMT") > 1e8
    assert http_client.asked_pause_s("soon") is None


def test_a_pause_that_is_no_number_or_a_huge_one_is_no_crash() -> None:
    assert http_client.asked_pause_s("\u00b2") is None
    assert http_client.asked_pause_s("9" * 400) == float("inf")


def test_a_connection_that_the_server_has_closed_meanwhile_is_no_failure() -> None:
    answer = json.dumps({"result": [["Lima."]]}).encode()
    connections = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(1)
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if b"content-length" in line)
        await reader.readexactly(length)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(answer), answer))
        await reader.read(1)  # The next request has begun to arrive: too late.
        writer.close()

    async def run() -> list[SearchResult]:
        server = await asyncio.start_server(handle, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        engine = RetrieverSearch(settings(url), {})
        results = [await engine.search(request()) for _ in range(2)]
        await engine.aclose()
        server.close()
        return results

    assert [result.documents[0].text for result in asyncio.run(run())] == ["Lima.", "Lima."]
    assert len(connections) == 2


def test_the_token_comes_from_the_environment_and_is_shown_nowhere() -> None:
    seen = []

    async def handler(asked: web.Request) -> web.Response:
        seen.append(asked.headers["Authorization"])
        return web.Response(status=403, text=f"not you: {asked.headers['Authorization']}")

    with serving(app_of(handler)) as url, pytest.raises(SearchFailure) as caught:
        search_all(settings(url, token_variable="MY_TOKEN"), request(), environment={"MY_TOKEN": TOKEN})
    assert seen == [f"Bearer {TOKEN}"]
    assert "not you: Bearer ***" in str(caught.value)
    assert TOKEN not in "".join(traceback.format_exception(caught.value))


def test_a_token_variable_that_is_not_set_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match=r"search\.token_variable=MY_TOKEN, but the environment variable MY_TOKEN"):
        RetrieverSearch(settings("http://127.0.0.1:1", token_variable="MY_TOKEN"), {})


@pytest.mark.parametrize("batch_window_s", [0.0, 0.01])
def test_a_server_is_tried_with_the_query_of_a_run_and_asked_again_from_another_event_loop(
    batch_window_s: float,
) -> None:
    asked = []

    async def handler(request: web.Request) -> web.Response:
        asked.append(await request.json())
        return await echo(request)

    async def search() -> SearchResult:
        try:
            return await engine.search(request())
        finally:
            await engine.aclose()

    with serving(app_of(handler)) as url:
        engine = RetrieverSearch(settings(url, num_documents=3, batch_window_s=batch_window_s), {})
        engine.check_served()
        assert asyncio.run(search()).documents
    assert asked[0]["topk"] == 3 and len(asked[0]["queries"]) == 1


def test_a_server_that_does_not_answer_as_it_must_is_refused_with_setting_address_what_came_and_remedy() -> None:
    async def lost(asked: web.Request) -> web.Response:
        return web.Response(status=404, text="no index here")

    with serving(app_of(lost)) as url, pytest.raises(ValueError) as caught:
        RetrieverSearch(settings(url), {}).check_served("evaluation.search")
    told = str(caught.value)
    assert told.startswith(f"evaluation.search.url='{url}' does not answer a query")
    assert "answered with status 404: no index here" in told
    assert "start the server, or mend evaluation.search.url, and evaluation.search.token_variable" in told


def test_no_more_requests_are_under_way_than_configured() -> None:
    running = most = 0

    async def handler(asked: web.Request) -> web.Response:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.02)
        running -= 1
        return await echo(asked)

    with serving(app_of(handler)) as url:
        results = search_all(settings(url, max_concurrency=3), *(request(f"q{number}") for number in range(12)))
    assert most == 3
    assert [result.documents[0].id for result in results] == [f"q{number}/0" for number in range(12)]


def test_searches_within_the_window_go_together_and_each_gets_its_own_documents() -> None:
    sizes = []

    async def handler(asked: web.Request) -> web.Response:
        sizes.append(len((await asked.json())["queries"]))
        return await echo(asked)

    requests = [request(f"q{number}") for number in range(10)] + [request("other", num_documents=1)]
    with serving(app_of(handler)) as url:
        results = search_all(settings(url, batch_window_s=0.05, max_batch_queries=8), *requests)
    assert sorted(sizes) == [1, 2, 8], "one is full, one is what was left, one asks for another number of documents"
    assert [result.documents[0].id for result in results] == [f"{asked.query}/0" for asked in requests]
    assert len(results[-1].documents) == 1


def test_a_cancelled_search_takes_no_other_of_its_request_with_it_and_a_failure_is_the_failure_of_all() -> None:
    async def run(url: str) -> tuple[list[Any], list[Any]]:
        engine = RetrieverSearch(settings(url, batch_window_s=0.05), {})
        first, second = (asyncio.create_task(engine.search(request(query))) for query in ("a", "b"))
        await asyncio.sleep(0.01)
        first.cancel()
        kept = await asyncio.gather(first, second, return_exceptions=True)
        failed = await asyncio.gather(*(engine.search(request("bad")) for _ in range(2)), return_exceptions=True)
        await engine.aclose()
        return kept, failed

    async def handler(asked: web.Request) -> web.Response:
        return web.Response(status=500) if "bad" in await asked.text() else await echo(asked)

    with serving(app_of(handler)) as url:
        (cancelled, kept), failed = asyncio.run(run(url))
    assert isinstance(cancelled, asyncio.CancelledError) and kept.documents[0].id == "b/0"
    assert [failure.kind for failure in failed] == [SearchFailureKind.unavailable] * 2


def test_one_client_serves_one_event_loop_after_another() -> None:
    with serving(app_of(echo)) as url:
        engine = RetrieverSearch(settings(url), {})

        async def run() -> SearchResult:
            try:
                return await engine.search(request())
            finally:
                await engine.aclose()

        assert [len(asyncio.run(run()).documents) for _ in range(2)] == [2, 2]


def test_broken_and_endless_queries_are_sent_in_a_form_that_can_be_read() -> None:
    with serving(app_of(echo)) as url:
        broken, long, empty = search_all(settings(url), request("a\ud800\n b"), request("x" * 10_000), request(" \n "))
    assert broken.documents[0].id == "a? b/0"
    assert broken.documents and len(long.documents[0].id) == 2002
    assert empty.documents == ()
