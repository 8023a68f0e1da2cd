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


def test_a_caller_who_is_cancelled_while_the_others_end_is_cancelled() -> None:
    ended = []

    async def failing() -> None:
        raise OSError("the disk")

    async def main() -> None:
        ending, may_end = asyncio.Event(), asyncio.Event()

        async def other() -> None:
            try:
                await asyncio.sleep(60)
            finally:
                ending.set()
                await may_end.wait()
                ended.append(True)

        caller = asyncio.ensure_future(all_or_none([other(), failing()]))
        await ending.wait()
        caller.cancel()
        await asyncio.sleep(0)
        may_end.set()
        with pytest.raises(asyncio.CancelledError):
            await caller

    asyncio.run(main())
    assert ended == [True]


def test_after_a_failure_the_deadline_of_the_caller_still_counts() -> None:
    async def failing() -> None:
        raise OSError("the disk")

    async def main() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                with pytest.raises(OSError, match="the disk"):
                    await all_or_none([failing(), asyncio.sleep(60)])
                await asyncio.sleep(60)

    asyncio.run(main())
