"""Equal searches are asked once, and sharing never changes an answer."""

import asyncio
from dataclasses import replace

import pytest

from tests.fakes import FixedSearch
from zs_nemo.config.search import SeedGroup
from zs_nemo.search.sharing import SharedSearch, shared_request
from zs_nemo.types.keys import SampleKey
from zs_nemo.types.search import Document, SearchFailure, SearchRequest, SearchResult

KEY = SampleKey(run_seed=1, step=2, prompt=3, member=0, turn=1)


def request(query: str = "capital of Chad", **key: int) -> SearchRequest:
    return SearchRequest(
        query=query,
        question="What is the capital of Chad?",
        answers=("N'Djamena",),
        key=replace(KEY, **key),
        num_documents=1,
        noise_probability=0.25,
    )


class DrawingSearch:
    """Answers with its request's draw, after a pause in which others come."""

    name = "drawing"

    def __init__(self) -> None:
        self.calls = 0
        self.gate: asyncio.Event | None = None
        self.given_up = 0

    async def search(self, request: SearchRequest) -> SearchResult:
        self.calls += 1
        try:
            await (self.gate.wait() if self.gate else asyncio.sleep(0))
        except asyncio.CancelledError:
            self.given_up += 1
            raise
        text = f"{request.query} {request.noisy} {request.key.seed('draw')}"
        return SearchResult(documents=(Document(text=text),), source=self.name, prompt_tokens=9, completion_tokens=4)


def text(result: SearchResult) -> str:
    return result.documents[0].text


async def test_equal_searches_under_way_reach_the_engine_once_and_cost_tokens_once() -> None:
    engine = DrawingSearch()
    shared = SharedSearch(engine, SeedGroup.prompt)
    results = await asyncio.gather(*(shared.search(request(member=member)) for member in range(6)))
    assert engine.calls == 1 and len({text(result) for result in results}) == 1
    assert sorted(result.prompt_tokens for result in results) == [0, 0, 0, 0, 0, 9]
    statistics = shared.statistics
    assert (statistics.asked, statistics.shared, statistics.cached) == (1, 5, 0)
    assert (statistics.saved_prompt_tokens, statistics.saved_completion_tokens) == (45, 20)
    await shared.search(request(member=7))
    assert engine.calls == 2, "nothing is kept without a cache"


@pytest.mark.parametrize(
    "other",
    [
        request("capital of Mali"),
        replace(request(), question="Q?"),
        replace(request(), answers=("X",)),
        replace(request(), noisy=True),
        replace(request(), noisy_documents=(True,)),
        replace(request(), num_documents=2),
        replace(request(), attempt=1),
        request(turn=0),
        request(run_seed=5),
    ],
)
async def test_searches_that_differ_are_not_shared(other: SearchRequest) -> None:
    engine = DrawingSearch()
    shared = SharedSearch(engine, SeedGroup.run)
    await asyncio.gather(shared.search(request()), shared.search(other))
    assert engine.calls == 2


async def test_seed_groups_say_how_far_equal_searches_go() -> None:
    others = {
        "the same": request(),
        "another turn": request(turn=2),
        "another member": request(member=5),
        "another prompt": request(prompt=9),
        "another step": request(step=9),
    }
    equal = {
        group: [
            name for name, other in others.items() if shared_request(other, group) == shared_request(request(), group)
        ]
        for group in SeedGroup
    }
    assert equal[SeedGroup.request] == ["the same"]
    assert equal[SeedGroup.prompt] == ["the same", "another turn", "another member"]
    assert equal[SeedGroup.run] == list(others)


async def test_by_default_a_search_keeps_its_own_draw() -> None:
    engine = DrawingSearch()
    shared = SharedSearch(engine, SeedGroup.request)
    alone = [text(await DrawingSearch().search(request(member=member))) for member in range(3)]
    together = await asyncio.gather(*(shared.search(request(member=member)) for member in range(3)))
    assert [text(result) for result in together] == alone and engine.calls == 3


async def test_what_comes_from_the_cache_is_what_would_have_been_drawn() -> None:
    cached, plain = SharedSearch(DrawingSearch(), SeedGroup.run, 10), SharedSearch(DrawingSearch(), SeedGroup.run)
    for step in range(3):
        asked = request(step=step, member=step)
        assert text(await cached.search(asked)) == text(await plain.search(asked))
    assert (cached.statistics.asked, cached.statistics.cached, plain.statistics.asked) == (1, 2, 3)


async def test_the_cache_drops_what_was_used_least_recently() -> None:
    engine = DrawingSearch()
    shared = SharedSearch(engine, SeedGroup.run, 2)
    for query in ("a", "b", "a", "c", "a", "b"):
        await shared.search(request(query))
    assert engine.calls == 4, "b had to go for c"


async def test_a_failure_is_told_to_all_who_wait_and_is_not_kept() -> None:
    shared = SharedSearch(FixedSearch(failures=1), SeedGroup.run, 10)
    results = await asyncio.gather(*(shared.search(request()) for _ in range(3)), return_exceptions=True)
    assert all(isinstance(result, SearchFailure) for result in results)
    assert text(await shared.search(request())).startswith("Paris")


async def test_who_is_cancelled_ends_the_call_only_if_nobody_else_waits() -> None:
    engine = DrawingSearch()
    engine.gate = asyncio.Event()
    shared = SharedSearch(engine, SeedGroup.run)
    first, second = (asyncio.ensure_future(shared.search(request())) for _ in range(2))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    assert engine.given_up == 0
    second.cancel()
    await asyncio.gather(second, return_exceptions=True)
    await asyncio.sleep(0)
    assert engine.given_up == 1
    engine.gate.set()
    assert text(await shared.search(request())), "a call that was cancelled is not joined"
    assert engine.calls == 2


async def test_a_call_that_is_cancelled_before_it_began_leaves_nothing_behind() -> None:
    engine = DrawingSearch()
    shared = SharedSearch(engine, SeedGroup.run)
    task = asyncio.ensure_future(shared.search(request()))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert text(await shared.search(request()))
