import asyncio
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from zs_nemo.generation import inprocess_llm
from zs_nemo.generation.inprocess_llm import InProcessLlm


class EndlessEngine:
    """Has one request that never ends; a pass lasts until it is let go."""

    model_config = None

    def __init__(self) -> None:
        self.in_pass, self.let_go = threading.Event(), threading.Event()
        self.engine_core = SimpleNamespace(shutdown=lambda: None)
        self.aborted: list[str] = []

    def add_request(self, request_id: str, prompt: Any, params: Any) -> None:
        pass

    def abort_request(self, request_ids: list[str]) -> None:
        self.aborted += request_ids

    def has_unfinished_requests(self) -> bool:
        return not self.aborted

    def step(self) -> list[Any]:
        self.in_pass.set()
        assert self.let_go.wait(5)
        return []


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> EndlessEngine:
    engine = EndlessEngine()
    monkeypatch.setattr(inprocess_llm, "_start", lambda engine_args: engine)
    return engine


async def ask(llm: InProcessLlm, engine: EndlessEngine) -> asyncio.Task[None]:
    async def read() -> None:
        async for _ in llm.generate("prompt", None, "request"):
            pass

    task = asyncio.create_task(read())
    await asyncio.to_thread(engine.in_pass.wait, 5)
    return task


async def given_up(task: asyncio.Task[None]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.asyncio
async def test_an_engine_that_is_ended_in_the_middle_of_a_pass_has_not_failed(engine: EndlessEngine) -> None:
    llm = InProcessLlm(None)
    task = await ask(llm, engine)
    llm.shutdown(timeout=0)
    engine.let_go.set()
    llm._thread.shutdown(wait=True)
    assert not llm.errored
    await given_up(task)


@pytest.mark.asyncio
async def test_a_request_that_is_given_up_is_ended_between_two_passes(engine: EndlessEngine) -> None:
    llm = InProcessLlm(None)
    await given_up(await ask(llm, engine))
    assert engine.aborted == []
    engine.let_go.set()
    llm.shutdown(timeout=5)
    llm._thread.shutdown(wait=True)
    assert engine.aborted == ["request"] and not llm.errored
