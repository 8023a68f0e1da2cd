"""Noise, seeds, curriculum and what the server's other neighbours see: our own client, a simulator, a signal."""

import asyncio
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from aiohttp import web

from tests.fakes import CharTokenizer, FixedSearch, ScriptedEngine
from tests.loopback import serving
from tests.unit.search.test_simulator import DEMONSTRATIONS
from zs_nemo.config.remote_search import RetrieverSearchConfig
from zs_nemo.config.rollout import CoinScope, CurriculumConfig
from zs_nemo.config.server import ServerConfig, ServerNoiseConfig
from zs_nemo.curriculum import NoiseCurriculum
from zs_nemo.search.retriever import RetrieverSearch
from zs_nemo.search.server import SearchServer, listen
from zs_nemo.search.server_noise import ServerNoise
from zs_nemo.search.simulator import SimulatedSearchEngine
from zs_nemo.types.keys import SampleKey
from zs_nemo.types.search import Document, SearchEngine, SearchFailure, SearchFailureKind, SearchRequest, SearchResult

CLIENT = httpx.Client(timeout=30, trust_env=False, verify=False)
CURRICULUM = NoiseCurriculum.from_config(CurriculumConfig(start_noise=0.1, end_noise=0.9), max_steps=10)


@contextmanager
def served(
    engine: SearchEngine,
    *,
    noise_at: Callable[[int], float] | None = CURRICULUM.noise_at,
    coin: CoinScope = CoinScope.query,
    coin_per_document: bool = False,
    **changes: Any,
) -> Iterator[str]:
    settings = ServerConfig(**changes)

    def app() -> web.Application:
        server = SearchServer(
            engine,
            settings,
            num_documents=1,
            noise=ServerNoise(settings.noise, noise_at, seed=5, coin=coin, coin_per_document=coin_per_document),
        )
        return server.app()

    with serving(app, handler_cancellation=True) as url:
        yield url


def asked_of(engine: FixedSearch, url: str, body: dict[str, Any], parameters: str = "") -> list[SearchRequest]:
    """Post ``body`` and return what reached the engine, in the order of the queries."""
    engine.requests.clear()
    response = CLIENT.post(f"{url}/retrieve{parameters}", json=body)
    assert response.status_code == 200, response.text
    queries = body.get("queries") or [body["query"]]
    return sorted(engine.requests, key=lambda request: queries.index(request.query))


@pytest.fixture(scope="module")
def engine() -> FixedSearch:
    return FixedSearch()


@pytest.fixture(scope="module")
def url(engine: FixedSearch) -> Iterator[str]:
    with served(engine) as address:
        yield address


def test_question_gold_answers_and_turn_reach_the_engine_with_their_query(url: str, engine: FixedSearch) -> None:
    body = {"queries": ["a", "b"], "questions": ["A?", "B?"], "answers": [["1", "2"], []], "turns": [0, 1], "topk": 4}
    first, second = asked_of(engine, url, body)
    assert (first.question, first.answers, first.key.turn, first.num_documents) == ("A?", ("1", "2"), 0, 4)
    assert (second.question, second.answers, second.key.turn) == ("B?", (), 1)
    (single,) = asked_of(engine, url, {"query": "a", "question": "A?", "answers": ["1"], "turn": 2, "top_k": 2})
    assert (single.question, single.answers, single.key.turn, single.num_documents) == ("A?", ("1",), 2, 2)


@pytest.mark.parametrize(
    ("body", "parameters", "noises"),
    [
        ({}, "", [0.0, 0.0]),
        ({"noise": 0.3}, "", [0.3, 0.3]),
        ({"noise": [0.0, 1]}, "", [0.0, 1.0]),
        ({"noisy": True}, "", [1.0, 1.0]),
        ({"noisy": [False, True]}, "", [0.0, 1.0]),
        ({"step": 0}, "", [0.1, 0.1]),
        ({"step": 10}, "", [0.9, 0.9]),
        ({"step": 99}, "", [0.9, 0.9]),
        ({}, "?noise=0.25", [0.25, 0.25]),
        ({}, "?step=10", [0.9, 0.9]),
        ({"noise": 0.5}, "?step=10", [0.5, 0.5]),
        ({"noisy": False}, "?noise=1", [0.0, 0.0]),
    ],
)
def test_noise_is_what_the_request_its_step_or_its_address_says(
    url: str, engine: FixedSearch, body: dict[str, Any], parameters: str, noises: list[float]
) -> None:
    requests = asked_of(engine, url, {"queries": ["a", "b"]} | body, parameters)
    assert [request.noise_probability for request in requests] == pytest.approx(noises)
    assert all(request.noisy is bool(noise) for request, noise in zip(requests, noises, strict=True) if noise in (0, 1))


