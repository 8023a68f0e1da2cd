import asyncio

import pytest

from zs_nemo.generation.weight_gate import WeightGate


async def test_an_update_waits_for_requests_under_way_and_holds_back_new_ones() -> None:
    gate, order = WeightGate(), []
    finish = asyncio.Event()

    async def request(name: str, wait: bool) -> None:
        async with gate.request() as version:
            if wait:
                await finish.wait()
            order.append((name, version))

    async def update() -> None:
        async with gate.update(7):
            order.append(("update", gate.version))

    early = [asyncio.create_task(request(f"early-{i}", True)) for i in range(2)]
    await asyncio.sleep(0)
    changing = asyncio.create_task(update())
    await asyncio.sleep(0)
    late = asyncio.create_task(request("late", False))
    for _ in range(5):
        await asyncio.sleep(0)
    assert order == []
    finish.set()
    await asyncio.wait_for(asyncio.gather(*early, changing, late), 1)
    assert order == [("early-0", 0), ("early-1", 0), ("update", 0), ("late", 7)]


async def test_a_failed_update_closes_the_gate_until_one_succeeds() -> None:
    gate = WeightGate()
    with pytest.raises(OSError, match="disk"):
        async with gate.update(3):
            raise OSError("disk")
    with pytest.raises(RuntimeError, match="weights of version 3 could not be loaded"):
        async with gate.request():
            pass
    async with gate.update(4):
        pass
    async with gate.request() as version:
        assert version == 4


async def test_an_engine_that_could_not_fall_asleep_says_so_and_not_that_its_weights_are_missing() -> None:
    gate = WeightGate()
    async with gate.update(3):
        pass
    with pytest.raises(OSError, match="host memory"):
        async with gate.alone("the engine could not be sent to sleep"):
            raise OSError("host memory")
    with pytest.raises(RuntimeError, match=r"^the engine could not be sent to sleep \(OSError: host memory\).*nothing"):
        async with gate.request():
            pass


async def test_sleep_does_not_open_a_gate_that_a_failed_load_has_closed() -> None:
    gate = WeightGate()
    with pytest.raises(OSError, match="disk"):
        async with gate.update(3):
            raise OSError("disk")
    async with gate.alone("the engine could not be sent to sleep"):
        pass
    with pytest.raises(RuntimeError, match="weights of version 3 could not be loaded"):
        async with gate.request():
            pass


async def test_a_cancelled_request_is_counted_out() -> None:
    gate = WeightGate()

    async def endless() -> None:
        async with gate.request():
            await asyncio.sleep(60)

    task = asyncio.create_task(endless())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    async def update() -> None:
        async with gate.update(1):
            pass

    await asyncio.wait_for(update(), 1)
    assert gate.version == 1


async def test_two_updates_come_one_after_the_other() -> None:
    gate, inside = WeightGate(), 0

    async def update(version: int) -> None:
        nonlocal inside
        async with gate.update(version):
            inside += 1
            assert inside == 1
            await asyncio.sleep(0.01)
            inside -= 1

    await asyncio.gather(*[update(version) for version in range(1, 4)])
    assert gate.version == 3
