"""Many coroutines at once."""

import asyncio

import pytest

from zs_nemo.search.all_or_none import all_or_none


def test_results_come_in_the_order_of_the_jobs() -> None:
    async def after(pause_s: float) -> float:
        await asyncio.sleep(pause_s)
        return pause_s

    assert asyncio.run(all_or_none(after(each) for each in (0.02, 0.0, 0.01))) == [0.02, 0.0, 0.01]


def test_the_first_failure_is_raised_as_it_was_when_the_others_have_ended() -> None:
    ended = []

    async def other() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.append(True)

    async def failing() -> None:
        try:
            raise OSError("the disk")
        except OSError:
            # Without "from": what it came from stands in its context alone.
            raise RuntimeError("the engine")  # noqa: B904

    with pytest.raises(RuntimeError, match="the engine") as raised:
        asyncio.run(all_or_none(job() for job in (other, failing, other)))
    assert isinstance(raised.value.__context__, OSError) and ended == [True, True]