@pytest.mark.parametrize("parameters", ["?noise=2", "?noise=x", "?topk=3", "?noise=0.5&step=1"])
def test_an_address_with_nonsense_is_refused(url: str, parameters: str) -> None:
    response = CLIENT.post(f"{url}/retrieve{parameters}", json={"queries": ["a"]})
    assert response.status_code == 422 and response.json()["error"]


def test_coins_fall_with_the_probability_that_was_asked_for(url: str, engine: FixedSearch) -> None:
    requests = asked_of(engine, url, {"queries": [f"q{number}" for number in range(400)], "noise": 0.3})
    assert 0.2 < sum(request.noisy for request in requests) / 400 < 0.4


def test_every_document_can_have_a_coin_of_its_own(engine: FixedSearch) -> None:
    body = {"queries": [f"q{number}" for number in range(40)], "topk": 10, "noise": 0.3}
    with served(engine, coin_per_document=True) as url:
        requests = asked_of(engine, url, body)
        sure = asked_of(engine, url, {"queries": ["a", "b"], "topk": 2, "noisy": [True, False]})
    flags = [request.noisy_documents for request in requests]
    assert all(len(each) == 10 for each in flags) and 0.2 < sum(map(sum, flags)) / 400 < 0.4
    assert any(0 < sum(each) < 10 for each in flags)
    assert [request.noisy for request in requests] == [any(each) for each in flags]
    assert [request.noisy_documents for request in sure] == [(True, True), (False, False)]


def test_the_samples_of_a_question_can_share_the_coin_of_a_turn(engine: FixedSearch) -> None:
    queries = [f"q{number}" for number in range(80)]
    questions = [f"Question {number // 4}?" for number in range(80)]

    def coins(url: str, turn: int = 0, **more: Any) -> list[bool]:
        body = {"queries": queries, "questions": questions, "turns": [turn] * 80, "noise": 0.5} | more
        tossed = [request.noisy for request in asked_of(engine, url, body)]
        groups = [tossed[first : first + 4] for first in range(0, 80, 4)]
        assert all(len(set(group)) == 1 for group in groups)
        return [group[0] for group in groups]

    with served(engine, coin=CoinScope.group) as url:
        first = coins(url)
        assert 5 <= sum(first) <= 15 and first != coins(url), "without a step every request has coins of its own"
        assert coins(url, seed=3) == coins(url, seed=3) != coins(url, seed=4)
        assert coins(url, seed=3) != coins(url, seed=3, turn=1)
        alone = asked_of(engine, url, {"queries": queries, "noise": 0.5})
        assert len({request.noisy for request in alone[:20]}) == 2, "nothing is known of a search without its question"


def test_samples_that_are_asked_one_by_one_share_the_coin_of_their_step(engine: FixedSearch) -> None:
    with served(engine, coin=CoinScope.group, noise_at=lambda step: 0.5) as url:
        body = {"query": "q", "question": "A?"}
        tossed = [{asked_of(engine, url, body | {"step": step})[0].noisy for _ in range(4)} for step in range(12)]
    assert all(len(coins) == 1 for coins in tossed) and len(set.union(*tossed)) == 2


def test_a_seed_repeats_coins_and_draws_and_without_one_they_differ(url: str, engine: FixedSearch) -> None:
    body = {"queries": [f"q{number}" for number in range(40)], "noise": 0.5}

    def draws(**more: int) -> list[tuple[SampleKey, bool]]:
        return [(request.key, request.noisy) for request in asked_of(engine, url, body | more)]

    assert draws(seed=7) == draws(seed=7)
    assert [noisy for _, noisy in draws(seed=7)] != [noisy for _, noisy in draws(seed=8)]
    assert not {key for key, _ in draws()} & {key for key, _ in draws()}
    assert [request.key for request in asked_of(engine, url, body, "?seed=7")] == [key for key, _ in draws(seed=7)]


