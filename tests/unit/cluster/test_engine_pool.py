import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from zs_nemo.cluster.engine_pool import EnginePool
from zs_nemo.types.generation import Completion, CompletionPart, SamplingParams, StopReason

SAMPLING = SamplingParams(max_tokens=4)


class FakeRole:
    """Answers when it is told to."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.calls: list[asyncio.Future[Completion]] = []

    async def call(self, method: str, *arguments: Any) -> Completion:
        assert method == "generate"
        self.calls.append(asyncio.get_running_loop().create_future())
        return await self.calls[-1]

    def answer(self) -> None:
        completion = Completion(
            token_ids=(1, 2), logprobs=(-1.0, -1.0), text="", stop_reason=StopReason.length, weight_version=0
        )
        next(call for call in self.calls if not call.done()).set_result(completion)


def pool_of(*roles: FakeRole) -> EnginePool:
    return EnginePool(roles, [1] * len(roles))  # type: ignore[arg-type]


async def test_the_least_loaded_engine_is_asked() -> None:
    first, second = FakeRole("a"), FakeRole("b")
    pool = pool_of(first, second)
    tasks = [asyncio.create_task(pool.generate([1], SAMPLING, seed)) for seed in range(4)]
    await asyncio.sleep(0)
    assert (len(first.calls), len(second.calls)) == (2, 2)
    second.answer()
    second.answer()
    await asyncio.sleep(0.01)
    tasks += [asyncio.create_task(pool.generate([1], SAMPLING, 9)) for _ in range(2)]
    await asyncio.sleep(0)
    assert (len(first.calls), len(second.calls)) == (2, 4)
    for task in tasks:
        task.cancel()


class StreamingRole(FakeRole):
    """Tells its completion in two parts."""

    async def stream(self, method: str, *arguments: Any) -> AsyncIterator[CompletionPart]:
        assert (method, arguments) == ("stream", ([1, 2, 3], SAMPLING, 7))
        yield CompletionPart(text="a")
        whole = Completion(
            token_ids=(1, 2), logprobs=(-1.0, -1.0), text="ab", stop_reason=StopReason.length, weight_version=0
        )
        yield CompletionPart(text="b", completion=whole)


async def test_a_stream_is_counted_once_it_is_whole_and_its_engine_is_free_again_when_it_is_left() -> None:
    pool = pool_of(StreamingRole("a"))
    left = pool.stream([1, 2, 3], SAMPLING, 7)
    assert (await anext(left)).text == "a"
    await left.aclose()
    assert (pool.usage.num_requests, pool._engines[0].num_running) == (0, 0)
    assert [part.text async for part in pool.stream([1, 2, 3], SAMPLING, 7)] == ["a", "b"]
    usage = pool.usage
    assert (usage.num_requests, usage.prompt_tokens, usage.completion_tokens) == (1, 3, 2)


async def test_tokens_and_busy_time_are_counted() -> None:
    role = FakeRole("a")
    pool = pool_of(role)
    tasks = [asyncio.create_task(pool.generate([1, 2, 3], SAMPLING, seed)) for seed in range(2)]
    await asyncio.sleep(0.05)
    role.answer()
    role.answer()
    await asyncio.gather(*tasks)
    await asyncio.sleep(0.1)
    assert pool.usage.num_requests == 2
    assert (pool.usage.prompt_tokens, pool.usage.completion_tokens) == (6, 4)
    assert 0.04 < pool.usage.busy_s < 0.1, "overlapping requests count once, idle time not at all"


async def test_a_failed_request_frees_its_place_and_counts_no_tokens() -> None:
    role = FakeRole("a")
    pool = pool_of(role, FakeRole("b"))
    task = asyncio.create_task(pool.generate([1], SAMPLING, 0))
    await asyncio.sleep(0)
    role.calls[0].set_exception(RuntimeError("died"))
    with pytest.raises(RuntimeError, match="died"):
        await task
    assert pool.usage.num_requests == 0
    again = asyncio.create_task(pool.generate([1], SAMPLING, 0))
    await asyncio.sleep(0)
    assert len(role.calls) == 2
    again.cancel()


def test_threads_are_set_back_afterwards_but_not_in_the_way_of_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Any, ...]] = []
    pool = pool_of(FakeRole("a"))
    monkeypatch.setattr(pool, "_call_all", lambda *call: calls.append(call))
    with pool.threads(2, afterwards=1):
        assert calls == [("set_threads", 2)]
    assert calls == [("set_threads", 2), ("set_threads", 1)]
    with pytest.raises(RuntimeError, match="the engine died"), pool.threads(2, afterwards=1):
        raise RuntimeError("the engine died")
    assert calls[2:] == [("set_threads", 2)]
