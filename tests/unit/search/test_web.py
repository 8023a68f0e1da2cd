"""Web search against a stand-in for the API: what is asked, what is kept, what is paid, and that no key gets out."""

import asyncio
import logging
import socket
import traceback
from collections.abc import Awaitable, Callable, Iterator
from typing import Any
from urllib.parse import quote

import pytest
from aiohttp import web

from tests.loopback import serving
from zs_nemo.config.recipe import GrpoRecipeConfig
from zs_nemo.config.remote_search import WebSearchConfig
from zs_nemo.observability.config_file import to_yaml
from zs_nemo.observability.phase import Phase
from zs_nemo.rollout.callbacks import EngineSearch
from zs_nemo.rollout.ledger import SearchLedger
from zs_nemo.rollout.search_call import search_within_deadline
from zs_nemo.search.web import WebSearch
from zs_nemo.types.keys import SampleKey
from zs_nemo.types.search import Document, SearchFailure, SearchFailureKind, SearchRequest, SearchResult

REQUEST = SearchRequest(
    query="capital of Peru",
    question="?",
    answers=("x",),
    key=SampleKey(run_seed=1, step=0, prompt=0, member=0),
    num_documents=3,
)
# With characters that an address spells otherwise.
KEY = "K3Y+v3ry/s3cret=="
ENVIRONMENT = {"SERPAPI_API_KEY": KEY}
RESULTS = {
    "answer_box": {"title": "Peru / Capital", "answer": "Lima"},
    "organic_results": [
        {"title": "Lima", "snippet": "Lima is the capital of Peru.", "link": "https://example.org/lima"},
        {"title": "A video of Lima", "link": "https://example.org/video"},
        {"snippet": "A text without a title."},
        {"title": "Cusco", "snippet": "Once the capital."},
    ],
}
Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy of the machine is for the web, not for a server on loopback."""
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def api(answer: Answer) -> Callable[[], web.Application]:
    def make() -> web.Application:
        app = web.Application()
        app.router.add_get("/search.json", answer)
        return app

    return make


def returning(value: Any, status: int = 200) -> Answer:
    async def answer(asked: web.Request) -> web.Response:
        return web.json_response(value, status=status)

    return answer


def search(url: str, request: SearchRequest = REQUEST, **changes: Any) -> SearchResult:
    async def run() -> SearchResult:
        engine = WebSearch(WebSearchConfig(url=f"{url}/search.json", **changes), environment=ENVIRONMENT)
        try:
            return await engine.search(request)
        finally:
            await engine.aclose()

    return asyncio.run(run())


def test_a_search_is_asked_in_serpapis_form_and_its_results_are_documents_in_search_r1s() -> None:
    seen = []

    async def answer(asked: web.Request) -> web.Response:
        seen.append(dict(asked.query))
        return web.json_response(RESULTS)

    with serving(api(answer)) as url:
        result = search(url)
    assert seen == [{"engine": "google", "q": "capital of Peru", "num": "3", "api_key": KEY}]
    assert result.documents == (
        Document(text='"Peru / Capital"\nLima'),
        Document(text='"Lima"\nLima is the capital of Peru.', id="https://example.org/lima"),
        Document(text='"No title."\nA text without a title.'),
    )
    assert result.source == "web"


def test_the_answer_box_can_be_left_out() -> None:
    with serving(api(returning(RESULTS))) as url:
        result = search(url, answer_box=False)
    assert [document.text.split("\n")[0] for document in result.documents] == ['"Lima"', '"No title."', '"Cusco"']


@pytest.mark.parametrize("value", [{}, {"error": "Google hasn't returned any results for this query."}])
def test_nothing_found_is_an_answer_and_no_failure(value: dict[str, str]) -> None:
    with serving(api(returning(value))) as url:
        assert search(url).documents == ()


async def _echo_error(asked: web.Request) -> web.Response:
    return web.json_response({"error": f"Invalid API key: {asked.query['api_key']} {quote(KEY, safe='')}"}, status=401)


async def _echo_late(asked: web.Request) -> web.Response:
    # The key begins before the cut of what is shown and ends after it.
    return web.Response(status=500, text="x" * 195 + asked.query["api_key"])


async def _echo_in_answer(asked: web.Request) -> web.Response:
    return web.json_response({"error": f"{asked.path_qs} is over your limit"})


async def _echo_redirect(asked: web.Request) -> web.Response:
    raise web.HTTPFound(f"http://127.0.0.1:1/{asked.path_qs}")


async def _echo_no_json(asked: web.Request) -> web.Response:
    return web.Response(text=f"<a href='{asked.path_qs}'>")


async def _never(asked: web.Request) -> web.Response:
    await asyncio.sleep(30)
    raise AssertionError


async def _hang_up(asked: web.Request) -> web.Response:
    assert asked.transport is not None
    asked.transport.abort()
    return web.Response()


async def _busy(asked: web.Request) -> web.Response:
    return web.Response(status=429, text=asked.path_qs, headers={"Retry-After": "60"})


@pytest.fixture
def everything_logged(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    with caplog.at_level(logging.DEBUG):
        yield caplog


def assert_no_key(text: str) -> None:
    for form in (KEY, quote(KEY), quote(KEY, safe=""), "K3Y", "v3ry", "s3cret"):
        assert form not in text


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (_echo_error, SearchFailureKind.invalid),
        (_echo_late, SearchFailureKind.unavailable),
        (_echo_in_answer, SearchFailureKind.invalid),
        (_echo_redirect, SearchFailureKind.invalid),
        (_echo_no_json, SearchFailureKind.invalid),
        (_never, SearchFailureKind.timeout),
        (_hang_up, SearchFailureKind.unavailable),
        (_busy, SearchFailureKind.unavailable),
        (returning([1]), SearchFailureKind.invalid),
        (returning({"organic_results": "x"}), SearchFailureKind.invalid),
    ],
)
def test_the_key_is_in_no_failure_no_stack_and_no_log(
    answer: Answer, kind: SearchFailureKind, everything_logged: pytest.LogCaptureFixture
) -> None:
    with serving(api(answer)) as url:
        try:
            search(url, timeout_s=0.3 if answer is _never else 20.0)
        except SearchFailure as caught:
            failure = caught
        assert failure.kind is kind and f"{url}/search.json" in str(failure)
    assert failure.__cause__ is None and failure.__context__ is None
    assert_no_key("".join(traceback.format_exception(failure)) + repr(failure))
    assert_no_key(everything_logged.text)


def test_the_key_does_not_leak_where_nobody_listens(everything_logged: pytest.LogCaptureFixture) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        with pytest.raises(SearchFailure, match="refused") as caught:
            search(f"http://127.0.0.1:{free.getsockname()[1]}")
    assert caught.value.__context__ is None
    assert_no_key("".join(traceback.format_exception(caught.value)) + everything_logged.text)


def test_the_key_is_not_in_the_dump_of_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERPAPI_API_KEY", KEY)
    dumped = to_yaml(GrpoRecipeConfig(search=WebSearchConfig()))
    assert "api_key_variable: SERPAPI_API_KEY" in dumped
    assert_no_key(dumped)


def test_a_key_that_is_not_set_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match=r"search\.api_key_variable=SERPAPI_API_KEY, but the environment variable"):
        WebSearch(WebSearchConfig(), environment={})


def test_a_key_in_place_of_its_variables_name_is_refused_without_being_repeated() -> None:
    with pytest.raises(ValueError, match="must be the NAME of an environment variable") as caught:
        WebSearchConfig(api_key_variable="4f3a9c")
    assert "4f3a9c" not in str(caught.value)


def test_an_address_that_would_show_the_key_on_its_way_is_refused() -> None:
    with pytest.raises(ValueError, match="in the clear"):
        WebSearchConfig(url="http://example.org/search")
    with pytest.raises(ValueError, match="holds a user part or parameters") as caught:
        WebSearchConfig(url="https://example.org/search?api_key=abc")
    assert "abc" not in str(caught.value)


def test_the_quota_refuses_what_goes_beyond_it_unsent_and_what_a_resumed_run_has_asked_counts(
    caplog: pytest.LogCaptureFixture,
) -> None:
    sent = []

    async def answer(asked: web.Request) -> web.Response:
        sent.append(1)
        return web.Response(status=500) if len(sent) == 1 else web.json_response(RESULTS)

    async def run(url: str) -> list[Any]:
        cfg = WebSearchConfig(url=f"{url}/search.json", max_searches=5)
        engine = WebSearch(cfg, num_searches_before=3, place="evaluation.search", environment=ENVIRONMENT)
        results = [await asyncio.gather(engine.search(REQUEST), return_exceptions=True) for _ in range(4)]
        await engine.aclose()
        return [result for (result,) in results]

    with serving(api(answer)) as url:
        failed, answered, *refused = asyncio.run(run(url))
    assert failed.kind is SearchFailureKind.unavailable and len(answered.documents) == 3 and len(sent) == 2
    assert [failure.kind for failure in refused] == [SearchFailureKind.refused] * 2
    assert "of evaluation.search.max_searches=5 is spent" in str(refused[0])
    assert caplog.text.count("search.max_searches=5 is spent") == 1


def test_a_refused_search_is_not_tried_again() -> None:
    ledger = SearchLedger()
    ledger.phase = Phase.rl

    async def run(url: str) -> list[tuple[SearchResult | None, list[SearchFailure]]]:
        cfg = WebSearchConfig(url=f"{url}/search.json", max_searches=2)
        engine = WebSearch(cfg, num_searches_before=ledger.asked("web"), environment=ENVIRONMENT)
        callback = EngineSearch(ledger.watch(engine))
        tried = [await search_within_deadline(callback, REQUEST, 30.0) for _ in range(3)]
        await engine.aclose()
        return tried

    with serving(api(returning(RESULTS))) as url:
        tried = asyncio.run(run(url))
    assert [result is not None for result, _ in tried] == [True, True, False]
    assert [failure.kind for failure in tried[2][1]] == [SearchFailureKind.refused]
    counts = ledger.counts("web")
    assert (counts.calls, counts.failures) == (2, 0)
    assert SearchLedger(ledger.state()).asked("web") == 2
