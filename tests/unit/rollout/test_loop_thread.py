"""An event loop that goes on while its caller computes."""

import asyncio
import threading
import time

import pytest

from zs_nemo.rollout.loop_thread import LoopThread


async def identify() -> int:
    return threading.get_ident()


def test_what_was_begun_goes_on_between_two_calls() -> None:
    loop, ticks = LoopThread(), []

    async def tick() -> None:
        while True:
            ticks.append(threading.get_ident())
            await asyncio.sleep(0.001)

    async def begin() -> "asyncio.Task[None]":
        return asyncio.create_task(tick())

    ticking = loop.run(begin())
    seen = len(ticks)
    while len(ticks) < seen + 3:
        time.sleep(0.001)
    assert set(ticks) == {loop.run(identify())} != {threading.get_ident()}
    loop.close()
    assert ticking.cancelled()


def test_what_is_raised_there_is_raised_here() -> None:
    async def fail() -> None:
        raise ConnectionError("no engine")

    loop = LoopThread()
    with pytest.raises(ConnectionError, match="no engine"):
        loop.run(fail())
    loop.close()
    loop.close()


def test_an_interrupt_of_the_waiting_cancels_what_was_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    loop, ended = LoopThread(), threading.Event()

    async def wait_for_ever() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    class Interrupted:
        def __init__(self, future: object) -> None:
            self._future = future

        def result(self) -> None:
            time.sleep(0.01)
            raise KeyboardInterrupt

        def __getattr__(self, name: str) -> object:
            return getattr(self._future, name)

    submit = asyncio.run_coroutine_threadsafe
    monkeypatch.setattr(asyncio, "run_coroutine_threadsafe", lambda *given: Interrupted(submit(*given)))
    with pytest.raises(KeyboardInterrupt):
        loop.run(wait_for_ever())
    assert ended.wait(5)
    loop.close()
