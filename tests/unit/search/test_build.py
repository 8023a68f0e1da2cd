"""The whole simulator as the settings describe it, against servers on the loopback and without any."""

import asyncio
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from tests.completion_server import CompletionServer, completion
from tests.fakes import CharTokenizer, ScriptedEngine
from zs_nemo.config.endpoints import ApiKind, EndpointPoolConfig, RecordingConfig, RecordingMode
from zs_nemo.config.search import DocumentsPerCompletion, SeedGroup, SimulatedSearchConfig
from zs_nemo.qa.tags import TAG_NAMES
from zs_nemo.rollout.callbacks import SimulatedSearch
from zs_nemo.search.build import Simulator, build_simulator
from zs_nemo.search.text_generators import EngineTextGenerator
from zs_nemo.types.completion import ChatMessage
from zs_nemo.types.generation import SamplingParams
from zs_nemo.types.keys import SampleKey
from zs_nemo.types.search import SearchFailure, SearchFailureKind, SearchRequest, SearchResult

KEY = SampleKey(run_seed=1, step=2, prompt=3, member=4)


def request(num_documents: int = 4, **changes: Any) -> SearchRequest:
    fields = {"query": "capital of Chad", "question": "What is it?", "answers": ("N'Djamena", "Fort-Lamy")}
    return SearchRequest(**{**fields, "key": KEY, "num_documents": num_documents, **changes})


def settings(*endpoints: str, **changes: Any) -> SimulatedSearchConfig:
    pool = EndpointPoolConfig(deadline_s=40.0, request_timeout_s=20.0, first_pause_s=0.01, health_interval_s=0.0)
    fields = {"endpoints": list(endpoints), "served_model": "simulator", "api": ApiKind.chat, "pool": pool}
    return SimulatedSearchConfig(**{**fields, "documents_per_completion": DocumentsPerCompletion.all, **changes})


def speaks(text: Callable[[str], str]) -> Callable[[dict[str, Any]], Any]:
    """Return an answer made of the prompt's last message."""

    async def answer(body: dict[str, Any]) -> web.Response:
        await asyncio.sleep(0)
        return completion(text(body["messages"][-1]["content"]), chat=True)

    return answer


def numbered(prompt: str) -> str:
    """Write as many documents as are asked for, of the kind that is asked for."""
    kind = "noisy" if "went wrong" in prompt else "useful"
    count = int(re.search(r"Write the (\d+) passages", prompt)[1])  # type: ignore[index]
    return "\n".join(f"Doc {number}: {kind} text {number}." for number in range(1, count + 1))


async def search(simulator: Simulator, asked: SearchRequest) -> SearchResult:
    try:
        return await simulator.engine.search(asked)
    finally:
        if simulator.pool is not None:
            await simulator.pool.close()


async def test_all_documents_of_a_search_come_from_one_completion() -> None:
    async with CompletionServer(speaks(numbered)) as server:
        result = await search(build_simulator(settings(server.url)), request())
    assert [each.text for each in result.documents] == [f"useful text {number}." for number in (1, 2, 3, 4)]
    assert len(server.bodies) == 1 and "stop" not in server.bodies[0]
    assert [message["role"] for message in server.bodies[0]["messages"]] == ["system", "user"]
    assert (result.source, result.prompt_tokens, result.noisy, result.defects) == ("simulator", 7, False, {})


async def test_with_a_coin_for_each_document_useful_and_noisy_ones_stand_where_their_coins_fell() -> None:
    flags = (True, False, False, True)
    async with CompletionServer(speaks(numbered)) as server:
        result = await search(build_simulator(settings(server.url)), request(noisy=True, noisy_documents=flags))
    assert [each.noisy for each in result.documents] == list(flags)
    assert [each.text for each in result.documents] == [
        "noisy text 1.",
        "useful text 1.",
        "useful text 2.",
        "noisy text 2.",
    ]
    assert len(server.bodies) == 2 and len({body["seed"] for body in server.bodies}) == 2


async def test_documents_that_are_missing_and_those_that_are_not_there_at_all_are_counted() -> None:
    async with CompletionServer(speaks(lambda prompt: "Doc 1: one.")) as server:
        result = await search(build_simulator(settings(server.url)), request())
        assert [each.text for each in result.documents] == ["one."] and result.defects == {"missing": 3}
        server.answer = speaks(lambda prompt: " \n")
        with pytest.raises(SearchFailure, match="wrote nothing") as failure:
            await search(build_simulator(settings(server.url)), request())
    assert failure.value.kind is SearchFailureKind.empty
    seeds = [body["seed"] for body in server.bodies[1:]]
    assert len(seeds) == len(set(seeds)) == 1 + SimulatedSearchConfig().max_redraws, "each draw has its own seed"


async def test_a_model_that_has_only_thought_has_written_nothing() -> None:
    async def think(body: dict[str, Any]) -> web.Response:
        message = {"role": "assistant", "content": None, "reasoning_content": "Hm."}
        return web.json_response({"choices": [{"message": message, "finish_reason": "length"}]})

    async with CompletionServer(think) as server:
        with pytest.raises(SearchFailure, match="'empty': 1}"):
            await search(build_simulator(settings(server.url, max_redraws=0)), request())


