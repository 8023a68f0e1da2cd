import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import nullcontext
from typing import Any

import pytest

from zs_nemo.cluster import engine_pool
from zs_nemo.cluster.engine_pool import EnginePool
from zs_nemo.cluster.roles import RoleError
from zs_nemo.types.generation import Completion, CompletionPart, SamplingParams, StopReason

SAMPLING = SamplingParams(max_tokens=4)


class FakeRole:
    """Answers when it is told to."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.calls: list[asyncio.Future[Completion]] = []
        self.asked: list[tuple[Any, ...]] = []

    async def call(self, method: str, *arguments: Any) -> Completion:
        assert method == "generate"
        self.asked.append(arguments)
        self.calls.append(asyncio.get_running_loop().create_future())
        return await self.calls[-1]

    def answer(self) -> None:
        completion = Completion(
            token_ids=(1, 2), logprobs=(-1.0, -1.0), text="", stop_reason=StopReason.length, weight_version=0
        )
        next(call for call in self.calls if not call.done()).set_result(completion)


class FakeReplacer:
    """Starts engines that are called like the dead ones, with a star; the budget is what it is given."""

    def __init__(
        self, budget: int, start: Callable[[], None] = lambda: None, new: Callable[[str], FakeRole] = FakeRole
    ) -> None:
        self.budget = budget
        self._new = new
        self.started: list[FakeRole] = []
        self._start = start

    def claim(self, error: RoleError) -> None:
        if not self.budget:
            raise error
        self.budget -= 1

    def replace(self, dead: FakeRole) -> FakeRole:
        self._start()
        self.started.append(self._new(dead.name + "*"))
        return self.started[-1]


def death(of: str = "a") -> RoleError:
    error = RoleError(f"{of} failed in generate: its process died")
    error.died = True
    return error


async def until(condition: Callable[[], object]) -> None:
    for _ in range(200):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it did not come to that")


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


async def test_what_a_dead_engine_was_asked_is_asked_again_with_the_same_seed() -> None:
    role, replacer, loaded = FakeRole("a"), FakeReplacer(1), []
    pool = EnginePool([role], [1], replacer=replacer, load_weights=lambda new, version: loaded.append(version))  # type: ignore[list-item, arg-type]
    pool._version = 7
    tasks = [asyncio.create_task(pool.generate([1], SAMPLING, seed)) for seed in range(3)]
    await asyncio.sleep(0)
    for call in role.calls:
        call.set_exception(death())
    await until(lambda: replacer.started and len(replacer.started[0].calls) == 3)
    assert loaded == [7], "one replacement, with the weights that the others have"
    (new,) = replacer.started
    assert sorted(arguments[2] for arguments in new.asked) == [0, 1, 2]
    for _ in tasks:
        new.answer()
    await asyncio.gather(*tasks)
    assert pool.usage.num_requests == 3 and pool.num_replaced == 1 and pool.roles == [new]


class DyingStream(FakeRole):
    """Dies after it has told ``num_parts``."""

    def __init__(self, num_parts: int) -> None:
        super().__init__("a")
        self._num_parts = num_parts

    async def stream(self, method: str, *arguments: Any) -> AsyncIterator[CompletionPart]:
        for _ in range(self._num_parts):
            yield CompletionPart(text="a")
        raise death()


async def test_a_stream_is_begun_again_unless_somebody_has_seen_a_part_of_it() -> None:
    for num_parts, told in ((0, ["a", "b"]), (1, ["a"])):
        pool = EnginePool([DyingStream(num_parts)], [1], replacer=FakeReplacer(1, new=StreamingRole))  # type: ignore[list-item, arg-type]
        seen = []
        with nullcontext() if not num_parts else pytest.raises(RoleError, match="its process died"):
            async for part in pool.stream([1, 2, 3], SAMPLING, 7):
                seen.append(part.text)
        assert seen == told
        await until(lambda pool=pool: pool.num_replaced)


async def test_the_others_go_on_while_an_engine_is_replaced() -> None:
    dead, other, go = FakeRole("a"), FakeRole("b"), threading.Event()
    replacer = FakeReplacer(1, start=lambda: wait_for(go))
    pool = EnginePool([dead, other], [1, 1], replacer=replacer)  # type: ignore[list-item, arg-type]
    task = asyncio.create_task(pool.generate([1], SAMPLING, 5))
    await asyncio.sleep(0)
    dead.calls[0].set_exception(death())
    await until(lambda: len(other.calls) == 1)
    other.answer()
    await task
    assert not replacer.started
    go.set()
    await until(lambda: pool.num_replaced)


def wait_for(event: threading.Event) -> None:
    assert event.wait(5)


async def test_a_death_beyond_the_budget_is_raised_by_every_request() -> None:
    role = FakeRole("a")
    pool = EnginePool([role], [1], replacer=FakeReplacer(0))  # type: ignore[list-item, arg-type]
    tasks = [asyncio.create_task(pool.generate([1], SAMPLING, seed)) for seed in range(2)]
    await asyncio.sleep(0)
    for call in role.calls:
        call.set_exception(death())
    for task in tasks:
        with pytest.raises(RoleError, match="a failed in generate"):
            await task


async def test_an_engine_that_cannot_be_started_again_costs_one_more_of_the_budget_each_time() -> None:
    failures = iter([death("a*"), death("a*")])

    def start() -> None:
        error = next(failures, None)
        if error is not None:
            raise error

    role, replacer = FakeRole("a"), FakeReplacer(3, start=start)
    pool = EnginePool([role], [1], replacer=replacer)  # type: ignore[list-item, arg-type]
    task = asyncio.create_task(pool.generate([1], SAMPLING, 0))
    await asyncio.sleep(0)
    role.calls[0].set_exception(death())
    await until(lambda: replacer.started and replacer.started[0].calls)
    replacer.started[0].answer()
    await task
    assert replacer.budget == 0


class CalledRole(FakeRole):
    """Is called for other things than completions."""

    def submit(self, method: str, *arguments: Any) -> str:
        return self.name


def test_an_engine_that_hangs_in_a_call_is_waited_for_until_the_watchdog_has_ended_it_and_then_replaced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def gather(roles: list[FakeRole], names: list[str], method: str, timeout_s: float | None = None) -> None:
        if names == ["a"]:
            raise death() if timeout_s is None else TimeoutError(f"no answer within {timeout_s:g} s")

    monkeypatch.setattr(engine_pool, "gather", gather)
    replacer = FakeReplacer(1, new=CalledRole)
    pool = EnginePool([CalledRole("a"), CalledRole("b")], [1, 1], replacer=replacer)  # type: ignore[list-item, arg-type]
    pool.release_memory()
    assert [role.name for role in pool.roles] == ["a*", "b"]


def test_an_engine_that_dies_on_its_way_to_sleep_is_replaced_by_one_that_sleeps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    called: list[tuple[str, str]] = []

    def gather(roles: list[FakeRole], names: list[str], method: str, *limits: object) -> None:
        called.append((roles[0].name, method))
        if (names, method) == (["a"], "sleep"):
            raise death()

    monkeypatch.setattr(engine_pool, "gather", gather)
    pool = EnginePool([CalledRole("a")], [1], replacer=FakeReplacer(1, new=CalledRole))  # type: ignore[list-item, arg-type]
    pool.wake()
    assert not called, "awake it is already"
    pool.sleep()
    pool.sleep()
    pool.wake()
    assert called == [("a", "sleep"), ("a*", "sleep"), ("a*", "wake")]


async def test_a_replacement_that_fails_for_good_fails_those_who_wait_for_it() -> None:
    def start() -> None:
        raise ValueError("no such model any more")

    role = FakeRole("a")
    pool = EnginePool([role], [1], replacer=FakeReplacer(3, start=start))  # type: ignore[list-item, arg-type]
    task = asyncio.create_task(pool.generate([1], SAMPLING, 0))
    await asyncio.sleep(0)
    role.calls[0].set_exception(death())
    with pytest.raises(ValueError, match="no such model"):
        await task


async def test_an_error_of_a_living_engine_is_no_reason_to_replace_it() -> None:
    role, replacer = FakeRole("a"), FakeReplacer(3)
    pool = EnginePool([role], [1], replacer=replacer)  # type: ignore[list-item, arg-type]
    task = asyncio.create_task(pool.generate([1], SAMPLING, 0))
    await asyncio.sleep(0)
    role.calls[0].set_exception(RoleError("a failed in generate: ValueError: too long"))
    with pytest.raises(RoleError, match="too long"):
        await task
    assert replacer.budget == 3