def test_for_a_trainer_that_names_no_step_the_curriculum_follows_the_number_of_searches(
    engine: FixedSearch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "zs_nemo.search.server_noise")
    noise = ServerNoiseConfig(searches_per_step=4, first_step=3)
    with served(engine, noise=noise) as url:
        seen = []
        for _ in range(3):
            seen += asked_of(engine, url, {"queries": ["a", "b"]})
            # Nothing is asked for these, and they are not counted.
            CLIENT.post(f"{url}/retrieve", json={"queries": ["", " \n", ""]})
        asked_of(engine, url, {"queries": ["c"], "noise": 0.0})
        health = CLIENT.get(f"{url}/health").json()
    assert [request.key.step for request in seen] == [3, 3, 3, 3, 4, 4]
    expected = [CURRICULUM.noise_at(3)] * 4 + [CURRICULUM.noise_at(4)] * 2
    assert [request.noise_probability for request in seen] == pytest.approx(expected)
    # The last search has a noise of its own and is not counted.
    assert (health["step"], health["noise"]) == (4, CURRICULUM.noise_at(4))
    told = [record.getMessage() for record in caplog.records if record.name == "zs_nemo.search.server_noise"]
    assert told == [f"the curriculum has come to step 4: P(noisy) is {CURRICULUM.noise_at(4):.3f}"]


def test_a_request_that_finds_no_room_does_not_move_the_curriculum_on() -> None:
    has_room = threading.Event()

    class Full(FixedSearch):
        async def search(self, request: SearchRequest) -> SearchResult:
            await asyncio.to_thread(has_room.wait, 10)
            return await super().search(request)

    noise = ServerNoiseConfig(searches_per_step=3)
    with (
        served(Full(), noise=noise, max_concurrency=1, max_queue=1, max_queries=2) as url,
        ThreadPoolExecutor(1) as pool,
    ):
        under_way = pool.submit(CLIENT.post, f"{url}/retrieve", json={"queries": ["a", "b"]})
        while not CLIENT.get(f"{url}/health").json()["in_flight"]:
            time.sleep(0.01)
        refused = [CLIENT.post(f"{url}/retrieve", json={"queries": ["c", "d"]}).status_code for _ in range(4)]
        has_room.set()
        assert under_way.result().status_code == 200 and refused == [429] * 4
        assert CLIENT.get(f"{url}/health").json()["step"] == 0, "two searches were counted, not ten"


def test_a_seed_repeats_its_draws_also_when_the_count_of_searches_has_gone_on(engine: FixedSearch) -> None:
    body = {"queries": ["a", "b"], "seed": 7}
    with served(engine, noise=ServerNoiseConfig(searches_per_step=2)) as url:
        first, again = ([request.key for request in asked_of(engine, url, body)] for _ in range(2))
        assert first == again
        named = [request.key for request in asked_of(engine, url, body | {"step": 3})]
        assert [key.step for key in named] == [3, 3], "a step that the request names is part of it"


def test_a_real_engine_refuses_noise_and_takes_a_step_for_what_it_is(engine: FixedSearch) -> None:
    with served(engine, noise_at=None) as url:
        for body in ({"noise": 0.5}, {"noisy": True}):
            response = CLIENT.post(f"{url}/retrieve", json={"queries": ["a"]} | body)
            assert response.status_code == 422 and "real one" in response.json()["error"]
        (request,) = asked_of(engine, url, {"queries": ["a"], "step": 10})
        assert (request.noise_probability, request.noisy) == (0.0, False)
        asked_of(engine, url, {"queries": ["a"], "noisy": False})


def test_a_simulator_writes_about_the_query_of_a_client_that_sends_nothing_else() -> None:
    model = ScriptedEngine(lambda prompt: f" Written about{prompt.rsplit('Text about', 1)[1]}\n")
    simulator = SimulatedSearchEngine(model, CharTokenizer(), DEMONSTRATIONS, temperature=0.5, max_tokens=200)
    bodies = [{"queries": ["currency of Chad"], "noisy": noisy} for noisy in (False, True)]
    with served(simulator) as url:
        answers = [CLIENT.post(f"{url}/retrieve", json=body).json()["result"] for body in bodies]
    (((useful,),), ((noisy,),)) = answers
    assert useful["text"] == "Written about currency of Chad:"
    assert noisy["text"].removeprefix("Written about ") in ("Lima:", "zinc:", "N'Djamena City:")