async def test_a_model_that_thinks_before_its_one_document_is_let_to_its_end() -> None:
    def one(**changes: Any) -> SimulatedSearchConfig:
        template = "open"
        return settings(server.url, documents_per_completion=DocumentsPerCompletion.one, template=template, **changes)

    text = "<think>\nIt asks for Chad.\n</think>\n\nN'Djamena is the capital of Chad.\n"
    async with CompletionServer(speaks(lambda prompt: text)) as server:
        result = await search(build_simulator(one()), request(2))
        assert [each.text for each in result.documents] == ["N'Djamena is the capital of Chad."] * 2
        assert result.defects == {"reasoning": 2} and not any("stop" in body for body in server.bodies)
        server.bodies.clear()
        await search(build_simulator(one(stop=["END"])), request(1))
        assert server.bodies[0]["stop"] == ["END"]


async def test_every_hard_text_goes_through_the_server_and_comes_out_harmless() -> None:
    tags = "".join(f"<{name}>x</{name}>" for name in TAG_NAMES)
    hard = f"Doc 1: {tags} \ud800 \x00 \ufffd\nDoc 2: " + "long " * 20_000
    async with CompletionServer(speaks(lambda prompt: hard)) as server:
        result = await search(build_simulator(settings(server.url), tokenizer=CharTokenizer()), request(2))
    first, second = (each.text for each in result.documents)
    assert not set(first) & set("<>\ud800\x00\ufffd") and len(second) <= 48
    assert result.defects == {"control_tag": 2 * len(TAG_NAMES), "broken_unicode": 1, "too_long": 2}


async def test_a_broken_query_reaches_the_server_as_text() -> None:
    async with CompletionServer(speaks(numbered)) as server:
        broken = request(1, query="capital \ud800 of\n</search>Chad", question="", answers=())
        await search(build_simulator(settings(server.url)), broken)
    assert "capital of (search)Chad" in server.bodies[0]["messages"][-1]["content"]


async def test_equal_requests_in_flight_reach_the_server_once() -> None:
    async with CompletionServer(speaks(numbered)) as server:
        simulator = build_simulator(settings(server.url, seed_group=SeedGroup.prompt))
        asked = [replace(request(), key=replace(KEY, member=member)) for member in range(8)]
        results = await asyncio.gather(*(simulator.engine.search(each) for each in asked))
        assert len(server.bodies) == 1 and len({result.documents for result in results}) == 1
        metrics = simulator.metrics()
        assert metrics["search/shared_total"] == 7.0 and metrics["endpoint_0/requests_total"] == 1.0
        assert metrics["endpoint_0/latency_s"] > 0.0
        assert simulator.pool is not None
        await simulator.pool.close()


async def test_what_was_recorded_is_replayed_without_a_server(tmp_path: Path) -> None:
    recording = RecordingConfig(mode=RecordingMode.record, path=str(tmp_path / "answers.jsonl"))
    async with CompletionServer(speaks(numbered)) as server:
        written = await search(build_simulator(settings(server.url, recording=recording)), request())
    replaying = settings(recording=replace(recording, mode=RecordingMode.replay))
    assert not replaying.needs_engines
    simulator = build_simulator(replaying)
    read = await search(simulator, request())
    assert replace(read, latency_s=0.0) == replace(written, latency_s=0.0)
    with pytest.raises(SearchFailure, match="query='another'"):
        await search(simulator, request(query="another"))


async def test_our_own_engine_is_asked_by_its_chat_template() -> None:
    class ChatTokenizer(CharTokenizer):
        chat_template = "there is one"

        def apply_chat_template(self, messages: list[dict[str, str]], **options: Any) -> str:
            assert options == {"tokenize": False, "add_generation_prompt": True}
            return "".join(f"[{each['role']}]{each['content']}" for each in messages) + "[assistant]"

    engine = ScriptedEngine(numbered)
    asked = settings(max_sequence_tokens=4096)
    simulator = build_simulator(asked, engine=engine, tokenizer=ChatTokenizer())
    result = await search(simulator, request(2))
    assert [each.text for each in result.documents] == ["useful text 1.", "useful text 2."]
    assert engine.calls[0][0].startswith("[system]You play") and engine.calls[0][0].endswith("[assistant]")


async def test_a_model_without_a_chat_template_is_told_apart() -> None:
    text = EngineTextGenerator(ScriptedEngine(numbered), CharTokenizer())
    with pytest.raises(ValueError, match=r"search\.api=chat, but the simulator's tokenizer has no chat template"):
        await text.complete((ChatMessage(role="user", content="x"),), SamplingParams(max_tokens=1), 1)


async def test_a_key_comes_from_the_environment_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIMULATOR_KEY", "secret-key-1 ")
    async with CompletionServer(speaks(numbered)) as server:
        await search(build_simulator(settings(server.url, api_key_variable="SIMULATOR_KEY")), request())
    assert server.keys == ["Bearer secret-key-1"]
    monkeypatch.delenv("SIMULATOR_KEY")
    with pytest.raises(ValueError, match=r"search\.api_key_variable=SIMULATOR_KEY.*not set"):
        build_simulator(settings("http://x", api_key_variable="SIMULATOR_KEY"))
    monkeypatch.setenv("SIMULATOR_KEY", "secret\nkey")
    with pytest.raises(ValueError, match="white space or other than ASCII") as error:
        build_simulator(settings("http://x", api_key_variable="SIMULATOR_KEY"))
    assert "secret\nkey" not in str(error.value)


async def test_a_coin_for_each_document_reaches_the_simulator_from_the_callback() -> None:
    async with CompletionServer(speaks(numbered)) as server:
        simulator = build_simulator(settings(server.url))
        callback = SimulatedSearch(simulator.engine, coin_per_document=True)
        result = await callback.search(request(8, noise_probability=0.5))
        assert simulator.pool is not None
        await simulator.pool.close()
    flags = [KEY.uniform(f"noise/{number}") < 0.5 for number in range(8)]
    assert [each.noisy for each in result.documents] == flags and len(set(flags)) == 2
