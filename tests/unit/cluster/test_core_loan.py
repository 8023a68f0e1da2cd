import asyncio
from typing import Any

import pytest

from tests.unit.cluster.test_engine_pool import SAMPLING, FakeRole
from zs_nemo.cluster.core_loan import CoreLoan
from zs_nemo.cluster.engine_pool import EnginePool


class ThreadedRole(FakeRole):
    """Keeps a list, shared with others, of what it was told and asked."""

    def __init__(self, name: str, log: list[Any]) -> None:
        super().__init__(name)
        self._log = log

    def tell(self, method: str, *arguments: Any) -> None:
        self._log.append((self.name, method, *arguments))

    async def call(self, method: str, *arguments: Any) -> Any:
        self._log.append((self.name, method))
        return await super().call(method, *arguments)


@pytest.fixture
def log() -> list[Any]:
    return []


@pytest.fixture
def pools(log: list[Any], monkeypatch: pytest.MonkeyPatch) -> list[EnginePool]:
    """Return the policy's pool and the simulator's; calls that are waited for are kept in the log as well."""
    made = [EnginePool([ThreadedRole(name, log)], [1]) for name in ("policy", "simulator")]  # type: ignore[list-item]
    for pool in made:
        name = pool.roles[0].name
        monkeypatch.setattr(pool, "_call_all", lambda *call, name=name: log.append((name, "all", *call)))
    return made


def take(log: list[Any]) -> list[Any]:
    taken = log.copy()
    log.clear()
    return taken


async def ask(pool: EnginePool) -> "asyncio.Task[Any]":
    task = asyncio.create_task(pool.generate([1], SAMPLING, 0))
    await asyncio.sleep(0)
    return task


async def answer(pool: EnginePool, task: "asyncio.Task[Any]") -> None:
    pool.roles[0].answer()  # type: ignore[attr-defined]
    await task


async def test_who_is_busy_alone_has_all_cores_and_both_share_them(pools: list[EnginePool], log: list[Any]) -> None:
    policy, simulator = pools
    with CoreLoan({policy: 4, simulator: 3}, shared=2):
        assert take(log) == [], "nobody computes yet"
        episode = await ask(policy)
        assert take(log) == [("policy", "set_threads", 4), ("policy", "generate")]
        other_episode = await ask(policy)
        assert take(log) == [("policy", "generate")]
        search = await ask(simulator)
        both = [("policy", "set_threads", 2), ("simulator", "set_threads", 2)]
        assert take(log) == [*both, ("simulator", "generate")], "shared before the second one begins"
        await answer(policy, episode)
        assert take(log) == []
        await answer(policy, other_episode)
        assert take(log) == [("simulator", "set_threads", 3)]
        await answer(simulator, search)
        episode = await ask(policy)
        assert take(log) == [("policy", "set_threads", 4), ("policy", "generate")]
        await answer(policy, episode)
    assert take(log) == [("policy", "all", "set_threads", 2), ("simulator", "all", "set_threads", 2)]
    await answer(policy, await ask(policy))
    assert take(log) == [("policy", "generate")], "no loan outside"


async def test_a_request_that_fails_gives_the_cores_back(pools: list[EnginePool], log: list[Any]) -> None:
    policy, simulator = pools
    with CoreLoan({policy: 4, simulator: 4}, shared=2):
        episode, search = await ask(policy), await ask(simulator)
        take(log)
        search.cancel()
        await asyncio.wait([search])
        assert take(log) == [("policy", "set_threads", 4)]
        await answer(policy, episode)


def test_after_an_error_nothing_is_set_back(pools: list[EnginePool], log: list[Any]) -> None:
    with pytest.raises(RuntimeError, match="the engine died"), CoreLoan({pools[0]: 4}, shared=2):
        raise RuntimeError("the engine died")
    assert take(log) == []
    assert pools[0].on_turn is None