def test_our_client_and_our_server_understand_each_other() -> None:
    texts = ("One line.", '"Lima"\nLima is the capital of Peru.', "Two\nlines.")
    request = SearchRequest(
        query="capital of Peru",
        question="?",
        answers=("x",),
        key=SampleKey(run_seed=1, step=0, prompt=0, member=0),
        num_documents=3,
    )

    async def run(url: str, **changes: Any) -> list[SearchResult]:
        client = RetrieverSearch(RetrieverSearchConfig(url=url, **changes), {})
        try:
            return await asyncio.gather(*(client.search(request) for _ in range(5)))
        finally:
            await client.aclose()

    with served(FixedSearch(texts=texts)) as url:
        for changes in ({}, {"return_scores": False}, {"batch_window_s": 0.02}):
            for result in asyncio.run(run(url, **changes)):
                assert result.documents == tuple(Document(text=text) for text in texts)
    failing = FixedSearch(failures=100)
    with served(failing, max_attempts=1) as url, pytest.raises(SearchFailure, match="busy") as caught:
        asyncio.run(run(url, timeout_s=1.0))
    assert caught.value.kind is SearchFailureKind.unavailable and "not yet" in str(caught.value)


def test_a_signal_lets_what_is_under_way_end_and_refuses_what_comes() -> None:
    class Slow(FixedSearch):
        async def search(self, request: SearchRequest) -> SearchResult:
            result = await super().search(request)
            await asyncio.sleep(0.5)
            return result

    async def run() -> None:
        engine = Slow()
        listening = listen("127.0.0.1", 0)
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        server = asyncio.create_task(SearchServer(engine, ServerConfig(), num_documents=1).serve(listening))
        async with httpx.AsyncClient(base_url=url, timeout=30, trust_env=False, verify=False) as client:
            under_way = asyncio.create_task(client.post("/retrieve", json={"queries": ["a"]}))
            while not engine.requests:
                await asyncio.sleep(0.01)
            os.kill(os.getpid(), signal.SIGTERM)
            while (health := await client.get("/health")).status_code == 200:
                await asyncio.sleep(0.01)
            refused = await client.post("/retrieve", json={"queries": ["b"]})
            assert health.json()["ready"] is False
            assert refused.status_code == 503 and int(refused.headers["Retry-After"]) > 0
            assert "shutting down" in refused.json()["error"]
            assert (await under_way).status_code == 200
        await asyncio.wait_for(server, 10)
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(*url.removeprefix("http://").split(":"))

    asyncio.run(run())


def test_a_second_signal_does_not_wait() -> None:
    class Stuck(FixedSearch):
        async def search(self, request: SearchRequest) -> SearchResult:
            await super().search(request)
            await asyncio.sleep(60)
            raise AssertionError

    async def run() -> None:
        engine = Stuck()
        listening = listen("127.0.0.1", 0)
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        server = asyncio.create_task(SearchServer(engine, ServerConfig(), num_documents=1).serve(listening))
        async with httpx.AsyncClient(base_url=url, timeout=30, trust_env=False, verify=False) as client:
            stuck = asyncio.create_task(client.post("/retrieve", json={"queries": ["a"]}))
            while not engine.requests:
                await asyncio.sleep(0.01)
            os.kill(os.getpid(), signal.SIGINT)
            await asyncio.sleep(0.1)
            assert not server.done()
            os.kill(os.getpid(), signal.SIGINT)
            await asyncio.wait_for(server, 5)
            assert isinstance((await asyncio.gather(stuck, return_exceptions=True))[0], httpx.TransportError)

    asyncio.run(run())


def test_a_port_in_use_is_refused_with_its_setting() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=rf"server\.port={port} cannot be listened on \(Address already in use\)"):
            listen("127.0.0.1", port)
    with pytest.raises(ValueError, match=r"server\.host=no\.such\.host\.invalid"):
        listen("no.such.host.invalid", 0)
